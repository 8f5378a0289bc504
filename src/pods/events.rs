//! What the relay tells, passed on to the pods it concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Pods;
use crate::pod::{Command, Held, edit};
use crate::relay::api::{Event, Payload};

/// The relay is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    /// Changes when the relay was restarted.
    pub(super) epoch: u64,
    /// Since when it is.
    pub(super) since: Instant,
}

/// Passes events on until the process ends.
pub(super) async fn run(
    pods: Arc<Pods>,
    mut events: mpsc::Receiver<Event>,
    shims_gone: mpsc::UnboundedSender<()>,
) {
    loop {
        let event = tokio::select! {
            biased;
            () = pods.common.shutdown.cancelled() => return,
            event = events.recv() => event,
        };
        let Some(event) = event else { return };
        match event {
            Event::Attached { epoch, pending } => attached(&pods, epoch, pending).await,
            Event::Lost => {
                tracing::warn!("the relay is away");
                pods.attached.send_replace(None);
            }
            Event::ShimGone { sandbox } => {
                let line = || tracing::info!(sandbox, "its shim has closed all connections");
                say(&pods, &sandbox, line);
                // The task of orphans lives as long as this one.
                let _ = shims_gone.send(());
            }
            Event::LinkDown { sandbox, reason, given_up } => {
                let line = || tracing::warn!(sandbox, reason, given_up, "link down");
                say(&pods, &sandbox, line);
                tell(&pods, &sandbox, Command::Ask);
            }
            Event::LinkUp { sandbox } => {
                say(&pods, &sandbox, || tracing::info!(sandbox, "link up"));
            }
            Event::Interruption { sandbox, said } => {
                tell(&pods, &sandbox, Command::Interrupted(said));
            }
            Event::Edit { ticket, sandbox, method, payload: Payload(payload) } => {
                answer_edit(&pods, ticket, &sandbox, &method, payload);
            }
        }
    }
}

/// A line that a pod's shim or VM has caused.
fn say(pods: &Pods, sandbox: &str, line: impl FnOnce()) {
    match pods.registry.get(sandbox) {
        Some(pod) => pod.notices.say(line),
        None => line(),
    }
}

fn tell(pods: &Pods, sandbox: &str, command: Command) {
    if let Some(pod) = pods.registry.get(sandbox) {
        pod.tell(command);
    }
}

/// Tells every pod whether its StartVM was replayed, and what the relay holds for it.
async fn attached(pods: &Pods, epoch: u64, pending: Vec<(String, String)>) {
    let before = *pods.attached.borrow();
    let restarted = before.is_some_and(|b| b.epoch != epoch);
    tracing::info!(epoch, restarted, pending = pending.len(), "attached to the relay");
    pods.attached.send_replace(Some(Attached { epoch, since: Instant::now() }));
    let calls = |name: &'static str| {
        let named = move |m: &str| m.rsplit('/').next() == Some(name);
        let named = pending.iter().filter(move |(_, method)| named(method));
        named.map(|(sandbox, _)| sandbox.clone())
    };
    pods.replayed.send_replace(Some(calls("CreateVM").collect()));
    let starts: BTreeSet<String> = calls("StartVM").collect();
    for pod in pods.registry.all() {
        let start = starts.contains(&pod.whose.sandbox);
        pod.tell(Command::Replayed { start });
    }
    match pods.common.world.relay.list().await {
        Ok(all) => {
            let held: BTreeMap<_, _> =
                all.into_iter().map(|h| (h.sandbox, !h.target.is_empty())).collect();
            for pod in pods.registry.all() {
                pod.tell(Command::Held(match held.get(&pod.whose.sandbox) {
                    None => Held::Nothing,
                    Some(false) => Held::Socket,
                    Some(true) => Held::Link,
                }));
            }
        }
        // The next look at vanished shims asks again.
        Err(error) => tracing::warn!(%error, "the relay did not say what it holds"),
    }
}

/// A container of a pod that is not known here might go without its disks or GPUs.
fn edited(pods: &Pods, sandbox: &str, payload: &Bytes) -> Result<Bytes, String> {
    let record = pods.registry.get(sandbox).and_then(|pod| pod.record());
    let record = record.ok_or_else(|| {
        format!("CreateContainer: what belongs to sandbox {sandbox:?} is not known to this node")
    })?;
    let (gpus, volumes) = (record.pod.gpus > 0, &record.volumes);
    edit::container(payload, &edit::Has { gpus, volumes })
        .map_err(|e| format!("CreateContainer: {e}"))
}

/// Answers in a task of its own: the relay may be away, and other events must not wait for that.
fn answer_edit(pods: &Arc<Pods>, ticket: u64, sandbox: &str, method: &str, payload: Bytes) {
    let outcome = match method.rsplit('/').next() {
        Some(edit::METHOD) => edited(pods, sandbox, &payload),
        _ => Ok(payload),
    };
    let relay = Arc::clone(&pods.common.world.relay);
    pods.common.tracker.spawn("edit", async move {
        if let Err(error) = relay.edited(ticket, outcome).await {
            tracing::warn!(ticket, %error, "an edited request could not be handed back");
        }
    });
}
