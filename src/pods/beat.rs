//! Has the relay ask all VMs that it can ask on the links it has, and tells the pods: one question for
//! all, in place of a connection of our own to each.
//!
//! ```text
//!   every period ─▶ relay.beat ─┬ alive  ─▶ the pod need not ask for a while
//!                               ├ silent ─▶ the pod asks at once, on a connection of its own
//!                               └ neither, an error, an older relay ─▶ the pod asks as if nobody else did
//! ```
//!
//! So what the relay says can only ever spare a question, or hasten one; it never ends a pod.

use std::sync::Arc;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Pods;
use crate::pod::{Command, period};
use crate::relay::api::Beat;

/// Asks until the process ends.
pub(super) async fn run(pods: Arc<Pods>) {
    let mut ticks = interval(period(&pods.common.options));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (ask, shutdown) = (ask(&pods, &mut ticks), &pods.common.shutdown);
    shutdown.run_until_cancelled(ask).await;
}

async fn ask(pods: &Pods, ticks: &mut tokio::time::Interval) {
    let mut attached = pods.attached.subscribe();
    loop {
        ticks.tick().await;
        // Its sender lives as long as the pods.
        let _ = attached.wait_for(Option::is_some).await;
        let begun = Instant::now();
        match pods.common.world.relay.beat(period(&pods.common.options)).await {
            Ok(Beat { alive, silent }) => {
                tell(pods, &alive, || Command::Alive(begun));
                tell(pods, &silent, || Command::Ask);
            }
            Err(error) => tracing::debug!(%error, "the relay does not say who lives"),
        }
    }
}

fn tell(pods: &Pods, sandboxes: &[String], command: impl Fn() -> Command) {
    for sandbox in sandboxes {
        if let Some(pod) = pods.registry.get(sandbox) {
            pod.tell(command());
        }
    }
}
