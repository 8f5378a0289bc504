//! Pods whose shim has gone without StopVM: after a grace period they are over.
//!
//! ```text
//!   shim gone, or time ─▶ list the relay ─▶ running, and no shim's connection for the grace ─▶ over
//! ```
//!
//! The other way round, too: a pod that the relay holds nothing of, since it was restarted and did not
//! say so when it was asked, gets its socket back.
//!
//! Nobody is taken for gone before the relay has been attached for the grace period, so never because
//! this process or the relay was restarted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::Pods;
use crate::crash::reach;
use crate::hypervisor::FailureKind;
use crate::pod::phase::Phase;
use crate::pod::{self, Command, End, Pod};
use crate::relay::api::Held;

/// Looks in the grace period, besides those that a vanished shim asks for.
const LOOKS: u32 = 4;
/// The relay's clock and ours start at different moments.
const SLACK: Duration = Duration::from_millis(50);

/// Looks from time to time, and the grace period after each vanished shim.
pub(super) async fn run(pods: Arc<Pods>, mut shims_gone: mpsc::UnboundedReceiver<()>) {
    let grace = pods.common.options.orphan_grace;
    let mut due: VecDeque<Instant> = VecDeque::new();
    loop {
        let usual = Instant::now() + grace / LOOKS;
        let next = due.front().map_or(usual, |d| (*d).min(usual));
        tokio::select! {
            biased;
            () = pods.common.shutdown.cancelled() => return,
            gone = shims_gone.recv() => match gone {
                Some(()) => due.push_back(Instant::now() + grace + SLACK),
                None => return,
            },
            () = sleep_until(next) => {
                let now = Instant::now();
                due.retain(|d| *d > now);
                look(&pods, grace).await;
            }
        }
    }
}

async fn look(pods: &Pods, grace: Duration) {
    let attached = *pods.attached.borrow();
    if attached.is_none_or(|a| a.since.elapsed() < grace) {
        return;
    }
    // As they are before the list: what is opened meanwhile is not on it.
    let before: Vec<Pod> = pods.registry.all().into_iter().filter(has_socket).collect();
    let held = match pods.common.world.relay.list().await {
        Ok(held) => held,
        Err(error) => return tracing::warn!(%error, "cannot look for vanished shims"),
    };
    for pod in before {
        if held.iter().all(|h| h.sandbox != pod.whose.sandbox) && has_socket(&pod) {
            pod.tell(Command::Held(pod::Held::Nothing));
        }
    }
    for held in held.iter().filter(|h| is_left(h, grace)) {
        match pods.registry.get(&held.sandbox) {
            Some(pod) => {
                let record = pod.record();
                if record.is_some_and(|r| matches!(r.phase, Phase::Running { .. })) {
                    let reason = format!("no shim has been connected for {} s", grace.as_secs());
                    pod.tell(Command::Over(End::new("shim", FailureKind::Cancelled, reason)));
                }
            }
            None => close(pods, &held.sandbox).await,
        }
    }
}

/// Whether the relay should hold a socket of it.
fn has_socket(pod: &Pod) -> bool {
    pod.record().is_some_and(|r| matches!(r.phase, Phase::Prepared | Phase::Running { .. }))
}

/// Nobody has been connected for the whole grace period.
fn is_left(held: &Held, grace: Duration) -> bool {
    held.agent_connections == 0
        && held.hypervisor_connections == 0
        && u128::from(held.idle_ms) >= grace.as_millis()
}

/// A socket that no record knows of, and that nobody uses.
async fn close(pods: &Pods, sandbox: &str) {
    if pods.broken().iter().any(|b| b.newer && b.sandbox == sandbox) {
        return;
    }
    let world = &pods.common.world;
    reach!(world, OrphanCloseBefore);
    let closed = world.relay.close(sandbox, "no such sandbox").await;
    reach!(world, OrphanCloseAfter);
    tracing::info!(sandbox, ?closed, "closed a socket that belongs to no sandbox");
}
