//! The forwarder: takes the worker's connections on TCP 15150 and gives each a connection of its own
//! to kata-agent. Calls pass unread but for three that are held on the way in: two are edited, and before
//! a container is made, or the pod ends, its volumes are seen to.
//!
//! ```text
//!            ┌ strangers: 256 places, the  ┐
//!   worker ──┤ oldest goes, ≤ 10 s          ├─ first byte ─▶ agent.connect ─┬─ requests ─▶ edits ─▶ agent
//!            └ client certificate ─▶ ≤ 1024 ┘                               └◀ responses, bytes ───
//! ```
//!
//! A worker that offers `peerpod-link/1` gets a session: each of its streams is served as a connection
//! of its own would be.

mod agent;
mod connection;
mod requests;
mod responses;
mod session;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use peerpod_tunnel::link::notice::Notices;
use peerpod_tunnel::link::session::Sessions;
use peerpod_tunnel::link::strangers::Strangers;
use podvm::edit::Edits;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::follow::{self, Missing};
use crate::interruption;
use crate::volumes::Volumes;
use agent::Agent;

/// Places of strangers. With TLS's longest handshake message and what is read at once, some 40 MiB.
const PLACES: usize = 256;
/// Connections at once; a pod has a handful.
const CONNECTIONS: usize = 1024;
/// How long connections may go on after the signal to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// How often sessions without a connection are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long sessions may take to say that they are over.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Between two looks whether streams are still in use, once the process is to stop.
const STREAMS: Duration = Duration::from_millis(50);
/// Pause after the kernel could not give a connection (no files or memory left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the forwarder is told.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where kata-agent listens.
    pub(crate) agent_socket: PathBuf,
    /// A second name for it that outlives the first.
    pub(crate) kept_socket: PathBuf,
    /// Path of the pod's network namespace, as the agent sees it.
    pub(crate) podns: String,
    /// How long a connection waits for the agent.
    pub(crate) agent_wait: Duration,
    /// How long a frame that has begun may stand still.
    pub(crate) frame_stall: Duration,
    /// Who says that the VM is taken back.
    pub(crate) notices: interruption::Settings,
    /// Files that are still to come.
    pub(crate) missing: Missing,
}

/// What all connections share.
struct Shared {
    tls: Option<TlsAcceptor>,
    agent: Agent,
    edits: Edits,
    volumes: Arc<Volumes>,
    frame_stall: Duration,
    connections: Arc<Semaphore>,
    strangers: Strangers,
    notices: Notices,
    sessions: Sessions,
}

/// A forwarder that listens.
pub(crate) struct Forwarder {
    listener: TcpListener,
    shared: Arc<Shared>,
    notices: interruption::Settings,
    missing: Missing,
}

impl Forwarder {
    /// Without `tls` everybody is served.
    pub(crate) fn new(
        listener: TcpListener,
        settings: Settings,
        tls: Option<Arc<ServerConfig>>,
        volumes: Volumes,
    ) -> Self {
        let shared = Shared {
            tls: tls.map(TlsAcceptor::from),
            agent: Agent::new(settings.agent_socket, settings.kept_socket, settings.agent_wait),
            edits: Edits::new(settings.podns),
            volumes: Arc::new(volumes),
            frame_stall: settings.frame_stall,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            strangers: Strangers::new(PLACES),
            notices: Notices::default(),
            sessions: Sessions::new(&format!("podvm {}", env!("CARGO_PKG_VERSION"))),
        };
        let Settings { notices, missing, .. } = settings;
        shared.sessions.want(missing.files.iter().map(|file| (file.path.clone(), file.size)));
        Self { listener, shared: Arc::new(shared), notices, missing }
    }

    /// Serves until told to stop, then lets connections come to rest. `ready` is called when all files
    /// are there.
    pub(crate) async fn serve(self, stop: CancellationToken, ready: fn()) {
        let tasks = TaskTracker::new();
        let (shared, notices, over) = (self.shared.clone(), self.notices.clone(), stop.clone());
        tasks.spawn(async move {
            over.run_until_cancelled(interruption::pass_on(&notices, &shared.sessions)).await;
        });
        let (shared, missing, over) = (self.shared.clone(), self.missing.clone(), stop.clone());
        tasks.spawn(async move {
            let came = over.run_until_cancelled(follow::receive(&missing, &shared.sessions)).await;
            if came.is_some() {
                ready();
            }
        });
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => self.admit(stream, peer, &tasks, &stop),
                    Err(error) => {
                        self.shared.notices.say(|| tracing::warn!("accepting: {error}"));
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                _ = look.tick() => match self.shared.sessions.expire() {
                    0 => {}
                    sessions => tracing::info!(sessions, "forgotten: nobody came back for them"),
                },
                () = stop.cancelled() => break,
            }
        }
        drop(self.listener);
        tasks.close();
        if tokio::time::timeout(DRAIN, rest(&self.shared.sessions, &tasks)).await.is_err() {
            tracing::warn!(connections = tasks.len(), "cut after {DRAIN:?}");
            self.shared.sessions.close("the VM's forwarder stops");
            let _ = tokio::time::timeout(LAST_WORDS, tasks.wait()).await;
        }
        self.shared.volumes.release("podvm ends").await;
    }

    fn admit(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let (shared, stop, all) = (self.shared.clone(), stop.clone(), tasks.clone());
        let place = self.shared.strangers.enter();
        tasks.spawn(async move {
            connection::serve(stream, peer, place, &shared, &all, &stop).await;
        });
    }
}

impl Shared {
    /// Room for one more connection, or stream of one.
    fn permit(&self, peer: SocketAddr) -> Option<OwnedSemaphorePermit> {
        let permit = self.connections.clone().try_acquire_owned().ok();
        if permit.is_none() {
            let line = || tracing::warn!(%peer, "refused: {CONNECTIONS} connections are open");
            self.notices.say(line);
        }
        permit
    }
}

/// Waits until all connections are at rest. A session's ends once no stream of it is in use, and
/// tells the worker so.
async fn rest(sessions: &Sessions, tasks: &TaskTracker) {
    while sessions.streams() > 0 {
        tokio::time::sleep(STREAMS).await;
    }
    sessions.close("the VM's forwarder stops");
    tasks.wait().await;
}
