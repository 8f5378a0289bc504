//! What a call can fail with, and the one place that turns it into a ttrpc status.

use peerpod_tunnel::link::frame::Response;

/// Longest message that goes to a shim, in bytes; it ends up in an event of the pod.
const MESSAGE_MAX: usize = 4096;

/// Why a call failed, by the only distinction a caller can act upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The request can never work.
    Invalid,
    /// No such sandbox.
    NotFound,
    /// A quota or the cloud's capacity, or a limit of the node.
    Exhausted,
    /// The caller's time, or the configured one, is over.
    Deadline,
    /// Stopped on the way.
    Cancelled,
    /// Something needed does not answer; later it may.
    Unavailable,
    /// Not in this state of things.
    Precondition,
    /// Nothing that is served here.
    Unimplemented,
    /// Everything else.
    Internal,
}

impl FailureKind {
    /// The google.rpc code; the one place that knows them.
    pub fn code(self) -> i32 {
        match self {
            FailureKind::Cancelled => 1,
            FailureKind::Invalid => 3,
            FailureKind::Deadline => 4,
            FailureKind::NotFound => 5,
            FailureKind::Exhausted => 8,
            FailureKind::Precondition => 9,
            FailureKind::Unimplemented => 12,
            FailureKind::Internal => 13,
            FailureKind::Unavailable => 14,
        }
    }
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// For people; becomes the pod's event. Holds no secret.
    pub message: String,
}

impl Failure {
    /// A failure in plain words.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// A failure that says what an error and its causes say, each once.
    pub fn caused_by(kind: FailureKind, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { kind, message: chain(error) }
    }

    /// As a ttrpc answer.
    pub(super) fn response(&self) -> Response {
        let end = self.message.floor_char_boundary(MESSAGE_MAX);
        Response::error(self.kind.code(), &self.message[..end])
    }
}

/// An error and its causes in one line. A cause whose words already stand at the end of what was
/// said is not said again.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !said.ends_with(&words) {
            said.push_str(": ");
            said.push_str(&words);
        }
        cause = error.source();
    }
    said
}
