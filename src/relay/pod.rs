//! One sandbox: its agent socket, its shim's connections and its links to the VM.
//!
//! ```text
//!                 ┌ held ──target known──▶ silent ──first byte──▶ spoken ──link stands──▶ joined ┐
//!   accepted ─────┤ (unread)               (not dialled,          (dialled until           (pipe) │
//!                 │                         not counted)           give_up)                       │
//!                 └──────────────── closed: shim gone, VM's end, given up, Close ◀────────────────┘
//! ```
//!
//! A VM that speaks `peerpod-link/1` gets one connection, a session, and `joined` is a stream of it.
//! Connect makes one link ahead, so that it can say whether the VM can be reached; the first
//! connection that speaks gets it.
//!
//! To another relay go the listener, every connection that is not joined yet, since nothing of it was
//! read, and a session with its streams. What is joined to a TLS connection of its own, or whose
//! frames are read here, stays until it ends.

mod interruption;
mod moving;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use peerpod_tunnel::link::notice::Notices;
use peerpod_tunnel::link::session::Stream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::counters::Traffic;
use super::edit;
use super::gate::{Gate, Member};
use super::handover::{Part, message};
use super::hub::{Guard, Hub, Side};
use super::link::{DialError, Link, Target};
use super::pipe::{End, Pipe, hung_up};
use super::session::{Slot, Way};
use super::sockets::{Allowed, Bound};
use super::stream::StreamPipe;
use crate::proto::relay as proto;
use crate::shutdown::Tracker;
use proto::to_node::Message;

/// What pods and hypervisor connections are served with.
#[derive(Clone, Debug)]
pub(super) struct Desk {
    pub(super) hub: Arc<Hub>,
    pub(super) gate: Arc<Gate>,
    pub(super) allowed: Allowed,
    pub(super) tracker: Tracker,
}

/// Connections one sandbox may hold; a shim needs two.
const CONNECTIONS: usize = 512;
/// Characters of a LinkDown's reason.
const REASON: usize = 300;
/// At most one LinkDown in this time.
const DOWN_EVERY: Duration = Duration::from_millis(100);
/// Pauses between attempts to reach the VM again: the first, doubled up to the last.
const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) sandbox: String,
    pub(super) path: PathBuf,
    pub(super) edit_methods: Vec<String>,
    pub(super) traffic: Traffic,
    target: watch::Sender<Option<Arc<Target>>>,
    ahead: Mutex<Option<Link>>,
    pub(super) session: Slot,
    /// One Connect at a time.
    connecting: tokio::sync::Mutex<()>,
    down: Mutex<Down>,
    interruption: Mutex<interruption::Told>,
    /// Lines that its shim and its VM can cause.
    pub(super) notices: Notices,
    closed: CancellationToken,
    accepting: Mutex<Option<JoinHandle<()>>>,
    /// Its socket, unless another relay serves it.
    bound: Mutex<Option<Arc<Bound>>>,
}

#[derive(Debug, Default)]
struct Down {
    told: Option<proto::LinkDown>,
    when: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under these locks is one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pod {
    /// A sandbox whose socket is not served yet.
    pub(super) fn new(sandbox: String, path: PathBuf, edit_methods: Vec<String>) -> Self {
        Self {
            sandbox,
            path,
            edit_methods,
            traffic: Traffic::default(),
            target: watch::Sender::new(None),
            ahead: Mutex::default(),
            session: Slot::default(),
            connecting: tokio::sync::Mutex::default(),
            down: Mutex::default(),
            interruption: Mutex::default(),
            notices: Notices::new(),
            closed: CancellationToken::new(),
            accepting: Mutex::default(),
            bound: Mutex::default(),
        }
    }

    /// Serves the socket until [`Pod::close`], or until another relay does.
    pub(super) fn serve(self: &Arc<Self>, bound: Bound, desk: &Desk) {
        let bound = Arc::new(bound);
        *lock(&self.bound) = Some(Arc::clone(&bound));
        self.session.run_under(desk);
        let (pod, own) = (self.clone(), desk.clone());
        let member = desk.gate.member();
        // Boxed, here and below: a future that is wrapped is kept twice by the wrapper, and there
        // are three of these per pod.
        let serving = Box::pin(async move {
            tokio::select! {
                () = pod.closed.cancelled() => {}
                () = pod.accept(bound, &own, member) => {}
            }
        });
        let accepting = desk.tracker.spawn("relay: agent socket", serving);
        *lock(&self.accepting) = Some(accepting);
    }

    async fn accept(self: &Arc<Self>, bound: Arc<Bound>, desk: &Desk, mut member: Member) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let next = async {
                // Never closed; more clients wait in the socket's queue.
                let slot = slots.clone().acquire_owned().await.ok();
                let refused = || desk.hub.counters.peers_refused.add(1);
                (bound.accept(desk.allowed, refused).await, slot)
            };
            let (shim, slot) = tokio::select! {
                biased;
                () = member.frozen() => match member.park(Ok(None)).await {
                    true => return,
                    false => continue,
                },
                next = next => next,
            };
            desk.hub.counters.agent_accepted.add(1);
            self.adopt(shim, slot, desk);
        }
    }

    /// Takes a shim's connection in, of which nothing was read.
    pub(super) fn adopt(
        self: &Arc<Self>,
        shim: UnixStream,
        slot: Option<OwnedSemaphorePermit>,
        desk: &Desk,
    ) {
        let (pod, hub, member) = (self.clone(), desk.hub.clone(), desk.gate.member());
        let connection = Box::pin(async move {
            tokio::select! {
                () = pod.closed.cancelled() => {}
                () = pod.connection(shim, &hub, member) => {}
            }
            drop(slot);
        });
        desk.tracker.spawn("relay: agent connection", connection);
    }

    async fn connection(self: &Arc<Self>, shim: UnixStream, hub: &Arc<Hub>, mut member: Member) {
        let mut counted = None;
        let way = loop {
            // Boxed: the connection that waits silently should not set aside room for it.
            let way = tokio::select! {
                biased;
                () = member.frozen() => {
                    let say = message::Say::Agent(self.sandbox.clone());
                    match member.park(part(say, &shim)).await {
                        true => return,
                        false => continue,
                    }
                }
                way = Box::pin(self.way_for(&shim, hub, &mut counted)) => way,
            };
            let Some(way) = way else { return };
            break way;
        };
        let end = match (way, self.edit_methods.is_empty()) {
            (Way::Stream(stream), true) => {
                match self.streams(StreamPipe::new(shim, stream), &mut member).await {
                    Some(end) => end,
                    None => return,
                }
            }
            (way, unread) => {
                let _joined = hub.join(&self.sandbox);
                drop(member);
                match (way, unread) {
                    (Way::Plain(link), true) => Pipe::new(shim, link).run(&self.traffic).await,
                    (Way::Plain(link), false) => Box::pin(edit::join(self, hub, shim, link)).await,
                    (Way::Stream(stream), _) => Box::pin(edit::join(self, hub, shim, stream)).await,
                }
            }
        };
        self.ended(hub, end);
    }

    /// Waits until the shim speaks, counts it, and makes a way to the VM for it. May be dropped and
    /// begun again: nothing is read.
    async fn way_for(
        self: &Arc<Self>,
        shim: &UnixStream,
        hub: &Arc<Hub>,
        counted: &mut Option<Guard>,
    ) -> Option<Way> {
        let mut target = self.target.subscribe();
        if target.wait_for(Option::is_some).await.is_err() || !speaks(shim).await {
            return None;
        }
        if counted.is_none() {
            *counted = Some(hub.enter(&self.sandbox, Side::Agent));
        }
        tokio::select! {
            way = self.link(hub) => way,
            () = gone(shim) => None,
        }
    }

    fn ended(&self, hub: &Hub, end: End) {
        match end {
            End::Shim => tracing::debug!(sandbox = self.sandbox, "a shim connection ended"),
            // Told once, by the session's keeper.
            End::Vm(Some(error)) if Stream::lost(&error).is_some() => {}
            End::Vm(error) => self.vm_ended(hub, error),
        }
    }

    fn vm_ended(&self, hub: &Hub, error: Option<std::io::Error>) {
        // The kernel gives up on a link after `give_up` without a sign of life.
        let given_up = error.as_ref().is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut);
        let reason = match error {
            None => "the VM closed the connection".to_owned(),
            Some(e) => format!("the connection to the VM broke: {e}"),
        };
        self.tell_down(hub, &reason, given_up);
    }

    /// A stream of the session, the link made ahead, or a new one; `None` when that was given up.
    async fn link(self: &Arc<Self>, hub: &Arc<Hub>) -> Option<Way> {
        if let Some(stream) = self.session.stream() {
            return Some(Way::Stream(stream));
        }
        let ahead = lock(&self.ahead).take();
        if let Some(mut link) = ahead
            && link.is_fresh().await
        {
            return Some(Way::Plain(link));
        }
        let begin = Instant::now();
        let mut pause = REDIAL.0;
        loop {
            // Connect may have named another address meanwhile.
            let target = self.target.borrow().clone()?;
            match self.way(hub, &target).await {
                Ok(way) => return way,
                Err(e) => {
                    let given_up = begin.elapsed() + pause >= target.give_up;
                    self.tell_down(hub, &e.to_string(), given_up);
                    if given_up {
                        return None;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REDIAL.1);
        }
    }

    /// A new connection to the VM, as it wants to be spoken to. `None` when the session that was made
    /// has no room for one more stream.
    async fn way(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        target: &Target,
    ) -> Result<Option<Way>, DialError> {
        let link = self.dial_quietly(hub, target).await?;
        if link.is_resumable() {
            self.session.begin(self, hub, target.give_up, link).await?;
            return Ok(self.session.stream().map(Way::Stream));
        }
        self.session.plain();
        self.tell_up(hub);
        Ok(Some(Way::Plain(link)))
    }

    /// One attempt, which is counted.
    pub(super) async fn dial_quietly(&self, hub: &Hub, target: &Target) -> Result<Link, DialError> {
        let dialled = target.dial().await;
        match &dialled {
            Ok(_) => hub.counters.links_made.add(1),
            Err(_) => hub.counters.links_failed.add(1),
        }
        dialled
    }

    /// Makes a link ahead and lets connections use `target`. The same target again changes nothing.
    /// False when all has moved to another relay meanwhile.
    pub(super) async fn connect(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        gate: &Arc<Gate>,
        target: Target,
    ) -> Result<bool, DialError> {
        let _one = self.connecting.lock().await;
        if self.target.borrow().as_ref().is_some_and(|known| known.same(&target)) {
            return Ok(true);
        }
        let link = self.dial_quietly(hub, &target).await?;
        // Only then: a hand-over does not wait for a VM.
        let ahead = if link.is_resumable() {
            self.session.begin(self, hub, target.give_up, link).await?;
            None
        } else {
            Some(link)
        };
        let Some(_pass) = gate.pass().await else { return Ok(false) };
        if let Some(link) = ahead {
            self.session.plain();
            self.tell_up(hub);
            *lock(&self.ahead) = Some(link);
        }
        self.target.send_replace(Some(Arc::new(target)));
        Ok(true)
    }

    /// Closes everything; returns when the socket's file is gone.
    pub(super) async fn close(&self) {
        self.closed.cancel();
        lock(&self.ahead).take();
        self.session.close("the pod is closed");
        let accepting = lock(&self.accepting).take();
        if let Some(task) = accepting {
            // It ends at once, whether well or by a panic.
            let _ = task.await;
        }
        lock(&self.bound).take();
    }

    /// Where the VM is, if that is known.
    pub(super) fn target(&self) -> Option<Arc<Target>> {
        self.target.borrow().clone()
    }

    /// Whether [`Pod::close`] has begun.
    pub(super) fn closing(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits until [`Pod::close`] has begun.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// What was last told, if the link has not been up since.
    pub(super) fn down(&self) -> Option<proto::LinkDown> {
        lock(&self.down).told.clone()
    }

    pub(super) fn tell_down(&self, hub: &Hub, reason: &str, given_up: bool) {
        // The VM may have words in it.
        let reason = reason.chars().filter(|c| !c.is_control()).take(REASON).collect();
        let message = proto::LinkDown { sandbox: self.sandbox.clone(), reason, given_up };
        {
            let mut down = lock(&self.down);
            let news = given_up && !down.told.as_ref().is_some_and(|told| told.given_up);
            if !news && down.when.is_some_and(|when| when.elapsed() < DOWN_EVERY) {
                return;
            }
            down.when = Some(Instant::now());
            down.told = Some(message.clone());
        }
        self.notices.say(|| {
            tracing::warn!(sandbox = self.sandbox, reason = message.reason, given_up, "link down");
        });
        hub.emit(Message::LinkDown(message));
    }

    pub(super) fn tell_up(&self, hub: &Hub) {
        let was_down = lock(&self.down).told.take().is_some();
        if was_down {
            self.notices.say(|| tracing::info!(sandbox = self.sandbox, "link up"));
            hub.emit(Message::LinkUp(proto::LinkUp { sandbox: self.sandbox.clone() }));
        }
    }
}

fn part(say: message::Say, shim: &UnixStream) -> std::io::Result<Option<Part>> {
    let copy: OwnedFd = shim.as_fd().try_clone_to_owned()?;
    Ok(Some(Part { say, descriptors: vec![copy] }))
}

/// Waits for the first byte without taking it; false if the connection ends before one comes.
async fn speaks(shim: &UnixStream) -> bool {
    let peek =
        || Ok(recv(shim.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)?);
    shim.async_io(Interest::READABLE, peek).await.is_ok_and(|bytes| bytes > 0)
}

/// Waits until the shim has closed, without reading. Only used while a link is being made.
async fn gone(shim: &UnixStream) {
    while !hung_up(shim) {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
