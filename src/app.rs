//! The composition root: from a command line to a running process and its exit code.
//!
//! Exit codes: 0 done or told to end, 1 failure, 2 a setting cannot be used.

mod keys;
mod look;
mod node;
mod planner;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

use crate::cli::{self, Call, Role, Start};
use crate::cloud::{self, Question};
use crate::config::{Loaded, Origin, Problems, RelaySettings};
use crate::relay::{Relay, RelayOptions};
use crate::shutdown::Shutdown;
use crate::{privilege, run, status, telemetry};

/// Runs the program.
pub fn main(start: &Start) -> ExitCode {
    telemetry::log_panics();
    let call = match cli::read(start) {
        Ok(call) => call,
        Err(leave) => {
            write(&mut std::io::stderr(), &leave.text);
            return ExitCode::from(leave.code);
        }
    };
    match call {
        Call::Say(text) => {
            write(&mut std::io::stdout(), &text);
            ExitCode::SUCCESS
        }
        Call::Status { port, pod, json } => ask(port, pod.as_deref(), json),
        Call::RotateCa { state_dir } => rotate_ca(&state_dir),
        Call::Cloud { question, loaded } => ask_cloud(&question, &loaded, start),
        Call::Process { role, loaded, args, refusal } => {
            telemetry::init(&loaded.log());
            let done = match role {
                Role::Node => node_process(&loaded, start),
                Role::Relay => relay_process(&loaded),
                Role::Run => run_process(&loaded, args, start),
            };
            exit_code(role, done, refusal)
        }
    }
}

/// A reader that has gone, as in `peerpodd status | head`, is no failure.
fn write(to: &mut dyn Write, text: &str) {
    to.write_all(text.as_bytes()).and_then(|()| to.flush()).ok();
}

/// A failure that another try would only repeat: a setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("a setting cannot be used")]
struct BadSetting(#[source] anyhow::Error);

fn exit_code(role: Role, done: anyhow::Result<u8>, refusal: u8) -> ExitCode {
    let error = match done {
        Ok(2) => return ExitCode::from(refusal),
        Ok(code) => return ExitCode::from(code),
        Err(error) => error,
    };
    let code = if let Some(problems) = error.downcast_ref::<Problems>() {
        // Several lines for people, not one field of a log.
        say(role, problems);
        refusal
    } else if let Some(BadSetting(cause)) = error.downcast_ref::<BadSetting>() {
        say(role, &format!("{cause:#}"));
        refusal
    } else {
        tracing::error!(process = role.name(), error = %format!("{error:#}"), "cannot go on");
        1
    };
    ExitCode::from(code)
}

fn say(role: Role, text: &dyn Display) {
    write(&mut std::io::stderr(), &format!("peerpodd {}: {text}\n", role.name()));
}

/// Few threads are enough: nothing of ours computes, and a node has better use for its processors.
fn runtime(most: usize) -> anyhow::Result<Runtime> {
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    Builder::new_multi_thread()
        .worker_threads(processors.clamp(2, 4).min(most))
        .thread_name("peerpodd")
        .enable_all()
        .build()
        .context("start the runtime")
}

fn banner(role: Role, loaded: &Loaded) {
    tracing::info!(process = role.name(), pid = std::process::id(), "peerpodd {}", cli::build());
    for notice in &loaded.notices {
        tracing::warn!("{notice}");
    }
}

/// Gives up what the process does not need, before it has threads, and says what it still holds.
fn settle_for_less(role: Role, provider: &str) -> anyhow::Result<String> {
    let held = privilege::take(role, provider).map_err(|e| match e {
        // Starting again changes nothing about what it is given.
        privilege::TakeError::Lacking { .. } => anyhow::Error::from(BadSetting(e.into())),
        e => e.into(),
    })?;
    let held = held.to_string();
    tracing::info!(process = role.name(), held, "privileges");
    Ok(held)
}

fn node_process(loaded: &Loaded, start: &Start) -> anyhow::Result<u8> {
    #[cfg(feature = "crash-points")]
    crate::crash::tunnel();
    let settings = loaded.settings()?;
    banner(Role::Node, loaded);
    peerpod_tunnel::wipe::begin();
    let held = settle_for_less(Role::Node, &settings.provider.name)?;
    let runtime = runtime(4)?;
    let done = runtime.block_on(Box::pin(node::run(settings, held, &start.program)));
    // Whatever blocks a thread for good was named by the drain.
    runtime.shutdown_background();
    done.map(|()| 0)
}

fn relay_process(loaded: &Loaded) -> anyhow::Result<u8> {
    let settings = loaded.relay()?;
    banner(Role::Relay, loaded);
    // While it still may.
    crate::relay::survive();
    settle_for_less(Role::Relay, "")?;
    let runtime = runtime(4)?;
    let done = runtime.block_on(relay(settings));
    runtime.shutdown_background();
    done.map(|()| 0)
}

async fn relay(settings: RelaySettings) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    shutdown.on_signals().context("install signal handlers")?;
    let relay = Relay::bind(RelayOptions {
        hypervisor_socket: settings.paths.socket.clone(),
        pods_dir: settings.paths.pods_dir.clone(),
        control_socket: settings.paths.control_socket(),
        relay_socket: settings.paths.relay_socket(),
        allowed_uid: nix::unistd::geteuid().as_raw(),
        build: cli::build(),
        linger: settings.linger,
        stand_by: settings.stand_by,
        own_process: true,
    })
    .await?;
    notify(&[sd_notify::NotifyState::Ready]);
    let served = relay.run(shutdown.tracker(), shutdown.token()).await;
    notify(&[sd_notify::NotifyState::Stopping]);
    shutdown.drain(settings.drain_timeout).await;
    served.context("relay")
}

fn run_process(loaded: &Loaded, args: Vec<String>, start: &Start) -> anyhow::Result<u8> {
    let settings = loaded.settings()?;
    banner(Role::Run, loaded);
    settle_for_less(Role::Run, &settings.provider.name)?;
    let withheld = withheld(loaded, start);
    let children = run::Children { program: start.program.clone(), args, withheld };
    let runtime = runtime(2)?;
    Ok(runtime.block_on(run::run(children, &settings))?)
}

/// What the relay does not get of the environment: all that is no setting of the daemon's own.
fn withheld(loaded: &Loaded, start: &Start) -> Vec<String> {
    let own = loaded.rows.iter().map(|row| row.spec).filter(|spec| spec.origin != Origin::Provider);
    let own: BTreeSet<&str> = own.filter(|spec| !spec.secret).map(|spec| spec.env).collect();
    let harmless = |name: &str| {
        own.contains(name)
            || matches!(name, "PATH" | "HOME" | "LANG" | "TZ" | "RUST_BACKTRACE")
            || name.starts_with("PEERPODD_")
    };
    start.env.keys().filter(|name| !harmless(name)).cloned().collect()
}

fn ask(port: u16, pod: Option<&str>, json: bool) -> ExitCode {
    let asked = runtime(2).and_then(|runtime| {
        let report = runtime.block_on(status::ask(port))?;
        Ok(status::print(&report, pod, json, SystemTime::now())?)
    });
    answer(asked)
}

fn rotate_ca(state_dir: &Path) -> ExitCode {
    let asked = runtime(2).and_then(|runtime| runtime.block_on(keys::ask_for_rotation(state_dir)));
    answer(asked)
}

fn ask_cloud(question: &Question, loaded: &Loaded, start: &Start) -> ExitCode {
    telemetry::init(&loaded.log());
    let asked = || {
        let settings = loaded.settings()?;
        for notice in &loaded.notices {
            write(&mut std::io::stderr(), &format!("{notice}\n"));
        }
        let asking = cloud::ask(question, loaded.asked.json, &settings, &start.program);
        runtime(2)?.block_on(asking)
    };
    match asked() {
        Ok(cloud::Answer { text, code }) => {
            write(&mut std::io::stdout(), &text);
            ExitCode::from(code)
        }
        Err(e) => {
            write(&mut std::io::stderr(), &format!("{e:#}\n"));
            ExitCode::from(if e.is::<Problems>() { 2 } else { 1 })
        }
    }
}

/// Prints what a subcommand was told, or why it was not.
fn answer(asked: anyhow::Result<String>) -> ExitCode {
    match asked {
        Ok(text) => {
            write(&mut std::io::stdout(), &text);
            ExitCode::SUCCESS
        }
        Err(e) => {
            write(&mut std::io::stderr(), &format!("{e:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Nobody listens where there is no systemd, and that is fine.
pub(crate) fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::debug!(error = %e, "systemd was not told");
    }
}
