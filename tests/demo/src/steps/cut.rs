//! The path between the worker and its VMs is cut for a moment, and the agent links' connections are
//! broken at the worker: the relay dials again, and execs that count both ways go on where they stood.
//!
//! ```text
//!   execs  ── counting ──── ✂ stand still ───────────▶ ── counting on, every number once ──▶
//!   links  ── broken ✗  dialled again … the path is back ─ session goes on ──▶
//! ```

use std::time::{Duration, Instant};

use anyhow::Context;
use peerpod_standin::lab::cut::{break_connections, plug};
use peerpod_standin::lab::wait_for;

use super::restart::{COUNTED, Count, ENOUGH, PATIENCE, all_reach};
use crate::world::World;

/// How long the path is away once the connections are broken.
const CUT: Duration = Duration::from_millis(600);
/// And if this kernel cannot break connections for us: until the relay takes them for dead.
const LONG_CUT: Duration = Duration::from_secs(5);

pub(super) async fn run(world: &mut World) -> anyhow::Result<String> {
    let mut counts = Vec::new();
    for pod in world.pods.iter().take(COUNTED) {
        counts.push(Count::start(pod, "cut").await.with_context(|| pod.name.clone())?);
    }
    all_reach(&counts, ENOUGH).await?;
    let daemon = world.daemon.as_ref().context("the daemon has been stopped")?;
    let made = daemon.links_made().await?;
    let begin = Instant::now();
    plug(&world.lab, false).await?;
    let (broken, cut) = match break_connections(&world.lab).await {
        Ok(broken) => (format!("{broken} connections broken"), CUT),
        Err(error) => (format!("this kernel breaks no connection ({error:#})"), LONG_CUT),
    };
    world.timeline.say(&format!("the path to the VMs is cut, {broken}"));
    tokio::time::sleep(cut).await;
    plug(&world.lab, true).await?;
    let again = || async { Ok((daemon.links_made().await? > made).then_some(())) };
    wait_for("the relay's new connections", PATIENCE, again).await?;
    let more = counts.iter().map(|count| count.least() + ENOUGH).max().unwrap_or_default();
    all_reach(&counts, more).await?;
    world.timeline.took(None, "the links stand again and the execs count on", begin.elapsed());
    let mut total = 0;
    for count in counts {
        total += count.finish(&world.timeline).await?;
    }
    Ok(format!("cut for {} ms; {total} lines both ways, none lost or repeated", cut.as_millis()))
}
