//! Every shim stops its pod as it does, all at once; StopVM answers at once, and then VMs and
//! records go.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::try_join_all;
use peerpod_standin::lab::wait_for;

use crate::host::Host;
use crate::timeline::millis;
use crate::world::{Pod, World};

const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(world: &mut World) -> anyhow::Result<String> {
    let pods = std::mem::take(&mut world.pods);
    let (count, timeline) = (pods.len(), &world.timeline);
    let stops = pods.into_iter().map(|Pod { name, shim, .. }| async move {
        let took = shim.stop().await.with_context(|| format!("{name}: stop"))?;
        let stop = took.iter().rev().find(|t| t.step == "StopVM").map(|t| t.time);
        let stop = stop.unwrap_or_default();
        timeline.took(Some(&name), "StopVM", stop);
        anyhow::Ok(stop)
    });
    let slowest = try_join_all(stops).await?.into_iter().max().unwrap_or_default();
    let begin = Instant::now();
    let dirs = [world.lab.dir().state().join("pods"), world.lab.dir().local()];
    let gone = || {
        let left = dirs.iter().flat_map(|d| std::fs::read_dir(d).into_iter().flatten().flatten());
        let left = left.filter(|e| e.path().is_dir()).count();
        let on_host = world.host.as_ref().map(Host::left);
        async move { Ok((left == 0 && on_host.transpose()?.is_none_or(|l| l.is_empty())).then_some(())) }
    };
    wait_for("VMs and records to go", PATIENCE, gone).await?;
    world.timeline.took(None, "all VMs and records are gone", begin.elapsed());
    Ok(format!("{count} pods; slowest StopVM {} ms", millis(slowest)))
}
