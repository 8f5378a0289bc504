//! All pods of this worker: requests find their pod here, and what concerns all of them is done here.
//!
//! ```text
//!   hypervisor edge ─ create, start, stop, vm_id ─▶ ┌──────────┐
//!   relay ─ events ──▶ recovery ──────────────────▶ │ registry │ ─ Command ─▶ one actor per pod
//!   time ──▶ orphans, sweep ──────────────────────▶ └──────────┘
//! ```

mod beat;
mod events;
mod orphans;
mod recovery;
mod registry;
mod serve;
mod starts;
mod status;
mod sweep;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use crate::pod::Options;
pub use status::PodStatus;

use crate::pod::record::{Broken, Record, RecordError};
use crate::pod::world::World;
use crate::pod::{Common, Pod};
use crate::relay::api::Event;
use crate::shutdown::Tracker;
use events::Attached;
use registry::Registry;

/// All pods.
#[derive(Debug)]
pub struct Pods {
    /// Itself, for the tasks it starts.
    this: Weak<Self>,
    common: Arc<Common>,
    registry: Registry,
    /// Records that could not be used.
    broken: Mutex<Vec<Broken>>,
    /// Whether the relay is there, and since when.
    attached: watch::Sender<Option<Attached>>,
    /// Sandboxes whose CreateVM had no answer when the relay was attached last, in the order in which
    /// it came there; `None` before the first time.
    replayed: watch::Sender<Option<Arc<[String]>>>,
}

impl Pods {
    /// Takes all records up again and serves from then on.
    ///
    /// # Errors
    /// When the records cannot be read at all; one that cannot be used stops no other.
    pub async fn start(
        world: World,
        options: Options,
        relay_events: mpsc::Receiver<Event>,
        tracker: Tracker,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, RecordError> {
        let common = Arc::new(Common::new(world, options, tracker, shutdown));
        let pods = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            common,
            registry: Registry::new(),
            broken: Mutex::default(),
            attached: watch::Sender::new(None),
            replayed: watch::Sender::new(None),
        });
        recovery::take_up(&pods).await?;
        let tracker = &pods.common.tracker;
        let (gone, shims_gone) = mpsc::unbounded_channel();
        tracker.spawn("relay events", events::run(Arc::clone(&pods), relay_events, gone));
        tracker.spawn("beat", beat::run(Arc::clone(&pods)));
        tracker.spawn("orphans", orphans::run(Arc::clone(&pods), shims_gone));
        tracker.spawn("slow starts", starts::run(Arc::clone(&pods)));
        tracker.spawn("sweep", sweep::run(Arc::clone(&pods)));
        Ok(pods)
    }

    /// All pods as they are now, and a line for every record that cannot be used.
    pub fn snapshot(&self) -> Vec<PodStatus> {
        let records = self.registry.all().into_iter().filter_map(|p| p.record());
        let mut all: Vec<PodStatus> = records.map(|r| PodStatus::from(&*r)).collect();
        all.extend(self.broken().iter().map(PodStatus::from));
        all
    }

    /// The last pods that have ended in another way than by StopVM, oldest first.
    pub fn ended(&self) -> Vec<PodStatus> {
        let all = self.common.ended.all();
        let ended =
            |r: &Arc<Record>| PodStatus { phase: "ended".to_owned(), ..PodStatus::from(&**r) };
        all.iter().map(ended).collect()
    }

    fn broken(&self) -> Vec<Broken> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives a pod its task; when that ends, the pod leaves the registry.
    fn spawn(&self, pod: &Pod, life: impl Future<Output = ()> + Send + 'static) {
        let (pods, sandbox) = (Weak::clone(&self.this), pod.whose.sandbox.clone());
        let task = async move {
            let _leaves = Leaves { pods, sandbox };
            Box::pin(life).await;
        };
        self.common.tracker.spawn("pod", task);
    }
}

/// Also when the task panics: a pod without a task must not stay in the registry.
struct Leaves {
    pods: Weak<Pods>,
    sandbox: String,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        if let Some(pods) = self.pods.upgrade() {
            pods.registry.remove(&self.sandbox);
        }
    }
}

#[cfg(test)]
mod tests;
