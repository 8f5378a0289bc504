//! The steps of the demo, one file each. Every step looks for itself whether what it shows is true.

mod control;
mod cut;
mod forge;
mod reach;
mod restart;
mod start;
mod status;
mod stop;
mod survey;

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use crate::cli::Arguments;
use crate::keep;
use crate::table::Row;
use crate::timeline::{Timeline, millis};
use crate::world::World;

/// Longest time of a step; each has shorter limits inside.
const LIMIT: Duration = Duration::from_secs(180);
/// The same where VMs are emulated.
const EMULATED: Duration = Duration::from_secs(600);

/// The rows so far, and whether to go on.
struct Course {
    timeline: Timeline,
    limit: Duration,
    rows: Vec<Row>,
}

impl Course {
    fn is_well(&self) -> bool {
        self.rows.iter().all(|r| r.ok)
    }

    /// Takes a step and notes how it went. After a failure the rest is left out.
    async fn step<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = anyhow::Result<(T, String)>>,
    ) -> Option<T> {
        if !self.is_well() {
            return None;
        }
        self.timeline.enter(name);
        let begin = Instant::now();
        let limit = self.limit;
        let late = |_| Err(anyhow!("not done within {limit:?}"));
        let done = tokio::time::timeout(limit, work).await.unwrap_or_else(late);
        let (value, seen) = match done {
            Ok((value, seen)) => (Some(value), seen),
            Err(error) => (None, said_once(&error)),
        };
        let ok = value.is_some();
        if !ok {
            self.timeline.fail(&seen);
        }
        self.rows.push(Row { step: name, ok, ms: millis(begin.elapsed()), seen });
        value
    }
}

/// The chain of causes, without those that the one before has said already.
fn said_once(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match (text.is_empty(), text.contains(&cause)) {
            (true, _) => cause,
            (false, true) => text,
            (false, false) => format!("{text}: {cause}"),
        }
    })
}

/// All of them, up to the first that fails.
pub(crate) async fn all(arguments: Arguments, timeline: Timeline) -> Vec<Row> {
    let limit = if arguments.provider.is_local() { LIMIT } else { EMULATED };
    let mut course = Course { timeline: timeline.clone(), limit, rows: Vec::new() };
    let world = course.step("daemon", World::new(arguments, timeline)).await;
    if let Some(mut world) = world {
        each(&mut course, &mut world).await;
        world.save_logs(course.is_well());
    }
    course.rows
}

async fn each(course: &mut Course, world: &mut World) {
    macro_rules! steps {
        ($($name:ident)*) => {$(
            course.step(stringify!($name), async {
                Ok(((), $name::run(world).await?))
            }).await;
        )*};
    }
    steps!(start reach control forge cut restart status);
    if world.arguments.keep && course.is_well() {
        course.timeline.enter("keep");
        keep::stay(world).await;
    }
    steps!(stop survey);
}
