//! A frame for a pod's tunnel from an address that is not its VM's is dropped and counted; with the
//! filter of that tunnel taken away (the control) the same frame arrives.

use std::time::Duration;

use anyhow::{Context, ensure};
use peerpod_standin::lab::forge::{Opened, Victim, dropped, send};
use peerpod_standin::lab::{Daemon, blocking, wait_for};

use crate::world::World;

/// How long a frame may take; on one machine it is there at once.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn run(world: &mut World) -> anyhow::Result<String> {
    let network = world.lab.network().clone();
    let pod = world.pods.first().context("no pod")?;
    let net = pod.net.clone();
    let (victim, before) = {
        let (network, net) = (network.clone(), net.clone());
        blocking(move || {
            let (victim, before) = (Victim::listen(&network)?, dropped(&network)?);
            send(&network, &net)?;
            Ok((victim, before))
        })
        .await?
    };
    let counted = || {
        let network = network.clone();
        blocking(move || Ok((dropped(&network)?.packets > before.packets).then_some(())))
    };
    wait_for("the filter to count the forged frame", PATIENCE, counted).await?;
    world.timeline.of(&pod.name, "a forged frame from a third address: dropped and counted");
    let node = world.daemon.as_ref().and_then(Daemon::node_pid).context("no node process")?;
    let control = blocking(move || {
        // What was counted as dropped must not have arrived as well.
        ensure!(!victim.hears(Duration::from_millis(50))?, "the forged frame arrived");
        let opened = Opened::open(&network, &net, node)?;
        let sent = send(&network, &net).and_then(|()| victim.hears(PATIENCE));
        opened.close(&network).context("put the filter back")?;
        ensure!(sent?, "without the filter the forged frame should arrive: the control fails");
        Ok(())
    });
    control.await?;
    world.timeline.of(&pod.name, "the same frame with its filter taken away: delivered");
    Ok("a stranger's frame is dropped by the filter and by nothing else".to_owned())
}
