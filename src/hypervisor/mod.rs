//! The ttrpc edge: what kata shims call, on the node's own socket behind the relay.
//!
//! ```text
//!   relay ─unix─▶ serve ─ one task a connection ─ one handler a request ─▶ Sandboxes (pods)
//!                              ▲                         │
//!                              └── responses, any order ─┘   Failure ─codes─▶ ttrpc status
//! ```

mod failure;

use std::time::Duration;

use async_trait::async_trait;

pub use failure::{Failure, FailureKind, chain};

use crate::proto::hypervisor::CreateVmRequest;

/// What stands behind the socket. Every call is idempotent, because shims repeat them.
///
/// A call's future is dropped when its caller has gone: its connection closed, or its deadline
/// passed. Work that must not end with it (deletion, clean-up) belongs to a task of the pod's own.
#[async_trait]
pub trait Sandboxes: Send + Sync + 'static {
    /// Prepares a sandbox and gives the path of its agent socket.
    async fn create(&self, request: CreateVmRequest) -> Result<String, Failure>;

    /// Starts its VM; returns when the agent answers. `deadline` is the time the caller has left,
    /// `None` is without end.
    async fn start(&self, id: &str, deadline: Option<Duration>) -> Result<(), Failure>;

    /// Ends it. OK for ids that are unknown or were stopped before.
    async fn stop(&self, id: &str) -> Result<(), Failure>;

    /// The cloud's id of a pod's VM. With `wait`, waits until it is known or the sandbox has gone.
    async fn vm_id(&self, namespace: &str, pod: &str, wait: bool) -> Result<String, Failure>;
}
