//! Everything that runs between the worker node and the pod VM, both ends.

#[cfg(feature = "crash-points")]
pub mod crash;
pub mod link;
pub mod network;
pub mod wipe;

/// What the kernel lets a process do; both ends give up what they do not need.
pub use peerpod_netlink::privilege;
