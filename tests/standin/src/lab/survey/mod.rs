//! A look, by a process of its own, for what a daemon should not have left: VMs, devices, rules,
//! records, sockets, processes, control groups.

mod look;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// The arguments of `standin-agent survey`.
#[derive(Debug, Default, clap::Args)]
pub struct Survey {
    /// The lab's directory.
    lab: PathBuf,
    /// The daemon still runs: its own processes and sockets are no left-overs.
    #[arg(long)]
    daemon_runs: bool,
    /// Where local VMs have their control groups.
    #[arg(long, default_value = "/sys/fs/cgroup/peerpod-local")]
    cgroups: PathBuf,
}

/// What something left behind is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A VM's directory.
    Vm,
    /// A process of a VM or of the daemon.
    Process,
    /// A network device.
    Device,
    /// An nftables table.
    Rule,
    /// A record of a pod.
    Record,
    /// A socket, or the directory of one.
    Socket,
    /// A VM's control group.
    Cgroup,
}

/// Something left behind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Its name, and where it is.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.what)
    }
}

impl Survey {
    /// Prints the findings as JSON; status 1 if there are any.
    ///
    /// # Errors
    /// When something cannot be looked at.
    pub fn print(&self) -> anyhow::Result<u8> {
        let found = look::everywhere(&self.lab, &self.cgroups, self.daemon_runs)?;
        println!("{}", serde_json::to_string(&found).context("print the findings")?);
        Ok(u8::from(!found.is_empty()))
    }
}

/// Starts `standin-agent survey` and gives what it has found.
///
/// # Errors
/// When it could not look.
pub async fn run(agent: &Path, lab: &Path, daemon_runs: bool) -> anyhow::Result<Vec<Finding>> {
    #[allow(clippy::disallowed_methods, reason = "the survey is to be a process of its own")]
    let mut command = tokio::process::Command::new(agent);
    command.arg("survey").arg(lab).stdin(Stdio::null());
    if daemon_runs {
        command.arg("--daemon-runs");
    }
    let output = command.output().await.context("start the survey")?;
    if !matches!(output.status.code(), Some(0 | 1)) || output.stdout.is_empty() {
        bail!("the survey failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("read the survey's findings")
}
