//! One life in a lab of its own, and the look at what is left of it.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use peerpod_standin::lab::{Binaries, DaemonOptions, Kind, Lab, wait_for};
use peerpod_standin::shim::Profile;

use super::plan::{Log, Plan};
use crate::bed::{Bed, PATIENCE};

/// How long one life may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How long "gone" has to hold where a create may still take effect; a cloud needs minutes.
const SETTLE: &str = "300";

/// What a life has shown.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Every point that came.
    pub log: Log,
}

/// Where the daemon with crash points lies, see tests/parts/crash.sh.
///
/// # Errors
/// When it is not there.
pub fn binaries() -> anyhow::Result<Binaries> {
    let usual = Binaries::find()?;
    let directory = usual.peerpodd.parent().context("where the daemon lies")?;
    let own = Binaries::beside(&directory.join("crash-points"));
    ensure!(own.missing().is_empty(), "not built: {:?}; run: tests/run crash", own.missing());
    Ok(own)
}

/// Lives through a plan. All of its deaths may not have come: the log says which.
///
/// # Errors
/// With the plan, when something went wrong that a death may not cost, or was left behind.
pub async fn run(plan: &Plan) -> anyhow::Result<Outcome> {
    match tokio::time::timeout(LIMIT, Box::pin(live(plan))).await {
        Ok(done) => done.with_context(|| plan.to_string()),
        Err(_) => bail!("{plan}: not over within {LIMIT:?}"),
    }
}

async fn live(plan: &Plan) -> anyhow::Result<Outcome> {
    let lab = Lab::new(binaries()?).await?;
    let log = lab.dir().logs().join("points");
    let options = options(plan, &log);
    let daemon = lab.start(options.clone()).await.context("start")?;
    let mut bed = Bed { lab, daemon };
    if let Err(error) = plan.scenario.live(&mut bed).await {
        let error = error.context(bed.daemon.log_tail());
        ensure!(plan.ends_pods(), error);
        plan.scenario.tidy(&bed)?;
        // The shims of what has ended are gone by now. The next pod must start.
        next_pod(&bed, plan.deaths.len()).await?;
    }
    bed.until_nothing_left().await?;
    let Bed { lab, daemon } = bed;
    daemon.stop().await?;
    let mut left = lab.survey(false).await?;
    if Log::read(&log).deaths() > 0 && left.iter().all(|l| l.kind == Kind::Socket) {
        // Who dies on leaving leaves sockets; whoever comes next clears them away.
        lab.start(options).await.context("start after a death on leaving")?.stop().await?;
        left = lab.survey(false).await?;
    }
    ensure!(left.is_empty(), "left behind after the end: {left:?}");
    Ok(Outcome { log: Log::read(&log) })
}

/// As a kubelet would: a sandbox that has met the death of the relay is followed by another one.
async fn next_pod(bed: &Bed, deaths: usize) -> anyhow::Result<()> {
    let socket = bed.lab.dir().socket();
    let mut failed = None;
    for attempt in 0..=deaths {
        // There is nobody to speak to while a dead relay is started anew.
        let served = || async { Ok(UnixStream::connect(&socket).is_ok().then_some(())) };
        wait_for("a relay that serves", PATIENCE, served).await?;
        let number = 99_u8.saturating_sub(u8::try_from(attempt)?);
        let pod = async {
            let (_net, shim) = bed.boot(Profile::GoLike, number).await?;
            shim.stop().await.context("its end")
        };
        match pod.await {
            Ok(_) => return Ok(()),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| anyhow::anyhow!("not tried")).context("the next pod"))
}

fn options(plan: &Plan, log: &std::path::Path) -> DaemonOptions {
    let log = log.display().to_string();
    let environment = [
        ("PEERPODD_CRASH", plan.words()),
        ("PEERPODD_CRASH_LOG", log),
        ("PEERPODD_CRASH_SETTLE_MS", SETTLE.to_owned()),
    ];
    DaemonOptions {
        boot_delay: plan.scenario.boot_delay(),
        arguments: plan.scenario.arguments(),
        environment: environment.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        ..DaemonOptions::default()
    }
}
