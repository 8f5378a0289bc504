//! The whole daemon on a simulated world; see the README beside.

mod caller;
mod chaos;
mod check;
mod cloud;
mod core;
mod deaths;
mod dice;
mod disk;
mod guest;
mod kernel;
mod machines;
mod parts;
mod process;
mod provider;
mod relay;
mod run;
mod shrink;
mod site;

pub use crate::core::Breach;
pub use deaths::Lives;
pub use dice::{Choice, Fault};
pub use run::{Outcome, Plan, run};
pub use shrink::{command, shrink};
