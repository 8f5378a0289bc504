//! What a step fails with, and the one place where that becomes a [`Failure`].

use peerpod_providers::{Error as ProviderError, Kind};
use peerpod_tunnel::network::{MtuError, VniError};

use crate::hypervisor::{Failure, FailureKind, chain};
use crate::pod::phase::Refusal;
use crate::pod::record::{Record, RecordError};
use crate::pod::world::{NetworkError, Unready};
use crate::relay::api::ControlError;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// Reading the pod's namespace.
    #[error("reading the pod's network: {0}")]
    Inspect(#[source] NetworkError),
    /// Asking the kernel for ids in use.
    #[error("looking for VXLAN ids in use: {0}")]
    Kernel(#[source] NetworkError),
    /// Finding an id.
    #[error("taking a VXLAN id: {0}")]
    Vni(#[source] VniError),
    /// Deciding what to make; the planner has said what kind of failure it is.
    #[error("planning its VM: {0}")]
    Plan(#[source] Failure),
    /// Writing the record.
    #[error("keeping its record: {0}")]
    Save(#[source] RecordError),
    /// Opening the agent socket.
    #[error("opening its agent socket: {0}")]
    Open(#[source] ControlError),
    /// Making the VM.
    #[error("creating its VM: {place}: {source}{}", repeated(*.attempts))]
    Create {
        /// Which candidate.
        place: String,
        /// Calls made there.
        attempts: u32,
        /// The last failure.
        source: ProviderError,
    },
    /// No candidate had room.
    #[error("creating its VM: no room at any of {} places: {}", tried.len(), tried.join("; "))]
    NoRoom {
        /// What was wrong at each.
        tried: Vec<String>,
    },
    /// The provider says it has a VM, but no address.
    #[error("creating its VM: it came without an address")]
    NoAddress,
    /// The plan left nothing to try.
    #[error("creating its VM: no place is left to try")]
    NoCandidate,
    /// The tunnel has an interface of its own on the worker and needs one on the VM.
    #[error(
        "its VM has one address; a tunnel of its own interface (host-interface) needs a second"
    )]
    OneAddress,
    /// The underlay is too narrow.
    #[error("tunnel: {0}")]
    Mtu(#[source] MtuError),
    /// Making the tunnel.
    #[error("tunnel: {0}")]
    Attach(#[source] NetworkError),
    /// Making the link.
    #[error("connecting the agent link: {0}")]
    Connect(#[source] ControlError),
    /// The VM does not take what had no room in its user data.
    #[error("sending its VM what had no room in the user data: {0}")]
    Deliver(String),
    /// The VM was not ready in time.
    #[error("waiting for its VM: {0}")]
    Unready(#[source] Unready),
    /// The VM has powered off meanwhile.
    #[error("waiting for its VM: {0}")]
    Stopped(#[source] Unready),
    /// A transition that the table does not have.
    #[error("{0}")]
    Phase(#[from] Refusal),
    /// The process ends.
    #[error("the daemon is ending")]
    Ended,
}

/// Without the words that all of them begin with.
fn chain_of_create(error: &StepError) -> String {
    match error {
        StepError::Create { place, source, .. } => format!("{place}: {}", chain(source)),
        other => chain(other),
    }
}

fn repeated(attempts: u32) -> String {
    if attempts > 1 { format!(" (after {attempts} attempts)") } else { String::new() }
}

impl StepError {
    /// Of the places that had no room, in the order in which they were tried.
    pub(super) fn no_room(mut tried: Vec<Self>) -> Self {
        if tried.len() > 1 {
            return Self::NoRoom { tried: tried.iter().map(chain_of_create).collect() };
        }
        tried.pop().unwrap_or(Self::NoCandidate)
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::Inspect(NetworkError::Inspect(_)) => FailureKind::Invalid,
            Self::Plan(failure) => failure.kind,
            Self::Save(e) if e.is_full() => FailureKind::Exhausted,
            Self::Vni(VniError::Exhausted(_)) => FailureKind::Exhausted,
            Self::Create { source, .. } => provider_kind(source.kind),
            Self::NoCandidate | Self::NoRoom { .. } => FailureKind::Exhausted,
            Self::OneAddress | Self::Mtu(_) | Self::Phase(_) | Self::Deliver(_) => {
                FailureKind::Precondition
            }
            Self::Open(e) | Self::Connect(e) if e.may_pass() => FailureKind::Unavailable,
            Self::Unready(_) => FailureKind::Deadline,
            Self::Stopped(_) | Self::Ended => FailureKind::Unavailable,
            _ => FailureKind::Internal,
        }
    }

    /// The failure of a request about that sandbox.
    pub(crate) fn failure(&self, whose: &Whose) -> Failure {
        whose.failure(self.kind(), &chain(self))
    }
}

fn provider_kind(kind: Kind) -> FailureKind {
    match kind {
        Kind::Quota | Kind::Capacity | Kind::Throttled(_) => FailureKind::Exhausted,
        Kind::Invalid => FailureKind::Invalid,
        Kind::Denied => FailureKind::Precondition,
        Kind::Unavailable => FailureKind::Unavailable,
        Kind::NotFound | Kind::Other => FailureKind::Internal,
    }
}

/// Sandbox and pod, for messages.
#[derive(Clone, Debug)]
pub(crate) struct Whose {
    /// Sandbox id.
    pub(crate) sandbox: String,
    /// Kubernetes namespace.
    pub(crate) namespace: String,
    /// Pod name.
    pub(crate) pod: String,
}

impl Whose {
    /// A failure that names them.
    pub(crate) fn failure(&self, kind: FailureKind, what: &str) -> Failure {
        Failure::new(kind, format!("{self}: {what}"))
    }
}

impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sandbox {} of pod {}/{}", self.sandbox, self.namespace, self.pod)
    }
}

impl From<&Record> for Whose {
    fn from(record: &Record) -> Self {
        Self {
            sandbox: record.sandbox.clone(),
            namespace: record.pod.namespace.clone(),
            pod: record.pod.name.clone(),
        }
    }
}
