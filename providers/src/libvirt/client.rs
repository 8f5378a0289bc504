//! The connection to libvirt, and the threads that wait for it: every call of its library blocks.
//!
//! ```text
//!   call ─▶ one of 4 turns ─▶ a thread of its own ─▶ connection, made anew when it is not alive
//!     └── waits at most so long and gives its turn back; the job that it has left stops before its next
//!         step, keeps the lock on its VM until then, and says what became of it
//! ```
//! A job inside a call cannot be stopped. A dead host is noticed by keepalive, which needs libvirt's event
//! loop on a thread of its own; a host that lives and does not answer keeps threads, of which there is a
//! most.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use virt::connect::Connect;

use super::NAME;
use super::error::error;
use crate::{Error, Kind};

/// Calls at the same time on one host (providers.md 6.4).
const TURNS: usize = 4;
/// Threads at most, those included whose callers have left.
const THREADS: usize = 64;
/// Seconds between two signs of life, and how many may be missing.
const KEEPALIVE: (i32, u32) = (5, 5);

/// How often a lost connection is tried again within one call, and the time between.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(250);

/// A host's libvirt.
#[derive(Debug)]
pub(super) struct Client {
    uri: String,
    connection: Arc<Mutex<Option<Connect>>>,
    turns: Semaphore,
    threads: Arc<AtomicUsize>,
}

/// What a job works with.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) connection: &'a Connect,
    operation: &'static str,
    left: &'a AtomicBool,
}

impl Host<'_> {
    /// Stops a job whose caller has gone; asked before each step that makes something.
    pub(super) fn goes_on(&self) -> Result<(), Error> {
        match self.left.load(Ordering::Relaxed) {
            true => {
                let text = "the caller has left";
                Err(Error::new(NAME, self.operation, Kind::Unavailable, text))
            }
            false => Ok(()),
        }
    }

    /// An error of this job.
    pub(super) fn refuse(&self, what: &str, refusal: &virt::error::Error) -> Error {
        error(self.operation, what, refusal)
    }

    /// A request that can never work.
    pub(super) fn invalid(&self, text: impl Into<String>) -> Error {
        Error::new(NAME, self.operation, Kind::Invalid, text)
    }
}

/// Tells a job that nobody waits for it.
struct Leaves(Arc<AtomicBool>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One of the threads that there may be.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(threads: &Arc<AtomicUsize>) -> Option<Self> {
        let counted = Self(Arc::clone(threads));
        (threads.fetch_add(1, Ordering::Relaxed) < THREADS).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Client {
    /// Contacts nothing.
    pub(super) fn new(uri: &str) -> Self {
        Self {
            uri: uri.to_owned(),
            connection: Arc::default(),
            turns: Semaphore::new(TURNS),
            threads: Arc::default(),
        }
    }

    /// Does a job on a thread and waits for it at most `limit`, the wait for its turn included.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        limit: Duration,
        job: impl FnOnce(&Host<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let end = Instant::now() + limit;
        let unavailable = |text: String| Error::new(NAME, operation, Kind::Unavailable, text);
        let late = || unavailable(format!("{} does not answer within {limit:?}", self.uri));
        let turn = timeout_at(end, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| late())?.map_err(|e| unavailable(e.to_string()))?;
        let counted = Counted::new(&self.threads).ok_or_else(|| {
            unavailable(format!("{THREADS} calls to {} have got no answer so far", self.uri))
        })?;
        let (answer, answered) = oneshot::channel();
        let left = Arc::new(AtomicBool::new(false));
        let leaves = Leaves(Arc::clone(&left));
        let (uri, slot) = (self.uri.clone(), Arc::clone(&self.connection));
        let work = move || {
            let _counted = counted;
            let result = connect(&uri, &slot, operation).and_then(|connection| {
                let host = Host { connection: &connection, operation, left: &left };
                // It may have taken its time.
                host.goes_on()?;
                job(&host)
            });
            if let Err(unread) = answer.send(result) {
                let error = unread.err().map(|e| e.to_string()).unwrap_or_default();
                tracing::info!(operation, error, "a call ends after its caller has left");
            }
        };
        let spawned = std::thread::Builder::new().name(format!("libvirt-{operation}")).spawn(work);
        spawned.map_err(|e| unavailable(format!("no thread: {e}")))?;
        let result = match timeout_at(end, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(unavailable("a call ended without an answer".to_owned())),
            Err(_) => {
                // The next call tries a connection of its own.
                self.forget();
                Err(late())
            }
        };
        drop(leaves);
        result
    }

    fn forget(&self) {
        // Held while a connection is made, which may be what takes so long.
        if let Ok(mut slot) = self.connection.try_lock() {
            *slot = None;
        }
    }
}

fn connect(
    uri: &str,
    slot: &Mutex<Option<Connect>>,
    operation: &'static str,
) -> Result<Connect, Error> {
    static EVENTS: Once = Once::new();
    EVENTS.call_once(events);
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(connection) = slot.as_ref().filter(|c| c.is_alive().unwrap_or(false)) {
        return Ok(connection.clone());
    }
    // A libvirtd that has just gone is mostly on its way back.
    let tries = if slot.is_some() { TRIES } else { 1 };
    let connection = open(uri, tries).map_err(|e| error(operation, uri, &e))?;
    // Local drivers have none and need none.
    if let Err(e) = connection.set_keep_alive(KEEPALIVE.0, KEEPALIVE.1) {
        tracing::debug!("no keepalive: {e}");
    }
    *slot = Some(connection.clone());
    Ok(connection)
}

#[allow(clippy::disallowed_methods, reason = "on a thread of its own")]
fn open(uri: &str, tries: u32) -> Result<Connect, virt::error::Error> {
    let mut left = tries;
    loop {
        left = left.saturating_sub(1);
        match Connect::open(Some(uri)) {
            Err(_) if left > 0 => std::thread::sleep(BETWEEN_TRIES),
            result => return result,
        }
    }
}

/// Once per process, before the first connection: no words on stderr, and a loop for keepalive.
#[allow(clippy::disallowed_methods, reason = "on a thread of its own")]
fn events() {
    virt::error::clear_error_callback();
    if let Err(e) = virt::event::event_register_default_impl() {
        tracing::warn!("libvirt has no event loop, a dead host is noticed late: {e}");
        return;
    }
    let run = || {
        loop {
            if let Err(e) = virt::event::event_run_default_impl() {
                tracing::warn!("libvirt's event loop fails: {e}");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    };
    if let Err(e) = std::thread::Builder::new().name("libvirt-events".to_owned()).spawn(run) {
        tracing::warn!("no thread for libvirt's events: {e}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// libvirt's own driver in memory.
    const URI: &str = "test:///default";
    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn calls_that_hang_hold_up_no_others_and_are_stopped_at_their_next_step() {
        let client = Client::new(URI);
        let (went_on, goes_on) = mpsc::channel();
        let mut holds = Vec::new();
        for _ in 0..TURNS {
            let (release, released) = mpsc::channel::<()>();
            let went_on = went_on.clone();
            let job = move |host: &Host<'_>| {
                let _ = released.recv();
                let _ = went_on.send(host.goes_on().is_ok());
                Ok(())
            };
            let error = client.run("create", SHORT, job).await.expect_err("too late");
            assert_eq!(error.kind, Kind::Unavailable);
            assert!(error.message.contains("does not answer within"), "{error}");
            holds.push(release);
        }
        let version = client.run("list", LONG, |host| Ok(host.connection.get_type().is_ok())).await;
        assert!(version.expect("answered"), "{URI}");
        drop(holds);
        for _ in 0..TURNS {
            assert_eq!(goes_on.recv_timeout(LONG), Ok(false));
        }
    }

    #[tokio::test]
    async fn a_call_waits_for_its_turn_no_longer_than_its_time() {
        let client = Client::new(URI);
        let turns = client.turns.acquire_many(u32::try_from(TURNS).expect("few")).await;
        let error = client.run("list", SHORT, |_| Ok(())).await.expect_err("no turn");
        assert!(error.message.contains("does not answer within"), "{error}");
        drop(turns);
        assert!(client.run("list", LONG, |_| Ok(())).await.is_ok());
    }

    #[tokio::test]
    async fn a_job_that_panics_is_an_answer() {
        let client = Client::new(URI);
        let job = |_: &Host<'_>| -> Result<(), Error> { panic!("on purpose") };
        let error = client.run("list", LONG, job).await.expect_err("a panic");
        assert!(error.message.contains("without an answer"), "{error}");
    }
}
