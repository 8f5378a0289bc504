//! One seed from beginning to end.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::timeout;
use tracing_subscriber::layer::SubscriberExt;

use crate::core::{Breach, Core, seconds};
use crate::dice::{Choice, Dice};
use crate::parts::Log;
use crate::process::Points;
use crate::site::Site;
use crate::{caller, chaos, check};

/// Longest virtual time in which all pods must have had their lives.
const LONGEST: u64 = 6 * 3600;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Everything is drawn from it.
    pub seed: u64,
    /// Which faults may happen.
    pub choice: Choice,
    /// Points at which the daemon dies, in this order.
    pub deaths: Vec<String>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The first invariant that did not hold.
    pub breach: Option<Breach>,
    /// Faults that happened, in order.
    pub fired: Vec<String>,
    /// Every call, answer, fault and log line.
    pub trace: Vec<String>,
    /// Of the trace.
    pub digest: u64,
    /// Points come by, and how often.
    pub points: BTreeMap<String, u64>,
    /// Planned deaths that did not come about.
    pub left: usize,
    /// Virtual milliseconds.
    pub took_ms: u64,
}

/// Runs one seed.
///
/// # Errors
/// When there is no runtime to be had.
pub fn run(plan: &Plan) -> std::io::Result<Outcome> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    Ok(runtime.block_on(whole(plan)))
}

async fn whole(plan: &Plan) -> Outcome {
    let core = Arc::new(Core::new(Dice::new(plan.seed, plan.choice.clone())));
    let log = tracing_subscriber::registry().with(Log(Arc::clone(&core)));
    let _log = tracing::subscriber::set_default(log);
    let site = Site::new(&core, Points::new(plan.deaths.clone()));
    tokio::select! {
        biased;
        () = core.until_broken() => {}
        () = lives(&site) => {}
    }
    let (trace, digest) = core.take_trace();
    Outcome {
        breach: core.found(),
        fired: core.dice.fired(),
        trace,
        digest,
        points: site.points.seen(),
        left: site.points.left(),
        took_ms: u64::try_from(core.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

/// Pods come and go, then nothing goes wrong any more, then all must be well.
async fn lives(site: &Arc<Site>) {
    let core = &site.core;
    tokio::spawn(Arc::clone(site).supervise());
    let chaos = tokio::spawn(chaos::run(Arc::clone(site)));
    let pods = core.dice.amount("pods", 1, 6);
    let tasks: Vec<_> = (0..pods).map(|n| tokio::spawn(caller::pod(Arc::clone(site), n))).collect();
    let all = async {
        for task in tasks {
            if let Err(error) = task.await {
                core.breach("sim", format!("a caller: {error}"));
            }
        }
    };
    if timeout(seconds(LONGEST), all).await.is_err() {
        core.breach("I3", "kubelet waits for ever");
    }
    core.dice.calm();
    core.trace("calm");
    if let Err(error) = chaos.await {
        core.breach("sim", format!("chaos: {error}"));
    }
    check::converge(site).await;
}
