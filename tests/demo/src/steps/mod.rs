//! The steps of the demo, one file each. Every step looks for itself whether what it shows is true.

mod control;
mod forge;
mod reach;
mod restart;
mod start;
mod status;
mod stop;
mod survey;

use std::time::{Duration, Instant};

use anyhow::anyhow;

use crate::keep;
use crate::table::Row;
use crate::timeline::millis;
use crate::world::World;

/// Longest time of a step; each has shorter limits inside.
const LIMIT: Duration = Duration::from_secs(180);

/// Runs a step and notes how it went; after a failure the rest is left out.
macro_rules! step {
    ($world:expr, $rows:expr, $name:literal, $work:expr) => {
        if $rows.iter().all(|r: &Row| r.ok) {
            $world.timeline.enter($name);
            let begin = Instant::now();
            let late = |_| Err(anyhow!("not done within {LIMIT:?}"));
            let done = tokio::time::timeout(LIMIT, $work).await.unwrap_or_else(late);
            let (ok, seen) = match done {
                Ok(seen) => (true, seen),
                Err(error) => (false, format!("{error:#}")),
            };
            if !ok {
                $world.timeline.fail(&seen);
            }
            $rows.push(Row { step: $name, ok, ms: millis(begin.elapsed()), seen });
        }
    };
}

/// All of them, up to the first that fails.
pub(crate) async fn all(world: &mut World) -> Vec<Row> {
    let mut rows = Vec::new();
    step!(world, rows, "start", start::run(world));
    step!(world, rows, "reach", reach::run(world));
    step!(world, rows, "control", control::run(world));
    step!(world, rows, "forge", forge::run(world));
    step!(world, rows, "restart", restart::run(world));
    step!(world, rows, "status", status::run(world));
    if world.arguments.keep
        && rows.iter().all(|r| r.ok)
        && let Err(error) = keep::stay(world).await
    {
        world.timeline.fail(&format!("{error:#}"));
    }
    step!(world, rows, "stop", stop::run(world));
    step!(world, rows, "survey", survey::run(world));
    rows
}
