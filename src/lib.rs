//! The daemon `peerpodd` as a library, so that its parts can be tested and put together.

pub mod admin;
pub mod app;
mod bundle;
pub mod cli;
pub mod cloud;
pub mod config;
pub mod crash;
mod file;
pub mod hypervisor;
pub mod labels;
pub mod metrics;
mod next;
pub mod pki;
pub mod plan;
pub mod pod;
pub mod pods;
pub mod privilege;
pub mod proto;
pub mod relay;
pub mod request;
pub mod run;
pub mod shutdown;
pub mod status;
pub mod telemetry;
mod text;
pub mod volumes;
