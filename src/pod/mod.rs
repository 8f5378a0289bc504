//! The life of one pod.

pub mod phase;
pub mod record;
#[cfg(test)]
pub(crate) mod samples;
pub mod world;
