//! `kill -9` of the node process while execs count both ways in running pods and while further pods
//! are between StartVM and its answer: no byte is lost or repeated, and those pods start.
//!
//! ```text
//!   execs    ── counting ──────────────────────────────────────────▶ every number once
//!   node     ── kill -9 ✗      ┌─ started again, takes the records up ─▶
//!   late pods   StartVM … held by the relay, sent again … answered ──▶ run
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::future::try_join_all;
use peerpod_standin::lab::wait_for;
use peerpod_standin::shim::Exec;
use peerpod_standin::tool::Checker;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::timeline::Timeline;
use crate::world::{Pod, World};

pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Lines both ways before and after the kill.
pub(super) const ENOUGH: u64 = 50;
/// Execs count in at most this many pods: of both kinds of shim.
pub(super) const COUNTED: usize = 4;
/// Further pods, one of each kind.
const LATE: u8 = 2;

pub(super) async fn run(world: &mut World) -> anyhow::Result<String> {
    let mut counts = Vec::new();
    for pod in world.pods.iter().take(COUNTED) {
        counts.push(Count::start(pod, "count").await.with_context(|| pod.name.clone())?);
    }
    all_reach(&counts, ENOUGH).await?;
    let mut tries = 0;
    let during = loop {
        if let Some(lines) = kill_between(world, &counts).await? {
            break lines;
        }
        tries += 1;
        ensure!(tries < 5, "starts are always over before the kill; use a longer --boot-delay");
    };
    // Emulated VMs may not come to anything in the moment that it takes.
    let counted = during > 0 || !world.arguments.provider.is_local();
    ensure!(counted, "nothing was counted while the node process was away");
    let more: Vec<u64> = counts.iter().map(|c| c.least() + ENOUGH).collect();
    all_reach(&counts, more.into_iter().max().unwrap_or_default()).await?;
    let mut total = 0;
    for count in counts {
        total += count.finish(&world.timeline).await?;
    }
    Ok(format!(
        "{total} lines counted both ways, {during} of them while node was away, none lost or repeated"
    ))
}

/// Kills the node process while further pods start, and returns when it is back and they run: lines
/// counted while it was away. `None` if one of the starts had been answered before the kill.
async fn kill_between(world: &mut World, counts: &[Count]) -> anyhow::Result<Option<u64>> {
    let late = late_pods(world).await?;
    let (killed, at_kill) = (Instant::now(), lines(counts));
    let old = world.daemon()?.kill_node().await?;
    world.timeline.say(&format!("kill -9 {old} (node), {LATE} pods between StartVM and answer"));
    let new = world.daemon()?.successor_of(old).await?;
    world.timeline.took(None, &format!("node is back as {new} and ready"), killed.elapsed());
    let during = lines(counts) - at_kill;
    let mut between = true;
    for start in late {
        let pod = start.await.context("a late start panicked")??;
        between &= pod.started.is_some_and(|at| at > killed);
        world.timeline.of(&pod.name, "its start went on and is done");
        world.pods.push(pod);
    }
    Ok(between.then_some(during))
}

type Start = JoinHandle<anyhow::Result<Pod>>;

/// Starts further pods and returns when their VMs are being made.
async fn late_pods(world: &World) -> anyhow::Result<Vec<Start>> {
    let first = u8::try_from(world.pods.len()).context("too many pods")?;
    let created = (first..first + LATE).map(|number| World::create(&world.lab, number));
    let mut starts = Vec::new();
    let mut names = Vec::new();
    for mut pod in try_join_all(created).await? {
        let timeline = world.timeline.clone();
        names.push(pod.shim.spec().sandbox[..8].to_owned());
        starts.push(tokio::spawn(async move {
            pod.finish_start(&timeline).await?;
            let report = pod.send("tcp-send", format!("{}:9", pod.net.ip), &["1", "1"]).await?;
            // Nobody listens on port 9 of the pod itself: being refused takes a network.
            ensure!(
                report.error.is_some_and(|e| e.contains("refused")),
                "{}: no network",
                pod.name
            );
            Ok(pod)
        }));
    }
    let there = || {
        let found = made(world, &names);
        async move { Ok(found?.then_some(())) }
    };
    wait_for("the late pods' VMs to be made", PATIENCE, there).await?;
    Ok(starts)
}

/// A VM's name ends in the first 8 characters of its sandbox's id.
fn made(world: &World, names: &[String]) -> anyhow::Result<bool> {
    let vms: Vec<String> = match &world.host {
        Some(host) => host.domains()?,
        None => {
            let vms = std::fs::read_dir(world.lab.dir().local()).into_iter().flatten().flatten();
            vms.map(|v| v.file_name().to_string_lossy().into_owned()).collect()
        }
    };
    Ok(names.iter().all(|name| vms.iter().any(|vm| vm.ends_with(name))))
}

fn lines(counts: &[Count]) -> u64 {
    counts.iter().map(|c| c.seen.borrow().0 + c.seen.borrow().1).sum()
}

pub(super) async fn all_reach(counts: &[Count], lines: u64) -> anyhow::Result<()> {
    let reach = || {
        let broken = counts.iter().any(|c| c.work.is_finished());
        let done = counts.iter().all(|c| c.least() >= lines);
        async move {
            ensure!(!broken, "an exec ended by itself");
            Ok(done.then_some(()))
        }
    };
    match wait_for("the execs to count on", PATIENCE, reach).await {
        Err(error) if counts.is_empty() => bail!("no exec to count: {error}"),
        other => other,
    }
}

/// An exec that counts both ways.
pub(super) struct Count {
    name: String,
    stop: watch::Sender<bool>,
    seen: watch::Receiver<(u64, u64)>,
    work: JoinHandle<anyhow::Result<Checker>>,
}

impl Count {
    pub(super) async fn start(pod: &Pod, id: &str) -> anyhow::Result<Self> {
        let exec = pod.shim.exec_tool(id, &["count", "--interval", "5"]).await?;
        let (stop, stopped) = watch::channel(false);
        let (tell, seen) = watch::channel((0, 0));
        let work = tokio::spawn(pump(exec, stopped, tell));
        Ok(Self { name: pod.name.clone(), stop, seen, work })
    }

    /// The smaller of both counts.
    pub(super) fn least(&self) -> u64 {
        let (numbers, echoes) = *self.seen.borrow();
        numbers.min(echoes)
    }

    pub(super) async fn finish(self, timeline: &Timeline) -> anyhow::Result<u64> {
        self.stop.send_replace(true);
        let checker = self.work.await.context("the exec's pump panicked")?;
        let checker = checker.with_context(|| self.name.clone())?;
        let (numbers, echoes) = checker.seen();
        timeline
            .of(&self.name, &format!("exec: {numbers} lines out, {echoes} in and back, all once"));
        Ok(numbers + echoes)
    }
}

/// Reads and writes at the same time until told to stop; then ends stdin and reads to the end.
async fn pump(
    exec: Exec,
    mut stop: watch::Receiver<bool>,
    tell: watch::Sender<(u64, u64)>,
) -> anyhow::Result<Checker> {
    let checker = std::sync::Mutex::new(Checker::default());
    let lock = || checker.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let write = async {
        loop {
            let line = lock().next_line();
            exec.write_stdin(line).await.context("write to the exec")?;
            let told = async { stop.wait_for(|stop| *stop).await.is_ok() };
            let stopped = tokio::time::timeout(Duration::from_millis(5), told).await;
            if stopped.is_ok() {
                return exec.close_stdin().await.context("end stdin");
            }
        }
    };
    let read = async {
        loop {
            let bytes = exec.read_stdout().await.context("read from the exec")?;
            if bytes.is_empty() {
                return anyhow::Ok(());
            }
            let mut checker = lock();
            checker.take(&bytes)?;
            tell.send_replace(checker.seen());
        }
    };
    tokio::try_join!(write, read)?;
    let status = exec.wait().await.context("wait for the exec")?;
    ensure!(status == 0, "the exec ends with {status}");
    lock().finish()?;
    drop(stop);
    Ok(checker.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}
