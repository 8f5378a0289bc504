//! The two kata shims, as a library: what they call, in which order, over which connections, with
//! which deadlines, and what they do when something goes wrong (kata.md 2 to 7 and 14).
//!
//! ```text
//!            GoLike                                RsLike
//!   hypervisor  one connection per call            one connection for life, streams 1, 3, 5 …
//!   agent       one connection                     two, the second never speaks
//!   start       Check, CreateSandbox, …            CreateSandbox, …
//!   alive       Check every 5 s, 30 s each         Check every 30 s, 90 s each; EOF at once
//!   stop        DestroySandbox, StopVM             StopVM three times at once, 1 s each
//! ```

mod agent;
mod annotations;
mod exec;
mod health;
mod hypervisor;
mod pod;
pub mod rpc;

use std::time::Duration;

pub use agent::AgentClient;
pub use annotations::{KEYS, annotations};
pub use exec::{Exec, Output};
pub use health::Health;
pub use hypervisor::Hypervisor;
pub use pod::{Container, PodSpec, Shim, ShimError, Took};

/// Which shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The shim of `src/runtime`, in Go.
    GoLike,
    /// The shim of `src/runtime-rs`, in Rust.
    RsLike,
}

impl Profile {
    /// Go-like and Rs-like in turn.
    pub fn alternately(number: usize) -> Self {
        if number.is_multiple_of(2) { Self::GoLike } else { Self::RsLike }
    }

    /// Deadline of a call to the daemon.
    pub fn hypervisor_deadline(self, method: &str) -> Option<Duration> {
        match (self, method) {
            (Self::GoLike, "StartVM") => Some(Duration::from_secs(600)),
            (Self::RsLike, "StartVM") => Some(Duration::from_secs(10_000)),
            (Self::RsLike, "StopVM") => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Deadline of a call to the agent.
    pub fn agent_deadline(self, method: &str) -> Option<Duration> {
        let seconds = match (self, method) {
            (_, "WaitProcess" | "GetOOMEvent" | "ReadStdout" | "ReadStderr") => return None,
            (Self::RsLike, "WriteStdin") => return None,
            (Self::GoLike, "Check") => 30,
            (Self::GoLike, "CreateSandbox" | "SetPolicy" | "GetGuestDetails") => 300,
            (Self::GoLike, _) => 60,
            (Self::RsLike, "Check") => 90,
            (Self::RsLike, _) => 30,
        };
        Some(Duration::from_secs(seconds))
    }

    /// Time between two checks of the agent.
    pub fn check_period(self) -> Duration {
        Duration::from_secs(match self {
            Self::GoLike => 5,
            Self::RsLike => 30,
        })
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::GoLike => "go-like",
            Self::RsLike => "rs-like",
        })
    }
}
