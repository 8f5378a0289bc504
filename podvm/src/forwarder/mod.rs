//! The forwarder: takes the worker's connections on TCP 15150 and gives each a connection of its own
//! to kata-agent. Calls pass unread but for two that are edited on the way in.
//!
//! ```text
//!            ┌ handshake ≤ 10 s, 64 at once ┐
//!   worker ──┤ ≤ 1024 connections           ├─ first byte ─▶ agent.connect ─┬─ requests ─▶ edits ─▶ agent
//!            └ client certificate           ┘                               └◀ responses, bytes ───
//! ```

mod agent;
mod connection;
mod edit;
mod notice;
mod requests;
mod responses;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podvm::contract::FORWARDER_PORT;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use agent::Agent;
use edit::Edits;
use notice::Notices;

/// Connections at once; a pod has a handful.
const CONNECTIONS: usize = 1024;
/// Handshakes at once.
const HANDSHAKES: usize = 64;
/// How long connections may go on after the signal to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after the kernel could not give a connection (no files or memory left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the forwarder is told.
#[derive(Debug)]
pub(crate) struct Settings {
    /// `None` is port 15150 of every address.
    pub(crate) listen: Option<SocketAddr>,
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
}

/// Why the forwarder does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwarderError {
    #[error("listening on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// What all connections share.
struct Shared {
    tls: Option<TlsAcceptor>,
    agent: Agent,
    edits: Edits,
    frame_stall: Duration,
    connections: Arc<Semaphore>,
    handshakes: Semaphore,
    notices: Notices,
}

/// A forwarder that listens.
pub(crate) struct Forwarder {
    listener: TcpListener,
    shared: Arc<Shared>,
}

impl Forwarder {
    /// Listens. Without `tls` everybody is served.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub(crate) async fn bind(
        settings: Settings,
        tls: Option<Arc<ServerConfig>>,
    ) -> Result<Self, ForwarderError> {
        let listener = listen(settings.listen).await?;
        let shared = Shared {
            tls: tls.map(TlsAcceptor::from),
            agent: Agent::new(settings.agent_socket, settings.kept_socket, settings.agent_wait),
            edits: Edits::new(settings.podns),
            frame_stall: settings.frame_stall,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            handshakes: Semaphore::new(HANDSHAKES),
            notices: Notices::default(),
        };
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until told to stop, then lets connections come to rest.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => self.admit(stream, peer, &tasks, &stop),
                    Err(error) => {
                        self.shared.notices.say(|| tracing::warn!("accepting: {error}"));
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = stop.cancelled() => break,
            }
        }
        drop(self.listener);
        tasks.close();
        if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
            tracing::warn!(connections = tasks.len(), "cut after {DRAIN:?}");
        }
    }

    fn admit(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let Ok(permit) = self.shared.connections.clone().try_acquire_owned() else {
            let notices = &self.shared.notices;
            notices.say(|| tracing::warn!(%peer, "refused: {CONNECTIONS} connections are open"));
            return;
        };
        let (shared, stop) = (self.shared.clone(), stop.clone());
        tasks.spawn(async move {
            connection::serve(stream, peer, &shared, &stop).await;
            drop(permit);
        });
    }
}

/// IPv6's any-address takes IPv4 too; a kernel without IPv6 gets the other one.
async fn listen(address: Option<SocketAddr>) -> Result<TcpListener, ForwarderError> {
    let bind = async |address: SocketAddr| {
        let listener = TcpListener::bind(address).await;
        listener.map_err(|source| ForwarderError::Listen { address, source })
    };
    match address {
        Some(address) => bind(address).await,
        None => match bind((Ipv6Addr::UNSPECIFIED, FORWARDER_PORT).into()).await {
            Err(ForwarderError::Listen { source, .. })
                if source.kind() != std::io::ErrorKind::AddrInUse =>
            {
                bind((Ipv4Addr::UNSPECIFIED, FORWARDER_PORT).into()).await
            }
            other => other,
        },
    }
}
