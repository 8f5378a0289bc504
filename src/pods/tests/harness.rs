//! A worker of fakes, and daemons that come and go on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peerpod_providers::fake::{self, Fake, Operation};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

pub(super) use super::fakes::*;
use crate::hypervisor::{Failure, Sandboxes};
use crate::pod::phase::Phase;
use crate::pod::world::World;
use crate::pods::{Options, PodStatus, Pods};
use crate::proto::hypervisor::CreateVmRequest;
use crate::relay::api::Event;
use crate::request::keys;
use crate::shutdown::Shutdown;

pub(super) fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The worker and everything around it; daemons are started on it.
pub(super) struct Site {
    pub(super) provider: Arc<Fake>,
    pub(super) relay: Arc<FakeRelay>,
    pub(super) network: Arc<FakeNetwork>,
    pub(super) records: Arc<FakeRecords>,
    pub(super) guest: Arc<FakeGuest>,
    pub(super) counts: Arc<Counts>,
    pub(super) options: Options,
    pub(super) clock: Arc<FakeClock>,
    chance: Arc<FakeChance>,
}

impl Site {
    pub(super) fn new() -> Self {
        Self::with(fake::Options::default())
    }

    pub(super) fn with(options: fake::Options) -> Self {
        let began = options.began;
        let since = began.duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let provider = Arc::new(Fake::new(options));
        let counts = Arc::new(Counts::default());
        Self {
            relay: Arc::new(FakeRelay::default()),
            network: Arc::new(FakeNetwork::default()),
            records: Arc::new(FakeRecords {
                provider: Arc::clone(&provider),
                state: Mutex::default(),
            }),
            guest: Arc::new(FakeGuest::default()),
            provider,
            counts,
            options: Options {
                installation: "test".to_owned(),
                node_name: "node-1".to_owned(),
                boot_id: "boot-1".to_owned(),
                sweep_interval: None,
                ..Options::default()
            },
            clock: Arc::new(FakeClock { begin: Instant::now(), since, set: 0.into() }),
            chance: Arc::new(FakeChance::default()),
        }
    }

    /// Starts a daemon and attaches it to the relay, which replays what `pending` names.
    pub(super) async fn daemon_with(&self, pending: &[(&str, &str)]) -> Daemon {
        let daemon = self.unattached().await;
        daemon.attach(pending).await;
        daemon
    }

    pub(super) async fn daemon(&self) -> Daemon {
        self.daemon_with(&[]).await
    }

    pub(super) async fn unattached(&self) -> Daemon {
        self.start(None).await
    }

    /// As [`Site::daemon_with`], but the relay is there before the daemon has read its records.
    pub(super) async fn attached_before(&self, pending: &[(&str, &str)]) -> Daemon {
        self.start(Some(attached(pending))).await
    }

    async fn start(&self, first: Option<Event>) -> Daemon {
        let world = World {
            provider: self.provider.clone(),
            relay: self.relay.clone(),
            network: self.network.clone(),
            records: self.records.clone(),
            guest: self.guest.clone(),
            planner: Arc::new(FakePlanner),
            clock: self.clock.clone(),
            random: self.chance.clone(),
            observer: self.counts.clone(),
            #[cfg(feature = "crash-points")]
            crash: Arc::new(crate::crash::Sigkill),
        };
        let shutdown = Shutdown::new();
        let (events, receiver) = mpsc::channel(64);
        if let Some(event) = first {
            events.send(event).await.expect("room");
        }
        let (tracker, token) = (shutdown.tracker(), shutdown.token());
        let pods = Pods::start(world, self.options.clone(), receiver, tracker, token).await;
        Daemon { pods: pods.expect("records can be read"), shutdown, events }
    }

    /// Nothing is left anywhere.
    pub(super) async fn until_nothing_is_left(&self) {
        until("no record", || self.records.all().is_empty()).await;
        assert_eq!(self.provider.resources(), [], "VM or parts left");
        assert_eq!(*lock(&self.network.attached), BTreeMap::new(), "tunnel left");
        assert_eq!(self.relay.sandboxes(), BTreeSet::new(), "socket left");
    }

    pub(super) fn creates(&self) -> u64 {
        self.provider.count(Operation::Create)
    }

    pub(super) fn deletes(&self) -> u64 {
        self.provider.count(Operation::Delete)
    }

    /// The phase of a sandbox as it stands on disk.
    pub(super) fn on_disk(&self, sandbox: &str) -> Option<Phase> {
        lock(&self.records.state).all.get(sandbox).map(|r| r.phase.clone())
    }
}

/// Waits for what will come, for a virtual hour at most.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < seconds(3600), "never came: {what}");
        // Finely at first, when it matters; an hour of fine steps takes real time.
        sleep(Duration::from_millis(2).max(begin.elapsed() / 50)).await;
    }
}

fn attached(pending: &[(&str, &str)]) -> Event {
    let pending = pending.iter().map(|(s, m)| ((*s).to_owned(), (*m).to_owned())).collect();
    Event::Attached { epoch: 1, pending }
}

pub(super) struct Daemon {
    pub(super) pods: Arc<Pods>,
    pub(super) shutdown: Shutdown,
    pub(super) events: mpsc::Sender<Event>,
}

impl Daemon {
    pub(super) async fn attach(&self, pending: &[(&str, &str)]) {
        self.tell(attached(pending)).await;
    }

    pub(super) async fn tell(&self, event: Event) {
        self.events.send(event).await.expect("the daemon listens");
    }

    pub(super) async fn create(&self, sandbox: &str) -> Result<String, Failure> {
        self.pods.create(request(sandbox)).await
    }

    pub(super) async fn start(&self, sandbox: &str) -> Result<(), Failure> {
        self.pods.start(sandbox, None).await
    }

    pub(super) async fn stop(&self, sandbox: &str) -> Result<(), Failure> {
        self.pods.stop(sandbox).await
    }

    /// A pod that runs.
    pub(super) async fn run(&self, sandbox: &str) {
        self.create(sandbox).await.expect("created");
        self.start(sandbox).await.expect("started");
    }

    /// A StartVM in the background; aborting it is its caller's going.
    pub(super) fn starting(&self, sandbox: &str) -> tokio::task::JoinHandle<Result<(), Failure>> {
        let (pods, sandbox) = (Arc::clone(&self.pods), sandbox.to_owned());
        tokio::spawn(async move { pods.start(&sandbox, None).await })
    }

    pub(super) fn status(&self, sandbox: &str) -> Option<PodStatus> {
        self.pods.snapshot().into_iter().find(|s| s.sandbox == sandbox)
    }

    pub(super) fn phase(&self, sandbox: &str) -> String {
        self.status(sandbox).map_or_else(|| "gone".to_owned(), |s| s.phase)
    }

    pub(super) async fn until_phase(&self, sandbox: &str, phase: &str) {
        until(&format!("{sandbox} {phase}"), || self.phase(sandbox) == phase).await;
    }

    /// Nothing is cleaned up: what it did not finish stays as it is.
    pub(super) async fn kill(self) {
        self.shutdown.drain(Duration::ZERO).await;
    }
}

/// A request as a shim sends it; each sandbox is a pod of its own, `<pod>.<n>` is one of several of
/// the same pod.
pub(super) fn request(sandbox: &str) -> CreateVmRequest {
    let pod = sandbox.split('.').next().unwrap_or_default();
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    CreateVmRequest {
        id: sandbox.to_owned(),
        annotations: [text(keys::NAME, pod), text(keys::NAMESPACE, "default")].into(),
        network_namespace_path: format!("/run/netns/{sandbox}"),
    }
}
