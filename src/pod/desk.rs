//! Where a pod's requests wait. An actor hears of everything that concerns it through one call,
//! which may be dropped at any time without losing anything.

use std::future::{pending, poll_fn};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::hypervisor::{Failure, FailureKind};
use crate::relay::api::Interruption;

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// How long a start goes on without anybody who waits for it: a caller whose connection the relay
/// makes anew comes back at once.
const LINGER: Duration = Duration::from_millis(250);

/// What a pod is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// CreateVM of a sandbox that is known.
    Create(Reply<String>),
    /// StartVM.
    Start {
        /// When the caller will have gone.
        deadline: Option<Instant>,
        /// Who waits.
        reply: Reply<()>,
    },
    /// StopVM.
    Stop(Reply<()>),
    /// The pod is over for another reason.
    Over(End),
    /// The relay has replayed what it held; whether a StartVM of this sandbox is among it.
    Replayed {
        /// It is.
        start: bool,
    },
    /// What the relay holds for this sandbox, after it was attached to.
    Held(Held),
    /// Something happened to the link, or the relay has asked in vain.
    Ask,
    /// The agent has answered the relay, which began to ask then.
    Alive(Instant),
    /// The VM says that its cloud takes it back.
    Interrupted(Interruption),
    /// A list of the cloud says that the VM is no more, or, of one that is being started, that it has
    /// stopped.
    Doubt(String),
}

/// What the relay holds for a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Nothing.
    Nothing,
    /// A socket without a link.
    Socket,
    /// Both.
    Link,
}

/// Why a pod is over.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// For metrics.
    pub(crate) why: &'static str,
    /// For people.
    pub(crate) reason: String,
    /// What a waiting StartVM or CreateVM fails with.
    pub(crate) failure: FailureKind,
}

impl End {
    pub(crate) fn new(why: &'static str, failure: FailureKind, reason: impl Into<String>) -> Self {
        Self { why, reason: reason.into(), failure }
    }
}

/// What an actor hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The process ends; pods stay as they are.
    Shutdown,
    /// Somebody wants something.
    Command(Command),
    /// Everybody who waited for the start has gone.
    CallersGone,
    /// The start's time is over.
    Deadline,
}

/// The requests that wait.
#[derive(Debug)]
pub(crate) struct Desk {
    inbox: mpsc::UnboundedReceiver<Command>,
    shutdown: CancellationToken,
    creators: Vec<Reply<String>>,
    starters: Vec<Reply<()>>,
    stoppers: Vec<Reply<()>>,
    /// Somebody has waited for this start.
    awaited: bool,
    deadline: Option<Instant>,
}

impl Desk {
    pub(crate) fn new(
        inbox: mpsc::UnboundedReceiver<Command>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            inbox,
            shutdown,
            creators: Vec::new(),
            starters: Vec::new(),
            stoppers: Vec::new(),
            awaited: false,
            deadline: None,
        }
    }

    /// Waits for what comes next.
    pub(crate) async fn next(&mut self) -> Heard {
        let Self { inbox, shutdown, starters, awaited, deadline, .. } = self;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Heard::Shutdown,
            command = inbox.recv() => command.map_or(Heard::Shutdown, Heard::Command),
            () = passed(*deadline) => Heard::Deadline,
            () = gone(starters), if *awaited => Heard::CallersGone,
        }
    }

    /// Somebody waits for CreateVM.
    pub(crate) fn create(&mut self, reply: Reply<String>) {
        self.creators.push(reply);
    }

    /// Somebody waits for the start, which may take `bound` from `begin` on, and no longer than the
    /// most patient caller waits.
    pub(crate) fn start(
        &mut self,
        reply: Reply<()>,
        until: Option<Instant>,
        begin: Instant,
        bound: Duration,
    ) {
        let latest = begin + bound;
        let wanted = until.map_or(latest, |u| u.min(latest));
        let known = self.deadline.filter(|_| self.awaited);
        self.deadline = Some(known.map_or(wanted, |d| d.max(wanted)));
        self.awaited = true;
        self.starters.push(reply);
    }

    /// The start of an earlier process, for which nobody waits yet.
    pub(crate) fn expect(&mut self, until: Instant) {
        self.deadline = Some(until);
    }

    /// Somebody waits for StopVM.
    pub(crate) fn stop(&mut self, reply: Reply<()>) {
        self.stoppers.push(reply);
    }

    /// No start is under way any more.
    pub(crate) fn settle(&mut self) {
        self.awaited = false;
        self.deadline = None;
    }

    pub(crate) fn created(&mut self, result: &Result<String, Failure>) {
        answer(&mut self.creators, result);
    }

    pub(crate) fn started(&mut self, result: &Result<(), Failure>) {
        answer(&mut self.starters, result);
        self.settle();
    }

    pub(crate) fn stopped(&mut self) {
        answer(&mut self.stoppers, &Ok(()));
    }
}

/// Who has gone meanwhile does not hear it.
fn answer<T: Clone>(waiting: &mut Vec<Reply<T>>, result: &Result<T, Failure>) {
    for reply in waiting.drain(..) {
        let _ = reply.send(result.clone());
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

async fn gone(starters: &mut Vec<Reply<()>>) {
    poll_fn(|cx| {
        starters.retain_mut(|s| s.poll_closed(cx).is_pending());
        if starters.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    sleep(LINGER).await;
}
