//! The program in the pod VM.

fn main() {}
