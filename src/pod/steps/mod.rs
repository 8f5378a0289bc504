//! Effects of a pod's life, each with its reverse in [`stop`]: what a step may have done is read from
//! the record, which says so before the step begins.
//!
//! ```text
//!   create   inspect ─ VXLAN id ─ plan ─ save(Prepared) ─ open
//!   launch   save(Launching n) ─ VM n ─┬ save(address) ─┐
//!                                      ├ tunnel ────────┼─ connect ─ save(Running)
//!                                      └ agent answers ─┘ (first, files that had no room before)
//!   stop     save(Deleting) ─┬ close ──┐
//!                            └ tunnel ─┴─▶ reply ─ VM gone ─ record gone
//! ```

pub(crate) mod create;
mod error;
pub(crate) mod launch;
mod machine;
mod mortem;
pub(crate) mod resume;
pub(crate) mod stop;

pub(crate) use error::{StepError, Whose};
pub(crate) use machine::Slot;
