//! The clouds' doubles: servers under `double/`, each of which behaves like one cloud's API as far as
//! its published model says, refuses what that model refuses, and counts what it is asked.
//!
//! ```text
//!   test ── conformance rows ──▶ provider ── HTTP ──▶ double (python, its own process)
//!     └──── CloudDouble ──────── faults, questions ──────▶ /_double/…
//! ```
//! Whole pods over a double: `pods`.

mod double;
#[cfg(feature = "libvirt")]
mod libvirtd;
#[cfg(feature = "pods")]
pub mod pods;
mod server;

pub use double::{CloudDouble, INSTALLATION, delete, keep_all};
#[cfg(feature = "libvirt")]
pub use libvirtd::{Leases, Libvirtd};
pub use server::{Called, Server, Tagged};
