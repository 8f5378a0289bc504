//! Pods start, all at once, with both kinds of shim; what must be changed on the way to the agent
//! has been changed, and nothing else is known to it.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;

use crate::timeline::millis;
use crate::world::{Pod, World};

pub(super) async fn run(world: &mut World) -> anyhow::Result<String> {
    let (lab, timeline) = (&world.lab, &world.timeline);
    let starts = (0..world.arguments.pods()).map(|number| async move {
        let mut pod = World::create(lab, number).await?;
        pod.finish_start(timeline).await?;
        look(&pod).await.with_context(|| format!("{}: what its agent saw", pod.name))?;
        anyhow::Ok(pod)
    });
    world.pods = try_join_all(starts).await?;
    let took = |step: &str| {
        let times = world.pods.iter().flat_map(|p| p.shim.took()).filter(|t| t.step == step);
        let times: Vec<Duration> = times.map(|t| t.time).collect();
        let least = times.iter().min().copied().unwrap_or_default();
        let most = times.iter().max().copied().unwrap_or_default();
        format!("{step} {} to {} ms", millis(least), millis(most))
    };
    let boot = match world.arguments.provider.is_local() {
        true => format!("{} ms of it pretended boot", millis(world.arguments.boot_delay())),
        false => "a real boot, emulated".to_owned(),
    };
    let pods = world.pods.len();
    Ok(format!("{pods} pods; {}, {} ({boot})", took("CreateVM"), took("StartVM")))
}

/// The VM's own resolver stays, and containers join the pod's network.
async fn look(pod: &Pod) -> anyhow::Result<()> {
    let dump = pod.shim.agent()?.dump().await?;
    let sandbox = &pod.shim.spec().sandbox;
    ensure!(dump.sandbox.as_ref() == Some(sandbox), "sandbox {:?}", dump.sandbox);
    ensure!(dump.dns.is_empty(), "DNS lines arrived: {:?}", dump.dns);
    let pause = dump.containers.get(sandbox).context("no pause container")?;
    let network = ("network".to_owned(), "/run/netns/podns".to_owned());
    ensure!(pause.namespaces.contains(&network), "namespaces {:?}", pause.namespaces);
    Ok(())
}
