//! Everything that runs between the worker node and the pod VM, both ends.

pub mod link;
pub mod network;
