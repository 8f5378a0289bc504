//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Runs pods as VMs on this machine and shows what becomes of them. Needs no root; touches nothing
/// of the machine.
#[derive(Clone, Debug, Parser)]
#[command(name = "peerpodd-demo", bin_name = "cargo demo")]
pub(crate) struct Arguments {
    /// Pods that are started at once.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=200))]
    pub(crate) pods: u8,
    /// Stay while the pods run and say how to look around; Ctrl-C goes on.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Events as JSON, one a line; the last line is the summary.
    #[arg(long)]
    pub(crate) json: bool,
    /// Milliseconds a VM pretends to boot.
    #[arg(long, default_value_t = 300)]
    boot_delay: u64,
    /// Copy the daemon's logs into this directory at the end.
    #[arg(long)]
    pub(crate) logs: Option<PathBuf>,
}

impl Arguments {
    pub(crate) fn boot_delay(&self) -> Duration {
        Duration::from_millis(self.boot_delay)
    }
}
