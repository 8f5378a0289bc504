//! The one owner of the map from sandbox ids to pods.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use peerpod_providers::VmName;
use tokio::sync::watch;

use crate::pod::Pod;

/// All pods there are. Each entry lives as long as its actor's task.
#[derive(Debug)]
pub(crate) struct Registry {
    pods: Mutex<BTreeMap<String, Pod>>,
    changes: watch::Sender<u64>,
}

/// Why a new pod is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full(pub(crate) usize);

impl Registry {
    pub(crate) fn new() -> Self {
        Self { pods: Mutex::default(), changes: watch::Sender::new(0) }
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, sandbox: &str) -> Option<Pod> {
        self.pods().get(sandbox).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Pod> {
        self.pods().values().cloned().collect()
    }

    pub(crate) fn sandboxes(&self) -> BTreeSet<String> {
        self.pods().keys().cloned().collect()
    }

    /// The pod of that name: of several sandboxes one that is not over, then the newest.
    pub(crate) fn find(&self, namespace: &str, pod: &str) -> Option<Pod> {
        let pods = self.pods();
        let named = pods.values().filter(|p| p.whose.namespace == namespace && p.whose.pod == pod);
        named.max_by_key(|p| rank(p)).cloned()
    }

    /// Puts a pod there unless its sandbox is there already (then that one is returned) or `limit`
    /// are. Pods that are over, and those in `ending`, do not count. `make` is told which VM names
    /// are taken.
    pub(crate) fn insert(
        &self,
        sandbox: &str,
        limit: Option<usize>,
        ending: &BTreeSet<String>,
        make: impl FnOnce(&BTreeSet<VmName>) -> Pod,
    ) -> Result<Insert, Full> {
        let mut pods = self.pods();
        if let Some(pod) = pods.get(sandbox) {
            return Ok(Insert::Known(pod.clone()));
        }
        if let Some(limit) = limit {
            let alive = |p: &&Pod| !is_over(p) && !ending.contains(&p.whose.sandbox);
            if pods.values().filter(alive).count() >= limit {
                return Err(Full(limit));
            }
        }
        let names = pods.values().map(|p| p.vm_name.clone()).collect();
        let pod = make(&names);
        pods.insert(sandbox.to_owned(), pod.clone());
        drop(pods);
        self.changed();
        Ok(Insert::New(pod))
    }

    /// Takes a pod away whose task has ended.
    pub(crate) fn remove(&self, sandbox: &str) {
        self.pods().remove(sandbox);
        self.changed();
    }

    /// To wait for pods that come and go.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// Whether the pod was put there now.
pub(crate) enum Insert {
    New(Pod),
    Known(Pod),
}

pub(crate) fn is_over(pod: &Pod) -> bool {
    pod.record().is_some_and(|r| r.phase.is_over())
}

/// Younger than running: what another sandbox of the same pod takes the place of.
pub(crate) fn is_young(pod: &Pod) -> bool {
    pod.record().is_none_or(|r| r.phase.is_young())
}

fn rank(pod: &Pod) -> (bool, u64) {
    match pod.record() {
        Some(record) => (!record.phase.is_over(), record.created_ms),
        None => (true, u64::MAX),
    }
}
