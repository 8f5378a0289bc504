//! What is lived through. Every step must go well whenever the node process dies; where the relay
//! dies, the caller takes the first error for the end of the scenario.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::fcntl::{Flock, FlockArg};
use peerpod_standin::lab::wait_for;
use peerpod_standin::shim::{PodSpec, Profile, Shim, ShimError};

use crate::bed::{Bed, PATIENCE, large_initdata};
use crate::stream::Stream;

/// What is lived through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// From an empty state directory: pods of both shims start, exec, stop; a start fails.
    Life,
    /// The node process is killed with records in every phase, one of them damaged, one gone.
    Restart,
}

impl Scenario {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Life, Self::Restart];

    /// Arguments of the daemon.
    pub fn arguments(self) -> Vec<String> {
        // A sandbox whose CreateVM died with the relay is nobody's until it expires.
        let sweep: &[&str] = match self {
            Self::Life => &[],
            Self::Restart => &["--sweep-interval=1s", "--sweep-grace=1ms"],
        };
        let words = ["--orphan-grace=1s", "--sandbox-expiry=8s"].iter().chain(sweep);
        words.map(|w| (*w).to_owned()).collect()
    }

    /// How long a VM pretends to boot.
    pub fn boot_delay(self) -> Duration {
        match self {
            Self::Life => Duration::ZERO,
            Self::Restart => Duration::from_millis(300),
        }
    }

    /// Lives through it.
    ///
    /// # Errors
    /// At the first step that does not go well.
    pub async fn live(self, bed: &mut Bed) -> anyhow::Result<()> {
        match self {
            Self::Life => life(bed).await,
            Self::Restart => restart(bed).await,
        }
    }

    /// Takes away what it has itself put there and a daemon keeps for people, when it broke off.
    ///
    /// # Errors
    /// When that cannot be had.
    pub fn tidy(self, bed: &Bed) -> anyhow::Result<()> {
        let broken = bed.lab.dir().state().join("broken");
        for entry in std::fs::read_dir(&broken).into_iter().flatten().flatten() {
            let ours = entry.file_name().to_string_lossy().starts_with(&damaged());
            if ours {
                std::fs::remove_dir_all(entry.path()).context("the damaged record")?;
            }
        }
        Ok(())
    }
}

/// Whose record is damaged.
fn damaged() -> String {
    "d".repeat(64)
}

async fn life(bed: &mut Bed) -> anyhow::Result<()> {
    let (_net, one) = bed.boot(Profile::RsLike, 1).await.context("boot pod 1")?;
    let stream = Stream::start(&one, "count").await.context("exec in pod 1")?;
    let seen = stream.moves((0, 0)).await?;
    // It has more initdata than there is room for in the user data.
    let (_net, mut spec) = bed.pod(2).await?;
    spec.initdata = large_initdata();
    let two = Shim::boot(Profile::GoLike, &bed.lab.dir().socket(), spec).await;
    let two = two.context("boot pod 2")?;
    say(&two).await.context("exec in pod 2")?;
    vms(bed, 2)?;
    failed_start(bed, 3).await.context("the start that fails")?;
    two.stop().await.context("stop pod 2")?;
    stream.moves(seen).await.context("pod 1 goes on")?;
    stream.finish().await.context("the stream in pod 1")?;
    stop(one).await.context("stop pod 1")
}

async fn say(shim: &Shim) -> anyhow::Result<()> {
    let output = shim.exec_tool("say", &["say", "hello"]).await?.output().await?;
    ensure!(output.stdout.trim_ascii() == b"hello", "said {:?}", output.stdout);
    Ok(())
}

/// The Rust shim waits one second for StopVM, which a node process that has just died may miss; the
/// relay keeps the call.
async fn stop(shim: Shim) -> anyhow::Result<()> {
    let profile = shim.profile();
    match shim.stop().await {
        Err(error) if profile == Profile::GoLike => Err(error.into()),
        _ => Ok(()),
    }
}

/// One VM for each pod, no more and no less.
fn vms(bed: &Bed, wanted: usize) -> anyhow::Result<()> {
    let found = vm_dirs(bed)?;
    ensure!(found.len() == wanted, "{wanted} pods have {} VMs: {found:?}", found.len());
    Ok(())
}

fn vm_dirs(bed: &Bed) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(bed.lab.dir().local()).context("read the VMs' directory")?;
    Ok(entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect())
}

/// The pod's namespace goes between CreateVM and StartVM.
async fn failed_start(bed: &Bed, number: u8) -> anyhow::Result<()> {
    let (net, spec) = bed.pod(number).await?;
    let sandbox = spec.sandbox.clone();
    let mut shim = Shim::create(Profile::GoLike, &bed.lab.dir().socket(), spec).await?;
    bed.lab.network().remove_pod(&net)?;
    ensure!(shim.start_vm().await.is_err(), "a pod without a namespace has started");
    shim.hypervisor().stop_vm(&sandbox).await?;
    Ok(())
}

async fn restart(bed: &mut Bed) -> anyhow::Result<()> {
    let socket = bed.lab.dir().socket();
    let (_net, running) = bed.boot(Profile::RsLike, 1).await.context("boot pod 1")?;
    let stream = Stream::start(&running, "count").await.context("exec in pod 1")?;
    let seen = stream.moves((0, 0)).await?;
    let (lost_net, lost) = bed.boot(Profile::GoLike, 2).await.context("boot pod 2")?;
    let (_net, deleting) = bed.boot(Profile::GoLike, 3).await.context("boot pod 3")?;
    let held = hold(&vm_of(bed, &deleting.spec().sandbox)?)?;
    deleting.stop().await.context("stop pod 3")?;
    let (_net, spec) = bed.pod(4).await?;
    let mut prepared = Shim::create(Profile::GoLike, &socket, spec).await.context("create 4")?;
    let waiting = launching(bed, 5).await.context("launch pod 5")?;
    // Its create is held up, so that the record does not say whether there is a VM.
    let (_net, spec) = bed.pod(6).await?;
    let name = format!("podvm-{}-{}", spec.name, spec.sandbox.get(..8).context("a sandbox id")?);
    let unborn = bed.lab.dir().local().join(name);
    std::fs::create_dir(&unborn).context("hold up pod 6's VM")?;
    let _unborn = Unborn(unborn.clone());
    let held = (held, hold(&unborn)?);
    let left = launch(bed, spec).await.context("launch pod 6")?;

    let lost_vm = vm_of(bed, &lost.spec().sandbox)?;
    let (state, sandbox) = (bed.lab.dir().state(), lost.spec().sandbox.clone());
    let meanwhile = async {
        // Its shim dies with the node process, so that nobody waits for the start.
        left.abort();
        let _ = left.await;
        damage(&state)?;
        // A record is lost, and the shim whose pod it was.
        drop(lost);
        std::fs::remove_dir_all(state.join("pods").join(&sandbox)).context("lose a record")
    };
    bed.without_a_node(meanwhile).await?;
    bed.daemon.ready().await?;
    bed.lab.network().remove_pod(&lost_net).context("remove pod 2's namespace")?;

    let waiting = waiting.await.context("pod 5's shim")?.context("pod 5 starts")?;
    prepared.start_vm().await.context("start pod 4")?;
    prepared.connect().await.context("pod 4's agent")?;
    prepared.start_sandbox().await.context("pod 4's sandbox")?;
    let seen = stream.moves(seen).await.context("pod 1 goes on")?;
    drop(held);
    set_aside(&state).await?;
    let gone = || async { Ok((!lost_vm.exists()).then_some(())) };
    wait_for("the VM of no record to be swept", PATIENCE, gone).await?;
    say(&prepared).await.context("exec in pod 4")?;
    say(&waiting).await.context("exec in pod 5")?;
    prepared.stop().await.context("stop pod 4")?;
    waiting.stop().await.context("stop pod 5")?;
    stream.moves(seen).await.context("pod 1 goes on to the end")?;
    stream.finish().await.context("the stream in pod 1")?;
    stop(running).await.context("stop pod 1")
}

type Booting = tokio::task::JoinHandle<Result<Shim, ShimError>>;

/// A pod whose VM boots.
async fn launching(bed: &Bed, number: u8) -> anyhow::Result<Booting> {
    let (_net, spec) = bed.pod(number).await?;
    launch(bed, spec).await
}

async fn launch(bed: &Bed, spec: PodSpec) -> anyhow::Result<Booting> {
    let (socket, sandbox) = (bed.lab.dir().socket(), spec.sandbox.clone());
    let booting = tokio::spawn(async move { Shim::boot(Profile::GoLike, &socket, spec).await });
    let sandbox = sandbox.as_str();
    let look = || async move {
        let status = bed.status(sandbox).await.unwrap_or_default();
        let phase = status.map(|s| s["phase"].clone());
        // A daemon that has just come back may be past it already.
        Ok(phase.filter(|p| p == "launching" || p == "running"))
    };
    wait_for(&format!("{sandbox} to be launched"), PATIENCE, look).await?;
    Ok(booting)
}

fn vm_of(bed: &Bed, sandbox: &str) -> anyhow::Result<PathBuf> {
    let end = sandbox.get(..8).context("a sandbox id")?;
    let own = |p: &PathBuf| p.to_string_lossy().ends_with(end);
    let mut found: Vec<_> = vm_dirs(bed)?.into_iter().filter(own).collect();
    ensure!(found.len() == 1, "sandbox {sandbox} has VMs {found:?}");
    found.pop().context("no VM")
}

/// As long as somebody works on a VM, it cannot be deleted.
fn hold(vm: &Path) -> anyhow::Result<Flock<File>> {
    let directory = File::open(vm).with_context(|| vm.display().to_string())?;
    Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, e)| e).context("hold a VM")
}

/// A VM's directory that this test has made: what nobody has taken up goes with the scenario.
struct Unborn(PathBuf);

impl Drop for Unborn {
    fn drop(&mut self) {
        // Only if it is empty.
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A record that nobody can read.
fn damage(state: &Path) -> anyhow::Result<()> {
    let directory = state.join("pods").join(damaged());
    std::fs::create_dir(&directory).context("make a damaged record")?;
    std::fs::write(directory.join("record.json"), "{\"version\": 1, ").context("damage a record")
}

/// Waits until the damaged record is set aside, and takes it away.
async fn set_aside(state: &Path) -> anyhow::Result<()> {
    let broken = state.join("broken");
    let broken = &broken;
    let look = || async move {
        let entries = std::fs::read_dir(broken).into_iter().flatten().flatten();
        let found: Vec<_> = entries.map(|e| e.path()).collect();
        ensure!(found.len() < 2, "set aside twice: {found:?}");
        Ok(found.into_iter().next())
    };
    let found = wait_for("the damaged record to be set aside", PATIENCE, look).await?;
    std::fs::remove_dir_all(&found).context("take the damaged record away")
}
