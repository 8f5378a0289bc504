//! A process of its own looks for left-overs, with the daemon still there and after its end, before
//! the namespaces go and would hide them.

use std::time::Instant;

use anyhow::{Context, ensure};
use peerpod_standin::lab::Finding;

use crate::world::World;

pub(super) async fn run(world: &mut World) -> anyhow::Result<String> {
    nothing(&world.lab.survey(true).await?)?;
    world.timeline.say("VMs, devices, rules, records, sockets, processes: nothing is left");
    let daemon = world.daemon.take().context("the daemon has been stopped")?;
    let begin = Instant::now();
    daemon.stop().await?;
    world.timeline.took(None, "the daemon ends in order", begin.elapsed());
    nothing(&world.lab.survey(false).await?)?;
    world.timeline.say("nor of the daemon itself");
    Ok("nothing is left behind".to_owned())
}

fn nothing(found: &[Finding]) -> anyhow::Result<()> {
    let all: Vec<String> = found.iter().map(ToString::to_string).collect();
    ensure!(found.is_empty(), "left behind: {}", all.join("; "));
    Ok(())
}
