//! A kata-agent that really runs processes but isolates nothing: its containers see the root file
//! system it sees itself. What the real one does on the wire, it does too.
//!
//! ```text
//!   agent.sock ─▶ server: one task per connection, one per request ─▶ faults ─▶ service ─▶ answer
//!                                                    record ◀──────────┘          └─ process: pipes
//! ```

mod faults;
mod process;
mod record;
mod sandbox;
mod server;
mod service;

use std::path::PathBuf;

pub use faults::{Effect, Rule};
pub use record::{Call, ContainerSeen, Dump, FileSeen};
pub use server::Agent;

/// How an agent is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Path of the socket.
    pub listen: PathBuf,
    /// File that always holds the newest [`Dump`] as JSON.
    pub record: Option<PathBuf>,
    /// File with a JSON list of [`Rule`]s, read again whenever it has changed.
    pub control: Option<PathBuf>,
    /// Rules from the start.
    pub faults: Vec<Rule>,
    /// The `standin-agent` executable; `None` is the running program itself.
    pub executable: Option<PathBuf>,
}
