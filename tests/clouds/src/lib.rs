//! The clouds' doubles: servers under `double/`, each of which behaves like one cloud's API as far as
//! its published model says, refuses what that model refuses, and counts what it is asked.
//!
//! ```text
//!   test ── conformance rows ──▶ provider ── HTTP ──▶ double (python, its own process)
//!     └──── CloudDouble ──────── faults, questions ──────▶ /_double/…
//! ```

mod double;
mod server;

pub use double::{CloudDouble, INSTALLATION};
pub use server::{Called, Server};
