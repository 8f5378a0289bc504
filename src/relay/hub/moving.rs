//! What of the hub concerns another relay that takes this one's place: connections that stay, and the
//! successor, which attaches like a node process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Status;

use super::{Events, Hub, Session, UNREAD_EVENTS, repeat};
use crate::proto::relay as proto;

impl Hub {
    /// Puts a pod's presence back to what another relay has seen.
    pub(in crate::relay) fn restore(&self, sandbox: &str, spoken: bool, idle_ms: u64) {
        if let Some(presence) = self.state().presence.get_mut(sandbox) {
            presence.spoken = spoken;
            let since = Instant::now().checked_sub(Duration::from_millis(idle_ms));
            presence.idle_since = since.unwrap_or_else(Instant::now);
        }
    }

    /// Whether a connection of this pod's shim has spoken.
    pub(in crate::relay) fn has_spoken(&self, sandbox: &str) -> bool {
        self.state().presence.get(sandbox).is_some_and(|presence| presence.spoken)
    }

    /// Counts a connection that cannot move until the guard is dropped.
    pub(in crate::relay) fn join(self: &Arc<Self>, sandbox: &str) -> Joined {
        *self.state().joined.entry(sandbox.to_owned()).or_default() += 1;
        Joined { hub: self.clone(), sandbox: sandbox.to_owned() }
    }

    fn part(&self, sandbox: &str) {
        let mut state = self.state();
        if let Some(count) = state.joined.get_mut(sandbox) {
            *count -= 1;
            if *count == 0 {
                state.joined.remove(sandbox);
            }
        }
        if let Some(left) = &state.left {
            // Nobody reads this when the hand-over has failed.
            let _ = left.send(sandbox.to_owned());
        }
    }

    /// Connections that cannot move.
    pub(in crate::relay) fn joined(&self) -> BTreeMap<String, u32> {
        self.state().joined.clone()
    }

    /// The same, and from this moment on the end of each.
    pub(in crate::relay) fn stay(
        &self,
    ) -> (BTreeMap<String, u32>, mpsc::UnboundedReceiver<String>) {
        let (left, ends) = mpsc::unbounded_channel();
        let mut state = self.state();
        state.left = Some(left);
        (state.joined.clone(), ends)
    }

    /// The node process is the successor's from now on, which attaches in its place.
    pub(in crate::relay) fn succeeded(&self) -> Events {
        let (events, rest) = mpsc::channel(UNREAD_EVENTS);
        let (end, ended) = oneshot::channel();
        let mut state = self.state();
        let id = state.next();
        let first = repeat(&state);
        if let Some(old) = state.session.take() {
            // It attaches again at once, to the successor; nobody reads this if it has gone.
            let _ = old.end.send(Status::unavailable("the relay has handed over"));
        }
        self.node.send_modify(|node| node.attached = false);
        state.session = Some(Session { id, from: proto::Attached::default(), events, end });
        Events { session: id, first, rest, end: Some(ended) }
    }
}

/// A connection that cannot move.
#[derive(Debug)]
pub(in crate::relay) struct Joined {
    hub: Arc<Hub>,
    sandbox: String,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.hub.part(&self.sandbox);
    }
}
