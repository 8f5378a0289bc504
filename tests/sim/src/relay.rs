//! The relay: it holds sockets, links, the shims' connections and their unanswered calls while daemons
//! come and go.
//!
//! ```text
//!   shim ── call ──▶ pending ──▶ the attached daemon ──▶ answer ──▶ shim
//!                      └─ its daemon dies: again to the next one, after Attached
//!   death of the relay: nothing is held any more, every shim's connection is gone
//! ```

use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use peerpod_tunnel::link::tls::ClientTls;
use peerpodd::hypervisor::{Failure, Sandboxes};
use peerpodd::pods::Pods;
use peerpodd::proto::hypervisor::CreateVmRequest;
use peerpodd::relay::{Beat, Control, ControlError, Event, Held};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::check;
use crate::cloud::Cloud;
use crate::core::{Core, Signal, lock};
use crate::dice::Fault;
use crate::guest;
use crate::process::Process;

/// A shim's call.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Create(CreateVmRequest),
    Start(Option<Duration>),
    Stop,
}

impl Call {
    pub(crate) fn method(&self) -> &'static str {
        match self {
            Call::Create(_) => "CreateVM",
            Call::Start(_) => "StartVM",
            Call::Stop => "StopVM",
        }
    }
}

/// What a shim hears; `None` when its connection broke.
pub(crate) type Answer = Option<Result<(), Failure>>;

#[derive(Debug)]
struct Pending {
    sandbox: String,
    call: Call,
    reply: oneshot::Sender<Result<(), Failure>>,
    worker: Option<AbortHandle>,
    since: Instant,
    /// Attached without a break since the call came.
    steady: bool,
}

#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) target: Option<SocketAddr>,
    path: String,
    idle_since: Instant,
}

/// The daemon that is attached.
#[derive(Clone, Debug)]
struct Attached {
    process: Arc<Process>,
    pods: Arc<Pods>,
    events: mpsc::Sender<Event>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) sockets: BTreeMap<String, Socket>,
    /// Connections of shims, by sandbox.
    shims: BTreeMap<String, u32>,
    spoken: BTreeMap<String, bool>,
    pending: BTreeMap<u64, Pending>,
    next: u64,
    epoch: u64,
    attached: Option<Attached>,
    /// Nobody can be attached, and every call of the daemon fails.
    away: bool,
}

#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) core: Arc<Core>,
    pub(crate) cloud: Arc<Cloud>,
    pub(crate) state: Mutex<State>,
    /// Changes when connections of shims may have been closed.
    pub(crate) closed: Signal,
}

impl Relay {
    pub(crate) fn new(core: &Arc<Core>, cloud: &Arc<Cloud>) -> Arc<Self> {
        let (core, cloud) = (Arc::clone(core), Arc::clone(cloud));
        let state = State { epoch: 1, ..State::default() };
        Arc::new(Self { core, cloud, state: Mutex::new(state), closed: Signal::default() })
    }

    // --- shims ---

    /// A call of a shim; it is withdrawn when the future is dropped.
    pub(crate) async fn call(self: &Arc<Self>, sandbox: &str, call: Call) -> Answer {
        let (reply, answer) = oneshot::channel();
        let id = {
            let mut state = lock(&self.state);
            state.next += 1;
            let id = state.next;
            let steady = state.attached.is_some();
            let (sandbox, since) = (sandbox.to_owned(), Instant::now());
            let pending = Pending { sandbox, call, reply, worker: None, since, steady };
            state.pending.insert(id, pending);
            id
        };
        let _withdraw = Withdraw { relay: Arc::clone(self), id };
        self.deliver();
        answer.await.ok()
    }

    /// Gives every call that nobody works on to the attached daemon.
    fn deliver(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        let Some(attached) = state.attached.clone() else { return };
        for (id, pending) in &mut state.pending {
            if pending.worker.as_ref().is_none_or(AbortHandle::is_finished) {
                let (relay, attached, id) = (Arc::clone(self), attached.clone(), *id);
                let (sandbox, call) = (pending.sandbox.clone(), pending.call.clone());
                let work = async move { relay.work(attached, id, sandbox, call).await };
                pending.worker = Some(tokio::spawn(work).abort_handle());
            }
        }
    }

    async fn work(self: Arc<Self>, attached: Attached, id: u64, sandbox: String, call: Call) {
        let Attached { process, pods, .. } = attached;
        let method = call.method();
        self.core.pass_ms("frame", 0, 2).await;
        self.core.trace(format!("{} {method} {sandbox}", process.id));
        process.reach(&format!("{method}.before")).await;
        let answer = match call.clone() {
            Call::Create(request) => pods.create(request).await.map(drop),
            Call::Start(deadline) => pods.start(&sandbox, deadline).await,
            Call::Stop => pods.stop(&sandbox).await,
        };
        process.reach(&format!("{method}.after")).await;
        let shown = answer.as_ref().map_or_else(ToString::to_string, |()| "ok".to_owned());
        self.core.trace(format!("{} {method} {sandbox}: {shown}", process.id));
        let Some(pending) = self.take(id) else { return };
        let steady = pending.steady.then(|| pending.since.elapsed());
        check::answer(&self, &sandbox, &call, &answer, steady);
        let _ = pending.reply.send(answer);
    }

    /// A call is over; so is, for a shim of Go's, its connection.
    fn take(&self, id: u64) -> Option<Pending> {
        let mut state = lock(&self.state);
        let pending = state.pending.remove(&id)?;
        if let Some(socket) = state.sockets.get_mut(&pending.sandbox) {
            socket.idle_since = Instant::now();
        }
        Some(pending)
    }

    /// A shim connects to the agent socket, or goes.
    pub(crate) fn connect_shim(&self, sandbox: &str, there: bool) {
        let event = {
            let mut state = lock(&self.state);
            let count = state.shims.entry(sandbox.to_owned()).or_default();
            *count = if there { *count + 1 } else { count.saturating_sub(1) };
            let idle = *count == 0;
            state.spoken.insert(sandbox.to_owned(), true);
            if let Some(socket) = state.sockets.get_mut(sandbox) {
                socket.idle_since = Instant::now();
            }
            let open = state.sockets.contains_key(sandbox);
            state.attached.clone().filter(|_| idle && open)
        };
        if let Some(attached) = event {
            let _ = attached.events.try_send(Event::ShimGone { sandbox: sandbox.to_owned() });
        }
    }

    pub(crate) fn has(&self, sandbox: &str) -> bool {
        lock(&self.state).sockets.contains_key(sandbox)
    }

    // --- the daemon ---

    /// The connection of a daemon stands: it hears what waits, and then those calls.
    pub(crate) async fn attach(
        self: &Arc<Self>,
        process: &Arc<Process>,
        pods: &Arc<Pods>,
        events: &mpsc::Sender<Event>,
    ) {
        self.core.pass_ms("attach-relay", 1, 40).await;
        while lock(&self.state).away {
            self.core.pass_ms("attach-again", 20, 100).await;
        }
        let (epoch, pending, gone) = {
            let state = lock(&self.state);
            let calls = state
                .pending
                .values()
                .map(|p| (p.sandbox.clone(), format!("/Hypervisor/{}", p.call.method())));
            let idle = |s: &&String| state.shims.get(*s).copied() == Some(0);
            let gone: Vec<String> = state.sockets.keys().filter(idle).cloned().collect();
            (state.epoch, calls.collect(), gone)
        };
        if process.is_dead() || events.send(Event::Attached { epoch, pending }).await.is_err() {
            return;
        }
        for sandbox in gone {
            let _ = events.try_send(Event::ShimGone { sandbox });
        }
        let attached = Attached {
            process: Arc::clone(process),
            pods: Arc::clone(pods),
            events: events.clone(),
        };
        if let Some(other) = lock(&self.state).attached.replace(attached)
            && !other.process.is_dead()
            && other.process.id != process.id
        {
            self.core
                .breach("R6", format!("daemons {} and {} at once", other.process.id, process.id));
        }
        self.deliver();
    }

    /// A daemon's connection is gone; its calls wait for the next one.
    pub(crate) fn detach(&self, process: &Process) {
        let mut state = lock(&self.state);
        if state.attached.as_ref().is_some_and(|a| a.process.id == process.id) {
            state.attached = None;
        }
        for pending in state.pending.values_mut() {
            pending.steady = false;
            if let Some(worker) = pending.worker.take() {
                worker.abort();
            }
        }
    }

    /// The relay dies, and another one holds nothing.
    pub(crate) fn die(&self, why: &str) {
        self.core.excuse_all(why);
        let mut state = lock(&self.state);
        let (epoch, attached) = (state.epoch + 1, state.attached.take());
        for pending in std::mem::take(&mut state.pending).into_values() {
            pending.worker.iter().for_each(AbortHandle::abort);
        }
        *state = State { epoch, next: state.next, away: true, ..State::default() };
        drop(state);
        if let Some(attached) = attached {
            let _ = attached.events.try_send(Event::Lost);
        }
        self.closed.change();
    }

    /// The connection to the daemon breaks; shims notice nothing.
    pub(crate) fn drop_daemon(&self) {
        // Calls that are being worked on go on: they have connections of their own.
        let attached = lock(&self.state).attached.take();
        if let Some(attached) = attached {
            let _ = attached.events.try_send(Event::Lost);
        }
        lock(&self.state).away = true;
    }

    pub(crate) fn come_back(&self) {
        lock(&self.state).away = false;
    }

    /// Tells the daemon something of a link, true or not.
    pub(crate) fn disturb_link(&self) {
        let state = lock(&self.state);
        let Some(attached) = &state.attached else { return };
        let all: Vec<&String> = state.sockets.keys().collect();
        let n = self.core.dice.amount("which-link", 0, all.len().max(1) as u64 - 1);
        let Some(sandbox) = usize::try_from(n).ok().and_then(|n| all.get(n)) else { return };
        if self.core.fires_harmlessly(Fault::LinkDown) {
            let (sandbox, reason) = ((*sandbox).clone(), "reset".to_owned());
            let given_up = self.core.dice.amount("given-up", 0, 1) == 1;
            let down = Event::LinkDown { sandbox: sandbox.clone(), reason, given_up };
            let _ = attached.events.try_send(down);
            let _ = attached.events.try_send(Event::LinkUp { sandbox });
        }
    }
}

/// Takes a call back whose shim does not wait any more.
struct Withdraw {
    relay: Arc<Relay>,
    id: u64,
}

impl Drop for Withdraw {
    fn drop(&mut self) {
        let pending = self.relay.take(self.id);
        if let Some(worker) = pending.and_then(|p| p.worker) {
            worker.abort();
        }
    }
}

/// The relay as one daemon calls it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) relay: Arc<Relay>,
    pub(crate) process: Arc<Process>,
}

impl Client {
    /// Time passes; `Some` is an answer that never comes, after the effect or instead of it.
    async fn begin(&self, call: &str, sandbox: &str) -> Result<bool, ControlError> {
        self.process.reach(&format!("{call}.before")).await;
        let core = &self.relay.core;
        if core.fires_harmlessly(Fault::RelaySlow) {
            core.pass_ms("relay-slow", 300, 3000).await;
        } else {
            core.pass_ms("relay", 0, 3).await;
        }
        let away = lock(&self.relay.state).away;
        if away || core.fires(Fault::RelayAway, sandbox) {
            core.pass_ms("relay-away", 1000, 3000).await;
            return Err(ControlError::Away("no answer".to_owned()));
        }
        Ok(core.fires(Fault::RelayLost, sandbox))
    }

    async fn end(&self, call: &str, sandbox: &str, lost: bool) -> Result<(), ControlError> {
        self.relay.core.trace(format!("{} {call} {sandbox}", self.process.id));
        self.process.reach(&format!("{call}.after")).await;
        if lost {
            self.relay.core.pass_ms("relay-away", 1000, 3000).await;
            return Err(ControlError::Away("the answer is lost".to_owned()));
        }
        if self.process.is_dead() {
            pending::<()>().await;
        }
        Ok(())
    }
}

#[async_trait]
impl Control for Client {
    async fn open(&self, sandbox: &str, path: &Path, _: &[String]) -> Result<(), ControlError> {
        let lost = self.begin("open", sandbox).await?;
        check::effect(&self.relay.cloud, sandbox, "a socket is opened");
        let path = path.display().to_string();
        let new = Socket { target: None, path, idle_since: Instant::now() };
        lock(&self.relay.state).sockets.entry(sandbox.to_owned()).or_insert(new);
        self.end("open", sandbox, lost).await
    }

    async fn connect(
        &self,
        sandbox: &str,
        target: SocketAddr,
        _: Option<&ClientTls>,
        _: Duration,
    ) -> Result<(), ControlError> {
        let lost = self.begin("connect", sandbox).await?;
        check::connect(&self.relay.cloud, sandbox, target);
        if self.relay.core.fires(Fault::ConnectFails, sandbox) {
            let tls = self.relay.core.dice.amount("connect-fails", 0, 2) == 0;
            let what = "by chance".to_owned();
            return Err(if tls {
                ControlError::Tls(what)
            } else {
                ControlError::Unreachable(what)
            });
        }
        match lock(&self.relay.state).sockets.get_mut(sandbox) {
            Some(socket) => socket.target = Some(target),
            None => return Err(ControlError::Refused(format!("unknown sandbox {sandbox}"))),
        }
        self.end("connect", sandbox, lost).await
    }

    async fn close(&self, sandbox: &str, reason: &str) -> Result<bool, ControlError> {
        let lost = self.begin("close", sandbox).await?;
        check::ends(&self.relay.core, sandbox, &format!("its socket is closed ({reason})"));
        let was = lock(&self.relay.state).sockets.remove(sandbox).is_some();
        self.relay.closed.change();
        self.end("close", sandbox, lost).await?;
        Ok(was)
    }

    async fn list(&self) -> Result<Vec<Held>, ControlError> {
        self.begin("held", "").await?;
        let state = lock(&self.relay.state);
        let all = state.sockets.iter().map(|(sandbox, socket)| {
            let shims = state.shims.get(sandbox).copied().unwrap_or_default();
            let calls = state.pending.values().filter(|p| p.sandbox == *sandbox).count();
            let calls = u32::try_from(calls).unwrap_or(u32::MAX);
            let idle = u64::try_from(socket.idle_since.elapsed().as_millis()).unwrap_or(u64::MAX);
            Held {
                sandbox: sandbox.clone(),
                path: socket.path.clone(),
                target: socket.target.map(|t| t.to_string()).unwrap_or_default(),
                agent_connections: shims,
                hypervisor_connections: calls,
                idle_ms: if shims + calls > 0 { 0 } else { idle },
                ..Held::default()
            }
        });
        Ok(all.collect())
    }

    /// Comes every few seconds, so no faults of its own are drawn.
    async fn beat(&self, _: Duration) -> Result<Beat, ControlError> {
        if self.process.is_dead() {
            pending::<()>().await;
        }
        let state = lock(&self.relay.state);
        if state.away {
            return Err(ControlError::Away("no answer".to_owned()));
        }
        let linked = state.sockets.iter().filter_map(|(name, s)| Some((name.clone(), s.target?)));
        let (alive, silent): (Vec<_>, Vec<_>) =
            linked.partition(|(_, target)| guest::answers(&self.relay.cloud, target.ip()));
        let names = |all: Vec<(String, _)>| all.into_iter().map(|(name, _)| name).collect();
        Ok(Beat { alive: names(alive), silent: names(silent) })
    }

    /// No VM there is ever taken back with a word before.
    async fn watch(&self, _: &str) -> Result<(), ControlError> {
        Ok(())
    }

    async fn edited(&self, _: u64, _: Result<Bytes, String>) -> Result<(), ControlError> {
        Ok(())
    }
}
