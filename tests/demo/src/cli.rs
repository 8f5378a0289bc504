//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Runs pods as VMs on this machine and shows what becomes of them. Needs no root; touches nothing
/// of the machine.
#[derive(Clone, Debug, Parser)]
#[command(name = "peerpodd-demo", bin_name = "cargo demo")]
pub(crate) struct Arguments {
    /// What makes the VMs: local, namespaces on this machine; libvirt, real ones, emulated, as root.
    #[arg(long, value_enum, default_value_t = Provider::Local)]
    pub(crate) provider: Provider,
    /// Pods that are started at once [default: 2, libvirt 1].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=200))]
    pods: Option<u8>,
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

/// What makes the VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Provider {
    Local,
    Libvirt,
}

impl Provider {
    /// The name in the settings; also the daemon's cargo feature.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Libvirt => "libvirt",
        }
    }

    pub(crate) fn is_local(self) -> bool {
        self == Self::Local
    }
}

impl Arguments {
    pub(crate) fn pods(&self) -> u8 {
        self.pods.unwrap_or(if self.provider.is_local() { 2 } else { 1 })
    }

    pub(crate) fn boot_delay(&self) -> Duration {
        Duration::from_millis(self.boot_delay)
    }
}
