//! A provider in memory, for tests and simulation: it does what clouds do, and what they should
//! not do, by script. Its time is tokio's, so paused time works; the same calls at the same times
//! give the same answers.
//!
//! ```text
//!   test ── script(Create, 2, LostReply) ──▶ ┌──────┐ ◀── create, delete, list ── code under test
//!        ── vanish, kill, set_room ────────▶ │ Fake │
//!        ◀── vms, calls ──────────────────── └──────┘
//! ```

mod bucket;
mod script;
mod world;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

pub use bucket::Rate;
pub use script::{Fault, Operation};
pub use world::FakeVm;

use crate::{
    Candidate, Deletion, Error, Finding, InstanceType, Kind, Market, Provider, Report, Resource,
    Vm, VmName, VmRef, VmSpec,
};
use bucket::Bucket;
use script::{Faults, Script};
use world::World;

/// The provider's name.
pub const NAME: &str = "fake";

/// How the fake behaves when nothing goes wrong.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only what carries this installation's tag is listed.
    pub installation: String,
    /// The catalogue.
    pub types: Vec<InstanceType>,
    /// From a create to an address.
    pub boot_takes: Duration,
    /// From a delete to the VM's being gone; zero answers `Gone` at once.
    pub delete_takes: Duration,
    /// Resources per page of a list.
    pub page: usize,
    /// From one page of a list to the next.
    pub page_takes: Duration,
    /// Largest user data, in bytes.
    pub user_data_limit: usize,
    /// Request rates; an operation without one is not limited.
    pub rates: BTreeMap<Operation, Rate>,
    /// Wall-clock time when the fake was made, for [`Resource::created`].
    pub began: SystemTime,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            installation: "test".to_owned(),
            types: vec![InstanceType {
                name: "small".to_owned(),
                vcpus: 2,
                memory_mib: 4096,
                gpus: 0,
                price: None,
            }],
            boot_takes: Duration::from_millis(10),
            delete_takes: Duration::ZERO,
            page: 100,
            page_takes: Duration::ZERO,
            user_data_limit: 64 << 10,
            rates: BTreeMap::new(),
            began: SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600),
        }
    }
}

/// A call the fake was asked, and how it answered. A call that was dropped has no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which of the four.
    pub operation: Operation,
    /// The VM it was about, for create and delete.
    pub name: Option<VmName>,
    /// The candidate, for create.
    pub candidate: Option<Candidate>,
    /// `None` while it has not answered.
    pub outcome: Option<Result<(), Kind>>,
}

/// The provider in memory.
#[derive(Debug)]
pub struct Fake {
    options: Options,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    script: Script,
    world: World,
    buckets: BTreeMap<Operation, Bucket>,
    calls: Vec<Call>,
}

impl Fake {
    /// Without machines and without faults.
    pub fn new(options: Options) -> Self {
        let now = Instant::now();
        let buckets = options.rates.iter().map(|(op, rate)| (*op, Bucket::new(*rate, now)));
        let state = State {
            script: Script::default(),
            world: World::new(&options, now),
            buckets: buckets.collect(),
            calls: Vec::new(),
        };
        Self { options, state: Mutex::new(state) }
    }

    /// Lets a fault befall the call with that number, counted from 1.
    pub fn script(&self, operation: Operation, call: u64, fault: Fault) {
        self.state().script.at(operation, call, fault);
    }

    /// Lets a fault befall the next call.
    pub fn script_next(&self, operation: Operation, fault: Fault) {
        self.state().script.next(operation, fault);
    }

    /// Lets a fault befall every call from now on.
    pub fn script_always(&self, operation: Operation, fault: Fault) {
        self.state().script.always(operation, fault);
    }

    /// Takes all faults back that have not befallen yet.
    pub fn clear_script(&self) {
        self.state().script.clear();
    }

    /// How many calls of that kind there were.
    pub fn count(&self, operation: Operation) -> u64 {
        self.state().script.count(operation)
    }

    /// All calls, in the order they came.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// All machines that are there now, stopped and foreign ones included.
    pub fn vms(&self) -> Vec<FakeVm> {
        let mut state = self.state();
        state.world.settle(Instant::now());
        state.world.vms.values().cloned().collect()
    }

    /// Everything a list would give, without being a call.
    pub fn resources(&self) -> Vec<Resource> {
        let (mut state, now) = (self.state(), Instant::now());
        state.world.settle(now);
        state.world.list(&self.options, now)
    }

    /// Takes a machine away behind everybody's back; false if there is none.
    pub fn vanish(&self, name: &VmName) -> bool {
        self.state().world.vms.remove(name).is_some()
    }

    /// Stops a machine behind everybody's back; false if there is none.
    pub fn kill(&self, name: &VmName) -> bool {
        let mut state = self.state();
        state.world.vms.get_mut(name).map(|vm| vm.dies = Some(Instant::now())).is_some()
    }

    /// Puts a machine there that nobody has asked for.
    ///
    /// # Errors
    /// As a create: the name is taken, there is no room.
    pub fn plant(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Vm, Error> {
        let mut state = self.state();
        let made = state.world.create(spec, candidate, Instant::now());
        made.map(|vm| vm.as_vm()).map_err(|e| error(Operation::Create, e))
    }

    /// How many machines of that type, zone and market there may be.
    pub fn set_room(&self, of_type: &str, zone: Option<&str>, market: Market, room: usize) {
        let place = (of_type.to_owned(), zone.map(str::to_owned), market);
        self.state().world.room.insert(place, room);
    }

    /// Nothing panics while it holds the lock, and the data would be whole even then.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts and logs the call, lets its delay pass, and says what else befalls it.
    async fn begin(&self, mut call: Call) -> Result<(Faults, Open<'_>), Error> {
        let operation = call.operation;
        let (faults, wait, open) = {
            let (mut state, now) = (self.state(), Instant::now());
            let faults = state.script.begin(operation);
            let wait = state.buckets.get_mut(&operation).and_then(|b| b.take(now).err());
            call.outcome = None;
            state.calls.push(call);
            (faults, wait, Open { fake: self, index: state.calls.len() - 1, operation })
        };
        if let Some(wait) = wait {
            return open.fail(Kind::Throttled(Some(wait)), "too many requests");
        }
        let delay = faults.delay();
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if faults.has(Fault::Hang) {
            std::future::pending::<()>().await;
        }
        let failed = faults.find(|f| if let Fault::Fail(kind) = f { Some(*kind) } else { None });
        match failed {
            Some(kind) => open.fail(kind, "fails by script"),
            None => Ok((faults, open)),
        }
    }
}

/// A call that has not been answered yet.
struct Open<'a> {
    fake: &'a Fake,
    index: usize,
    operation: Operation,
}

impl Open<'_> {
    fn answer<T>(self, result: Result<T, (Kind, String)>) -> Result<T, Error> {
        let mut state = self.fake.state();
        if let Some(call) = state.calls.get_mut(self.index) {
            call.outcome = Some(result.as_ref().map(drop).map_err(|e| e.0));
        }
        result.map_err(|e| error(self.operation, e))
    }

    fn fail<T>(self, kind: Kind, message: &str) -> Result<T, Error> {
        self.answer(Err((kind, message.to_owned())))
    }
}

fn error(operation: Operation, (kind, message): (Kind, String)) -> Error {
    Error::new(NAME, operation.as_str(), kind, message)
}

fn call(operation: Operation) -> Call {
    Call { operation, name: None, candidate: None, outcome: None }
}

fn lost_reply(fault: &Fault) -> Option<Kind> {
    if let Fault::LostReply(kind) = fault { Some(*kind) } else { None }
}

fn late_effect(fault: &Fault) -> Option<Duration> {
    if let Fault::LateEffect(after) = fault { Some(*after) } else { None }
}

impl std::fmt::Display for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(NAME)
    }
}

#[async_trait::async_trait]
impl Provider for Fake {
    async fn check(&self) -> Result<Report, Error> {
        let (_, open) = self.begin(call(Operation::Check)).await?;
        let mut report = Report::of_types(self.options.types.clone());
        report.findings = vec![Finding::warning("fake", "it makes no machines at all")];
        open.answer(Ok(report))
    }

    async fn create(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Vm, Error> {
        let (name, place) = (Some(spec.name.clone()), Some(candidate.clone()));
        let begun = Call { name, candidate: place, ..call(Operation::Create) };
        let (faults, open) = self.begin(begun).await?;
        if let Some(after) = faults.find(late_effect) {
            self.state().world.create_late(Instant::now() + after, spec, candidate);
            return open.fail(Kind::Unavailable, "timed out by script");
        }
        let partial = |f: &Fault| if let Fault::Partial(kind) = f { Some(*kind) } else { None };
        if let Some(kind) = faults.find(partial) {
            self.state().world.create_partly(spec, Instant::now());
            return open.fail(kind, "made a disk and an interface and no VM, by script");
        }
        let native_id = match self.make(spec, candidate, &faults) {
            Ok(native_id) => native_id,
            Err(e) => return open.answer(Err(e)),
        };
        sleep(self.options.boot_takes).await;
        if faults.has(Fault::NoAddress) {
            return open.fail(Kind::Unavailable, "the VM has no address yet, by script");
        }
        if let Some(kind) = faults.find(lost_reply) {
            return open.fail(kind, "the reply is lost, by script");
        }
        let made = self.vms().into_iter().find(|vm| vm.native_id == native_id);
        let gone = || (Kind::Unavailable, format!("VM {} has gone before it started", spec.name));
        open.answer(made.map(|vm| vm.as_vm()).ok_or_else(gone))
    }

    async fn delete(&self, vm: &VmRef) -> Result<Deletion, Error> {
        let begun = Call { name: Some(vm.name.clone()), ..call(Operation::Delete) };
        let (faults, open) = self.begin(begun).await?;
        let now = Instant::now();
        if let Some(after) = faults.find(late_effect) {
            self.state().world.delete_late(now + after, vm);
            return open.fail(Kind::Unavailable, "timed out by script");
        }
        let deletion = {
            let mut state = self.state();
            state.world.settle(now);
            state.world.delete(vm, now)
        };
        match faults.find(lost_reply) {
            Some(kind) => open.fail(kind, "the reply is lost, by script"),
            None => open.answer(Ok(deletion)),
        }
    }

    async fn list(&self) -> Result<Vec<Resource>, Error> {
        let (faults, open) = self.begin(call(Operation::List)).await?;
        let breaks = |f: &Fault| if let Fault::BreaksAfter(n) = f { Some(*n) } else { None };
        let breaks = faults.find(breaks);
        let all = self.resources();
        // An empty list is one page, too.
        for page in 0..all.len().div_ceil(self.options.page.max(1)).max(1) {
            if breaks == Some(page) {
                return open.fail(Kind::Unavailable, "a page of the list fails, by script");
            }
            sleep(self.options.page_takes).await;
        }
        open.answer(Ok(all))
    }

    async fn console(&self, vm: &VmRef) -> Result<Option<String>, Error> {
        let there = self.vms().into_iter().find(|there| there.spec.name == vm.name);
        Ok(there.map(|there| format!("{} says hello\n", there.spec.name)))
    }
}

impl Fake {
    fn make(
        &self,
        spec: &VmSpec,
        candidate: &Candidate,
        faults: &Faults,
    ) -> Result<String, (Kind, String)> {
        let (mut state, now) = (self.state(), Instant::now());
        state.world.settle(now);
        let vm = state.world.create(spec, candidate, now)?;
        let dies = |f: &Fault| if let Fault::DiesAfter(after) = f { Some(*after) } else { None };
        if let Some(after) = faults.find(dies) {
            vm.dies = Some(now + after);
        }
        Ok(vm.native_id.clone())
    }
}

#[cfg(test)]
mod tests;
