//! What all parts of a simulated world share: time, chance, the trace, and what was found broken.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::dice::{Dice, Fault};

/// 2026-01-01, where every run begins.
pub(crate) const BEGAN_MS: u64 = 1_767_225_600_000;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// `I1` … `I8`, or one of ours.
    pub invariant: &'static str,
    /// What, when, with what.
    pub what: String,
}

/// Something that changes now and then. Not tokio's `watch`, which wakes its waiters in an order that
/// it draws.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    changes: AtomicU64,
    notify: Notify,
}

impl Signal {
    /// How often it has changed.
    pub(crate) fn count(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub(crate) fn change(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.notify.notify_waiters();
    }

    /// Returns once it has changed more often than `count` times.
    pub(crate) async fn after(&self, count: u64) {
        while self.count() == count {
            self.notify.notified().await;
        }
    }
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) dice: Dice,
    begin: Instant,
    /// By how much the wall clock is wrong, in milliseconds.
    offset: AtomicI64,
    state: Mutex<State>,
    broken: Notify,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    digest: DefaultHasher,
    breach: Option<Breach>,
    /// Sandboxes that may end, or fail, and why.
    excused: BTreeMap<String, String>,
    /// Sandboxes there have been, that a fault of the whole machine excuses.
    known: BTreeSet<String>,
    /// Sandboxes whose StartVM was answered well.
    running: BTreeSet<String>,
    /// A fault of the whole machine is going on.
    everybody: Option<String>,
}

impl Core {
    pub(crate) fn new(dice: Dice) -> Self {
        Self {
            dice,
            begin: Instant::now(),
            offset: AtomicI64::new(0),
            state: Mutex::default(),
            broken: Notify::new(),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// True time, as the cloud has it.
    pub(crate) fn true_ms(&self) -> u64 {
        BEGAN_MS + u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The worker's wall clock.
    pub(crate) fn wall_ms(&self) -> u64 {
        self.true_ms().saturating_add_signed(self.offset.load(Ordering::Relaxed))
    }

    pub(crate) fn set_clock(&self, offset_ms: i64) {
        self.offset.store(offset_ms, Ordering::Relaxed);
    }

    pub(crate) fn is_clock_wrong(&self) -> bool {
        self.offset.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn trace(&self, line: impl AsRef<str>) {
        let at = self.elapsed();
        let line = format!("{:>9}.{:03} {}", at.as_secs(), at.subsec_millis(), line.as_ref());
        let mut state = lock(&self.state);
        state.digest.write(line.as_bytes());
        state.lines.push(line);
    }

    /// Whether a fault happens; it stands in the trace then, and the sandbox it befalls is excused.
    pub(crate) fn fires(&self, fault: Fault, sandbox: &str) -> bool {
        let Some(id) = self.dice.fires(fault) else { return false };
        self.trace(format!("FAULT {id} {sandbox}"));
        if !sandbox.is_empty() {
            self.excuse(sandbox, &id);
        }
        true
    }

    /// Whether a fault happens that must not keep anything from going well.
    pub(crate) fn fires_harmlessly(&self, fault: Fault) -> bool {
        let Some(id) = self.dice.fires(fault) else { return false };
        self.trace(format!("FAULT {id}"));
        true
    }

    /// Sleeps for a time of `low` to `high` milliseconds.
    pub(crate) async fn pass_ms(&self, what: &'static str, low: u64, high: u64) {
        sleep(Duration::from_millis(self.dice.amount(what, low, high))).await;
    }

    /// The sandbox may fail or end from now on.
    pub(crate) fn excuse(&self, sandbox: &str, why: &str) {
        lock(&self.state).excused.entry(sandbox.to_owned()).or_insert_with(|| why.to_owned());
    }

    /// All sandboxes there are may.
    pub(crate) fn excuse_all(&self, why: &str) {
        let mut state = lock(&self.state);
        for sandbox in state.known.clone() {
            state.excused.entry(sandbox).or_insert_with(|| why.to_owned());
        }
    }

    /// All may that there are until [`Core::excuse_nobody`].
    pub(crate) fn excuse_everybody(&self, why: &str) {
        self.excuse_all(why);
        lock(&self.state).everybody = Some(why.to_owned());
    }

    pub(crate) fn excuse_nobody(&self) {
        lock(&self.state).everybody = None;
    }

    /// A sandbox comes.
    pub(crate) fn meet(&self, sandbox: &str) {
        let mut state = lock(&self.state);
        state.known.insert(sandbox.to_owned());
        if let Some(why) = state.everybody.clone() {
            state.excused.entry(sandbox.to_owned()).or_insert(why);
        }
    }

    /// A sandbox runs: from now on nothing but an excuse may end it.
    pub(crate) fn promise(&self, sandbox: &str) {
        lock(&self.state).running.insert(sandbox.to_owned());
    }

    pub(crate) fn is_promised(&self, sandbox: &str) -> bool {
        let state = lock(&self.state);
        state.running.contains(sandbox) && !state.excused.contains_key(sandbox)
    }

    pub(crate) fn is_excused(&self, sandbox: &str) -> bool {
        lock(&self.state).excused.contains_key(sandbox)
    }

    /// Something does not hold. The first stays: what follows may be its consequence.
    pub(crate) fn breach(&self, invariant: &'static str, what: impl Into<String>) {
        let what = format!("at {:.3} s: {}", self.elapsed().as_secs_f64(), what.into());
        self.trace(format!("BROKEN {invariant} {what}"));
        lock(&self.state).breach.get_or_insert(Breach { invariant, what });
        self.broken.notify_waiters();
        self.broken.notify_one();
    }

    pub(crate) async fn until_broken(&self) {
        while self.found().is_none() {
            self.broken.notified().await;
        }
    }

    pub(crate) fn found(&self) -> Option<Breach> {
        lock(&self.state).breach.clone()
    }

    /// The trace and its digest.
    pub(crate) fn take_trace(&self) -> (Vec<String>, u64) {
        let mut state = lock(&self.state);
        (std::mem::take(&mut state.lines), state.digest.finish())
    }
}
