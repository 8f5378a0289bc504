//! A pod's resumable session with its VM, for VMs that speak `peerpod-link/1`.
//!
//! ```text
//!               TLS chose the session              WELCOME
//!   (none) ───────────────────────▶ greeting ─────────────────▶ stands ◀───── WELCOME ──────┐
//!     ▲                                │                          │ broken: LinkDown         │
//!     │                                └─ fails: as a dial fails  ▼                          │
//!     └──── GONE, closed by the VM, or `give_up` over ◀──────── redialling ──────────────────┘
//!           LinkDown{given_up}: the shims' connections are closed
//! ```
//!
//! For a hand-over the keeper parts from the connection and stands still: the session then goes to
//! another relay, or is redialled here. While it is being redialled the shims' connections stay, and nothing of what they said is lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use peerpod_tunnel::link::session::{
    Ended, Export, ExportError, Interruption, Link as Session, Over, Refusal, Stream,
};
use tokio::time::{Instant, timeout};

use super::gate::Member;
use super::hub::Hub;
use super::link::{DialError, Link};
use super::pod::{Desk, Pod};
use crate::proto::relay as proto;

/// What Connect and List call the two modes.
pub(super) const PLAIN: &str = "plain";
pub(super) const RESUMABLE: &str = "peerpod-link/1";

/// Who we are, for VMs.
const BUILD: &str = concat!("peerpodd ", env!("CARGO_PKG_VERSION"));
/// How much longer than we go on dialling the VM keeps the session.
const SPARE: Duration = Duration::from_secs(30);
/// How long the VM may take to answer the greeting.
const GREETING: Duration = Duration::from_secs(3);
/// How long the word that all is over may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// Pauses between attempts to reach the VM again: the first, doubled up to the last.
const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// A shim connection's way to the VM.
#[derive(Debug)]
pub(super) enum Way {
    /// A TLS connection of its own.
    Plain(Link),
    /// A stream of the pod's session.
    Stream(Stream),
}

/// The session that a pod has, or not.
#[derive(Debug, Default)]
pub(super) struct Slot {
    session: Mutex<Option<Session>>,
    mode: Mutex<&'static str>,
    /// One is made at a time.
    making: tokio::sync::Mutex<()>,
    desk: Mutex<Option<Desk>>,
    /// The VM is to say when its cloud takes it back.
    watched: AtomicBool,
    /// How often the session came back from a hand-over that failed.
    returns: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each change under these locks is one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    /// What sessions are made with from now on.
    pub(super) fn run_under(&self, desk: &Desk) {
        *lock(&self.desk) = Some(desk.clone());
    }

    /// How the last connection came about; empty before the first.
    pub(super) fn mode(&self) -> &'static str {
        *lock(&self.mode)
    }

    /// The session that stands or is being redialled.
    pub(super) fn session(&self) -> Option<Session> {
        lock(&self.session).clone().filter(|session| session.over().is_none())
    }

    /// A new stream, if there is a session to open it on.
    pub(super) fn stream(&self) -> Option<Stream> {
        self.session()?.open()
    }

    /// A connection came about without a session.
    pub(super) fn plain(&self) {
        *lock(&self.mode) = PLAIN;
    }

    /// Makes a session over a connection on which TLS has chosen it; returns once the VM has
    /// answered. If another one was made in the meantime, that is as good.
    pub(super) async fn begin(
        &self,
        pod: &Arc<Pod>,
        hub: &Arc<Hub>,
        give_up: Duration,
        link: Link,
    ) -> Result<(), DialError> {
        let _one = self.making.lock().await;
        if self.session().is_some() {
            return Ok(());
        }
        let desk = lock(&self.desk).clone();
        let Some(desk) = desk else {
            return Err(DialError::Unreachable("the pod is not served yet".to_owned()));
        };
        let session = Session::worker(BUILD, give_up + SPARE);
        Keeper::new(pod, hub, session.clone()).spawn(&desk, Some(link));
        let failed =
            |why: String| DialError::Unreachable(format!("connected, but no session: {why}"));
        match timeout(GREETING, session.joined()).await {
            Ok(Ok(())) => {}
            Ok(Err(over)) => return Err(failed(over.to_string())),
            Err(_) => {
                session.end(Over::Ended("no answer".to_owned()));
                return Err(failed(format!("no answer within {GREETING:?}")));
            }
        }
        self.inherit(session);
        Ok(())
    }

    /// Has the VM say when its cloud takes it back, in this session and in those to come.
    pub(super) fn watch(&self) {
        self.watched.store(true, Ordering::SeqCst);
        if let Some(session) = self.session() {
            session.watch();
        }
    }

    /// Whether it is to.
    pub(super) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::SeqCst)
    }

    /// Another relay has asked for that in the session it had.
    pub(super) fn restore_watch(&self, watched: bool) {
        self.watched.store(watched, Ordering::SeqCst);
    }

    /// The session for another process; it ends here. `None` if there is none.
    pub(super) fn export(&self) -> Option<Export> {
        self.session()?.export()
    }

    /// Goes on with an exported session.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn import(&self, export: &Export) -> Result<(), ExportError> {
        self.inherit(Session::import(export)?);
        self.returns.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Has this session, which nobody keeps yet.
    pub(super) fn inherit(&self, session: Session) {
        *lock(&self.session) = Some(session.clone());
        *lock(&self.mode) = RESUMABLE;
        // After it is to be found there, so that no wish falls in between. Said twice it does no harm.
        if self.is_watched() {
            session.watch();
        }
    }

    /// Keeps a session that was inherited.
    pub(super) fn keep(&self, pod: &Arc<Pod>, desk: &Desk) {
        if let Some(session) = self.session() {
            Keeper::new(pod, &desk.hub, session).spawn(desk, None);
        }
    }

    /// A stream of a session that another relay has had.
    pub(super) fn resume(&self, stream: u32) -> Option<Stream> {
        self.session()?.stream(stream)
    }

    /// How often the session came back from a hand-over that failed.
    pub(super) fn returns(&self) -> u64 {
        self.returns.load(Ordering::Relaxed)
    }

    /// Ends the session; the VM is told by its keeper.
    pub(super) fn close(&self, reason: &str) {
        if let Some(session) = lock(&self.session).take() {
            session.close(reason);
        }
    }
}

/// The task that owns a session's connection.
struct Keeper {
    pod: Arc<Pod>,
    hub: Arc<Hub>,
    session: Session,
    /// Before it dials again: nothing unless connections break as soon as they stand.
    pause: Duration,
    /// What the pod was told of the VM's being taken back.
    told: Option<Interruption>,
}

fn tell(pod: &Pod, hub: &Hub, said: Interruption) {
    pod.tell_interruption(hub, interruption(&pod.sandbox, said));
}

/// For the node process.
pub(super) fn interruption(sandbox: &str, said: Interruption) -> proto::Interruption {
    let Interruption { kind, deadline_ms, source } = said;
    proto::Interruption { sandbox: sandbox.to_owned(), kind, deadline_ms, source }
}

/// How a keeper goes on.
enum Now {
    Goes,
    Over,
    Frozen,
}

async fn frozen(member: &mut Option<Member>) {
    match member {
        Some(member) => member.frozen().await,
        None => std::future::pending().await,
    }
}

impl Keeper {
    fn new(pod: &Arc<Pod>, hub: &Arc<Hub>, session: Session) -> Self {
        let (pod, hub) = (pod.clone(), hub.clone());
        Self { pod, hub, session, pause: Duration::ZERO, told: None }
    }

    /// Without a link it dials first.
    fn spawn(self, desk: &Desk, link: Option<Link>) {
        // A session some of whose frames are read here cannot move.
        let member = self.pod.edit_methods.is_empty().then(|| desk.gate.member());
        desk.tracker.spawn("relay: session", Box::pin(self.keep(link, member)));
    }

    async fn keep(mut self, mut link: Option<Link>, mut member: Option<Member>) {
        // Since when there is no connection, unless there was none yet.
        let mut broken = link.is_none().then(Instant::now);
        loop {
            let now = tokio::select! {
                biased;
                () = frozen(&mut member) => Now::Frozen,
                now = self.once(&mut link, &mut broken) => now,
            };
            match now {
                Now::Goes => {}
                Now::Over => return,
                Now::Frozen => {
                    // Parts from the VM, which keeps the session.
                    link = None;
                    if let Some(member) = &mut member
                        && member.park(Ok(None)).await
                    {
                        return;
                    }
                    broken = Some(Instant::now());
                    // It may have come back as another one. One that had not stood yet is nobody's.
                    let Some(same) = self.pod.session.session() else {
                        return self.session.end(Over::Ended("a hand-over came first".to_owned()));
                    };
                    self.session = same;
                }
            }
        }
    }

    /// One connection, or the making of one.
    async fn once(&mut self, link: &mut Option<Link>, broken: &mut Option<Instant>) -> Now {
        let connection = match (link.take(), *broken) {
            (Some(connection), _) => connection,
            (None, Some(since)) => tokio::select! {
                again = self.redial(since) => {
                    *link = again;
                    return if link.is_some() { Now::Goes } else { Now::Over };
                }
                () = self.pod.closed() => return Now::Over,
            },
            (None, None) => return Now::Over,
        };
        let begin = Instant::now();
        let ended = self.run(connection, broken).await;
        // A VM that breaks off as soon as the link stands must not have us dial without a rest.
        self.pause = match begin.elapsed() < REDIAL.1 {
            true => (self.pause * 2).clamp(REDIAL.0, REDIAL.1),
            false => Duration::ZERO,
        };
        let why = match ended {
            Ended::Broken(why) => why,
            Ended::Replaced => return Now::Over,
            Ended::Over(over) => {
                self.over(&over);
                return Now::Over;
            }
        };
        if self.pod.closing() {
            self.session.end(Over::Ended("the pod is closed".to_owned()));
            return Now::Over;
        }
        if broken.is_none() {
            // It never stood; whoever asked for it hears why.
            self.session.end(Over::Ended(why));
            return Now::Over;
        }
        let reason = format!("the connection to the VM broke: {why}");
        self.pod.tell_down(&self.hub, &reason, false);
        Now::Goes
    }

    /// One connection, from its greeting to its end. Once it has stood, `broken` is when it ended.
    async fn run(&mut self, link: Link, broken: &mut Option<Instant>) -> Ended {
        let mut run = std::pin::pin!(self.session.run(link));
        let mut stood = false;
        loop {
            let ended = tokio::select! {
                biased;
                ended = &mut run => ended,
                joined = self.session.joined(), if !stood => {
                    stood = joined.is_ok();
                    if stood {
                        self.pod.tell_up(&self.hub);
                        continue;
                    }
                    (&mut run).await
                }
                said = self.session.interrupted(self.told.as_ref()) => {
                    tell(&self.pod, &self.hub, said.clone());
                    self.told = Some(said);
                    continue;
                }
                () = self.pod.closed() => {
                    self.session.close("the pod is closed");
                    let farewell = timeout(FAREWELL, &mut run).await;
                    farewell.unwrap_or_else(|_| Ended::Over(Over::Ended("closed".to_owned())))
                }
            };
            if stood {
                *broken = Some(Instant::now());
            }
            // It may have come with the last bytes.
            if let Some(said) = self.session.interruption().filter(|_| self.told.is_none()) {
                tell(&self.pod, &self.hub, said);
            }
            return ended;
        }
    }

    /// Dials until `give_up` after `since` is over; then the session is, too.
    async fn redial(&self, since: Instant) -> Option<Link> {
        let mut pause = REDIAL.0;
        tokio::time::sleep(self.pause).await;
        loop {
            // Connect may have named another address meanwhile.
            let target = self.pod.target()?;
            let failed = match self.pod.dial_quietly(&self.hub, &target).await {
                Ok(link) if link.is_resumable() => return Some(link),
                // What lives there now cannot have the session.
                Ok(_) => {
                    self.over(&Over::Refused(Refusal::Unknown));
                    return None;
                }
                Err(error) => error.to_string(),
            };
            let given_up = since.elapsed() + pause >= target.give_up;
            self.pod.tell_down(&self.hub, &failed, given_up);
            if given_up {
                let why = format!("given up after {:?}: {failed}", target.give_up);
                self.session.end(Over::Ended(why));
                return None;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REDIAL.1);
        }
    }

    /// The VM has no such session any more, or has ended it.
    fn over(&self, over: &Over) {
        if !self.pod.closing() {
            self.pod.tell_down(&self.hub, &over.to_string(), true);
        }
        self.session.end(over.clone());
    }
}
