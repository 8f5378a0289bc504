//! Containers and their processes, files that are being copied, OOM events: an agent's state.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::process::Process;
use crate::messages::{agent, oci};

/// A container: what it was asked to be, and its processes by exec id (the first has an empty one).
#[derive(Debug, Default)]
pub(super) struct Container {
    pub(super) netns: Option<String>,
    pub(super) init: oci::Process,
    pub(super) processes: HashMap<String, Arc<Process>>,
}

/// A file on its way.
#[derive(Debug, Default)]
pub(super) struct PartialFile {
    pub(super) bytes: BTreeMap<u64, bytes::Bytes>,
}

impl PartialFile {
    /// The whole file, if no byte is missing.
    pub(super) fn whole(&self, size: u64) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        for (offset, chunk) in &self.bytes {
            let at = usize::try_from(*offset).ok()?;
            if at > all.len() {
                return None;
            }
            all.truncate(at);
            all.extend_from_slice(chunk);
        }
        (all.len() as u64 == size).then_some(all)
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct Sandbox {
    containers: Mutex<HashMap<String, Container>>,
    pub(super) files: Mutex<HashMap<String, PartialFile>>,
    oom: Mutex<Vec<String>>,
    oom_came: Notify,
    pub(super) destroyed: watch::Sender<bool>,
}

/// Why a process cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Container,
    Process,
}

impl Sandbox {
    pub(super) fn new() -> Self {
        Self {
            containers: Mutex::default(),
            files: Mutex::default(),
            oom: Mutex::default(),
            oom_came: Notify::new(),
            destroyed: watch::Sender::new(false),
        }
    }

    pub(super) fn containers(&self) -> MutexGuard<'_, HashMap<String, Container>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn process(&self, container: &str, exec: &str) -> Result<Arc<Process>, Missing> {
        let all = self.containers();
        let found = all.get(container).ok_or(Missing::Container)?;
        found.processes.get(exec).cloned().ok_or(Missing::Process)
    }

    /// Forgets a process that somebody has waited for.
    pub(super) fn forget(&self, container: &str, exec: &str) {
        if let Some(container) = self.containers().get_mut(container) {
            container.processes.remove(exec);
        }
    }

    pub(super) fn inject_oom(&self, container: &str) {
        self.oom.lock().unwrap_or_else(PoisonError::into_inner).push(container.to_owned());
        self.oom_came.notify_waiters();
    }

    /// The next OOM event; `None` once the sandbox is destroyed.
    pub(super) async fn oom_event(&self) -> Option<agent::OomEvent> {
        let mut destroyed = self.destroyed.subscribe();
        loop {
            let came = self.oom_came.notified();
            tokio::pin!(came);
            came.as_mut().enable();
            let next = self.oom.lock().unwrap_or_else(PoisonError::into_inner).pop();
            if let Some(container_id) = next {
                return Some(agent::OomEvent { container_id });
            }
            tokio::select! {
                () = came => {}
                _ = destroyed.wait_for(|d| *d) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_when_no_byte_is_missing() {
        let mut file = PartialFile::default();
        file.bytes.insert(3, bytes::Bytes::from_static(b"def"));
        assert_eq!(file.whole(6), None);
        file.bytes.insert(0, bytes::Bytes::from_static(b"abc"));
        assert_eq!(file.whole(6).as_deref(), Some(&b"abcdef"[..]));
        assert_eq!(file.whole(7), None);
        // As many bytes as there should be, but with a hole.
        file.bytes.insert(9, bytes::Bytes::from_static(b"jkl"));
        assert_eq!(file.whole(9), None);
    }
}
