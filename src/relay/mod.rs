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
//! where none lives holds nothing, and its shims' connections are gone. One that starts where another
//! serves takes over from it ([`handover`]); each run of a relay has an epoch, which grows.
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
mod beat;
mod caller;
mod client;
mod control;
mod counters;
mod edit;
mod gate;
mod handover;
mod hub;
mod hypervisor;
mod link;
mod pipe;
mod pod;
mod queue;
mod reign;
mod session;
mod side;
mod sockets;
mod stream;
mod survival;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

pub use api::{Beat, Control, ControlError, Event, Held, Interruption, Payload, Totals};
pub use client::RelayClient;
pub(crate) use client::dial;
pub use handover::TakeError;
pub use sockets::{MAX_PATH, SocketError};
pub use survival::{raise_files, take as survive};

use crate::shutdown::Tracker;
use handover::{Inherited, Kins, Sockets, Stayed, stay, take_over};
use hub::Hub;
use link::Configurations;
use reign::{Over, Realm};
use sockets::ensure_directory;

/// How often a relay that breaks off the hand-over is asked again, and after which pause.
const ASK: (u32, Duration) = (20, Duration::from_millis(50));

/// What the relay serves, and for whom.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    /// Where kata shims call: `/run/peerpod/hypervisor.sock`.
    pub hypervisor_socket: PathBuf,
    /// Holds one directory per sandbox: `/run/peerpod/pods`.
    pub pods_dir: PathBuf,
    /// Where the node process calls: `/run/peerpod/control.sock`.
    pub control_socket: PathBuf,
    /// Where another relay asks to take over: `/run/peerpod/relay.sock`.
    pub relay_socket: PathBuf,
    /// The user whose processes may connect, besides root.
    pub allowed_uid: u32,
    /// This build's version, for people.
    pub build: String,
    /// Told to end after another relay has taken over: how long connections that stayed may go on.
    pub linger: Duration,
    /// Once another relay has taken over and nothing is held any more: wait to be told to end, and serve
    /// again if that one dies. Whoever would start this one anew at its end, and so have it take over
    /// again, needs that.
    pub stand_by: bool,
    /// The whole process is the relay: it ignores SIGHUP. False where it is a guest, as in tests.
    pub own_process: bool,
}

/// Why the relay cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A socket cannot be served.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Another relay serves and does not hand over.
    #[error("taking over from the relay that serves: {0}")]
    TakeOver(#[from] TakeError),
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
    sockets: Sockets,
    inherited: Option<Inherited>,
    configurations: Arc<Configurations>,
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
    /// Makes directories and sockets, or takes those of the relay that serves. Shims that connect
    /// from now on wait in the sockets' queues.
    ///
    /// # Errors
    /// When something else stands at a path; a live process there is named with its id. When a relay
    /// serves and does not hand over.
    pub async fn bind(options: RelayOptions) -> Result<Self, RelayError> {
        for socket in [&options.control_socket, &options.relay_socket, &options.hypervisor_socket] {
            ensure_directory(sockets::check_path(socket)?, 0o755)?;
        }
        ensure_directory(&options.pods_dir, 0o755)?;
        let configurations = Arc::new(Configurations::default());
        let mut attempts = 0;
        loop {
            attempts += 1;
            let error: RelayError = match take_over(&options, &configurations).await {
                Ok(Some(inherited)) => {
                    let sockets = inherited.sockets.clone();
                    let inherited = Some(inherited);
                    return Ok(Self { options, sockets, inherited, configurations });
                }
                Ok(None) => match Sockets::bind(&options).await {
                    Ok(sockets) => {
                        return Ok(Self { options, sockets, inherited: None, configurations });
                    }
                    // Another one has begun in this very moment.
                    Err(SocketError::Taken { path, pid }) if path == options.relay_socket => {
                        SocketError::Taken { path, pid }.into()
                    }
                    Err(e) => return Err(e.into()),
                },
                Err(e @ TakeError::Refused(_)) => return Err(e.into()),
                Err(e @ TakeError::Broken(_)) => e.into(),
            };
            if attempts >= ASK.0 {
                return Err(error);
            }
            tracing::info!(%error, "trying again");
            tokio::time::sleep(ASK.1).await;
        }
    }

    /// Serves until `shutdown`, until the API fails, or until another relay has taken over and what
    /// stayed here has ended. Tasks of connections end with that; `tracker` knows when they have.
    /// Files of sockets are removed unless they are another relay's.
    ///
    /// # Errors
    /// When the API's server fails.
    pub async fn run(
        self,
        tracker: Tracker,
        shutdown: CancellationToken,
    ) -> Result<(), RelayError> {
        let Self { options, sockets, inherited, configurations } = self;
        let _hangup = options.own_process.then(ignore_hangup).transpose()?;
        // A failure of the API ends the connections as well, whoever asked for it.
        let shutdown = shutdown.child_token();
        let _all = shutdown.clone().drop_guard();
        let before = inherited.as_ref().map_or(0, |inherited| inherited.old.epoch);
        let realm = Realm {
            hub: Hub::new(epoch().max(before + 1)),
            kins: Arc::new(Kins::default()),
            options: Arc::new(options),
            sockets,
            configurations,
            tracker,
            shutdown: shutdown.clone(),
        };
        let served = reigns(&realm, inherited).await;
        shutdown.cancel();
        for pod in realm.hub.pods() {
            pod.close().await;
        }
        served
    }
}

/// Serves, and again if a successor dies without a word.
async fn reigns(realm: &Realm, mut inherited: Option<Inherited>) -> Result<(), RelayError> {
    loop {
        let (desk, over) = realm.reign(inherited.take()).await?;
        let successor = match over {
            Over::Told => return Ok(()),
            Over::Late => {
                tracing::error!("another relay serves, and has no connection to this one: ending");
                realm.leave_pods().await;
                return Ok(());
            }
            Over::Successor(successor) => successor,
        };
        let connections = realm.hub.joined().values().sum::<u32>();
        let build = successor.build.clone();
        tracing::info!(build, connections, "handed over; connections that cannot move stay here");
        realm.leave_pods().await;
        match stay(&desk, *successor, &realm.shutdown, &realm.options).await {
            Stayed::Empty => {
                tracing::info!("nothing is held any more: ending");
                return Ok(());
            }
            Stayed::Told => return Ok(()),
            Stayed::Alone => tracing::warn!("the successor has died: serving again"),
        }
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
