//! A laboratory: network namespaces on one machine in which the real daemon runs between stand-ins.
//!
//! ```text
//!   <lab>/                       one directory, locked while the lab lives; mode 0700
//!     net/{worker,cluster,pod-N}   network namespaces, bound
//!     hypervisor.sock  pods/  run/  state/  local/     the daemon's, in the worker's namespace
//!     logs/
//! ```
//! Works as root, and as an ordinary user inside [`isolate`]. Labs side by side share nothing.

mod ask;
pub mod cut;
pub mod daemon;
mod dir;
pub mod forge;
pub mod isolate;
pub mod network;
pub mod processes;
pub mod survey;
mod wait;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};

pub use ask::log_tail;
pub use daemon::{Daemon, DaemonOptions, Mode};
pub use dir::LabDir;
pub use network::{Network, PodNet};
pub use survey::{Finding, Kind};
pub use wait::wait_for;

use crate::shim::PodSpec;

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The daemon.
    pub peerpodd: PathBuf,
    /// The program in the VM.
    pub podvm: PathBuf,
    /// The agent.
    pub agent: PathBuf,
}

impl Binaries {
    /// All in one directory.
    pub fn beside(dir: &Path) -> Self {
        let at = |name| dir.join(name);
        Self { peerpodd: at("peerpodd"), podvm: at("podvm"), agent: at("standin-agent") }
    }

    /// Beside the running program, or one directory up, where cargo puts what tests need.
    ///
    /// # Errors
    /// When one is missing; the message says how to build it.
    pub fn find() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("where the running program lies")?;
        let here = own.parent().context("where the running program lies")?;
        let up = here.parent().unwrap_or(here);
        let found = [here, up].map(Self::beside).into_iter().find(|b| b.missing().is_empty());
        found.with_context(|| {
            let wanted = Self::beside(up);
            let names = wanted.missing();
            let names: Vec<_> = names.iter().map(|p| p.display().to_string()).collect();
            format!(
                "not built: {}; run: cargo build -p peerpodd -p podvm -p peerpod-standin",
                names.join(", ")
            )
        })
    }

    /// The daemon as a build of the next version, in `next/` beside the real one.
    ///
    /// # Errors
    /// When it is not built.
    pub fn next(&self) -> anyhow::Result<PathBuf> {
        let next = self.peerpodd.with_file_name("next").join("peerpodd");
        ensure!(next.is_file(), "{} is not built; tests/run restart does", next.display());
        Ok(next)
    }

    /// Those that are not there.
    pub fn missing(&self) -> Vec<&Path> {
        let all = [&self.peerpodd, &self.podvm, &self.agent];
        all.into_iter().map(PathBuf::as_path).filter(|p| !p.is_file()).collect()
    }
}

/// A lab without a daemon yet.
#[derive(Clone, Debug)]
pub struct Lab {
    // Declared first, dropped first: the namespaces go before their directory.
    network: Arc<Network>,
    dir: Arc<LabDir>,
    binaries: Binaries,
}

impl Lab {
    /// Makes directory and namespaces. What killed labs of this user have left goes first.
    ///
    /// # Errors
    /// When not root in its own user namespace, or when a program is missing.
    pub async fn new(binaries: Binaries) -> anyhow::Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "a lab needs root, or lab::isolate");
        ensure!(binaries.missing().is_empty(), "missing: {:?}", binaries.missing());
        blocking(move || {
            LabDir::clean_stale();
            let dir = Arc::new(LabDir::new()?);
            let network = Arc::new(Network::build(&dir.net())?);
            Ok(Self { network, dir, binaries })
        })
        .await
    }

    /// Directories.
    pub fn dir(&self) -> &LabDir {
        &self.dir
    }

    /// Namespaces.
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// Programs.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Makes the namespace of pod `number` and what a shim asks for it.
    ///
    /// # Errors
    /// When the kernel refuses, or the number is taken.
    pub async fn add_pod(&self, number: u8) -> anyhow::Result<(PodNet, PodSpec)> {
        let (network, dir) = (self.network.clone(), self.dir.clone());
        let sandbox = sandbox_id(number);
        let id = sandbox.clone();
        let net = blocking(move || {
            dir.note_sandbox(&id)?;
            network.add_pod(number)
        });
        let net = net.await?;
        let spec = PodSpec {
            sandbox,
            name: format!("pod-{number}"),
            namespace: "default".to_owned(),
            netns: net.path.clone(),
            dns: vec!["nameserver 10.96.0.10".to_owned(), "search default.svc".to_owned()],
            ..PodSpec::default()
        };
        Ok((net, spec))
    }

    /// Starts the daemon in the worker's namespace and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or does not become ready in time; the message has the end of its log.
    pub async fn start(&self, options: DaemonOptions) -> anyhow::Result<Daemon> {
        let mut daemon = Daemon::spawn(self, options).await?;
        daemon.ready().await?;
        Ok(daemon)
    }

    /// Has a process of its own look for what was left behind.
    ///
    /// # Errors
    /// When it cannot look.
    pub async fn survey(&self, daemon_runs: bool) -> anyhow::Result<Vec<Finding>> {
        survey::run(&self.binaries.agent, self.dir.path(), daemon_runs).await
    }
}

/// A sandbox id in containerd's form that no other pod has had.
pub fn sandbox_id(number: u8) -> String {
    let random: [u8; 31] = rand::random();
    let hex: String = random.iter().map(|b| format!("{b:02x}")).collect();
    format!("{number:02x}{hex}")
}

/// Runs what blocks off the runtime's threads.
///
/// # Errors
/// What `work` says.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("a blocking step panicked")?
}
