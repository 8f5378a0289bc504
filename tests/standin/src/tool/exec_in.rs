//! Enters a network namespace and becomes another program. A process of its own does this, since
//! switching namespaces between fork and exec of a threaded program is not safe.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::Context;
use peerpod_netlink::Netns;

/// The arguments of `standin-agent exec-in`.
#[derive(Debug, clap::Args)]
pub struct ExecIn {
    /// Path of the namespace, or `-` to stay.
    netns: PathBuf,
    /// The program and its arguments; `standin-agent` is this very one.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl ExecIn {
    /// Does it; returns only if it cannot be done.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the program cannot be started.
    pub fn run(&self) -> anyhow::Result<std::convert::Infallible> {
        // Whoever asked for this process is its parent; nothing outlives a killed agent.
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
            .context("tie to the parent's life")?;
        if self.netns.as_os_str() != "-" {
            Netns::open(&self.netns).and_then(|n| n.enter()).context("enter the namespace")?;
        }
        let (program, arguments) = self.command.split_first().context("no program")?;
        let itself = program == "standin-agent";
        let path = if itself { "/proc/self/exe" } else { program.as_str() };
        #[allow(clippy::disallowed_methods, reason = "becoming another program is its purpose")]
        let error = std::process::Command::new(path).arg0(program).args(arguments).exec();
        Err(error).with_context(|| format!("start {program}"))
    }
}
