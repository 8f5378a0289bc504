//! How a process ends, and the one place where its tasks begin.
//!
//! ```text
//!   serving ──signal / part has failed──▶ telling ──all tasks are over──▶ ended
//!                                            │ deadline                    ▲
//!                                            └──▶ forced (abort, names logged) ┘
//!   a second signal leaves at once with exit code 1
//! ```
//!
//! One [`Shutdown`] pulls the trigger, every task watches [`Shutdown::token`]. A task that does not
//! end by itself is named in the log and aborted. Ending a process never deletes a VM.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long an aborted task may take to be dropped; only a task that blocks its thread takes longer.
const AFTER_ABORT: Duration = Duration::from_secs(1);

/// Starts tasks and knows by name which of them still run. Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    tasks: TaskTracker,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    next: u64,
    tasks: BTreeMap<u64, Task>,
}

#[derive(Debug)]
struct Task {
    name: &'static str,
    abort: Option<AbortHandle>,
}

/// Takes its task off the list when the task ends, panics or is dropped.
struct Entry {
    id: u64,
    running: Arc<Mutex<Running>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.running).tasks.remove(&self.id);
    }
}

/// The list stays right when a holder of the lock panics: every change is one map operation.
fn lock(running: &Mutex<Running>) -> std::sync::MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tracker {
    /// A tracker without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task. `name` is what the log says of it when it does not end in time; many tasks
    /// may have the same name. Must be called on the runtime.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let entry = self.enter(name);
        let id = entry.id;
        let handle = self.tasks.spawn(async move {
            let _entry = entry;
            future.await
        });
        if let Some(task) = lock(&self.running).tasks.get_mut(&id) {
            task.abort = Some(handle.abort_handle());
        }
        handle
    }

    fn enter(&self, name: &'static str) -> Entry {
        let mut running = lock(&self.running);
        let id = running.next;
        running.next += 1;
        running.tasks.insert(id, Task { name, abort: None });
        Entry { id, running: Arc::clone(&self.running) }
    }

    /// Names of the tasks that run now, and how many of each.
    pub fn running(&self) -> BTreeMap<&'static str, usize> {
        let mut names = BTreeMap::new();
        for task in lock(&self.running).tasks.values() {
            *names.entry(task.name).or_insert(0) += 1;
        }
        names
    }

    /// Waits until no task runs. Tasks that are started meanwhile count too.
    pub async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn abort_all(&self) {
        let handles: Vec<_> =
            lock(&self.running).tasks.values().filter_map(|task| task.abort.clone()).collect();
        for handle in handles {
            handle.abort();
        }
    }
}

/// The trigger. Clones share it; any of them may pull it, once is enough.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    tracker: Tracker,
    token: CancellationToken,
}

impl Shutdown {
    /// A trigger that has not been pulled, over no tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// What tasks watch: cancelled means end what you do, take nothing new.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Where the tasks of this process are started.
    pub fn tracker(&self) -> Tracker {
        self.tracker.clone()
    }

    /// Tells everybody to end. Repeating it changes nothing.
    pub fn tell(&self, reason: &str) {
        if !self.token.is_cancelled() {
            tracing::info!(reason, "shutting down");
            self.token.cancel();
        }
    }

    /// Completes when somebody has told.
    pub async fn told(&self) {
        self.token.cancelled().await;
    }

    /// Tells, waits for every task up to `deadline`, then aborts the rest. Returns the names of
    /// those that had to be aborted, and how many of each.
    pub async fn drain(&self, deadline: Duration) -> BTreeMap<&'static str, usize> {
        self.token.cancel();
        if tokio::time::timeout(deadline, self.tracker.finished()).await.is_ok() {
            return BTreeMap::new();
        }
        let remaining = self.tracker.running();
        tracing::warn!(?remaining, ?deadline, "tasks did not end in time and are stopped");
        self.tracker.abort_all();
        if tokio::time::timeout(AFTER_ABORT, self.tracker.finished()).await.is_err() {
            tracing::error!(remaining = ?self.tracker.running(), "tasks block and are left behind");
        }
        remaining
    }

    /// From now on SIGTERM and SIGINT tell; the second one leaves at once with exit code 1.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let mut signals = Signals::install()?;
        let this = self.clone();
        // Not tracked: it must outlast the drain, to hear the second signal.
        tokio::spawn(async move {
            let first = signals.next().await;
            this.tell(first);
            let second = signals.next().await;
            tracing::warn!(signal = second, "second signal: leaving at once");
            std::process::exit(1);
        });
        Ok(())
    }
}

/// The two signals that end a process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs both handlers. Must be called on the runtime.
    ///
    /// # Errors
    /// When the kernel or the runtime refuses.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The name of the next one.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_is_over_when_the_last_task_has_ended() {
        let shutdown = Shutdown::new();
        let token = shutdown.token();
        let task = shutdown.tracker().spawn("watcher", async move {
            token.cancelled().await;
            7
        });
        assert_eq!(shutdown.tracker().running(), BTreeMap::from([("watcher", 1)]));
        assert!(shutdown.drain(Duration::from_secs(60)).await.is_empty());
        assert_eq!(task.await.expect("ended by itself"), 7);
    }

    #[tokio::test]
    async fn a_task_that_does_not_end_is_named_and_aborted() {
        let shutdown = Shutdown::new();
        let tracker = shutdown.tracker();
        let stuck = tracker.spawn("stuck", std::future::pending::<()>());
        tracker.spawn("stuck", std::future::pending::<()>());
        tracker.spawn("quick", async {});
        let left = shutdown.drain(Duration::from_millis(10)).await;
        assert_eq!(left, BTreeMap::from([("stuck", 2)]));
        assert!(stuck.await.expect_err("aborted").is_cancelled());
        assert!(tracker.running().is_empty());
    }

    #[tokio::test]
    async fn a_task_that_panics_is_off_the_list() {
        let tracker = Tracker::new();
        let task = tracker.spawn("unlucky", async { panic!("seen by the test") });
        assert!(task.await.expect_err("panicked").is_panic());
        assert!(tracker.running().is_empty());
    }

    #[tokio::test]
    async fn tasks_started_while_draining_are_waited_for() {
        let shutdown = Shutdown::new();
        let (tracker, token) = (shutdown.tracker(), shutdown.token());
        let inner = tracker.clone();
        let (tell, told) = tokio::sync::oneshot::channel();
        tracker.spawn("outer", async move {
            token.cancelled().await;
            inner.spawn("inner", async move {
                tokio::task::yield_now().await;
                tell.send(()).ok();
            });
        });
        assert!(shutdown.drain(Duration::from_secs(60)).await.is_empty());
        told.await.expect("the inner task ran to its end");
    }
}
