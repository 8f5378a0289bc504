//! What the relay counts; the node process reads it through List and exports it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::proto::relay::Totals;

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Counts.
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// How many.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bytes moved, both ways.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) to_vm: Counter,
    pub(super) to_shim: Counter,
}

/// Since the relay's start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) agent_accepted: Counter,
    pub(super) hypervisor_accepted: Counter,
    pub(super) peers_refused: Counter,
    pub(super) links_made: Counter,
    pub(super) links_failed: Counter,
    /// Of pods that are closed; those of open pods are theirs.
    pub(super) closed: Traffic,
    pub(super) requests: Counter,
    pub(super) replayed: Counter,
    pub(super) attaches: Counter,
}

impl Counters {
    /// As the API says them; bytes of open pods and what is held are the caller's to add.
    pub(super) fn totals(&self) -> Totals {
        Totals {
            agent_connections_accepted: self.agent_accepted.get(),
            hypervisor_connections_accepted: self.hypervisor_accepted.get(),
            peers_refused: self.peers_refused.get(),
            links_made: self.links_made.get(),
            links_failed: self.links_failed.get(),
            bytes_to_vm: self.closed.to_vm.get(),
            bytes_to_shim: self.closed.to_shim.get(),
            requests: self.requests.get(),
            requests_replayed: self.replayed.get(),
            requests_held: 0,
            edits_held: 0,
            attaches: self.attaches.get(),
        }
    }
}
