//! Starts that take long: their VM may have powered off, which only the cloud knows. One list a minute for
//! all of them, and none when no start takes that long.

use std::sync::Arc;
use std::time::Duration;

use peerpod_providers::{Resource, ResourceKind, Vm};
use tokio::time::sleep;

use super::Pods;
use crate::pod::phase::{Made, Phase};
use crate::pod::{Command, Pod};

/// Between two looks, and the age of a start that is looked at: most VMs have booted by then.
const LOOK: Duration = Duration::from_secs(60);

/// Looks until the process ends.
pub(super) async fn run(pods: Arc<Pods>) {
    let look = async {
        loop {
            sleep(LOOK).await;
            once(&pods).await;
        }
    };
    pods.common.shutdown.run_until_cancelled(look).await;
}

async fn once(pods: &Pods) {
    let slow: Vec<(Pod, Vm)> =
        pods.registry.all().into_iter().filter_map(|p| slow(pods, p)).collect();
    if slow.is_empty() {
        return;
    }
    let world = &pods.common.world;
    let listed = match world.provider.list().await {
        Ok(listed) => listed,
        Err(error) => {
            world.observer.provider_error("list", error.kind.as_str());
            return tracing::debug!(%error, "slow starts: the cloud does not say whether their VMs run");
        }
    };
    for (pod, vm) in slow {
        if listed.iter().any(|resource| has_stopped(resource, &vm)) {
            pod.tell(Command::Doubt("the cloud says that the VM has stopped".to_owned()));
        }
    }
}

/// A pod whose VM has had an address for a while and no agent has answered.
fn slow(pods: &Pods, pod: Pod) -> Option<(Pod, Vm)> {
    let record = pod.record()?;
    let Phase::Launching { made: Made::Known(vm), .. } = &record.phase else { return None };
    // A clock that was set back tells nothing; asking once too often does no harm.
    let age = pods.common.world.clock.now_ms().checked_sub(record.since_ms);
    let old = age.is_none_or(|ms| u128::from(ms) >= LOOK.as_millis());
    old.then(|| (pod, vm.clone()))
}

/// Of an earlier attempt's VM of the same name nothing is believed.
fn has_stopped(resource: &Resource, vm: &Vm) -> bool {
    let same = resource.vm.native_id.as_ref().is_none_or(|id| *id == vm.native_id);
    resource.kind == ResourceKind::Vm
        && resource.vm.name == vm.name
        && same
        && resource.running == Some(false)
}
