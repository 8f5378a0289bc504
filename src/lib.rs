//! The daemon `peerpodd` as a library, so that its parts can be tested and put together.

pub mod config;
pub mod hypervisor;
pub mod pki;
pub mod plan;
pub mod pod;
pub mod pods;
pub mod proto;
pub mod relay;
pub mod request;
pub mod shutdown;
