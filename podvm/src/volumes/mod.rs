//! A pod's volumes in the VM: disks that the cloud has attached, mounted for its containers, and away again
//! before the VM is.
//!
//! ```text
//!   CreateContainer ─ annotation ─▶ per volume: find the device ─▶ look at it ─┬ a file system: mount
//!                                   (until it is there)                        ├ empty: make one, mount; not in a
//!                                                                              │ confidential VM
//!                                                                              └ encrypted: the data hub mounts it
//!        ─▶ group ─▶ its mounts are bound to /run/cloud-volumes/<name> ─▶ agent
//!   DestroySandbox, no connection of a worker left, SIGTERM ─▶ written out, unmounted, mappings closed
//! ```
//! Everything can be repeated, by the next container as by the next process: what is mounted is asked
//! of the kernel.

mod cdh;
mod find;
pub(crate) mod hand;
mod mounts;
mod place;
mod probe;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use podvm::cloud_volumes;
use podvm::edit::{self, Call, Container, Mount};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use find::{Finder, Known};
use hand::{Hand, Job};
use place::Failed;

/// How long a mount point of the older kind is waited for (upstream's), with looks in between.
const TARGET: Duration = Duration::from_secs(180);
const TARGET_LOOK: Duration = Duration::from_millis(500);

/// What is known of the VM.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where volumes are mounted.
    pub(crate) base: PathBuf,
    /// Socket of the confidential data hub.
    pub(crate) cdh: PathBuf,
    /// How long a disk may take to appear.
    pub(crate) wait: Duration,
    /// The VM's memory is encrypted: what is not measured has no say.
    pub(crate) confidential: bool,
    /// Azure's machines show the number of a disk, all others its id.
    pub(crate) azure: bool,
    /// Disks by their ids; where there are some, there are no others.
    pub(crate) disks: BTreeMap<String, PathBuf>,
}

/// A call that waits for file systems.
#[derive(Debug)]
pub(crate) enum Task {
    /// A container's.
    Container(Container),
    /// The pod's end.
    Destroy,
}

/// The volumes of this VM's pod.
#[derive(Debug)]
pub(crate) struct Volumes {
    settings: Settings,
    finder: Finder,
    hand: Option<hand::Open>,
    /// One change of the VM's mounts at a time.
    changes: Mutex<()>,
    /// Connections of workers.
    users: AtomicUsize,
}

impl Volumes {
    /// Without a hand there are only disks that hold a file system.
    pub(crate) fn new(settings: Settings, hand: Option<Hand>) -> Self {
        let known = match (settings.disks.is_empty(), settings.azure) {
            (false, _) => Known::Given(settings.disks.clone()),
            (true, true) => Known::ByLun,
            (true, false) => Known::ById,
        };
        let hand = hand.map(Hand::open).transpose().unwrap_or_else(|error| {
            tracing::warn!("{}: {error}", hand::NAME);
            None
        });
        let (changes, users) = (Mutex::default(), AtomicUsize::new(0));
        Self { settings, finder: Finder::new(known), hand, changes, users }
    }

    /// Whether a held request has to wait for anything.
    pub(crate) fn concerns(request: &[u8]) -> Option<Task> {
        // What does not parse is refused by the edit.
        match edit::call(request).ok()? {
            Call::Destroy => Some(Task::Destroy),
            Call::Container(c) if c.mounts.iter().any(is_bind) || named(&c).next().is_some() => {
                Some(Task::Container(c))
            }
            Call::Container(_) | Call::Other => None,
        }
    }

    /// Does what the call needs and gives the request as it goes on; else google.rpc code and words.
    pub(crate) async fn prepare(
        &self,
        task: Task,
        request: &[u8],
    ) -> Result<Vec<u8>, (i32, String)> {
        let Task::Container(container) = task else {
            self.release("the sandbox ends").await;
            return Ok(request.to_vec());
        };
        let done = self.container(&container, request).await;
        done.map_err(|failed| (failed.code(), failed.to_string()))
    }

    async fn container(&self, container: &Container, request: &[u8]) -> Result<Vec<u8>, Failed> {
        let patience = u64::try_from(i64::try_from(container.timeout_nano).unwrap_or(0));
        let patience = Duration::from_nanos(patience.unwrap_or(0));
        // A little earlier than the caller, so that it hears why.
        let patience = if patience.is_zero() { Duration::MAX } else { patience.mul_f32(0.9) };
        let begin = Instant::now();
        let text = container.annotations.get(cloud_volumes::ANNOTATION);
        let wanted = text.filter(|t| !t.is_empty()).map(|t| cloud_volumes::parse(t)).transpose()?;
        let wanted = wanted.unwrap_or_default();
        let (mut by_destination, mut by_source) = (BTreeMap::new(), BTreeMap::new());
        for volume in &wanted {
            let left = patience.saturating_sub(begin.elapsed());
            let point = self.mount(volume, left).await?.display().to_string();
            let at = |m: &&Mount| m.destination == volume.mount_point;
            match container.mounts.iter().find(at) {
                // The same volume may be at a second place in the container.
                Some(mount) => drop(by_source.insert(mount.source.clone(), point.clone())),
                None => {
                    tracing::warn!(volume = %volume.name, "no mount at {:?}", volume.mount_point)
                }
            }
            by_destination.insert(volume.mount_point.clone(), point);
        }
        by_source.remove("");
        let moved = |mount: &Mount| {
            let new = by_destination.get(&mount.destination);
            new.or_else(|| by_source.get(&mount.source)).cloned()
        };
        let targets = container.annotations.get(cloud_volumes::TARGETS);
        let targets = targets.map(|t| cloud_volumes::targets(t)).unwrap_or_default();
        for mount in container.mounts.iter().filter(|m| moved(m).is_none()) {
            if is_bind(mount) {
                make_source(&mount.source).await;
            }
            if targets.contains(&mount.source) {
                let left = patience.saturating_sub(begin.elapsed());
                self.wait_for_target(&mount.source, left.min(TARGET)).await?;
            }
        }
        // It was read before, so it can be read.
        Ok(edit::bind(request, moved).unwrap_or_else(|_| request.to_vec()))
    }

    async fn wait_for_target(&self, target: &str, limit: Duration) -> Result<(), Failed> {
        let begin = Instant::now();
        while !mounts::at(Path::new(target)).is_ok_and(|found| found.is_some()) {
            if begin.elapsed() + TARGET_LOOK > limit {
                return Err(Failed::Target { target: target.to_owned(), waited: limit });
            }
            sleep(TARGET_LOOK).await;
        }
        Ok(())
    }

    async fn hand(&self, job: Job) -> Result<(), String> {
        match &self.hand {
            Some(hand) => hand.ask(job).await,
            None => Err(format!("this podvm runs without its {}", hand::NAME)),
        }
    }

    /// Writes all volumes out and takes them away; what containers still use stays theirs.
    pub(crate) async fn release(&self, why: &str) {
        let _one = self.changes.lock().await;
        let base = self.settings.base.clone();
        let found = match mounts::below(&base) {
            Ok(found) => found,
            Err(error) => return tracing::warn!("volumes: reading the VM's mounts: {error}"),
        };
        for mounted in found.into_iter().rev() {
            let point = mounted.point.clone();
            let done = tokio::task::spawn_blocking(move || mounts::detach(&point)).await;
            let shown = mounted.point.display();
            match done.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
                Ok(()) => tracing::info!(why, volume = %shown, "unmounted"),
                Err(error) => {
                    tracing::warn!(why, volume = %shown, "unmounting: {error}");
                    continue;
                }
            }
            if let Some(mapper) = mounted.source.strip_prefix("/dev/mapper/")
                && let Err(error) = self.hand(Job::Close { mapper: mapper.to_owned() }).await
            {
                tracing::warn!(mapper, "closing: {error}");
            }
        }
    }

    /// Counts a connection of a worker. After the last one nobody is there who could ask for the end.
    pub(crate) fn enter(self: &Arc<Self>) -> User {
        self.users.fetch_add(1, Ordering::AcqRel);
        User(Arc::clone(self))
    }
}

/// A connection of a worker.
pub(crate) struct User(Arc<Volumes>);

impl Drop for User {
    fn drop(&mut self) {
        let last = self.0.users.fetch_sub(1, Ordering::AcqRel) == 1;
        let base = &self.0.settings.base;
        if !last || mounts::below(base).is_ok_and(|found| found.is_empty()) {
            return;
        }
        let volumes = Arc::clone(&self.0);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if volumes.users.load(Ordering::Acquire) == 0 {
                    volumes.release("no worker is connected any more").await;
                }
            });
        }
    }
}

/// Annotations that name volumes.
fn named(container: &Container) -> impl Iterator<Item = &String> {
    let keys = [cloud_volumes::ANNOTATION, cloud_volumes::TARGETS];
    keys.into_iter()
        .filter_map(|key| container.annotations.get(key))
        .filter(|text| !text.is_empty())
}

fn is_bind(mount: &Mount) -> bool {
    mount.kind == "bind"
}

/// A source that is not there, of a directory of the worker's, say, is an empty one, as upstream has it.
async fn make_source(source: &str) {
    let path = Path::new(source);
    let odd = |c| !matches!(c, std::path::Component::RootDir | std::path::Component::Normal(_));
    let kernel = ["/proc", "/sys", "/dev"].iter().any(|root| path.starts_with(root));
    if !path.is_absolute() || kernel || path.components().any(odd) {
        return;
    }
    if matches!(tokio::fs::try_exists(path).await, Ok(false)) {
        match tokio::fs::create_dir_all(path).await {
            Ok(()) => tracing::info!(source, "made the missing source of a mount"),
            Err(error) => tracing::warn!(source, "the source of a mount is missing: {error}"),
        }
    }
}
