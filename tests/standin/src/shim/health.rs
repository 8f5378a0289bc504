//! How a shim finds out that its VM has died, and what it does then.
//!
//! ```text
//!   go-like   a failed Check (every 5 s)   → StopVM, Delete
//!   rs-like   EOF on the agent connection  → StopVM three times, exit
//!             a failed Check (every 30 s)  → exit, no StopVM
//! ```

use std::sync::Arc;

use tokio::sync::watch;

use super::{AgentClient, Hypervisor, Profile};

/// What the shim thinks of its sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Alive,
    /// It does not; the shim has torn down what its profile tears down.
    Dead {
        /// Why.
        reason: String,
        /// Whether StopVM was sent.
        stop_sent: bool,
    },
}

/// Watches until the agent is dead.
pub(super) async fn watch(
    profile: Profile,
    sandbox: String,
    agent: AgentClient,
    hypervisor: Arc<Hypervisor>,
    health: watch::Sender<Health>,
) {
    let (reason, eof) = loop {
        tokio::select! {
            () = agent.rpc().closed(), if profile == Profile::RsLike => {
                break ("agent connection closed".to_owned(), true);
            }
            () = tokio::time::sleep(profile.check_period()) => {}
        }
        match agent.check().await {
            Ok(true) => {}
            Ok(false) => break ("agent does not serve".to_owned(), false),
            Err(error) => break (error.to_string(), agent.rpc().is_closed()),
        }
    };
    let stop_sent = profile == Profile::GoLike || eof;
    if stop_sent {
        // Both shims go on as if it had worked.
        let _ = hypervisor.stop_vm_as_shim(&sandbox).await;
    }
    if profile == Profile::RsLike {
        hypervisor.close().await;
    }
    health.send_replace(Health::Dead { reason, stop_sent });
}
