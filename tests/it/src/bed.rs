//! A lab with a running daemon, and what can be asked and done about the pods in it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerpod_standin::lab::{
    Binaries, Daemon, DaemonOptions, Lab, Mode, PodNet, processes, wait_for,
};
use peerpod_standin::shim::{PodSpec, Profile, Shim, ShimError};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// How long anything that must happen may take here.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A start under way.
pub type Booting = JoinHandle<Result<Shim, ShimError>>;

/// A lab and its daemon.
#[derive(Debug)]
pub struct Bed {
    /// Namespaces and directories.
    pub lab: Lab,
    /// The daemon.
    pub daemon: Daemon,
}

impl Bed {
    /// `peerpodd run` with further arguments.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn new(arguments: &[&str]) -> anyhow::Result<Self> {
        Self::with(Self::options(arguments)).await
    }

    /// Options with these arguments of `node`.
    pub fn options(arguments: &[&str]) -> DaemonOptions {
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        DaemonOptions { arguments, ..DaemonOptions::default() }
    }

    /// `peerpodd node` and `peerpodd relay`, each by itself.
    ///
    /// # Errors
    /// When they do not become ready.
    pub async fn separate(arguments: &[&str]) -> anyhow::Result<Self> {
        Self::with(DaemonOptions { mode: Mode::Separate, ..Self::options(arguments) }).await
    }

    /// A daemon started like that.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn with(options: DaemonOptions) -> anyhow::Result<Self> {
        let lab = Lab::new(Binaries::find()?).await?;
        let daemon = lab.start(options).await?;
        Ok(Self { lab, daemon })
    }

    /// The namespace of pod `number` and what a shim asks for it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn pod(&self, number: u8) -> anyhow::Result<(PodNet, PodSpec)> {
        self.lab.add_pod(number).await
    }

    /// Starts pod `number`, sandbox and pause container included.
    ///
    /// # Errors
    /// At the first step that fails.
    pub async fn boot(&self, profile: Profile, number: u8) -> anyhow::Result<(PodNet, Shim)> {
        let (net, spec) = self.pod(number).await?;
        let shim = Shim::boot(profile, &self.lab.dir().socket(), spec).await;
        Ok((net, shim.with_context(|| self.daemon.log_tail())?))
    }

    /// What `/status` says of every pod.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn pods(&self) -> anyhow::Result<Vec<Value>> {
        let (code, text) = self.daemon.get("/status").await?;
        ensure!(code == 200, "/status: {code} {text}");
        let value: Value = serde_json::from_str(&text).context("/status is not JSON")?;
        let pods = value.get("pods").unwrap_or(&value);
        Ok(pods.as_array().context("/status has no list of pods")?.clone())
    }

    /// What `/status` says of one sandbox.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn status(&self, sandbox: &str) -> anyhow::Result<Option<Value>> {
        Ok(self.pods().await?.into_iter().find(|p| p["sandbox"] == sandbox))
    }

    /// Waits until the sandbox is in that phase.
    ///
    /// # Errors
    /// When it does not get there.
    pub async fn until_phase(&self, sandbox: &str, phase: &str) -> anyhow::Result<Value> {
        let look = || async move {
            let status = self.status(sandbox).await.unwrap_or_default();
            Ok(status.filter(|s| s["phase"] == phase))
        };
        wait_for(&format!("{sandbox} {phase}"), PATIENCE, look)
            .await
            .map_err(|e| e.context(self.daemon.log_tail()))
    }

    /// Waits until nothing is left of any pod; the daemon still runs.
    ///
    /// # Errors
    /// With what is left after all.
    pub async fn until_nothing_left(&self) -> anyhow::Result<()> {
        let mut last = Vec::new();
        let begin = std::time::Instant::now();
        while begin.elapsed() < PATIENCE {
            last = self.lab.survey(true).await?;
            if last.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let lines: Vec<String> = last.iter().map(ToString::to_string).collect();
        anyhow::bail!("left behind:\n{}\n{}", lines.join("\n"), self.daemon.log_tail())
    }

    /// Leaves a bundle for a sandbox as CRI-O does, with the pod's labels (a JSON object).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn crio_bundle(&self, spec: &PodSpec, labels: &Value) -> anyhow::Result<()> {
        let dir = self.lab.dir().bundles().join(&spec.sandbox).join("userdata");
        std::fs::create_dir_all(&dir).context("a bundle")?;
        let annotations = json!({
            "io.kubernetes.cri-o.ContainerType": "sandbox",
            "io.kubernetes.cri-o.SandboxID": spec.sandbox,
            "io.kubernetes.cri-o.Namespace": spec.namespace,
            "io.kubernetes.cri-o.KubeName": spec.name,
            "io.kubernetes.cri-o.Labels": labels.to_string(),
        });
        let config = json!({"ociVersion": "1.2.0", "annotations": annotations});
        std::fs::write(dir.join("config.json"), config.to_string()).context("config.json")
    }

    /// A start that is under way: there is a VM, its address is on disk, and it still boots. (One whose
    /// create has no outcome yet is waited for by design for minutes, should its VM appear late.)
    ///
    /// # Errors
    /// When no VM boots.
    pub async fn starting(&self, profile: Profile, number: u8) -> anyhow::Result<Booting> {
        let (_net, spec) = self.pod(number).await?;
        let (socket, sandbox) = (self.lab.dir().socket(), spec.sandbox.clone());
        let boot = tokio::spawn(async move { Shim::boot(profile, &socket, spec).await });
        let path = self.lab.dir().state().join("pods").join(&sandbox).join("record.json");
        let boots = || async {
            let record = std::fs::read(&path).unwrap_or_default();
            let record: Value = serde_json::from_slice(&record).unwrap_or_default();
            Ok((!record["phase"]["launching"]["made"]["known"].is_null()).then_some(()))
        };
        wait_for("a VM that boots", PATIENCE, boots).await?;
        Ok(boot)
    }

    /// The first counter of that name; 0 where there is none yet.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let (_, text) = self.daemon.get("/metrics").await?;
        let line = text.lines().find(|l| l.starts_with("kata_") && l.contains(name));
        Ok(line.and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0))
    }

    /// Waits for two whole sweeps from now on.
    ///
    /// # Errors
    /// When they do not come.
    pub async fn two_sweeps(&self) -> anyhow::Result<()> {
        let count = || self.metric("sweeps_total");
        let before = count().await?;
        let later = || async { Ok((count().await? >= before + 2.0).then_some(())) };
        wait_for("two sweeps", PATIENCE, later).await
    }

    /// The directory of the only VM there is.
    ///
    /// # Errors
    /// When there is none or more than one.
    pub fn vm_dir(&self) -> anyhow::Result<PathBuf> {
        let entries =
            std::fs::read_dir(self.lab.dir().local()).context("read the VMs' directory")?;
        let mut dirs: Vec<PathBuf> =
            entries.flatten().map(|e| e.path()).filter(|p| p.join("vm.json").exists()).collect();
        ensure!(dirs.len() == 1, "{} VMs", dirs.len());
        dirs.pop().context("no VM")
    }

    /// Process id of the only VM's init.
    ///
    /// # Errors
    /// When there is not exactly one VM.
    pub fn vm_init(&self) -> anyhow::Result<i32> {
        let path = self.vm_dir()?.join("init.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let value: Value = serde_json::from_str(&text).context("init.json")?;
        let pid = value["pid"].as_i64().and_then(|p| i32::try_from(p).ok());
        pid.context("init.json has no pid")
    }

    /// Process id of a program in the only VM.
    ///
    /// # Errors
    /// When it does not run.
    pub fn in_vm(&self, program: &str) -> anyhow::Result<i32> {
        let children = processes::children(self.vm_init()?);
        let found =
            children.iter().find(|p| p.command.first().is_some_and(|c| c.ends_with(program)));
        Ok(found.with_context(|| format!("no {program} in the VM"))?.pid)
    }

    /// Kills the node process, wherever it is just then, and has its parent wait before it starts another.
    ///
    /// # Errors
    /// When it has no parent, or what `meanwhile` says.
    pub async fn without_a_node(
        &mut self,
        meanwhile: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let parent = self.daemon.run_pid().context("no parent")?;
        signal(parent, Signal::SIGSTOP)?;
        // It may be dead already.
        let _ = self.daemon.kill_node().await;
        let done = meanwhile.await;
        signal(parent, Signal::SIGCONT)?;
        done
    }

    /// Command lines of this lab's VMs' podvm.
    pub fn podvm_commands(&self) -> Vec<String> {
        let dirs = std::fs::read_dir(self.lab.dir().local()).into_iter().flatten().flatten();
        let inits = dirs.filter_map(|d| {
            let text = std::fs::read_to_string(d.path().join("init.json")).ok()?;
            let value: Value = serde_json::from_str(&text).ok()?;
            value["pid"].as_i64().and_then(|p| i32::try_from(p).ok())
        });
        let children = inits.flat_map(processes::children);
        let is_podvm =
            |p: &processes::Process| p.command.first().is_some_and(|c| c.ends_with("podvm"));
        children.filter(is_podvm).map(|p| p.command.join(" ")).collect()
    }

    /// Ends the daemon and looks once more.
    ///
    /// # Errors
    /// When it does not end well or anything is left.
    pub async fn end(self) -> anyhow::Result<()> {
        self.until_nothing_left().await?;
        let Self { lab, daemon } = self;
        daemon.stop().await?;
        let left = lab.survey(false).await?;
        ensure!(left.is_empty(), "left behind after the end: {left:?}");
        Ok(())
    }
}

/// Initdata that no cloud's user data hold: more than `local` takes.
pub fn large_initdata() -> String {
    let words = (0..40_000_u64).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let policy: String = words.collect();
    format!("algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\n\"policy.rego\" = \"{policy}\"\n")
}

/// Sends a signal.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: i32, signal: Signal) -> anyhow::Result<()> {
    kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {pid}"))
}
