//! What a pod's actor holds: the record, the one way to change it, and the one way to do an effect.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use peerpod_providers::{Candidate, Error, Kind, Vm, VmSpec};
use peerpod_tunnel::link::tls::ClientTls;
use peerpod_tunnel::network::{MIN_MTU, Tunnel};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Common;
use super::phase::{Event, Made, Phase};
use super::queue::Queue;
use super::record::Record;
use super::steps::{Slot, StepError};
use super::world::{NetworkError, Stage, Unready};
use crate::crash::{reach, reach_save, sent};

const SAVE: &str = "save";

/// One pod. All of it works by shared reference: a step borrows it while the actor listens.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) common: Arc<Common>,
    current: Mutex<Arc<Record>>,
    seen: watch::Sender<Option<Arc<Record>>>,
    disk: Queue,
    kernel: Queue,
    taken: Mutex<Taken>,
    /// The create that was sent last, until its outcome is known.
    flight: tokio::sync::Mutex<Option<Flight>>,
    /// Some create has ended without telling whether it took effect.
    unsure: AtomicBool,
}

/// A create under way; gone without an outcome only when the process ends.
type Flight = oneshot::Receiver<Result<Vm, Error>>;

/// Time taken since the last change of phase.
#[derive(Debug)]
struct Taken {
    since: Instant,
    steps: Vec<(&'static str, Duration)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Life {
    /// Takes a record over and lets others see it.
    pub(crate) fn new(
        common: Arc<Common>,
        record: Record,
        seen: watch::Sender<Option<Arc<Record>>>,
    ) -> Self {
        common.world.observer.phase(None, Some(record.phase.name()));
        let unsure = matches!(
            record.phase,
            Phase::Launching { made: Made::Perhaps, .. }
                | Phase::Deleting { made: Made::Perhaps, .. }
        );
        let record = Arc::new(record);
        seen.send_replace(Some(Arc::clone(&record)));
        Self {
            common,
            current: Mutex::new(record),
            seen,
            disk: Queue::default(),
            kernel: Queue::default(),
            taken: Mutex::new(Taken { since: Instant::now(), steps: Vec::new() }),
            flight: tokio::sync::Mutex::new(None),
            unsure: unsure.into(),
        }
    }

    /// Sends a create. It goes on to its own end even if whoever waits here does not: how it ended
    /// tells whether there is a VM to delete, see [`Life::landed`]. Until then it takes up its slot.
    pub(crate) async fn create(
        &self,
        slot: &Slot,
        spec: &VmSpec,
        candidate: &Candidate,
    ) -> Result<Vm, Error> {
        let slot = slot.clone();
        let (common, spec) = (Arc::clone(&self.common), spec.clone());
        let candidate = candidate.clone();
        let (tell, outcome) = oneshot::channel();
        let mut flight = self.flight.lock().await;
        self.common.tracker.spawn("create VM", async move {
            let world = &common.world;
            reach!(world, CreateSentBefore);
            let create = world.provider.create(&spec, &candidate);
            let create = sent!(world, CreateSentAfter, create);
            // A process that ends leaves the outcome to its successor, which repeats the call.
            if let Some(done) = common.shutdown.run_until_cancelled(create).await {
                let _ = tell.send(done);
            }
            drop(slot);
        });
        let done = flight.insert(outcome).await;
        *flight = None;
        let Ok(done) = done else { return std::future::pending().await };
        self.judge(&done);
        done
    }

    fn judge(&self, done: &Result<Vm, Error>) {
        if done.as_ref().is_err_and(|e| matches!(e.kind, Kind::Unavailable | Kind::Other)) {
            self.unsure.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a create may yet take effect of which nobody has told the outcome.
    pub(crate) fn is_unsure(&self) -> bool {
        self.unsure.load(Ordering::Relaxed)
    }

    /// Waits for the outcome of a create that was under way when its start was dropped; then whether
    /// there is a VM is known, unless [`Life::is_unsure`].
    pub(crate) async fn landed(&self) {
        let mut flight = self.flight.lock().await;
        if let Some(outcome) = flight.as_mut() {
            match outcome.await {
                Ok(done) => self.judge(&done),
                Err(_) => std::future::pending().await,
            }
        }
        *flight = None;
    }

    /// The record as it is now.
    pub(crate) fn record(&self) -> Arc<Record> {
        Arc::clone(&lock(&self.current))
    }

    /// Changes the record in memory only; the next save takes it along.
    pub(crate) fn amend(&self, change: impl FnOnce(&mut Record)) {
        let mut current = lock(&self.current);
        change(Arc::make_mut(&mut current));
        self.seen.send_replace(Some(Arc::clone(&current)));
    }

    /// Takes the table's next phase, in memory.
    pub(crate) fn enter(&self, event: Event) -> Result<(), StepError> {
        let old = self.record();
        let next = old.phase.after(event)?.ok_or(StepError::Ended)?;
        let changed = next.name() != old.phase.name();
        // Once: a span's field that is recorded again is printed twice.
        if let (None, Some(vm)) = (old.phase.vm(), next.vm()) {
            tracing::Span::current().record("vm", vm.native_id.as_str());
        }
        let now = self.common.world.clock.now_ms();
        let taken = changed.then(|| self.turn_over());
        self.amend(|r| {
            r.phase = next;
            if !r.phase.may_ask_for_a_vm() {
                r.wipe();
            }
            if let Some((took, _)) = &taken {
                r.since_ms = now;
                r.note(now, r.phase.name(), Some(millis(*took)));
            }
        });
        if let Some((took, steps)) = taken {
            let (from, record) = (old.phase.name(), self.record());
            self.common.world.observer.phase(Some(from), Some(record.phase.name()));
            tracing::info!(
                phase = record.phase.name(),
                from,
                after_ms = millis(took),
                steps,
                "pod"
            );
        }
        Ok(())
    }

    /// Time since the last change of phase, and the steps since then in words.
    fn turn_over(&self) -> (Duration, String) {
        let mut taken = lock(&self.taken);
        let took = taken.since.elapsed();
        taken.since = Instant::now();
        let steps: Vec<_> = taken
            .steps
            .drain(..)
            .map(|(name, took)| format!("{name} {} ms", millis(took)))
            .collect();
        (took, steps.join(", "))
    }

    /// Takes the table's next phase and keeps it on disk before anything else happens. What could not
    /// be kept did not happen, except the end of the pod.
    pub(crate) async fn advance(
        &self,
        event: Event,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), StepError> {
        let before = self.record();
        self.enter(event)?;
        self.amend(change);
        let saved = self.save().await;
        if saved.is_err() && !self.record().phase.is_over() {
            self.amend(|r| r.phase = before.phase.clone());
        }
        saved
    }

    /// Writes the record as it is now. Saves of one pod never overtake one another.
    pub(crate) async fn save(&self) -> Result<(), StepError> {
        let (common, record) = (Arc::clone(&self.common), self.record());
        let save = async move {
            reach_save!(common.world, &record.phase, Before);
            let saved = common.world.records.save(&record).await;
            reach_save!(common.world, &record.phase, After);
            saved
        };
        let queued = self.disk.run(&self.common.tracker, "save record", save);
        self.step(SAVE, async { queued.await.ok_or(StepError::Ended)?.map_err(StepError::Save) })
            .await
    }

    /// Removes the record.
    pub(crate) async fn forget(&self) -> Result<(), StepError> {
        let (records, record) = (Arc::clone(&self.common.world.records), self.record());
        let remove = async move { records.remove(&record.sandbox).await };
        let queued = self.disk.run(&self.common.tracker, "remove record", remove);
        self.step("forget", async {
            queued.await.ok_or(StepError::Ended)?.map_err(StepError::Save)
        })
        .await
    }

    /// Does an effect and keeps in the timeline how it went.
    pub(crate) async fn step<T, E: std::fmt::Display>(
        &self,
        name: &'static str,
        effect: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (done, took) = self.common.observe(name, effect).await;
        lock(&self.taken).steps.push((name, took));
        // A save is no news, and would itself have to be saved.
        if name != SAVE {
            let now = self.common.world.clock.now_ms();
            self.amend(|r| match &done {
                Ok(_) => r.note(now, name, Some(millis(took))),
                Err(error) => {
                    r.note(now, format!("{name} failed"), Some(millis(took)));
                    r.fail(format!("{name}: {error}"));
                }
            });
        }
        done
    }

    /// Keeps how far a start has come; the furthest stage stays.
    pub(crate) fn reached(&self, unready: &Unready) {
        let record = self.record();
        let text = unready.to_string();
        if record.stage >= Some(unready.stage) && record.last_error.as_ref() == Some(&text) {
            return;
        }
        self.amend(|r| {
            r.stage = r.stage.max(Some(unready.stage));
            r.fail(text);
        });
    }

    /// Keeps that a start has come to that stage.
    pub(crate) fn come_to(&self, stage: Stage) {
        self.amend(|r| r.stage = r.stage.max(Some(stage)));
    }

    /// Where the forwarder of a VM listens.
    pub(crate) fn target(&self, vm: &Vm) -> Result<SocketAddr, StepError> {
        let address = vm.addresses.first().ok_or(StepError::NoAddress)?;
        Ok(SocketAddr::new(*address, self.record().link.port))
    }

    /// What the worker needs to talk to the VM; `None` without TLS.
    pub(crate) fn tls(&self) -> Option<ClientTls> {
        self.common.world.planner.client(&self.record().link.server_name)
    }

    /// The tunnel to that VM.
    pub(crate) fn tunnel(&self, vm: &Vm) -> Result<Tunnel, StepError> {
        let found = &self.record().network.found;
        let first = *vm.addresses.first().ok_or(StepError::NoAddress)?;
        let vm = match (found.dedicated, vm.addresses.get(1)) {
            (false, _) => first,
            (true, Some(second)) => *second,
            (true, None) => return Err(StepError::OneAddress),
        };
        let mtu = found.inner_mtu(vm).map_err(StepError::Mtu)?;
        Ok(self.tunnel_with(vm, mtu))
    }

    /// The tunnel as far as taking it away needs it: whichever VM it may have been made for.
    pub(crate) fn any_tunnel(&self) -> Tunnel {
        self.tunnel_with(IpAddr::V4(Ipv4Addr::UNSPECIFIED), MIN_MTU)
    }

    fn tunnel_with(&self, vm: IpAddr, mtu: u32) -> Tunnel {
        let record = self.record();
        let network = &record.network;
        Tunnel {
            sandbox: record.sandbox.clone(),
            vni: network.vni,
            port: network.vxlan_port,
            netns: network.netns.clone(),
            netns_id: network.netns_id,
            interface: network.found.interface.clone(),
            mac: network.found.mac,
            addresses: network.found.addresses.clone(),
            vm,
            mtu,
        }
    }

    /// Makes or repairs the tunnel. Attach and detach of one pod never overtake one another.
    pub(crate) async fn attach(&self, tunnel: Tunnel) -> Result<(), NetworkError> {
        let network = Arc::clone(&self.common.world.network);
        let attach = async move { network.attach(&tunnel).await };
        let queued = self.kernel.run(&self.common.tracker, "attach tunnel", attach);
        self.step("attach", async { queued.await.unwrap_or(Err(NetworkError::Ended("attach"))) })
            .await
    }

    /// Takes the tunnel away.
    pub(crate) async fn detach(&self, tunnel: Tunnel) -> Result<(), NetworkError> {
        let network = Arc::clone(&self.common.world.network);
        let detach = async move { network.detach(&tunnel).await };
        let queued = self.kernel.run(&self.common.tracker, "detach tunnel", detach);
        self.step("detach", async { queued.await.unwrap_or(Err(NetworkError::Ended("detach"))) })
            .await
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let from = self.record().phase.name();
        self.common.world.observer.phase(Some(from), None);
        self.seen.send_replace(None);
    }
}
