//! A relay that holds sockets, and refuses or hangs as the test says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use peerpod_tunnel::link::tls::ClientTls;
use tokio::time::{Instant, sleep};

use super::guest::Mood;
use super::{lock, millis};
use crate::relay::api::{Beat, Control, ControlError, Held};

/// The relay.
#[derive(Debug, Default)]
pub(in crate::pods::tests) struct FakeRelay {
    /// Whose VMs are to say when they are taken back.
    pub(in crate::pods::tests) watches: Mutex<Vec<String>>,
    pub(in crate::pods::tests) held: Mutex<BTreeMap<String, Socket>>,
    pub(in crate::pods::tests) edits: Mutex<Vec<(u64, Result<Bytes, String>)>>,
    pub(in crate::pods::tests) closes: Mutex<Vec<(String, String)>>,
    pub(in crate::pods::tests) connects: Mutex<u32>,
    pub(in crate::pods::tests) refuses: Mutex<BTreeMap<&'static str, ControlError>>,
    pub(in crate::pods::tests) hangs: Mutex<BTreeSet<&'static str>>,
    /// How VMs behave on their links; `None` is a relay that cannot ask.
    pub(in crate::pods::tests) links: Mutex<Option<Arc<Mutex<Mood>>>>,
    /// Whose VMs are silent on their links whatever the others do.
    pub(in crate::pods::tests) frozen: Mutex<BTreeSet<String>>,
}

#[derive(Debug)]
pub(in crate::pods::tests) struct Socket {
    pub(in crate::pods::tests) path: PathBuf,
    pub(in crate::pods::tests) target: Option<SocketAddr>,
    pub(in crate::pods::tests) shim: bool,
    pub(in crate::pods::tests) idle_since: Instant,
}

impl FakeRelay {
    pub(in crate::pods::tests) fn sandboxes(&self) -> BTreeSet<String> {
        lock(&self.held).keys().cloned().collect()
    }

    /// A shim connects, or the last one goes.
    pub(in crate::pods::tests) fn shim(&self, sandbox: &str, there: bool) {
        let mut held = lock(&self.held);
        let socket = held.get_mut(sandbox).expect("open");
        (socket.shim, socket.idle_since) = (there, Instant::now());
    }

    async fn begin(&self, what: &'static str) -> Result<(), ControlError> {
        while lock(&self.hangs).contains(what) {
            sleep(Duration::from_millis(100)).await;
        }
        match lock(&self.refuses).get(what) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Control for FakeRelay {
    async fn open(&self, sandbox: &str, path: &Path, _: &[String]) -> Result<(), ControlError> {
        self.begin("open").await?;
        let new =
            Socket { path: path.to_owned(), target: None, shim: false, idle_since: Instant::now() };
        lock(&self.held).entry(sandbox.to_owned()).or_insert(new);
        Ok(())
    }

    async fn connect(
        &self,
        sandbox: &str,
        target: SocketAddr,
        _: Option<&ClientTls>,
        _: Duration,
    ) -> Result<(), ControlError> {
        *lock(&self.connects) += 1;
        self.begin("connect").await?;
        let mut held = lock(&self.held);
        let Some(socket) = held.get_mut(sandbox) else {
            return Err(ControlError::Refused(format!("unknown sandbox {sandbox}")));
        };
        socket.target = Some(target);
        Ok(())
    }

    async fn close(&self, sandbox: &str, reason: &str) -> Result<bool, ControlError> {
        lock(&self.closes).push((sandbox.to_owned(), reason.to_owned()));
        self.begin("close").await?;
        Ok(lock(&self.held).remove(sandbox).is_some())
    }

    async fn list(&self) -> Result<Vec<Held>, ControlError> {
        self.begin("list").await?;
        let held = lock(&self.held);
        let all = held.iter().map(|(sandbox, socket)| Held {
            sandbox: sandbox.clone(),
            path: socket.path.display().to_string(),
            target: socket.target.map(|t| t.to_string()).unwrap_or_default(),
            agent_connections: u32::from(socket.shim),
            idle_ms: if socket.shim { 0 } else { millis(socket.idle_since.elapsed()) },
            ..Held::default()
        });
        Ok(all.collect())
    }

    async fn beat(&self, within: Duration) -> Result<Beat, ControlError> {
        self.begin("beat").await?;
        let Some(mood) = lock(&self.links).clone() else {
            return Err(ControlError::Refused("no such call".to_owned()));
        };
        let mut beat = Beat::default();
        let linked = || -> Vec<String> {
            let held = lock(&self.held);
            held.iter().filter(|(_, s)| s.target.is_some()).map(|(name, _)| name.clone()).collect()
        };
        let answers =
            |name: &String| *lock(&mood) == Mood::Answers && !lock(&self.frozen).contains(name);
        if !linked().iter().all(answers) {
            sleep(within).await;
        }
        (beat.alive, beat.silent) = linked().into_iter().partition(answers);
        Ok(beat)
    }

    async fn watch(&self, sandbox: &str) -> Result<(), ControlError> {
        self.begin("watch").await?;
        lock(&self.watches).push(sandbox.to_owned());
        Ok(())
    }

    async fn edited(
        &self,
        ticket: u64,
        outcome: Result<Bytes, String>,
    ) -> Result<(), ControlError> {
        lock(&self.edits).push((ticket, outcome));
        Ok(())
    }
}
