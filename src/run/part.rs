//! One of the two children: started, watched, started anew, ended.
//!
//! ```text
//!   ┌─▶ beginning ──▶ watching ──ends──▶ pause (doubling; none after a long life) ─────────┐
//!   │                    │  └──ends with 2──▶ given up                                     │
//!   │                    └──order──▶ ended                                                 │
//!   └──────────────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Children;
use super::process::{Process, ProcessError};
use super::relay;

/// Pauses before a new start: the first, doubled up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A child that lived that long has served, so it is missed: its next pause is at most `MISSED`, and
/// a shim's StopVM, which waits one second, mostly still finds a successor.
const SERVED: Duration = Duration::from_millis(250);
const MISSED: Duration = Duration::from_millis(500);
/// A child that lived that long was well; it is started anew at once.
const WELL: Duration = Duration::from_secs(10);
/// How often a relay of another build is asked to hand over before it is adopted as it is.
const HAND_OVERS: u32 = 3;
/// Exit code of a child that says a setting cannot be used.
const BAD_SETTING: i32 = 2;

/// What a part is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// Run, and begin anew when it ends.
    #[default]
    Run,
    /// End, unless pods would end with it. For the relay.
    EndIdle,
    /// End.
    End,
}

/// Gives orders to one part.
#[derive(Debug, Default)]
pub(super) struct Orders(watch::Sender<Order>);

impl Orders {
    pub(super) fn subscribe(&self) -> watch::Receiver<Order> {
        self.0.subscribe()
    }

    pub(super) fn give(&self, order: Order) {
        self.0.send_replace(order);
    }
}

/// One of the two.
#[derive(Debug)]
pub(super) struct Part {
    role: &'static str,
    /// The socket by which it is known to be there.
    socket: PathBuf,
    children: Children,
    patience: Duration,
    /// How often it was begun where one was running.
    tries: AtomicU32,
    /// Relays of another build that ours has replaced: each ends with its last connection.
    pub(super) replaced: Mutex<Vec<Process>>,
}

impl Part {
    /// `patience` is how long it may take to end when it is told to.
    pub(super) fn new(
        role: &'static str,
        socket: PathBuf,
        children: Children,
        patience: Duration,
    ) -> Self {
        let (tries, replaced) = (AtomicU32::new(0), Mutex::default());
        Self { role, socket, children, patience, tries, replaced }
    }

    /// Ends a process that an earlier parent left behind.
    pub(super) async fn replace(&self) {
        match Process::find(&self.socket).await {
            Ok(Some(mut left)) => {
                tracing::info!(part = self.role, pid = left.pid(), "ending the one left behind");
                left.end(self.patience).await;
            }
            Ok(None) => {}
            Err(e) => tracing::warn!(part = self.role, error = %chain(&e), "left behind"),
        }
    }

    /// Keeps it running until ordered otherwise, or until it says that a setting cannot be used.
    pub(super) async fn keep(self, mut orders: watch::Receiver<Order>) {
        let mut pause = PAUSES.0;
        loop {
            let began = Instant::now();
            let code = match self.begin().await {
                Ok(mut process) => tokio::select! {
                    code = process.ended() => code,
                    order = ordered(&mut orders) => {
                        return self.end(process, order).await;
                    }
                },
                Err(e) => {
                    tracing::error!(part = self.role, error = %chain(&e), "cannot be started");
                    None
                }
            };
            if code == Some(BAD_SETTING) {
                tracing::error!(part = self.role, "a setting cannot be used; not started again");
                return;
            }
            pause = match began.elapsed() {
                lived if lived >= WELL => Duration::ZERO,
                lived if lived >= SERVED => pause.min(MISSED),
                _ => pause,
            };
            tracing::warn!(part = self.role, ?code, ?pause, "ended; it is started anew");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = ordered(&mut orders) => return,
            }
            pause = (pause * 2).clamp(PAUSES.0, PAUSES.1);
        }
    }

    /// A relay that pods hang on is left to the next parent, which adopts or replaces it. Not by a
    /// container's first process: the kernel kills all others with it.
    async fn end(&self, mut process: Process, order: Order) {
        if order == Order::EndIdle && std::process::id() != 1 {
            let held = relay::holds(&self.socket).await;
            if held != Some(0) {
                let pid = process.pid();
                tracing::warn!(
                    pid,
                    held,
                    "the relay stays, since its end would be the pods' end: the next `run` takes it \
                     up; SIGTERM to it ends it and them"
                );
                return;
            }
        }
        process.end(self.patience).await;
        // Relays that ours has replaced have been told by it already, and have had their time.
        let all = {
            let mut all = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *all)
        };
        for mut one in all {
            one.end(self.patience).await;
        }
    }

    /// A relay that lives is adopted, or replaced if it is of another build and can hand over; a node
    /// process is always started.
    pub(super) async fn begin(&self) -> Result<Process, ProcessError> {
        if self.role == "relay"
            && let Some(process) = Process::find(&self.socket).await?
        {
            let tries = self.tries.fetch_add(1, Ordering::Relaxed);
            let other = relay::hands_over(&self.socket).await;
            if !other || tries >= HAND_OVERS {
                let pid = process.pid();
                tracing::info!(part = self.role, pid, other, "adopting the one that runs");
                return Ok(process);
            }
            tracing::info!(part = self.role, pid = process.pid(), "ours is to take its place");
            self.replaced.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        }
        let process = Process::start(&self.children, self.role)?;
        tracing::info!(part = self.role, pid = process.pid(), "started");
        Ok(process)
    }
}

/// The first order that is not to run. Whoever gives orders has gone: end.
async fn ordered(orders: &mut watch::Receiver<Order>) -> Order {
    orders.wait_for(|order| *order != Order::Run).await.map_or(Order::End, |order| *order)
}

fn chain(error: &ProcessError) -> String {
    crate::hypervisor::chain(error)
}
