//! What the node process may ask of the relay, and what it hears from it: the seam between the two,
//! so that a simulation can stand in for either.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use peerpod_tunnel::link::tls::ClientTls;

pub use crate::proto::relay::{Held, Totals};
pub use peerpod_tunnel::link::session::Interruption;

/// Why the relay did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The relay itself did not answer in time, not even after a second try. Worth repeating.
    #[error("the relay does not answer: {0}")]
    Away(String),
    /// The VM's port cannot be reached: no route, nobody answers in time, or nobody listens there
    /// yet. The text says which. Worth repeating while the VM boots.
    #[error("the VM cannot be reached: {0}")]
    Unreachable(String),
    /// The VM's port answers, but TLS does not come about. Repeating seldom helps.
    #[error("TLS with the VM: {0}")]
    Tls(String),
    /// The relay says no: unknown sandbox, a path outside its directory, a value that cannot be
    /// used. Repeating does not help.
    #[error("the relay refuses: {0}")]
    Refused(String),
}

impl ControlError {
    /// Whether the same call may succeed a little later without anything else having changed.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Unreachable(_))
    }
}

/// What the relay can be asked. All calls may be repeated.
#[async_trait]
pub trait Control: Send + Sync + Debug {
    /// Listens on the agent socket `path`, inside the relay's directory for `sandbox`. Requests of
    /// `edit_methods` ("CreateContainer") are held until [`Control::edited`] answers for them.
    ///
    /// # Errors
    /// `Away`, or `Refused` for a path that cannot be used or is served by somebody else.
    async fn open(
        &self,
        sandbox: &str,
        path: &Path,
        edit_methods: &[String],
    ) -> Result<(), ControlError>;

    /// Makes the link to the forwarder in the VM; returns when one connection stands (with TLS
    /// unless `tls` is `None`). One attempt of at most 3 s. `give_up` bounds how long a break of the
    /// link may last before the shim's connections are closed.
    ///
    /// # Errors
    /// All four.
    async fn connect(
        &self,
        sandbox: &str,
        target: SocketAddr,
        tls: Option<&ClientTls>,
        give_up: Duration,
    ) -> Result<(), ControlError>;

    /// Closes the shim's connections, the link and the socket. Says whether there was anything.
    ///
    /// # Errors
    /// `Away`.
    async fn close(&self, sandbox: &str, reason: &str) -> Result<bool, ControlError>;

    /// All sandboxes the relay holds.
    ///
    /// # Errors
    /// `Away`.
    async fn list(&self) -> Result<Vec<Held>, ControlError>;

    /// Asks the agents of all VMs that can be asked on the link they have, for `within` at most.
    ///
    /// # Errors
    /// `Away`; `Refused` by a relay that cannot.
    async fn beat(&self, within: Duration) -> Result<Beat, ControlError>;

    /// Asks the sandbox's VM to say when its cloud takes it back: [`Event::Interruption`]. VMs with a plain
    /// link and older ones never do.
    ///
    /// # Errors
    /// `Away`; `Refused` for a sandbox that is not open, and by a relay that cannot.
    async fn watch(&self, sandbox: &str) -> Result<(), ControlError>;

    /// Answers [`Event::Edit`]: the request's new payload, or why the shim's call is refused.
    /// A ticket that is no longer waited for is ignored.
    ///
    /// # Errors
    /// `Away`; the relay then asks again after the next [`Event::Attached`].
    async fn edited(&self, ticket: u64, outcome: Result<Bytes, String>)
    -> Result<(), ControlError>;
}

/// A call's message. It does not print: a container's environment may be in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Which VMs have answered the relay. One that is in neither list was not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Sandboxes whose agents have answered.
    pub alive: Vec<String>,
    /// Sandboxes whose agents have not.
    pub silent: Vec<String>,
}

/// What the relay tells. After every `Attached` it repeats what still holds: shims that are gone,
/// links that were given up, edits that wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The connection to the relay stands (again).
    Attached {
        /// Changes when the relay was restarted: it then holds nothing of what was before.
        epoch: u64,
        /// Sandbox and method of every call that shims still wait for, in the order in which they
        /// came to the relay; these requests come to the node's socket after this event, as if sent
        /// anew, those of different shims in any order.
        pending: Vec<(String, String)>,
    },
    /// The connection to the relay broke; it is being made again.
    Lost,
    /// Every connection that a shim held for this sandbox has closed.
    ShimGone {
        /// Whose.
        sandbox: String,
    },
    /// The VM's side of a connection ended, or cannot be made. At most one per sandbox and 100 ms.
    LinkDown {
        /// Whose.
        sandbox: String,
        /// For people.
        reason: String,
        /// The break lasted longer than `give_up`: nothing more is tried for this connection.
        given_up: bool,
    },
    /// A connection to the VM stands again after a `LinkDown`.
    LinkUp {
        /// Whose.
        sandbox: String,
    },
    /// The VM says that its cloud takes it back. Said again after every `Attached`.
    Interruption {
        /// Whose.
        sandbox: String,
        /// The VM's words.
        said: Interruption,
    },
    /// A request waits for [`Control::edited`].
    Edit {
        /// Names the request; unique within an epoch.
        ticket: u64,
        /// Whose.
        sandbox: String,
        /// "CreateContainer", …
        method: String,
        /// The call's message, as the shim encoded it.
        payload: Payload,
    },
}
