//! The provider: machines come and go late, twice or not at all, and what is told of it may be lost,
//! wrong or old. A request that was sent goes on when its sender has died.
//!
//! ```text
//!   daemon ── create, delete, list ──▶ fate (a fault or none) ─▶ effect at some time
//!          ◀── reply, error, nothing ──┘                       └▶ checks: I2, I4, I6, write-ahead
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peerpod_providers::{Candidate, Deletion, Kind, Resource, Vm, VmRef, VmSpec};
use tokio::time::{Instant, sleep};

use crate::check;
use crate::core::{Core, lock, seconds};
use crate::dice::Fault;
use crate::disk::Store;
use crate::machines::{Machine, Machines, Mood, foreigners, is_ours};

/// Longest time after which a create or delete that timed out takes effect.
const LATE: u64 = 90_000;

/// The cloud; it outlives daemons.
#[derive(Debug)]
pub(crate) struct Cloud {
    pub(crate) core: Arc<Core>,
    pub(crate) store: Arc<Store>,
    /// Whether a name can be had by one machine only; else the call's own id makes it the same.
    unique_names: bool,
    pub(crate) state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) machines: Machines,
    /// Lists of the last minute, for stale ones.
    history: Vec<(Instant, Vec<Resource>)>,
    /// Everything fails until then, and how.
    closed: Option<(Instant, Kind)>,
    /// Before that time the same call must not be repeated.
    hints: BTreeMap<(&'static str, String), Instant>,
    pub(crate) under_way: u32,
    /// Sandboxes of which somebody was told that nothing is left.
    pub(crate) told_gone: BTreeSet<String>,
    pub(crate) calls: BTreeMap<&'static str, u64>,
}

pub(crate) type Reply<T> = Result<T, (Kind, String)>;

pub(crate) fn fails<T>(kind: Kind, what: &str) -> Reply<T> {
    Err((kind, what.to_owned()))
}

impl Cloud {
    pub(crate) fn new(core: &Arc<Core>, store: &Arc<Store>) -> Arc<Self> {
        let mut state = State::default();
        for spec in foreigners() {
            let candidate = candidate();
            let mood =
                Mood { up: Some(Instant::now()), answers: Some(Instant::now()), ..Mood::default() };
            let id = state.machines.add(&spec, &candidate, mood).id;
            if let Some(machine) = state.machines.all.iter_mut().find(|m| m.id == id) {
                (machine.foreign, machine.made_ms) = (true, core.true_ms());
            }
        }
        Arc::new(Self {
            core: Arc::clone(core),
            store: Arc::clone(store),
            unique_names: core.dice.amount("unique-names", 0, 1) == 1,
            state: Mutex::new(state),
        })
    }

    /// Somebody else has the name already.
    pub(crate) fn take_name(&self, spec: &VmSpec) {
        let mut other = spec.clone();
        other.sandbox = format!("{}x", "9".repeat(32));
        other.tags = BTreeMap::from([(
            peerpod_providers::tags::INSTALLATION.to_owned(),
            "other".to_owned(),
        )]);
        let mut state = lock(&self.state);
        let now = Instant::now();
        let mood = Mood { up: Some(now), answers: Some(now), ..Mood::default() };
        let id = state.machines.add(&other, &candidate(), mood).id;
        if let Some(machine) = state.machines.all.iter_mut().find(|m| m.id == id) {
            (machine.foreign, machine.made_ms) = (true, self.core.true_ms());
        }
    }

    /// Another process does not know what the last one was told.
    pub(crate) fn forget_hints(&self) {
        lock(&self.state).hints.clear();
    }

    /// Nothing is answered for a while.
    pub(crate) async fn close_for_a_while(&self) {
        let kind = if self.core.fires_harmlessly(Fault::Outage) {
            Kind::Unavailable
        } else if self.core.fires_harmlessly(Fault::Expired) {
            Kind::Denied
        } else {
            return;
        };
        let time = seconds(self.core.dice.amount("closed", 5, 120));
        self.core.excuse_everybody("the provider is closed");
        lock(&self.state).closed = Some((Instant::now() + time, kind));
        sleep(time).await;
        self.core.excuse_nobody();
    }

    /// One of our machines, drawn, changes behind our back.
    pub(crate) fn disturb(&self, fault: Fault, change: impl FnOnce(&mut Machine)) {
        let mut state = lock(&self.state);
        state.machines.settle();
        let mut ours: Vec<_> = state.machines.all.iter_mut().filter(|m| !m.foreign).collect();
        if ours.is_empty() {
            return;
        }
        let which = self.core.dice.amount("which-machine", 0, ours.len() as u64 - 1);
        let Some(machine) = usize::try_from(which).ok().and_then(|n| ours.get_mut(n)) else {
            return;
        };
        if self.core.fires(fault, &machine.spec.sandbox.clone()) {
            change(machine);
        }
    }

    /// How a new machine will behave.
    fn mood(&self, sandbox: &str) -> Mood {
        let (core, now) = (&self.core, Instant::now());
        let up = core.dice.amount("vm-up", 0, 20_000);
        let ready = up + core.dice.amount("vm-ready", 0, 4000);
        let at = |ms| now + Duration::from_millis(ms);
        let never = core.fires(Fault::VmNeverBoots, sandbox);
        let dies = core.fires(Fault::VmDies, sandbox);
        let hangs = core.fires(Fault::VmHangs, sandbox);
        let pauses = core.fires_harmlessly(Fault::VmPauses);
        let pause = core.dice.amount("vm-pause", 500, 6000);
        let begins = at(core.dice.amount("vm-trouble", 1000, 200_000));
        Mood {
            up: Some(at(up)).filter(|_| !never),
            answers: Some(at(ready)).filter(|_| !never),
            dies: Some(begins).filter(|_| dies),
            hangs: match (hangs, pauses) {
                (true, _) => Some((begins, Duration::from_secs(100_000))),
                (_, true) => Some((begins, Duration::from_millis(pause))),
                _ => None,
            },
            garbage: core.fires(Fault::VmGarbage, sandbox),
        }
    }

    fn begin(&self, operation: &'static str, of: &str) -> Option<Kind> {
        let mut state = lock(&self.state);
        *state.calls.entry(operation).or_default() += 1;
        let total: u64 = state.calls.values().sum();
        if total > check::CALLS {
            self.core.breach("I4", format!("{total} calls of the provider: {:?}", state.calls));
        }
        let now = Instant::now();
        if let Some(until) = state.hints.remove(&(operation, of.to_owned()))
            && now < until
        {
            let early = until - now;
            self.core.breach(
                "I4",
                format!("{operation} of {of} comes {early:?} before the cloud's hint"),
            );
        }
        state.closed.filter(|(until, _)| now < *until).map(|(_, kind)| kind)
    }

    fn throttle(&self, operation: &'static str, of: &str) -> Kind {
        let hint = self.core.dice.amount("hint", 0, 20);
        if hint == 0 {
            return Kind::Throttled(None);
        }
        let wait = seconds(hint);
        let until = Instant::now() + wait;
        lock(&self.state).hints.insert((operation, of.to_owned()), until);
        Kind::Throttled(Some(wait))
    }

    /// The effect of a create; a machine that an equal call has made is the answer.
    fn make(&self, spec: &VmSpec, candidate: &Candidate) -> Reply<Vm> {
        let mood = self.mood(&spec.sandbox);
        let mut state = lock(&self.state);
        state.machines.settle();
        match state.machines.made_by(spec, candidate, self.unique_names) {
            Ok(Some(there)) if there.gone.is_some() => {
                return fails(Kind::Unavailable, "that VM is being deleted");
            }
            Ok(Some(there)) => return Ok(there.as_vm()),
            Ok(None) => {}
            Err(who) => {
                self.core.excuse(&spec.sandbox, "its VM's name is taken");
                return fails(Kind::Invalid, &who);
            }
        }
        if let Some(other) = state.machines.live_of(&spec.sandbox).first() {
            let (id, sandbox) = (&other.id, &spec.sandbox);
            let what = format!("a second VM for sandbox {sandbox}: {id} is there");
            self.core.breach("I2", format!("{what}, and {candidate:?} makes another one"));
        }
        let made = state.machines.add(spec, candidate, mood);
        let ms = self.core.true_ms();
        state.machines.all.iter_mut().filter(|m| m.id == made.id).for_each(|m| m.made_ms = ms);
        self.core.trace(format!("cloud: {} is {} of {}", made.id, spec.name, spec.sandbox));
        Ok(made.as_vm())
    }

    pub(crate) async fn create(self: Arc<Self>, spec: VmSpec, candidate: Candidate) -> Reply<Vm> {
        let (core, sandbox) = (&self.core, spec.sandbox.as_str());
        core.pass_ms("create-request", 5, 60).await;
        if let Some(kind) = self.begin("create", sandbox) {
            return fails(kind, "closed");
        }
        if core.fires(Fault::NameTaken, sandbox)
            && lock(&self.state).machines.named(&spec.name).is_none()
        {
            self.take_name(&spec);
        }
        if core.fires(Fault::CreateThrottled, sandbox) {
            return fails(self.throttle("create", sandbox), "too many requests");
        }
        if core.fires(Fault::CreateDenied, sandbox) {
            return fails(Kind::Denied, "not allowed");
        }
        if core.fires(Fault::CreateQuota, sandbox) {
            return fails(Kind::Quota, "quota");
        }
        if core.fires(Fault::CreateCapacity, sandbox) {
            return self.no_room(&spec, &candidate);
        }
        if core.fires(Fault::CreateBefore, sandbox) {
            core.pass_ms("time-out", 1000, 30_000).await;
            return fails(Kind::Unavailable, "timed out");
        }
        if core.fires(Fault::CreateLate, sandbox) {
            let this = Arc::clone(&self);
            let (spec, candidate) = (spec.clone(), candidate.clone());
            tokio::spawn(async move {
                this.core.pass_ms("late", 1000, LATE).await;
                let late = this.make(&spec, &candidate).map_err(|e| e.1).map(|vm| vm.native_id);
                this.core.trace(format!("cloud: a late create of {}: {late:?}", spec.name));
            });
            core.pass_ms("time-out", 1000, 30_000).await;
            return fails(Kind::Unavailable, "timed out");
        }
        if core.fires(Fault::CreateParts, sandbox) {
            core.pass_ms("operation", 500, 8000).await;
            let made = self.no_room(&spec, &candidate);
            if made.is_err() {
                lock(&self.state).machines.add_parts(&spec, core.true_ms());
            }
            return made;
        }
        self.create_well(spec, candidate).await
    }

    /// No room, unless an equal call has found some already.
    fn no_room(&self, spec: &VmSpec, candidate: &Candidate) -> Reply<Vm> {
        match lock(&self.state).machines.made_by(spec, candidate, self.unique_names) {
            Ok(Some(there)) if there.gone.is_none() => Ok(there.as_vm()),
            Err(who) => fails(Kind::Invalid, &who),
            _ => fails(Kind::Capacity, "no room"),
        }
    }

    async fn create_well(self: Arc<Self>, spec: VmSpec, candidate: Candidate) -> Reply<Vm> {
        let (core, sandbox) = (&self.core, spec.sandbox.as_str());
        let made = self.make(&spec, &candidate)?;
        if core.fires_harmlessly(Fault::CreateTwice) {
            let (this, spec, candidate) = (Arc::clone(&self), spec.clone(), candidate.clone());
            tokio::spawn(async move {
                this.core.pass_ms("twice", 1000, 60_000).await;
                // A cloud that knows calls by an id of theirs makes nothing of a repetition.
                if this.unique_names {
                    let again = this.make(&spec, &candidate).is_ok();
                    this.core.trace(format!("cloud: create of {} again: {again}", spec.name));
                }
            });
        }
        if core.fires_harmlessly(Fault::CreateSlow) {
            core.pass_ms("create-slow", 10_000, 60_000).await;
        } else {
            core.pass_ms("create", 200, 3000).await;
        }
        if core.fires(Fault::CreateNoAddress, sandbox) {
            return fails(Kind::Unavailable, "no address yet");
        }
        if core.fires(Fault::CreateLost, sandbox) {
            core.pass_ms("time-out", 1000, 30_000).await;
            return fails(Kind::Unavailable, "the reply is lost");
        }
        if core.fires(Fault::CreateOther, sandbox) {
            return fails(Kind::Other, "E1234");
        }
        let mut state = lock(&self.state);
        state.machines.settle();
        let there = state.machines.all.iter().any(|m| m.id == made.native_id);
        if there { Ok(made) } else { fails(Kind::Unavailable, "it has gone before it started") }
    }

    pub(crate) async fn delete(self: Arc<Self>, vm: VmRef) -> Reply<Deletion> {
        let (core, sandbox) = (&self.core, vm.sandbox.as_str());
        core.pass_ms("delete-request", 5, 60).await;
        if let Some(kind) = self.begin("delete", sandbox) {
            return fails(kind, "closed");
        }
        if core.fires(Fault::DeleteThrottled, sandbox) {
            return fails(self.throttle("delete", sandbox), "too many requests");
        }
        if core.fires(Fault::DeleteDenied, sandbox) {
            return fails(Kind::Denied, "not allowed");
        }
        if core.fires(Fault::DeleteBefore, sandbox) {
            core.pass_ms("time-out", 1000, 30_000).await;
            return fails(Kind::Unavailable, "timed out");
        }
        if core.fires(Fault::DeleteForgotten, sandbox) {
            return Ok(Deletion::Accepted);
        }
        if self.is_young(&vm) && core.fires(Fault::DeleteNotFound, sandbox) {
            lock(&self.state).told_gone.insert(vm.sandbox.clone());
            return Ok(Deletion::Gone);
        }
        if core.fires(Fault::DeleteLate, sandbox) {
            let (this, vm) = (Arc::clone(&self), vm.clone());
            tokio::spawn(async move {
                this.core.pass_ms("late", 1000, LATE).await;
                this.take_away(&vm);
            });
            core.pass_ms("time-out", 1000, 30_000).await;
            return fails(Kind::Unavailable, "timed out");
        }
        let left = self.take_away(&vm);
        if core.fires(Fault::DeleteLost, sandbox) {
            core.pass_ms("time-out", 1000, 30_000).await;
            return fails(Kind::Unavailable, "the reply is lost");
        }
        if left {
            return Ok(Deletion::Accepted);
        }
        lock(&self.state).told_gone.insert(vm.sandbox.clone());
        Ok(Deletion::Gone)
    }

    fn is_young(&self, vm: &VmRef) -> bool {
        let state = lock(&self.state);
        state.machines.named(&vm.name).is_some_and(|m| m.made.elapsed() < seconds(60))
    }

    fn take_away(&self, vm: &VmRef) -> bool {
        let takes = Duration::from_millis(self.core.dice.amount("delete-takes", 0, 9000));
        let takes = if takes < Duration::from_millis(3000) { Duration::ZERO } else { takes };
        let (left, foreign) = lock(&self.state).machines.delete(vm, takes);
        if !foreign.is_empty() {
            self.core.breach("I6", format!("a delete of {vm:?} would hit {foreign:?}"));
        }
        left
    }

    pub(crate) async fn list(self: Arc<Self>) -> Reply<Vec<Resource>> {
        let core = &self.core;
        core.pass_ms("list-request", 5, 200).await;
        if let Some(kind) = self.begin("list", "") {
            return fails(kind, "closed");
        }
        if core.fires_harmlessly(Fault::ListSlow) {
            core.pass_ms("list-slow", 5000, 60_000).await;
        }
        if core.fires_harmlessly(Fault::ListFails) {
            return fails(Kind::Unavailable, "timed out");
        }
        let unfiltered = core.fires_harmlessly(Fault::ListUnfiltered);
        let now = Instant::now();
        let mut all = {
            let mut state = lock(&self.state);
            state.machines.settle();
            let fresh = state.machines.list(unfiltered);
            state.history.retain(|(at, _)| now - *at <= seconds(60));
            state.history.push((now, fresh.clone()));
            fresh
        };
        if core.fires_harmlessly(Fault::ListStale) {
            let state = lock(&self.state);
            let n = core.dice.amount("list-age", 0, state.history.len() as u64 - 1);
            let old = usize::try_from(n).ok().and_then(|n| state.history.get(n));
            all = old.map(|(_, old)| old.clone()).unwrap_or(all);
        }
        if core.fires_harmlessly(Fault::ListWrongState) {
            let wrong = core.dice.amount("wrong-state", 0, 1) == 0;
            all.iter_mut().for_each(|r| r.running = Some(false).filter(|_| wrong));
        }
        if core.fires_harmlessly(Fault::ListTruncated) {
            core.pass_ms("list-page", 100, 5000).await;
            return fails(Kind::Unavailable, "the second page is missing");
        }
        Ok(all)
    }

    /// Machines and parts of ours.
    pub(crate) fn ours(&self) -> Vec<Resource> {
        let mut state = lock(&self.state);
        state.machines.settle();
        state.machines.list(false).into_iter().filter(|r| is_ours(&r.tags)).collect()
    }
}

/// Where other people's machines are made.
fn candidate() -> Candidate {
    Candidate {
        number: 0,
        instance_type: "large".to_owned(),
        zone: None,
        market: peerpod_providers::Market::OnDemand,
    }
}
