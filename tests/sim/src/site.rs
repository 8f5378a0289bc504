//! A worker with everything around it, and the daemons that come and go on it.
//!
//! ```text
//!   parent ─▶ daemon: lock ─▶ records ─▶ Pods::start ─▶ attach to the relay ─▶ serves ─▶ dies, or is told
//!     ▲                                                                                     │
//!     └────────────────────────────── a pause ◀─────────────────────────────────────────────┘
//! ```

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use peerpodd::pod::world::World;
use peerpodd::pods::{Options, PodStatus, Pods};
use peerpodd::relay::Event;
use tokio::sync::mpsc;

use crate::check::CREATES;
use crate::cloud::Cloud;
use crate::core::{Core, Signal, lock, seconds};
use crate::dice::Fault;
use crate::disk::{Slow, Store};
use crate::kernel::{Calls, Kernel};
use crate::machines::{INSTALLATION, NODE};
use crate::parts::{Chance, Counts, Plans, Wall};
use crate::process::{Points, Process};
use crate::relay::{self, Relay};
use crate::{guest, machines, provider};

/// The sweep's, in seconds; shorter than the defaults, so that a run is short.
pub(crate) const GRACE: u64 = 180;
pub(crate) const INTERVAL: u64 = 60;
/// Events that may wait, as in the relay's real client.
const EVENTS: usize = 1024;

#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) core: Arc<Core>,
    pub(crate) store: Arc<Store>,
    pub(crate) cloud: Arc<Cloud>,
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) points: Arc<Points>,
    /// Counts power losses.
    pub(crate) boots: Signal,
    /// Who has the state directory's lock.
    holder: Mutex<Option<Arc<Process>>>,
    current: Mutex<Option<Daemon>>,
    last: AtomicU64,
    /// Records that another version has written.
    newer: Mutex<BTreeSet<String>>,
    /// Sandboxes that are to run to the end.
    kept: Mutex<BTreeSet<String>>,
}

/// A daemon that serves.
#[derive(Clone, Debug)]
struct Daemon {
    process: Arc<Process>,
    pods: Arc<Pods>,
    events: mpsc::Sender<Event>,
}

impl Site {
    pub(crate) fn new(core: &Arc<Core>, points: Points) -> Arc<Self> {
        let store = Store::new(core);
        let cloud = Cloud::new(core, &store);
        Arc::new(Self {
            core: Arc::clone(core),
            kernel: Kernel::new(core, &cloud),
            relay: Relay::new(core, &cloud),
            store,
            cloud,
            points: Arc::new(points),
            boots: Signal::default(),
            holder: Mutex::default(),
            current: Mutex::default(),
            last: AtomicU64::new(0),
            newer: Mutex::default(),
            kept: Mutex::default(),
        })
    }

    fn options(&self) -> Options {
        Options {
            installation: INSTALLATION.to_owned(),
            node_name: NODE.to_owned(),
            boot_id: format!("boot-{}", self.boots.count()),
            pods_dir: PathBuf::from("/run/peerpod/pods"),
            limit: Some(20),
            concurrent_creates: usize::try_from(CREATES).unwrap_or(usize::MAX),
            expiry: seconds(240),
            ready: seconds(120),
            sweep_interval: Some(seconds(INTERVAL)),
            sweep_grace: seconds(GRACE),
            ..Options::default()
        }
    }

    fn world(&self, process: &Arc<Process>, records: Slow) -> World {
        let (core, process) = (&self.core, Arc::clone(process));
        World {
            provider: Arc::new(provider::Client {
                cloud: Arc::clone(&self.cloud),
                process: Arc::clone(&process),
            }),
            relay: Arc::new(relay::Client {
                relay: Arc::clone(&self.relay),
                process: Arc::clone(&process),
            }),
            network: Arc::new(Calls {
                kernel: Arc::clone(&self.kernel),
                process: Arc::clone(&process),
            }),
            records: Arc::new(records),
            guest: Arc::new(guest::Machines {
                cloud: Arc::clone(&self.cloud),
                process: Arc::clone(&process),
            }),
            planner: Arc::new(Plans(Arc::clone(&process))),
            clock: Arc::new(Wall(Arc::clone(core))),
            random: Arc::new(Chance(Arc::clone(core))),
            #[cfg(feature = "crash-points")]
            crash: Arc::clone(&process) as Arc<_>,
            observer: Arc::new(Counts(process)),
        }
    }

    /// Starts daemons, one after the other.
    pub(crate) async fn supervise(self: Arc<Self>) {
        loop {
            self.daemon().await;
            let long = self.core.dice.amount("long-pause", 0, 9) == 0;
            self.core.pass_ms("pause", 50, if long { 40_000 } else { 1500 }).await;
        }
    }

    async fn daemon(self: &Arc<Self>) {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let process = Process::new(&self.core, id, &self.points);
        self.core.trace(format!("daemon {id} starts"));
        while !self.lock(&process) {
            self.core.pass_ms("lock", 50, 100).await;
        }
        if id > 1 {
            let (_, newer) = self.store.damage();
            lock(&self.newer).extend(newer);
        }
        self.cloud.forget_hints();
        tokio::select! {
            biased;
            () = process.died() => {}
            () = self.serve(&process) => {}
        }
        process.die("it ends");
        lock(&self.current).take_if(|d| d.process.id == id);
        self.relay.detach(&process);
        lock(&self.holder).take();
    }

    /// Takes the lock, as a process that starts does.
    fn lock(&self, process: &Arc<Process>) -> bool {
        let mut holder = lock(&self.holder);
        if let Some(other) = &*holder {
            self.core.trace(format!("daemon {}: daemon {} has the lock", process.id, other.id));
            return false;
        }
        *holder = Some(Arc::clone(process));
        true
    }

    /// Ends by itself only when it cannot come up.
    async fn serve(self: &Arc<Self>, process: &Arc<Process>) {
        let records = match Slow::open(&self.cloud, process) {
            Ok(records) => records,
            Err(error) => return self.core.trace(format!("daemon {}: {error}", process.id)),
        };
        let (events, receiver) = mpsc::channel(EVENTS);
        let (tracker, token) = (process.shutdown.tracker(), process.shutdown.token());
        let world = self.world(process, records);
        let pods = match Pods::start(world, self.options(), receiver, tracker, token).await {
            Ok(pods) => pods,
            Err(error) => return self.core.trace(format!("daemon {}: {error}", process.id)),
        };
        let daemon = Daemon { process: Arc::clone(process), pods, events };
        *lock(&self.current) = Some(daemon.clone());
        self.relay.attach(process, &daemon.pods, &daemon.events).await;
        std::future::pending::<()>().await;
    }

    fn current(&self) -> Option<Daemon> {
        lock(&self.current).clone()
    }

    pub(crate) fn kill(&self) {
        if let Some(daemon) = self.current()
            && self.core.fires_harmlessly(Fault::KillAnyTime)
        {
            daemon.process.die("killed");
        }
    }

    /// Tells the daemon to end, as an upgrade does; its successor waits for the lock meanwhile.
    pub(crate) async fn restart(&self) {
        let Some(daemon) = self.current() else { return };
        if !self.core.fires_harmlessly(Fault::Restart) {
            return;
        }
        daemon.process.shutdown.tell("told to end");
        self.relay.detach(&daemon.process);
        daemon.process.shutdown.drain(seconds(30)).await;
        daemon.process.die("drained");
    }

    /// Somebody starts another daemon on the same state directory.
    pub(crate) async fn second(&self) {
        if !self.core.fires_harmlessly(Fault::SecondDaemon) {
            return;
        }
        let process = Process::new(&self.core, 1000, &self.points);
        for _ in 0..self.core.dice.amount("second-tries", 1, 5) {
            if self.lock(&process) {
                // The first one was away for a moment; this one goes, too, before it has read anything.
                lock(&self.holder).take();
                return;
            }
            self.core.pass_ms("second", 10, 500).await;
        }
    }

    pub(crate) fn lose_power(&self) {
        if !self.core.fires_harmlessly(Fault::PowerLoss) {
            return;
        }
        self.core.excuse_all("power-loss");
        self.relay.die("power-loss");
        if let Some(holder) = lock(&self.holder).clone() {
            holder.die("power-loss");
        }
        self.relay.come_back();
        self.kernel.lose_power();
        self.store.lose_power();
        lock(&self.kept).clear();
        self.boots.change();
    }

    /// The relay's connection is there again.
    pub(crate) async fn attach_again(&self) {
        self.relay.come_back();
        if let Some(daemon) = self.current() {
            self.relay.attach(&daemon.process, &daemon.pods, &daemon.events).await;
        }
    }

    pub(crate) fn keep(&self, sandbox: &str) {
        lock(&self.kept).insert(sandbox.to_owned());
    }

    /// Sandboxes that are to run now, as far as they still do.
    pub(crate) fn kept_pods(&self) -> BTreeSet<String> {
        let kept = lock(&self.kept).clone();
        kept.into_iter().filter(|s| self.core.is_promised(s) || self.relay.has(s)).collect()
    }

    pub(crate) fn is_newer(&self, sandbox: &str) -> bool {
        lock(&self.newer).contains(sandbox)
    }

    pub(crate) fn statuses(&self) -> Vec<PodStatus> {
        self.current().map(|d| d.pods.snapshot()).unwrap_or_default()
    }

    /// One of our machines goes, dies or hangs behind our back.
    pub(crate) fn disturb_machines(&self) {
        self.cloud.disturb(Fault::VmGone, |m: &mut machines::Machine| {
            m.gone = Some(tokio::time::Instant::now());
        });
    }
}
