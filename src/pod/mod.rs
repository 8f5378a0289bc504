//! The life of one pod: its phases, its record, and the actor that takes it from one to the next.
//!
//! ```text
//!   pods ── Command ──▶ desk ─ actor ─ steps ──▶ world (provider, relay, network, records, guest)
//!        ◀─ record ───────────┘ life
//! ```

mod actor;
mod desk;
pub mod edit;
mod ended;
pub(crate) mod interruption;
mod life;
mod liveness;
mod options;
pub mod phase;
pub mod probe;
mod queue;
pub mod record;
#[cfg(test)]
pub(crate) mod samples;
mod steps;
mod vnis;
pub mod world;

use std::sync::Arc;
use std::time::Duration;

use peerpod_providers::VmName;
use peerpod_providers::placement::Placement;
use peerpod_tunnel::link::notice::Notices;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

pub(crate) use desk::{Command, End, Held, Reply};
pub(crate) use liveness::period;
pub use options::Options;
pub(crate) use steps::Whose;

use crate::crash::reach_step;
use crate::request::PodRequest;
use crate::shutdown::Tracker;
use actor::Actor;
use desk::Desk;
use ended::Ended;
use record::Record;
use vnis::Vnis;
use world::World;

/// What all pods share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) world: World,
    pub(crate) options: Options,
    /// Creates under way; waiters are served in the order in which they came.
    pub(crate) creates: Arc<Semaphore>,
    pub(crate) vnis: Vnis,
    /// Places that had no room, for all pods.
    pub(crate) placement: Placement,
    /// Records of pods that have gone without a StopVM.
    pub(crate) ended: Ended,
    pub(crate) tracker: Tracker,
    pub(crate) shutdown: CancellationToken,
}

impl Common {
    pub(crate) fn new(
        world: World,
        options: Options,
        tracker: Tracker,
        shutdown: CancellationToken,
    ) -> Self {
        let placement = options.capacity_cooldown;
        let creates = Semaphore::new(options.concurrent_creates.clamp(1, Semaphore::MAX_PERMITS));
        Self {
            world,
            options,
            creates: Arc::new(creates),
            vnis: Vnis::default(),
            placement: Placement::new(placement),
            ended: Ended::default(),
            tracker,
            shutdown,
        }
    }

    /// Every effect passes here: it is timed, counted and told. Returns how long it took, too.
    pub(crate) async fn observe<T, E: std::fmt::Display>(
        &self,
        step: &'static str,
        effect: impl Future<Output = Result<T, E>>,
    ) -> (Result<T, E>, Duration) {
        reach_step!(self.world, step, Before);
        let begin = Instant::now();
        let done = effect.await;
        let took = begin.elapsed();
        self.world.observer.step(step, took, done.is_ok());
        let took_ms = took.as_millis();
        match &done {
            Ok(_) => tracing::debug!(step, took_ms, "done"),
            Err(error) => tracing::warn!(step, took_ms, %error, "failed"),
        }
        reach_step!(self.world, step, After);
        (done, took)
    }
}

/// How to speak to a pod's actor.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) whose: Whose,
    /// Name its VM has or will have; no other pod's.
    pub(crate) vm_name: VmName,
    /// Lines that its shim and its VM can cause.
    pub(crate) notices: Arc<Notices>,
    inbox: mpsc::UnboundedSender<Command>,
    seen: watch::Receiver<Option<Arc<Record>>>,
}

impl Pod {
    /// Begins a sandbox's life; the future is its task's.
    pub(crate) fn begin(
        common: &Arc<Common>,
        request: PodRequest,
        name: VmName,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let whose = Whose {
            sandbox: request.sandbox.to_string(),
            namespace: request.namespace.clone(),
            pod: request.pod.clone(),
        };
        let (pod, actor, seen) = Self::new(common, whose, name.clone(), None);
        let span = pod.span();
        (pod, actor.begin(request, name, seen).instrument(span))
    }

    /// Takes a sandbox's life up from its record.
    pub(crate) fn resume(
        common: &Arc<Common>,
        record: Record,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (whose, name) = (Whose::from(&record), record.vm_ref().name);
        let shown = Some(Arc::new(record.clone()));
        let (pod, actor, seen) = Self::new(common, whose, name, shown);
        let span = pod.span();
        (pod, actor.resume(record, seen).instrument(span))
    }

    fn new(
        common: &Arc<Common>,
        whose: Whose,
        vm_name: VmName,
        shown: Option<Arc<Record>>,
    ) -> (Self, Actor, actor::Seen) {
        let (inbox, commands) = mpsc::unbounded_channel();
        let (publish, seen) = watch::channel(shown);
        let desk = Desk::new(commands, common.shutdown.clone());
        let actor = Actor::new(Arc::clone(common), desk, whose.clone());
        (Self { whose, vm_name, notices: Arc::default(), inbox, seen }, actor, publish)
    }

    fn span(&self) -> tracing::Span {
        let Whose { sandbox, namespace, pod } = &self.whose;
        info_span!("pod", pod, namespace, sandbox, vm = tracing::field::Empty)
    }

    /// Tells the actor; false when it has ended.
    pub(crate) fn tell(&self, command: Command) -> bool {
        self.inbox.send(command).is_ok()
    }

    /// Its record; `None` while CreateVM is being worked on, and afterwards.
    pub(crate) fn record(&self) -> Option<Arc<Record>> {
        self.seen.borrow().clone()
    }

    /// To wait for changes of the record; closed when the actor has ended.
    pub(crate) fn seen(&self) -> watch::Receiver<Option<Arc<Record>>> {
        self.seen.clone()
    }
}
