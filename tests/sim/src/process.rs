//! One run of the daemon, as the world sees it: it may die at every call it makes, and nothing that a
//! dead one still says or does counts.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use peerpodd::shutdown::Shutdown;
use tokio::sync::Notify;

use crate::core::{Core, lock, seconds};
use crate::dice::Fault;

/// Where deaths are planned, and which points there were.
#[derive(Debug, Default)]
pub(crate) struct Points {
    plan: Mutex<VecDeque<String>>,
    seen: Mutex<BTreeMap<String, u64>>,
}

impl Points {
    pub(crate) fn new(plan: impl IntoIterator<Item = String>) -> Self {
        Self { plan: Mutex::new(plan.into_iter().collect()), seen: Mutex::default() }
    }

    /// How often each point was come by.
    pub(crate) fn seen(&self) -> BTreeMap<String, u64> {
        lock(&self.seen).clone()
    }

    /// What of the plan did not come about.
    pub(crate) fn left(&self) -> usize {
        lock(&self.plan).len()
    }

    /// Whether the daemon is to die at this point, which is come by now. A plan names points,
    /// `open.after` or, for its third time since the last death, `open.after:3`.
    fn is_due(&self, point: &str) -> bool {
        *lock(&self.seen).entry(point.to_owned()).or_default() += 1;
        let mut plan = lock(&self.plan);
        let Some(next) = plan.front_mut() else { return false };
        let (name, nth) = next.split_once(':').unwrap_or((next, "1"));
        if name != point {
            return false;
        }
        let more = nth.parse::<u64>().unwrap_or(1).saturating_sub(1);
        if more > 0 {
            *next = format!("{name}:{more}");
        } else {
            plan.pop_front();
        }
        more == 0
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) core: Arc<Core>,
    pub(crate) id: u64,
    pub(crate) shutdown: Shutdown,
    points: Arc<Points>,
    dead: AtomicBool,
    died: Notify,
}

impl Process {
    pub(crate) fn new(core: &Arc<Core>, id: u64, points: &Arc<Points>) -> Arc<Self> {
        Arc::new(Self {
            core: Arc::clone(core),
            id,
            shutdown: Shutdown::new(),
            points: Arc::clone(points),
            dead: AtomicBool::new(false),
            died: Notify::new(),
        })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// From now on nothing of it has any effect. Its tasks are taken away a little later, from
    /// outside: this may be called by one of them.
    pub(crate) fn die(&self, why: &str) {
        if self.dead.swap(true, Ordering::Relaxed) {
            return;
        }
        self.core.trace(format!("daemon {} dies: {why}", self.id));
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            shutdown.drain(seconds(0)).await;
        });
        self.died.notify_one();
    }

    pub(crate) async fn died(&self) {
        while !self.is_dead() {
            self.died.notified().await;
        }
    }

    /// A call reaches a point. Does not return for a dead process.
    pub(crate) async fn reach(&self, point: &str) {
        if self.dies_at(point, Fault::Kill) {
            pending::<()>().await;
        }
    }

    /// One of the daemon's own crash points: it dies there if that is planned and never by chance, so
    /// that a seed is the same whether a build has those points or not.
    #[cfg(feature = "crash-points")]
    async fn pass(&self, point: &str) {
        if !self.is_dead() && self.points.is_due(point) {
            self.die(point);
        }
        if self.is_dead() {
            pending::<()>().await;
        }
    }

    /// The same where waiting is not possible; whether it is dead now.
    pub(crate) fn dies_at(&self, point: &str, fault: Fault) -> bool {
        if self.is_dead() {
            return true;
        }
        if self.points.is_due(point) || self.core.fires_harmlessly(fault) {
            self.die(point);
        }
        self.is_dead()
    }
}

#[cfg(feature = "crash-points")]
#[async_trait::async_trait]
impl peerpodd::crash::Crash for Process {
    async fn reach(&self, point: peerpodd::crash::Point) {
        self.pass(&format!("{}{point}", crate::deaths::PREFIX)).await;
    }
}
