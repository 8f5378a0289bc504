//! Deaths at every crash point that concerns a provider, on each cloud's double: the node process is
//! killed there, its successor goes on, and nothing may be left at the cloud, or be there twice.
//!
//! ```text
//!   lives without a death ─▶ which points come, how often ─▶ one life for each of these times
//!     Places: no room at the first place, a VM at the second    Unsure: a reply is lost, the pod stopped
//!     Sweep: a record is lost with its shim, the VM is found
//! ```
//! `PEERPODD_LABS` (2) says how many labs stand side by side, `PEERPODD_CLOUDS` which clouds.
#![allow(missing_docs)]

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use peerpod_clouds::pods::{Cloud, Site, clouds};
use peerpod_it::bed::PATIENCE;
use peerpod_it::crash::{Death, Log};
use peerpod_it::{Bed, number, root};
use peerpod_standin::lab::{DaemonOptions, PodNet, sandbox_id, wait_for};
use peerpod_standin::shim::{PodSpec, Profile, Shim};
use peerpodd::crash::Point;
use serde_json::json;

/// Numbers of the fault model in which a provider has a part: create, delete, sweep, and what is written
/// down around them.
const NUMBERS: [&str; 8] = ["C6", "C7", "C8", "C10", "C16", "C19", "C21", "C22"];
/// How long one life may take.
const LIMIT: Duration = Duration::from_secs(120);
/// google.rpc code of a start that has found no room.
const EXHAUSTED: i32 = 8;
/// How often one point is died at in one scenario: at the first place, at the second, once more.
const TIMES: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scenario {
    Places,
    Unsure,
    Sweep,
}

const SCENARIOS: [Scenario; 3] = [Scenario::Places, Scenario::Unsure, Scenario::Sweep];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    scenario: Scenario,
    death: Option<Death>,
}

impl Life {
    fn options(&self, log: &str) -> DaemonOptions {
        let death = self.death.map(|d| d.to_string()).unwrap_or_default();
        let environment = [
            ("PEERPODD_CRASH", death.as_str()),
            ("PEERPODD_CRASH_LOG", log),
            ("PEERPODD_CRASH_SETTLE_MS", "300"),
        ];
        let environment = environment.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        let words = [
            "--orphan-grace=1s",
            "--sandbox-expiry=8s",
            "--sweep-interval=1s",
            "--sweep-grace=1ms",
        ];
        DaemonOptions { environment, ..Bed::options(&words) }
    }
}

/// A lab in which one life follows the other.
struct Stage {
    cloud: &'static Cloud,
    site: Option<Site>,
    lives: u8,
}

impl Stage {
    async fn live(&mut self, life: Life) -> anyhow::Result<Log> {
        match tokio::time::timeout(LIMIT, Box::pin(self.lived(life))).await {
            Ok(done) => done.with_context(|| format!("{life:?}")),
            Err(_) => anyhow::bail!("{life:?}: not over within {LIMIT:?}"),
        }
    }

    async fn lived(&mut self, life: Life) -> anyhow::Result<Log> {
        self.lives += 1;
        let name = format!("points-{}", self.lives);
        let mut site = match self.site.take() {
            Some(site) => {
                let log = site.bed.lab.dir().logs().join(&name);
                site.again(life.options(&log.display().to_string())).await?
            }
            None => {
                Site::with(self.cloud, |logs| life.options(&logs.join(&name).display().to_string()))
                    .await?
            }
        };
        let log = site.bed.lab.dir().logs().join(&name);
        let (net, spec) = site.bed.pod(self.lives).await?;
        // Several types fit, so that there is more than one place.
        let spec = PodSpec { vcpus: Some(2), ..spec };
        let played = match life.scenario {
            Scenario::Places => places(&site, spec, &log).await,
            Scenario::Unsure => unsure(&site, spec).await,
            Scenario::Sweep => sweep(&mut site, spec, &net).await,
        };
        played.with_context(|| site.bed.daemon.log_tail())?;
        site.until_nothing_left().await.with_context(|| site.bed.daemon.log_tail())?;
        if life.scenario != Scenario::Sweep {
            site.bed.lab.network().remove_pod(&net)?;
        }
        self.site = Some(site);
        Ok(Log::read(&log))
    }
}

/// The first place has no room. A daemon that does not know whether its predecessor has sent the create for it
/// tries no other place, lest there are two VMs: the shim is told, and the kubelet makes another sandbox.
async fn places(site: &Site, spec: PodSpec, log: &Path) -> anyhow::Result<()> {
    let socket = site.bed.lab.dir().socket();
    site.faults(&json!({"operation": "create", "fault": "fail", "kind": "capacity"}), 1)?;
    let next = PodSpec { sandbox: sandbox_id(255), ..spec.clone() };
    let shim = match Shim::boot(Profile::RsLike, &socket, spec).await {
        Err(error) if error.code() == Some(EXHAUSTED) && Log::read(log).deaths() > 0 => {
            Shim::boot(Profile::RsLike, &socket, next).await?
        }
        other => other?,
    };
    ensure!(site.vms()? == 1, "{:?}", site.server.resources()?);
    let output = shim.exec_tool("say", &["say", "hello"]).await?.output().await?;
    ensure!(output.stdout.trim_ascii() == b"hello", "said {:?}", output.stdout);
    // The Rust shim waits one second for StopVM, which a node process that has just died may miss; the
    // relay keeps the call.
    let _ = shim.stop().await;
    Ok(())
}

/// The create's reply is lost, and then nobody answers; the pod is stopped before it is known whether
/// there is a VM.
async fn unsure(site: &Site, spec: PodSpec) -> anyhow::Result<()> {
    site.faults(&json!({"operation": "create", "fault": "lost"}), 1)?;
    site.faults(&json!({"operation": "create", "fault": "fail", "kind": "unavailable"}), 3)?;
    let sandbox = spec.sandbox.clone();
    let mut shim = Shim::create(Profile::GoLike, &site.bed.lab.dir().socket(), spec).await?;
    let hypervisor = Arc::clone(shim.hypervisor());
    let start = tokio::spawn(async move {
        let started = shim.start_vm().await;
        (shim, started)
    });
    let of = sandbox.as_str();
    let look = || async move {
        // Nobody answers while a dead node is started anew.
        let status = site.bed.status(of).await.unwrap_or_default();
        let come = status.is_some_and(|s| s["last_error"].is_string() || s["phase"] == "running");
        Ok(come.then_some(()))
    };
    wait_for("the lost reply to be told", PATIENCE, look).await?;
    hypervisor.stop_vm(&sandbox).await?;
    drop(start.await?);
    Ok(())
}

/// The record goes, and with it the shim; only the cloud knows of the VM.
async fn sweep(site: &mut Site, spec: PodSpec, net: &PodNet) -> anyhow::Result<()> {
    let sandbox = spec.sandbox.clone();
    let shim = Shim::boot(Profile::GoLike, &site.bed.lab.dir().socket(), spec).await?;
    let record = site.bed.lab.dir().state().join("pods").join(sandbox);
    site.bed
        .without_a_node(async {
            drop(shim);
            std::fs::remove_dir_all(record).context("lose a record")
        })
        .await?;
    site.bed.daemon.ready().await?;
    site.bed.lab.network().remove_pod(net)?;
    let site = &*site;
    let gone = || async move { Ok((site.vms()? == 0).then_some(())) };
    wait_for("the VM of no record to be swept", PATIENCE, gone).await
}

type Outcome = (Life, anyhow::Result<Log>);

/// Lives through all of them, in as many labs.
async fn all(cloud: &'static Cloud, lives: Vec<Life>) -> Vec<Outcome> {
    let labs = usize::try_from(number("PEERPODD_LABS", 2)).unwrap_or(2).max(1);
    let queue = Arc::new(Mutex::new(VecDeque::from(lives)));
    let next = |queue: &Mutex<VecDeque<Life>>| {
        queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    };
    let stages = (0..labs).map(|_| {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            let mut stage = Stage { cloud, site: None, lives: 0 };
            let mut done = Vec::new();
            while let Some(life) = next(&queue) {
                done.push((life, stage.live(life).await));
            }
            if let Some(site) = stage.site {
                let life = Life { scenario: Scenario::Places, death: None };
                let ended = async { site.again(Bed::options(&[])).await?.end().await };
                if let Err(error) = ended.await {
                    done.push((life, Err(error.context("the end"))));
                }
            }
            done
        })
    });
    let mut all = Vec::new();
    for stage in stages.collect::<Vec<_>>() {
        match stage.await {
            Ok(done) => all.extend(done),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
    all
}

/// All that went wrong.
fn judge(outcomes: &[Outcome]) -> anyhow::Result<()> {
    let bad = outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().err());
    let bad: Vec<String> = bad.map(|error| format!("{error:#}")).collect();
    ensure!(bad.is_empty(), "{} lives failed\n{}", bad.len(), bad.join("\n\n"));
    Ok(())
}

fn died((_, outcome): &Outcome) -> bool {
    outcome.as_ref().is_ok_and(|log| log.deaths() > 0)
}

/// How often each scenario comes by each point that is wanted, if nobody dies.
fn visits(outcomes: &[Outcome]) -> BTreeMap<Point, (Scenario, usize)> {
    let mut visits = BTreeMap::new();
    let mut outcomes: Vec<_> = outcomes.iter().collect();
    outcomes.sort_by_key(|(life, _)| life.scenario);
    for (life, outcome) in outcomes {
        let Ok(log) = outcome else { continue };
        let mut times: BTreeMap<Point, usize> = BTreeMap::new();
        log.lives.iter().flatten().for_each(|p| *times.entry(*p).or_default() += 1);
        for (point, times) in times {
            // Sweeps come by all the time, also when a life is over already.
            let swept = point.number() == "C22";
            let here = !swept || life.scenario == Scenario::Sweep;
            if here && NUMBERS.contains(&point.number()) {
                visits.entry(point).or_insert((life.scenario, if swept { 1 } else { times }));
            }
        }
    }
    visits
}

async fn crash(cloud: &'static Cloud) -> anyhow::Result<()> {
    let whole = SCENARIOS.map(|scenario| Life { scenario, death: None });
    let whole = all(cloud, whole.to_vec()).await;
    judge(&whole).context("without any death")?;
    let visits = visits(&whole);
    let wanted = Point::all().iter().filter(|p| NUMBERS.contains(&p.number()));
    let missing: Vec<_> = wanted.filter(|p| !visits.contains_key(p)).collect();
    ensure!(missing.is_empty(), "no scenario comes by {missing:?}");

    let deaths = visits.iter().flat_map(|(point, (scenario, times))| {
        (1..=(*times).min(TIMES))
            .map(|time| Life { scenario: *scenario, death: Some(Death { point: *point, time }) })
    });
    let mut lived = all(cloud, deaths.collect()).await;
    judge(&lived)?;
    // How often a point comes differs from life to life.
    let spared = lived.iter().filter(|outcome| !died(outcome)).map(|(life, _)| Life {
        death: life.death.map(|death| Death { time: 1, ..death }),
        ..*life
    });
    let again = all(cloud, spared.collect()).await;
    judge(&again)?;
    lived.extend(again);
    let lives = lived.iter().filter(|outcome| died(outcome)).count();
    lived.retain(died);
    let never: Vec<_> = visits
        .keys()
        .filter(|point| !lived.iter().any(|(l, _)| l.death.is_some_and(|d| d.point == **point)))
        .collect();
    ensure!(never.is_empty(), "nobody died at {never:?}");
    println!(
        "crash\t{}\t{} points, {lives} deaths: nothing left, nothing doubled",
        cloud.name,
        visits.len()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_at_any_point_of_a_provider_leaves_and_doubles_no_vm() -> anyhow::Result<()> {
    if !root("a_death_at_any_point_of_a_provider_leaves_and_doubles_no_vm") {
        return Ok(());
    }
    for cloud in clouds() {
        crash(cloud).await.with_context(|| cloud.name)?;
    }
    Ok(())
}
