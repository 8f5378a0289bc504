//! Cloud and records compared, both ways.
//!
//! ```text
//!   list ─┬─ ours, this node's, no record, older than the grace ─▶ delete
//!         └─ a record says running, the list says gone ─▶ doubt: the pod asks its VM at once
//! ```
//!
//! A list that fails does nothing. A dry run only says what it would do. What the relay holds is left
//! alone, too: a pod whose record cannot be used may be running; and what a daemon has made that works
//! with a copy of this state directory: it is in use there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use peerpod_providers::{Resource, ResourceKind, VmRef, tags};
use tokio::time::{Instant, sleep};

use super::{Options, Pods};
use crate::crash::reach;
use crate::hypervisor::chain;
use crate::pod::phase::Phase;
use crate::pod::world::Clock;
use crate::pod::{Command, Pod};

/// A VM that has just been made may be missing in a list for that long.
const LISTED_AFTER: Duration = Duration::from_secs(120);

/// Sweeps until the process ends.
pub(super) async fn run(pods: Arc<Pods>) {
    let Some(interval) = pods.common.options.sweep_interval else { return };
    let mut sweep = Sweep::new(pods.common.world.clock.as_ref());
    loop {
        tokio::select! {
            biased;
            () = pods.common.shutdown.cancelled() => return,
            () = sleep(interval) => {}
        }
        tokio::select! {
            biased;
            () = pods.common.shutdown.cancelled() => return,
            () = sweep.once(&pods) => {}
        }
    }
}

/// What one sweep remembers for the next.
#[derive(Debug)]
struct Sweep {
    /// When this process began, by both clocks: what the one shows that can be set, if nobody has.
    began: (u64, u64),
    /// Since when things without a date of their own have been seen without a record.
    first_seen: BTreeMap<String, Instant>,
    /// Sandboxes of unusable records whose network is known to be gone.
    cleared: BTreeSet<String>,
    /// VMs of a copy that were told of.
    told: BTreeSet<String>,
}

impl Sweep {
    fn new(clock: &dyn Clock) -> Self {
        let began = (clock.now_ms(), clock.boot_ms());
        Self { began, first_seen: BTreeMap::new(), cleared: BTreeSet::new(), told: BTreeSet::new() }
    }

    async fn once(&mut self, pods: &Pods) {
        let world = &pods.common.world;
        // Pods as they were before the list: one that comes meanwhile cannot be on it.
        let before = pods.registry.all();
        reach!(world, SweepListBefore);
        let listed = world.provider.list().await;
        reach!(world, SweepListAfter);
        let listed = match listed {
            Ok(listed) => listed,
            Err(error) => {
                world.observer.provider_error("list", error.kind.as_str());
                world.observer.sweep(None, 0);
                return tracing::warn!(%error, "sweep: no list, nothing is done");
            }
        };
        doubt_missing(pods, &before, &listed);
        let held = match world.relay.list().await {
            Ok(held) => held.into_iter().map(|h| h.sandbox).collect(),
            Err(error) => {
                world.observer.sweep(None, 0);
                return tracing::warn!(%error, "sweep: the relay does not say what it holds");
            }
        };
        let known = Known::new(pods, &before, held);
        self.clear(pods, &known, &listed).await;
        let listed = self.made_here(pods, listed);
        let unowned = self.unowned(pods, known, listed);
        let mut deleted = 0;
        for vm in &unowned {
            deleted += usize::from(delete(pods, vm).await);
        }
        world.observer.sweep(Some(unowned.len()), deleted);
    }

    /// Without what another copy of this state directory has made, which is told of once.
    fn made_here(&mut self, pods: &Pods, listed: Vec<Resource>) -> Vec<Resource> {
        let Options { installation, node_name, epochs, .. } = &pods.common.options;
        let (ours, copys): (Vec<_>, Vec<_>) = listed.into_iter().partition(|resource| {
            let tag = |key: &str| resource.tags.get(key).map(String::as_str);
            let named =
                tag(tags::INSTALLATION) == Some(installation) && tag(tags::NODE) == Some(node_name);
            !named || epochs.made_here(tag(tags::EPOCH))
        });
        let now: BTreeSet<String> = copys.iter().map(|r| r.vm.name.to_string()).collect();
        for name in now.difference(&self.told) {
            tracing::error!(
                name,
                "sweep: left alone: it has this node's name and installation id, but was made with \
                 another copy of the state directory (a cloned worker? a restored backup?); if nobody \
                 uses it, `peerpodd leaks --copies --delete` takes it away"
            );
        }
        self.told = now;
        ours
    }

    /// Takes away the network of pods whose record cannot be used, once their VM is gone and the relay
    /// holds nothing of them: nobody else would before the next start.
    async fn clear(&mut self, pods: &Pods, known: &Known<'_>, listed: &[Resource]) {
        let stays = |sandbox: &String| {
            known.sandboxes.contains(sandbox) || listed.iter().any(|r| r.vm.sandbox == *sandbox)
        };
        let broken: Vec<String> = pods.broken().into_iter().map(|b| b.sandbox).collect();
        let over: BTreeSet<String> =
            broken.iter().filter(|s| !stays(s) && !self.cleared.contains(*s)).cloned().collect();
        if over.is_empty() || pods.common.options.sweep_dry_run {
            return;
        }
        let mut keep = known.sandboxes.clone();
        keep.extend(broken.into_iter().filter(|s| !over.contains(s)));
        keep.extend(pods.registry.sandboxes());
        match pods.common.world.network.clear_leftovers(&keep).await {
            Ok(gone) => {
                if !gone.is_empty() {
                    tracing::warn!(gone = gone.join("; "), "sweep: network of unusable records");
                }
                self.cleared.extend(over);
            }
            Err(error) => tracing::warn!(%error, "sweep: left-over network objects stay"),
        }
    }

    /// By the cloud's date. A clock that was set forward makes nothing old that is young: the age counts
    /// that is the less, by the clock as it is or as it would be without that.
    fn age(&self, pods: &Pods, resource: &Resource) -> Option<Duration> {
        let created = resource.created?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let clock = pods.common.world.clock.as_ref();
        let untouched = self.began.0 + clock.boot_ms().saturating_sub(self.began.1);
        let now = Duration::from_millis(clock.now_ms().min(untouched));
        Some(now.saturating_sub(created))
    }

    /// What belongs to no pod and is old enough.
    fn unowned(&mut self, pods: &Pods, known: Known<'_>, listed: Vec<Resource>) -> Vec<VmRef> {
        let mut still_seen = BTreeMap::new();
        // A delete takes all that has the name: the youngest of it decides.
        let mut found: BTreeMap<_, (VmRef, Duration)> = BTreeMap::new();
        for resource in listed {
            if known.owns(&resource) {
                continue;
            }
            // With the cloud's date, lest a second VM of the name is taken for as old as the first.
            let Resource { kind, vm, created, .. } = &resource;
            let key = format!("{kind:?} {} {} {created:?}", vm.name, vm.sandbox);
            let seen = self.first_seen.get(&key).copied().unwrap_or_else(Instant::now);
            // By the cloud's date or by our own eyes: a clock that was set back would make what the
            // cloud made before that young for as long.
            let age = self.age(pods, &resource).unwrap_or_default().max(seen.elapsed());
            let vm = resource.vm;
            let youngest = found.entry((vm.name.clone(), vm.sandbox.clone())).or_insert((vm, age));
            youngest.1 = youngest.1.min(age);
            still_seen.insert(key, seen);
        }
        self.first_seen = still_seen;
        let grace = pods.common.options.sweep_grace;
        found.into_values().filter(|(_, age)| *age >= grace).map(|(vm, _)| vm).collect()
    }
}

/// Whose things are left alone.
struct Known<'a> {
    installation: &'a str,
    node: &'a str,
    sandboxes: BTreeSet<String>,
}

impl<'a> Known<'a> {
    fn new(pods: &'a Pods, before: &[Pod], held: BTreeSet<String>) -> Self {
        let options = &pods.common.options;
        let mut sandboxes = held;
        sandboxes.extend(before.iter().map(|p| p.whose.sandbox.clone()));
        sandboxes.extend(pods.registry.sandboxes());
        sandboxes.extend(pods.broken().into_iter().filter(|b| b.newer).map(|b| b.sandbox));
        Self { installation: &options.installation, node: &options.node_name, sandboxes }
    }

    fn owns(&self, resource: &Resource) -> bool {
        let tag = |key: &str| resource.tags.get(key).map(String::as_str);
        let ours = tag(tags::INSTALLATION) == Some(self.installation)
            && tag(tags::NODE) == Some(self.node);
        // Some clouds cut long values; what a sandbox id begins with is enough to leave it alone.
        let sandbox = resource.vm.sandbox.as_str();
        let known = self.sandboxes.contains(sandbox)
            || (sandbox.len() >= 32 && self.sandboxes.iter().any(|s| s.starts_with(sandbox)));
        !ours || known
    }
}

/// One attempt; what is not gone then, the next sweep finds again.
async fn delete(pods: &Pods, vm: &VmRef) -> bool {
    // The list took its time: is it still nobody's, and is this process still the one?
    if pods.registry.get(&vm.sandbox).is_some() || vm.name.as_str().is_empty() {
        return false;
    }
    match pods.common.options.epochs.is_current().await {
        Ok(true) => {}
        Ok(false) => {
            tracing::error!("sweep: a later node process has begun on this state directory");
            return false;
        }
        Err(error) => {
            tracing::warn!(error = %chain(&error), "sweep: nothing is deleted");
            return false;
        }
    }
    let (name, sandbox) = (&vm.name, &vm.sandbox);
    if pods.common.options.sweep_dry_run {
        tracing::warn!(%name, sandbox, "sweep: no record; would be deleted (dry run)");
        return false;
    }
    let world = &pods.common.world;
    reach!(world, SweepDeleteBefore);
    let done = world.provider.delete(vm).await;
    reach!(world, SweepDeleteAfter);
    tracing::warn!(%name, sandbox, ?done, "sweep: no record; deleted");
    match &done {
        Err(error) => world.observer.provider_error("delete", error.kind.as_str()),
        // The relay holds nothing of it, but one that was killed may have left its socket.
        Ok(_) if pods.registry.get(sandbox).is_none() => {
            if let Err(error) = world.relay.close(sandbox, "its VM is swept").await {
                tracing::warn!(sandbox, %error, "sweep: the relay may still have its socket's file");
            }
        }
        Ok(_) => {}
    }
    done.is_ok()
}

/// Pods that run on a VM the list does not have, or has as stopped, ask it whether it is there.
fn doubt_missing(pods: &Pods, before: &[Pod], listed: &[Resource]) {
    let running: BTreeMap<_, _> = listed
        .iter()
        .filter(|r| r.kind == ResourceKind::Vm)
        .map(|r| (r.vm.name.clone(), r.running))
        .collect();
    let now = pods.common.world.clock.now_ms();
    for pod in before {
        let Some(record) = pod.record() else { continue };
        // A clock that was set back tells nothing; asking once too often does no harm.
        let age = now.checked_sub(record.since_ms);
        let old = age.is_none_or(|ms| u128::from(ms) >= LISTED_AFTER.as_millis());
        let Phase::Running { vm } = &record.phase else { continue };
        let what = match running.get(&vm.name) {
            Some(Some(false)) => "the cloud says that the VM has stopped",
            None if old => "the cloud does not know the VM any more",
            _ => continue,
        };
        pod.tell(Command::Doubt(what.to_owned()));
    }
}
