//! `peerpodd relay`, the data process: it holds the connections that kata shims open once and never
//! again, so that the node process can be restarted without a shim noticing.
//!
//! ```text
//!             hypervisor.sock                                        node.sock
//!   shim ────────────────────▶ hypervisor ──frames, replayed──▶ node process
//!     │                          queue: unanswered requests        │       ▲
//!     │     pods/<id>/agent.ttrpc                                  │       │ events
//!     └────────────────────▶ pod ── pipe (bytes) ──▶ link ═TLS═▶ VM │       │
//!                             │└─── edit (frames) ─▶ link ═TLS═▶ VM │ control.sock (gRPC)
//!                             │           └ Edit / EditReply ───────┤       │
//!                             └── hub: presence, pending, edits ◀───┴ control
//! ```
//!
//! Life of a sandbox here: Open (listening, connections are held unread) → Connect (a link stands,
//! connections that speak are joined to the VM) → Close. Nothing is kept on disk: a relay that starts
//! anew has another epoch and holds nothing, and its shims' connections are gone.
//!
//! | what breaks | what happens |
//! |---|---|
//! | node process | shims stay connected; unanswered calls are sent again to the next one |
//! | link to a VM, resumable | LinkDown, redialled until `give_up`; the shim's connections go on after it |
//! | link to a VM, established, plain | the shim's connection on it is closed at once, LinkDown |
//! | link to a VM, being made | LinkDown, redialled until `give_up`, then the connection is closed |
//! | shim | its connections to node and VM are closed; when all are, ShimGone |
//! | shim, StopVM unanswered | as above, and the StopVM goes on to the next node process |
//!
//! The other half of this module, [`RelayClient`], runs in the node process.

pub mod api;
mod client;
mod control;
mod counters;
mod edit;
mod hub;
mod hypervisor;
mod link;
mod pipe;
mod pod;
mod queue;
mod session;
mod sockets;
mod stream;
mod survival;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

pub use api::{Control, ControlError, Event, Held, Totals};
pub use client::RelayClient;
pub use sockets::{MAX_PATH, SocketError};
pub use survival::take as survive;

use crate::proto::relay::relay_server::RelayServer;
use crate::shutdown::Tracker;
use hub::Hub;
use sockets::{Allowed, Bound, ensure_directory};

/// How long calls of the node process that are under way may take once the relay is to end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// What the relay serves, and for whom.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    /// Where kata shims call: `/run/peerpod/hypervisor.sock`.
    pub hypervisor_socket: PathBuf,
    /// Holds one directory per sandbox: `/run/peerpod/pods`.
    pub pods_dir: PathBuf,
    /// Where the node process calls: `/run/peerpod/control.sock`.
    pub control_socket: PathBuf,
    /// The user whose processes may connect, besides root.
    pub allowed_uid: u32,
    /// This build's version, for people.
    pub build: String,
    /// The whole process is the relay: it ignores SIGHUP. False where it is a guest, as in tests.
    pub own_process: bool,
}

/// Why the relay cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A socket cannot be served.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The signal cannot be ignored.
    #[error("ignoring SIGHUP: {0}")]
    Signal(std::io::Error),
    /// The API's server failed.
    #[error("serving the relay's API: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// A relay whose sockets stand, but which does not serve yet.
#[derive(Debug)]
pub struct Relay {
    options: RelayOptions,
    hypervisor: Bound,
    control: Bound,
}

/// Serves until `shutdown`; see [`Relay::bind`] and [`Relay::run`].
///
/// # Errors
/// When a socket cannot be served.
pub async fn serve(
    options: RelayOptions,
    tracker: Tracker,
    shutdown: CancellationToken,
) -> Result<(), RelayError> {
    Relay::bind(options).await?.run(tracker, shutdown).await
}

impl Relay {
    /// Makes directories and sockets. Shims that connect from now on wait in the sockets' queues.
    ///
    /// # Errors
    /// When something else stands at a path; a live process there is named with its id.
    pub async fn bind(options: RelayOptions) -> Result<Self, RelayError> {
        for socket in [&options.control_socket, &options.hypervisor_socket] {
            ensure_directory(sockets::check_path(socket)?, 0o755)?;
        }
        ensure_directory(&options.pods_dir, 0o755)?;
        let control = Bound::bind(&options.control_socket).await?;
        let hypervisor = Bound::bind(&options.hypervisor_socket).await?;
        Ok(Self { options, hypervisor, control })
    }

    /// Serves until `shutdown` or until the API fails. Tasks of connections end with `shutdown`;
    /// `tracker` knows when they have. Files of sockets are removed.
    ///
    /// # Errors
    /// When the API's server fails.
    pub async fn run(
        self,
        tracker: Tracker,
        shutdown: CancellationToken,
    ) -> Result<(), RelayError> {
        let Self { options, hypervisor, control } = self;
        let _hangup = options.own_process.then(ignore_hangup).transpose()?;
        // A failure of the API ends the connections as well, whoever asked for it.
        let shutdown = shutdown.child_token();
        let _all = shutdown.clone().drop_guard();
        let hub = Hub::new(epoch());
        let allowed = Allowed(options.allowed_uid);
        tracing::info!(
            hypervisor = %options.hypervisor_socket.display(),
            control = %options.control_socket.display(),
            epoch = hub.epoch,
            "relay serves"
        );
        let (shims, tasks, over) = (hub.clone(), tracker.clone(), shutdown.clone());
        let accepting = tracker.spawn("relay: hypervisor socket", async move {
            let serving = accept_shims(&hypervisor, allowed, &shims, &tasks, &over);
            over.run_until_cancelled(serving).await;
        });
        let service = control::Service {
            hub: hub.clone(),
            pods_dir: options.pods_dir,
            build: options.build,
            allowed,
            tracker,
            shutdown: shutdown.clone(),
            changing: control::Changing::default(),
            configurations: link::Configurations::default(),
        };
        let over = async {
            shutdown.cancelled().await;
            tokio::time::sleep(LAST_ANSWERS).await;
        };
        let served = tokio::select! {
            served = serve_control(control, allowed, service, shutdown.clone()) => served,
            // A node process that does not read must not keep us.
            () = over => Ok(()),
        };
        shutdown.cancel();
        for pod in hub.pods() {
            pod.close().await;
        }
        // It was cancelled above.
        let _ = accepting.await;
        Ok(served?)
    }
}

/// Different for every start, and growing unless the clock was set back.
fn epoch() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A terminal that closes must not end the pods. The default action is off from the first call on.
fn ignore_hangup() -> Result<tokio::signal::unix::Signal, RelayError> {
    let kind = tokio::signal::unix::SignalKind::hangup();
    tokio::signal::unix::signal(kind).map_err(RelayError::Signal)
}

async fn accept_shims(
    socket: &Bound,
    allowed: Allowed,
    hub: &Arc<Hub>,
    tasks: &Tracker,
    over: &CancellationToken,
) {
    loop {
        let shim = socket.accept(allowed, || hub.counters.peers_refused.add(1)).await;
        hub.counters.hypervisor_accepted.add(1);
        let (hub, over) = (hub.clone(), over.clone());
        // Boxed: see Pod::serve.
        let conversation = Box::pin(async move {
            tokio::select! {
                () = over.cancelled() => {}
                () = hypervisor::converse(hub, shim) => {}
            }
        });
        tasks.spawn("relay: hypervisor connection", conversation);
    }
}

async fn serve_control(
    socket: Bound,
    allowed: Allowed,
    service: control::Service,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let hub = service.hub.clone();
    let api = RelayServer::new(service)
        .max_decoding_message_size(control::MAX_MESSAGE)
        .max_encoding_message_size(control::MAX_MESSAGE);
    let incoming = futures_util::stream::unfold((socket, hub), |(socket, hub)| async move {
        let node = socket.accept(allowed, || hub.counters.peers_refused.add(1)).await;
        Some((Ok::<UnixStream, std::io::Error>(node), (socket, hub)))
    });
    tonic::transport::Server::builder()
        .add_service(api)
        .serve_with_incoming_shutdown(incoming.boxed(), shutdown.cancelled_owned())
        .await
}
