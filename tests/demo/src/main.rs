//! `cargo demo`: pods as VMs on this machine, from CreateVM to nothing left behind. Exits with 0 only
//! if every step was seen to work.
//!
//! ```text
//!   programs (build) ─▶ isolate (own namespaces) ─▶ lab + daemon ─▶ steps, one file each ─▶ table
//! ```

mod cli;
mod host;
mod keep;
mod programs;
mod steps;
mod table;
mod timeline;
mod world;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use peerpod_standin::lab::isolate::{self, Stage};
use tokio::signal::unix::{SignalKind, signal};

use cli::Arguments;
use timeline::Timeline;

/// As a shell says it of a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("peerpodd-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if isolate::is_outer() {
        let real = !arguments.provider.is_local();
        if real {
            host::needed()?;
        }
        programs::build(&arguments)?;
        if real {
            host::make_image()?;
        }
    }
    if let Stage::Ended(code) = isolate::enter()? {
        return Ok(code);
    }
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let code = runtime.block_on(inside(arguments))?;
    Ok(ExitCode::from(code))
}

/// The demo itself, inside its own namespaces.
async fn inside(arguments: Arguments) -> anyhow::Result<u8> {
    let timeline = Timeline::new(arguments.json);
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let work = steps::all(arguments, timeline.clone());
    tokio::pin!(work);
    // Leaving drops the work, and that takes everything away.
    let rows = loop {
        tokio::select! {
            rows = &mut work => break rows,
            // While --keep waits, Ctrl-C is for it.
            _ = interrupt.recv() => if !keep::go_on() {
                return Ok(interrupted(&timeline));
            },
            _ = terminate.recv() => return Ok(interrupted(&timeline)),
        }
    };
    table::print(&timeline, &rows);
    Ok(u8::from(!rows.iter().all(|r| r.ok)))
}

fn interrupted(timeline: &Timeline) -> u8 {
    timeline.say("interrupted; everything is taken away");
    INTERRUPTED
}
