//! The boot contract between the daemon and the program in the pod VM: which files travel, in which
//! text form, and what may stand in them. Both sides use this one place.
//!
//! ```text
//!   daemon: Apf, auth.json, initdata ─▶ cloud_config::render ─▶ user data of the VM
//!   VM:     user data ─▶ cloud_config::parse ─▶ files under /run/peerpod ─▶ Apf::parse ─▶ network, TLS
//! ```

pub mod apf;
pub mod cloud_config;
pub mod cloud_volumes;
pub mod contract;
pub mod edit;
pub mod initdata;
