//! `peerpodd run`: a small parent of node and relay, for one container, a bare host and the demo.
//!
//! ```text
//!   start ──relay lives? adopt it : start it──▶ relay up ──node lives? end it──▶ node up ──▶ watching
//!   watching ──one ends──▶ that one is started anew after a pause; the other is not touched
//!   watching ──SIGINT──▶ node ends, then relay ──▶ 0              (a second signal: 1, at once)
//!   watching ──SIGTERM──▶ node ends, then relay, unless pods hang on it ──▶ 0
//!   watching ──node ends with 2──▶ the same ──▶ 2
//! ```
//!
//! Both are led in process groups of their own, so that a Ctrl-C in a terminal reaches only this
//! process. Neither dies with it: if it is killed or, as in an upgrade, told to end, the pods live on
//! with the relay, and the next `run` adopts that relay by watching it. One of another build is
//! replaced: ours takes over from it, and it ends with the last connection that cannot move. A node
//! process that outlived its parent is ended and started anew, which pods do not notice.

mod part;
mod process;
mod relay;

use std::path::PathBuf;
use std::time::Duration;

use crate::app::notify;
use crate::config::Settings;
use crate::shutdown::{Shutdown, Signals};
use part::{Order, Orders, Part};

pub use process::ProcessError;

/// How often the node process is asked whether it serves.
const ASK: Duration = Duration::from_millis(200);
/// How long the node process waits for a relay that does not come up.
const RELAY_UP: Duration = Duration::from_secs(10);

/// What the children are started with.
#[derive(Clone, Debug)]
pub struct Children {
    /// Our own executable.
    pub program: PathBuf,
    /// Everything after the subcommand; the environment is passed on to the node process as it is.
    pub args: Vec<String>,
    /// Variables that the relay does not get: it has no business with a cloud's credentials.
    pub withheld: Vec<String>,
}

/// Why `run` cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Signals cannot be heard.
    #[error("install signal handlers")]
    Signals(#[source] std::io::Error),
    /// Another parent, or a process that cannot be watched.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Runs both until told to end; returns the exit code.
///
/// # Errors
/// When it cannot begin.
pub async fn run(children: Children, settings: &Settings) -> Result<u8, RunError> {
    let mut signals = Signals::install().map_err(RunError::Signals)?;
    let _only_one = process::only_one(&settings.paths.run_dir)?;
    let paths = &settings.paths;
    // A child drains by itself; only one that does not end is killed.
    let patience = settings.process.drain_timeout + Duration::from_secs(5);
    let relay = Part::new("relay", paths.control_socket(), children.clone(), patience);
    let node = Part::new("node", paths.node_socket(), children, patience);

    let shutdown = Shutdown::new();
    let tracker = shutdown.tracker();
    let (relay_orders, node_orders) = (Orders::default(), Orders::default());
    let mut relay_task = tracker.spawn("parent of relay", relay.keep(relay_orders.subscribe()));
    let (socket, orders) = (paths.control_socket(), node_orders.subscribe());
    let mut node_task = tracker.spawn("parent of node", async move {
        process::served(&socket, RELAY_UP).await;
        node.replace().await;
        node.keep(orders).await
    });
    let port = settings.process.probe_port;
    tracker.spawn("ready", shutdown.token().run_until_cancelled_owned(tell_ready(port)));

    let (code, relay_order) = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "ending node, then relay");
            // Somebody at a terminal wants to be rid of all of it; init wants this process to end.
            (0, if signal == "SIGINT" { Order::End } else { Order::EndIdle })
        }
        // A part gives up only for a setting that cannot be used; it has said which.
        _ = &mut node_task => (2, Order::EndIdle),
        _ = &mut relay_task => (2, Order::EndIdle),
    };
    notify(&[sd_notify::NotifyState::Stopping]);
    shutdown.tell("run ends");
    let stopping = async {
        node_orders.give(Order::End);
        if !node_task.is_finished() {
            node_task.await.ok();
        }
        relay_orders.give(relay_order);
        if !relay_task.is_finished() {
            relay_task.await.ok();
        }
    };
    tokio::select! {
        () = stopping => Ok(code),
        second = signals.next() => {
            tracing::warn!(signal = second, "second signal: leaving at once");
            Ok(1)
        }
    }
}

/// Tells systemd once the node process serves.
async fn tell_ready(port: u16) {
    loop {
        if matches!(crate::status::page(port, "/startup").await, Ok((200, _))) {
            notify(&[sd_notify::NotifyState::Ready]);
            return;
        }
        tokio::time::sleep(ASK).await;
    }
}

#[cfg(test)]
mod tests;
