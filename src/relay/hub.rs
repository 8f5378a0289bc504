//! What all parts of the relay share: who holds connections for which sandbox, which node process
//! is attached, and what it must be told.
//!
//! ```text
//!   connections ─guards─▶ presence ──both counts fall to 0──▶ ShimGone ─┐
//!   requests ────guards─▶ pending ──snapshot at Attach──────▶ Pending ──┼─▶ session ─▶ node
//!   frames to edit ─────▶ edits ────again at every Attach───▶ Edit ─────┘
//!                                    Attach … Ready ─▶ `node`: where requests go, and since when
//! ```
//!
//! One lock; nothing is awaited and nothing slow is done under it.

mod moving;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use peerpod_tunnel::link::notice::Notices;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::Status;

use super::counters::Counters;
use super::edit::Answer;
use super::pod::Pod;
use crate::proto::relay as proto;
use proto::to_node::Message;

/// Events a node process may leave unread before it is cut off; it hears what still holds again
/// when it attaches anew.
const UNREAD_EVENTS: usize = 4096;
/// Calls of closed shims that are kept for a node process, of all sandboxes.
const KEPT_CALLS: usize = 1024;

/// Of node processes that take another one's place.
static REPLACED: Notices = Notices::new();

/// Where hypervisor requests go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// Whether a node process is attached and ready.
    pub(super) attached: bool,
    /// Grows with every Ready.
    pub(super) generation: u64,
    /// Tells one node process from the next.
    pub(super) instance: u64,
    /// Its socket.
    pub(super) socket: PathBuf,
}

#[derive(Debug)]
struct Presence {
    open: bool,
    spoken: bool,
    agent: u32,
    hypervisor: u32,
    idle_since: Instant,
}

impl Presence {
    fn new() -> Self {
        Self { open: false, spoken: false, agent: 0, hypervisor: 0, idle_since: Instant::now() }
    }

    fn idle(&self) -> bool {
        self.agent == 0 && self.hypervisor == 0
    }

    fn shim_gone(&self) -> bool {
        self.open && self.spoken && self.idle()
    }
}

/// Which of a sandbox's two counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// A connection on its agent socket that has spoken.
    Agent,
    /// A connection on the hypervisor socket that named it.
    Hypervisor,
}

#[derive(Debug)]
struct HeldEdit {
    message: proto::Edit,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
struct Session {
    id: u64,
    from: proto::Attached,
    events: mpsc::Sender<Message>,
    end: oneshot::Sender<Status>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    pods: BTreeMap<String, Arc<Pod>>,
    presence: BTreeMap<String, Presence>,
    pending: BTreeMap<u64, proto::PendingCall>,
    edits: BTreeMap<u64, HeldEdit>,
    session: Option<Session>,
    /// Connections that are joined to a VM by bytes of this process and cannot move.
    joined: BTreeMap<String, u32>,
    /// Who is told of their ends, once everything else moves.
    left: Option<mpsc::UnboundedSender<String>>,
}

impl State {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Hub {
    /// Tells this run of the relay from others.
    pub(super) epoch: u64,
    pub(super) counters: Counters,
    state: Mutex<State>,
    node: watch::Sender<Node>,
    kept: Semaphore,
}

/// What an attached node process reads.
#[derive(Debug)]
pub(super) struct Events {
    /// Which session this is.
    pub(super) session: u64,
    first: VecDeque<Message>,
    rest: mpsc::Receiver<Message>,
    end: Option<oneshot::Receiver<Status>>,
}

impl Events {
    /// The next event, or once why there are no more.
    pub(super) async fn next(&mut self) -> Option<Result<Message, Status>> {
        if let Some(message) = self.first.pop_front() {
            return Some(Ok(message));
        }
        let end = self.end.as_mut()?;
        tokio::select! {
            biased;
            why = end => {
                self.end = None;
                why.ok().map(Err)
            }
            message = self.rest.recv() => message.map(Ok),
        }
    }
}

impl Hub {
    pub(super) fn new(epoch: u64) -> Arc<Self> {
        Arc::new(Self {
            epoch,
            counters: Counters::default(),
            state: Mutex::default(),
            node: watch::Sender::new(Node::default()),
            kept: Semaphore::new(KEPT_CALLS),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves whole values behind: each change is one statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where requests go, now and later.
    pub(super) fn node(&self) -> watch::Receiver<Node> {
        self.node.subscribe()
    }

    // --- pods ---

    /// The pod of a sandbox.
    pub(super) fn pod(&self, sandbox: &str) -> Option<Arc<Pod>> {
        self.state().pods.get(sandbox).cloned()
    }

    /// Takes a pod in; false if its sandbox has one.
    pub(super) fn add(&self, pod: Arc<Pod>) -> bool {
        let mut state = self.state();
        if state.pods.contains_key(&pod.sandbox) {
            return false;
        }
        let presence = state.presence.entry(pod.sandbox.clone()).or_insert_with(Presence::new);
        presence.open = true;
        presence.spoken = false;
        presence.idle_since = Instant::now();
        state.pods.insert(pod.sandbox.clone(), pod);
        true
    }

    /// Forgets a pod.
    pub(super) fn remove(&self, sandbox: &str) -> Option<Arc<Pod>> {
        let mut state = self.state();
        let pod = state.pods.remove(sandbox);
        if let Some(presence) = state.presence.get_mut(sandbox) {
            presence.open = false;
            if presence.idle() {
                state.presence.remove(sandbox);
            }
        }
        pod
    }

    /// All pods.
    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        self.state().pods.values().cloned().collect()
    }

    /// Agent connections, hypervisor connections, milliseconds since both are 0.
    pub(super) fn presence(&self, sandbox: &str) -> (u32, u32, u64) {
        let state = self.state();
        let Some(presence) = state.presence.get(sandbox) else { return (0, 0, 0) };
        let idle = presence.idle().then(|| presence.idle_since.elapsed().as_millis());
        // 0 says "not idle", so the first millisecond counts as one.
        let idle = idle.map_or(0, |ms| u64::try_from(ms).unwrap_or(u64::MAX).max(1));
        (presence.agent, presence.hypervisor, idle)
    }

    // --- connections ---

    /// Counts a connection until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>, sandbox: &str, side: Side) -> Guard {
        let mut state = self.state();
        let presence = state.presence.entry(sandbox.to_owned()).or_insert_with(Presence::new);
        match side {
            Side::Agent => {
                presence.spoken = true;
                presence.agent += 1;
            }
            Side::Hypervisor => presence.hypervisor += 1,
        }
        Guard { hub: self.clone(), sandbox: sandbox.to_owned(), side }
    }

    fn leave(&self, sandbox: &str, side: Side) {
        let mut state = self.state();
        let Some(presence) = state.presence.get_mut(sandbox) else { return };
        match side {
            Side::Agent => presence.agent = presence.agent.saturating_sub(1),
            Side::Hypervisor => presence.hypervisor = presence.hypervisor.saturating_sub(1),
        }
        if !presence.idle() {
            return;
        }
        presence.idle_since = Instant::now();
        if presence.shim_gone() {
            let pod = state.pods.get(sandbox).cloned();
            drop(state);
            if let Some(pod) = pod {
                let line = || tracing::info!(sandbox, "the shim's connections have all closed");
                pod.notices.say(line);
            }
            self.emit(Message::ShimGone(proto::ShimGone { sandbox: sandbox.to_owned() }));
        } else if !presence.open {
            state.presence.remove(sandbox);
        }
    }

    /// Remembers a request that waits for its answer until the guard is dropped.
    pub(super) fn wait_for(self: &Arc<Self>, call: proto::PendingCall) -> PendingGuard {
        let mut state = self.state();
        let key = state.next();
        state.pending.insert(key, call);
        PendingGuard { hub: self.clone(), key }
    }

    /// Room for calls whose shim has closed; `None` if there are too many.
    pub(super) fn keep(&self, calls: usize) -> Option<SemaphorePermit<'_>> {
        self.kept.try_acquire_many(u32::try_from(calls).ok()?).ok()
    }

    // --- edits ---

    /// Asks the node process, now or when there is one, to edit a request.
    pub(super) fn ask(self: &Arc<Self>, mut message: proto::Edit) -> EditGuard {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state();
        let ticket = state.next();
        message.ticket = ticket;
        state.edits.insert(ticket, HeldEdit { message: message.clone(), answer });
        drop(state);
        self.emit(Message::Edit(message));
        EditGuard { hub: self.clone(), ticket, answer: receiver }
    }

    /// Takes the answer of session `session`; one that was replaced has no say any more.
    pub(super) fn answer(&self, session: u64, ticket: u64, answer: Answer) {
        let mut state = self.state();
        if state.session.as_ref().is_some_and(|s| s.id == session)
            && let Some(held) = state.edits.remove(&ticket)
        {
            // The connection that asked may have closed since.
            let _ = held.answer.send(answer);
        }
    }

    // --- the node process ---

    /// Tells the attached node process, if there is one.
    pub(super) fn emit(&self, message: Message) {
        let mut state = self.state();
        let Some(session) = &state.session else { return };
        if session.events.try_send(message).is_ok() {
            return;
        }
        if let Some(session) = state.session.take() {
            tracing::warn!("the node process does not read its events, it is cut off");
            // Nobody reads this if it has already gone.
            let _ = session.end.send(Status::resource_exhausted("events were not read"));
            self.node.send_modify(|node| node.attached = false);
        }
    }

    /// A node process attaches; who was attached before is sent away.
    pub(super) fn attach(&self, from: proto::Attached) -> Events {
        let (events, rest) = mpsc::channel(UNREAD_EVENTS);
        let (end, ended) = oneshot::channel();
        let mut state = self.state();
        let id = state.next();
        let first = repeat(&state);
        if let Some(old) = state.session.take() {
            let why = format!("another node process attached (build {})", from.build);
            let (before, new) = (&old.from.build, &from.build);
            REPLACED.say(|| tracing::warn!(old = before, new, "the node process is replaced"));
            // Nobody reads this if it has already gone.
            let _ = old.end.send(super::control::status(super::control::Stage::Replaced, why));
        }
        self.node.send_modify(|node| node.attached = false);
        self.counters.attaches.add(1);
        state.session = Some(Session { id, from, events, end });
        Events { session: id, first, rest, end: Some(ended) }
    }

    /// Session `session` knows what is pending: from now on requests go to its socket.
    pub(super) fn ready(&self, session: u64) {
        let state = self.state();
        let Some(current) = state.session.as_ref().filter(|s| s.id == session) else { return };
        self.node.send_modify(|node| {
            node.attached = true;
            node.generation += 1;
            node.instance = current.from.instance;
            node.socket = PathBuf::from(&current.from.node_socket);
        });
    }

    /// Session `session` is over.
    pub(super) fn detach(&self, session: u64) {
        let mut state = self.state();
        if state.session.as_ref().is_some_and(|s| s.id == session) {
            state.session = None;
            self.node.send_modify(|node| node.attached = false);
        }
    }

    /// Requests and edits held right now.
    pub(super) fn held(&self) -> (u64, u64) {
        let state = self.state();
        (state.pending.len() as u64, state.edits.len() as u64)
    }
}

/// What a node process that attaches must know.
fn repeat(state: &State) -> VecDeque<Message> {
    let calls = state.pending.values().cloned().collect();
    let mut first = VecDeque::from([Message::Pending(proto::Pending { calls })]);
    for (sandbox, pod) in &state.pods {
        first.extend(pod.down().map(Message::LinkDown));
        first.extend(pod.interruption().map(Message::Interruption));
        if state.presence.get(sandbox).is_some_and(Presence::shim_gone) {
            first.push_back(Message::ShimGone(proto::ShimGone { sandbox: sandbox.clone() }));
        }
    }
    first.extend(state.edits.values().map(|held| Message::Edit(held.message.clone())));
    first
}

/// A counted connection.
#[derive(Debug)]
pub(super) struct Guard {
    hub: Arc<Hub>,
    sandbox: String,
    side: Side,
}

impl Guard {
    /// Whose connection it counts.
    pub(super) fn sandbox(&self) -> &str {
        &self.sandbox
    }

    /// Whether it counts for this sandbox.
    pub(super) fn is_of(&self, sandbox: &str) -> bool {
        self.sandbox == sandbox
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.hub.leave(&self.sandbox, self.side);
    }
}

/// A request without an answer.
#[derive(Debug)]
pub(super) struct PendingGuard {
    hub: Arc<Hub>,
    key: u64,
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        self.hub.state().pending.remove(&self.key);
    }
}

/// A request that waits for its edit.
#[derive(Debug)]
pub(super) struct EditGuard {
    hub: Arc<Hub>,
    ticket: u64,
    answer: oneshot::Receiver<Answer>,
}

impl EditGuard {
    /// The answer, whenever it comes.
    pub(super) async fn answered(mut self) -> Answer {
        let answer = (&mut self.answer).await;
        answer.unwrap_or_else(|_| Err("the relay is shutting down".to_owned()))
    }
}

impl Drop for EditGuard {
    fn drop(&mut self) {
        self.hub.state().edits.remove(&self.ticket);
    }
}
