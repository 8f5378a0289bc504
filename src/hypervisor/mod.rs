//! The ttrpc edge: what kata shims call, on the node's own socket behind the relay.
//!
//! ```text
//!   relay ─unix─▶ serve ─ one task a connection ─ one task a request ─▶ Sandboxes (pods)
//!                              ▲                        │
//!                              └── answers, any order ──┘   Failure ─code─▶ ttrpc status
//! ```
//! A caller that goes away (its connection closes) takes its requests along: their futures are
//! dropped. When this process ends, requests stay unanswered and are dropped too, but nobody has
//! gone: the relay sends them again to the successor. So an implementation that hears of its own
//! shutdown takes no drop for a caller's going.

mod call;
mod connection;
mod failure;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpod_tunnel::link::notice::Notices;
use peerpod_tunnel::link::strangers::Crowd;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

pub use failure::{Failure, FailureKind, chain};

use crate::proto::hypervisor::CreateVmRequest;
use crate::shutdown::Tracker;
use connection::Connection;

/// How long accepting pauses when the process has no descriptors or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What stands behind the socket. Every call is idempotent, because shims repeat them.
///
/// A call's future is dropped when its caller has gone: its connection closed, or (for create and
/// vm_id) its deadline passed. Work that must not end with it (deletion, clean-up) belongs to a task
/// of the pod's own. After our own shutdown has begun, a drop says nothing about the caller.
#[async_trait]
pub trait Sandboxes: Send + Sync + 'static {
    /// Prepares a sandbox and gives the path of its agent socket.
    async fn create(&self, request: CreateVmRequest) -> Result<String, Failure>;

    /// Starts its VM; returns when the agent answers. `deadline` is the time the caller has left,
    /// `None` is without end; keeping it is up to the implementation, which can say how far it came.
    async fn start(&self, id: &str, deadline: Option<Duration>) -> Result<(), Failure>;

    /// Ends it. OK for ids that are unknown or were stopped before. Not cut off by the caller's
    /// deadline.
    async fn stop(&self, id: &str) -> Result<(), Failure>;

    /// The cloud's id of a pod's VM. With `wait`, waits until it is known or the sandbox has gone.
    async fn vm_id(&self, namespace: &str, pod: &str, wait: bool) -> Result<String, Failure>;
}

/// What one process of ours takes from its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that have asked something, at a time; a shim has one (Rust) or one a call (Go).
    pub connections: usize,
    /// Those that have asked nothing yet; of more, the oldest is closed.
    pub silent: usize,
    /// Unanswered requests of one connection; a Rust shim has at most four.
    pub requests: usize,
    /// And their bytes, after which another one is refused.
    pub bytes: usize,
    /// How long a frame that has begun may take to arrive, or to be taken by the peer.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2048,
            silent: 256,
            requests: 64,
            bytes: 8 << 20,
            stall: Duration::from_secs(10),
        }
    }
}

/// Serves until `shutdown`; then all connections are closed, their requests unanswered.
pub async fn serve(
    listener: UnixListener,
    sandboxes: Arc<dyn Sandboxes>,
    limits: Limits,
    shutdown: CancellationToken,
    tracker: Tracker,
) {
    let crowd = Crowd::new(limits.silent, limits.connections);
    // Apart, so that who must not be here hides nothing that is said of those who may.
    let (turned_away, notices) = (Notices::new(), Arc::new(Notices::new()));
    for number in 0_u64.. {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                turned_away.say(|| tracing::warn!(%error, "accepting a hypervisor connection"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(reason) = admit(&stream) {
            turned_away.say(|| {
                tracing::warn!(connection = number, reason, "hypervisor connection refused");
            });
            continue;
        }
        let connection = Connection {
            number,
            sandboxes: Arc::clone(&sandboxes),
            limits,
            shutdown: shutdown.clone(),
            tracker: tracker.clone(),
            notices: Arc::clone(&notices),
        };
        let (room, notices) = (crowd.enter(), Arc::clone(&notices));
        tracker.spawn("hypervisor connection", async move {
            let away = room.sent_away();
            tokio::select! {
                () = connection.run(stream, room) => {}
                // Once it has asked something it has its place no more, and nobody can have it.
                () = away => notices.say(|| {
                    tracing::warn!(connection = number, "closed by us: silent, and others came");
                }),
            }
        });
    }
}

/// Only root and our own user may call, whatever the socket's mode.
fn admit(stream: &UnixStream) -> Result<(), &'static str> {
    let uid = stream.peer_cred().map_err(|_| "the kernel does not say who the peer is")?.uid();
    if uid == 0 || uid == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err("the peer is another user")
}

#[cfg(test)]
mod tests;
