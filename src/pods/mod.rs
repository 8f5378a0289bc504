//! All pods of this worker.

mod options;
mod status;

pub use options::Options;
pub use status::PodStatus;
