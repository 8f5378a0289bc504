//! The program in the pod VM.
//!
//! ```text
//!   run:  user data ─▶ files in /run/peerpod ─▶ apf.json ─▶ pod network ─▶ forwarder ─▶ READY=1
//!         └ process-user-data ┘                 └────────── forwarder ──────────────┘
//!                            └ what had no room there comes over the forwarder's link, before READY=1
//! ```
//!
//! The two halves are also there alone, under the names and with the flags of the upstream
//! programs, so that an image can take this one in their place.

mod cli;
mod files;
mod follow;
mod forwarder;
mod interruption;
mod listener;
mod metadata;
mod network;
mod privilege;
mod provision;
mod run;
mod userdata;
mod volumes;

use std::process::ExitCode;

use clap::Parser;
use tokio_util::sync::CancellationToken;
use volumes::hand::Hand;

#[global_allocator]
static ALLOCATOR: peerpod_tunnel::wipe::Allocator = peerpod_tunnel::wipe::Allocator;

fn main() -> ExitCode {
    // User data hold keys and credentials; what is served later does not.
    peerpod_tunnel::wipe::begin();
    peerpod_tunnel::link::tls::install_ring();
    let cli = cli::Cli::parse_from(cli::arguments(std::env::args_os()));
    cli.log.start();
    match begin(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What has to be done before there are threads, and then the work.
fn begin(cli: cli::Cli) -> anyhow::Result<()> {
    if let cli::Command::VolumeHand(args) = cli.command {
        privilege::take_for_volumes()?;
        return volumes::hand::serve(&args.base);
    }
    let hand = cli.command.serve().and_then(|serve| {
        let started = Hand::start(&serve.volumes.volume_dir);
        started.inspect_err(|e| tracing::warn!("no {}: {e}", volumes::hand::NAME)).ok()
    });
    privilege::take()?;
    runtime()?.block_on(work(cli, hand))
}

/// Few threads: a pod has few connections, and its VM's processors are for the pod.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

async fn work(cli: cli::Cli, hand: Option<Hand>) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    run::stop_on_signals(stop.clone())?;
    match cli.command {
        cli::Command::Run(args) => run::run(args, hand, stop).await,
        cli::Command::ProcessUserData(args) => run::process_user_data(args, stop).await,
        cli::Command::Forwarder(args) => run::forwarder(args, hand, stop).await,
        // It has gone its own way.
        cli::Command::VolumeHand(_) => Ok(()),
    }
}
