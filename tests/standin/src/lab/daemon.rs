//! The daemon under test: started in the worker's namespace, watched, killed, stopped.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

mod ends;

use super::ask::{get, log_tail};
use super::network::spawn_in;
use super::{Lab, blocking, processes};

/// How long it may take to become ready, to come back, to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// As what it is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// `peerpodd run`, the parent of both.
    #[default]
    Run,
    /// `peerpodd relay` and `peerpodd node`, each by itself.
    Separate,
}

/// How it is started.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// One process or two.
    pub mode: Mode,
    /// How long a VM pretends to boot.
    pub boot_delay: Duration,
    /// Further arguments, of `node` and `run` only.
    pub arguments: Vec<String>,
    /// Further environment.
    pub environment: Vec<(String, String)>,
    /// Another build of the daemon than the lab's.
    pub program: Option<PathBuf>,
}

/// A running daemon. Dropping it kills its processes; VMs stay, as the real ones do.
#[derive(Debug)]
pub struct Daemon {
    lab: Lab,
    options: DaemonOptions,
    run: Option<Child>,
    relay: Option<Child>,
    node: Option<Child>,
    /// `run` was killed at some time: its children may have outlived it.
    orphans: bool,
}

impl Daemon {
    /// Connections to VMs that the relay has made so far.
    ///
    /// # Errors
    /// When the metrics do not tell.
    pub async fn links_made(&self) -> anyhow::Result<u64> {
        let (code, text) = self.get("/metrics").await?;
        anyhow::ensure!(code == 200, "/metrics: {code}");
        let line = text.lines().find(|l| l.contains("links") && l.contains("result=\"ok\""));
        let value = line.and_then(|l| l.rsplit(' ').next()).context("/metrics counts no links")?;
        value.parse().with_context(|| format!("/metrics: {value:?} is no number"))
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// When a program cannot be started.
    pub async fn spawn(lab: &Lab, options: DaemonOptions) -> anyhow::Result<Self> {
        let (run, relay, node) = (None, None, None);
        let mut daemon = Self { lab: lab.clone(), options, run, relay, node, orphans: false };
        match daemon.options.mode {
            Mode::Run => daemon.run = Some(daemon.start("run").await?),
            Mode::Separate => {
                daemon.relay = Some(daemon.start("relay").await?);
                daemon.node = Some(daemon.start("node").await?);
            }
        }
        Ok(daemon)
    }

    async fn start(&self, what: &str) -> anyhow::Result<Child> {
        let mut command = self.command(what);
        let path = self.lab.dir().logs().join(format!("{what}.log"));
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("open {}", path.display()))?;
        let both = log.try_clone().context("second handle on a log")?;
        // Ctrl-C on the terminal is for the demo, which then stops the daemon in order.
        command.process_group(0).stdin(Stdio::null()).stdout(log).stderr(both);
        let network = self.lab.network().clone();
        blocking(move || spawn_in(network.worker(), &mut command)).await
    }

    /// `peerpodd` with a subcommand and all settings of this lab.
    pub fn command(&self, what: &str) -> Command {
        let (dir, binaries) = (self.lab.dir(), self.lab.binaries());
        let program = self.options.program.as_ref().unwrap_or(&binaries.peerpodd);
        #[allow(clippy::disallowed_methods, reason = "starts the daemon under test")]
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("NODE_NAME", "worker");
        let plain = [
            ("REMOTE_HYPERVISOR_ENDPOINT", dir.socket()),
            ("PODS_DIR", dir.pods()),
            ("PEERPODD_RUN_DIR", dir.run()),
            ("PEERPODD_STATE_DIR", dir.state()),
            ("LOCAL_STATE_DIR", dir.local()),
            ("PEERPODD_DIRECT_VOLUMES_DIR", dir.direct_volumes()),
            ("PEERPODD_BUNDLE_DIRS", dir.bundles()),
            ("LOCAL_PODVM", binaries.podvm.clone()),
            ("LOCAL_AGENT", binaries.agent.clone()),
        ];
        let delay = format!("{}ms", self.options.boot_delay.as_millis());
        command
            .arg(what)
            .envs(plain)
            .env("CLOUD_PROVIDER", "local")
            .env("LOCAL_BOOT_DELAY", delay)
            .env("PEERPODD_ALLOW_VOLATILE_STATE", "true")
            .env("PEERPODS_LIMIT_PER_NODE", "-1")
            .envs(self.options.environment.iter().cloned());
        if what != "relay" {
            command.args(&self.options.arguments);
        }
        command
    }

    /// Waits until the node says it is ready and the shims' socket is there.
    ///
    /// # Errors
    /// When a process has ended or the time is over; the message has the end of the logs.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let (network, socket) = (self.lab.network().clone(), self.lab.dir().socket());
        let begin = std::time::Instant::now();
        loop {
            if let Some(ended) = self.ended()? {
                bail!("the daemon has ended: {ended}\n{}", self.log_tail());
            }
            let last = match get(&network, "/readyz").await {
                Ok((200, _)) if socket.exists() => return Ok(()),
                Ok((code, text)) => format!("{code} {text}"),
                Err(error) => format!("{error:#}"),
            };
            if begin.elapsed() > PATIENCE {
                bail!("not ready within {PATIENCE:?} ({last})\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn ended(&mut self) -> anyhow::Result<Option<String>> {
        for (name, child) in
            [("run", &mut self.run), ("relay", &mut self.relay), ("node", &mut self.node)]
        {
            let Some(child) = child else { continue };
            if let Some(status) = child.try_wait().with_context(|| format!("look at {name}"))? {
                return Ok(Some(format!("{name}: {status}")));
            }
        }
        Ok(None)
    }

    /// GET from the node's probes: status code and body.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        get(self.lab.network(), path).await
    }

    /// Runs `peerpodd WORDS…` on the worker, with the daemon's settings.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn peerpodd(&self, words: &[&str]) -> anyhow::Result<Output> {
        let (first, rest) = words.split_first().context("no subcommand")?;
        let mut command = self.command(first);
        command.args(rest);
        self.output(command).await
    }

    /// The same by way of another program, which is given the command line of the daemon as its last
    /// arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn through(
        &self,
        wrapper: &Path,
        arguments: &[&str],
        what: &str,
    ) -> anyhow::Result<Output> {
        let own = self.command(what);
        #[allow(clippy::disallowed_methods, reason = "starts the daemon under test")]
        let mut command = Command::new(wrapper);
        command.args(arguments).arg("--").arg(own.get_program()).args(own.get_args()).env_clear();
        command.envs(own.get_envs().filter_map(|(key, value)| Some((key, value?))));
        self.output(command).await
    }

    async fn output(&self, mut command: Command) -> anyhow::Result<Output> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let network = self.lab.network().clone();
        blocking(move || {
            let child = spawn_in(network.worker(), &mut command)?;
            child.wait_with_output().context("wait for peerpodd")
        })
        .await
    }

    /// Process id of `peerpodd run`, if that is how it was started.
    pub fn run_pid(&self) -> Option<i32> {
        self.run.as_ref().and_then(|c| i32::try_from(c.id()).ok())
    }

    /// Process id of the node process, if one lives.
    pub fn node_pid(&self) -> Option<i32> {
        self.part("node", self.node.as_ref())
    }

    /// Process id of the relay process, if one lives.
    pub fn relay_pid(&self) -> Option<i32> {
        self.part("relay", self.relay.as_ref())
    }

    fn part(&self, word: &str, own: Option<&Child>) -> Option<i32> {
        if let Some(own) = own {
            return i32::try_from(own.id()).ok();
        }
        let is = |p: &&processes::Process| p.command.get(1).is_some_and(|w| w == word);
        let children = self.run_pid().map(processes::children).unwrap_or_default();
        let found = children.iter().find(is).map(|p| p.pid);
        let others = || {
            let all = if self.orphans { self.left() } else { Vec::new() };
            all.iter().find(is).map(|p| p.pid)
        };
        found.or_else(others)
    }

    /// The daemon's processes in this lab, whoever's children they are.
    fn left(&self) -> Vec<processes::Process> {
        let all = processes::using(self.lab.dir().path());
        all.into_iter().filter(processes::Process::is_daemon).collect()
    }

    /// Ends it in order (SIGTERM) and returns once all of it has ended.
    ///
    /// # Errors
    /// When it takes too long or does not end well.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        for (name, child) in
            [("run", self.run.take()), ("node", self.node.take()), ("relay", self.relay.take())]
        {
            if let Some(child) = child {
                self.end_in_order(name, child).await?;
            }
        }
        Ok(())
    }

    async fn end_in_order(&self, name: &str, mut child: Child) -> anyhow::Result<()> {
        let pid = i32::try_from(child.id()).context("process id")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("end {name}"))?;
        let ended = blocking(move || {
            let gone = processes::gone_within(pid, PATIENCE);
            if !gone {
                let _ = child.kill();
            }
            let status = child.wait().context("bury a daemon process")?;
            Ok(gone.then_some(status))
        });
        match ended.await? {
            None => bail!("{name} does not end on SIGTERM\n{}", self.log_tail()),
            Some(status) if !status.success() => {
                bail!("{name} ends with {status}\n{}", self.log_tail())
            }
            Some(_) => Ok(()),
        }
    }

    /// The last lines of every log, for messages.
    pub fn log_tail(&self) -> String {
        log_tail(&self.lab.dir().logs(), 25)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // `run` first, or it would start its children again.
        for child in [&mut self.run, &mut self.node, &mut self.relay].into_iter().flatten() {
            let parts = processes::children(i32::try_from(child.id()).unwrap_or_default());
            let _ = child.kill();
            let _ = child.wait();
            processes::kill_all(&parts);
        }
        if self.orphans {
            processes::kill_all(&self.left());
        }
    }
}
