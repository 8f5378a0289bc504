//! A worker's session: one TLS connection, and streams that outlive it.
//!
//! ```text
//!   TLS, ALPN peerpod-link/1 ─▶ Sessions (who, which) ─▶ driven until it breaks; the next one goes on
//!                                        └ each stream ─▶ connection::forward, as a connection would
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peerpod_tunnel::link::ahead::Ahead;
use peerpod_tunnel::link::session::{ALPN, Ended, LONGEST_KEEP, Owner, Served, Stream};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Shared, connection};

type Connection = TlsStream<Ahead<TcpStream>>;

/// Whether the worker has offered a session.
pub(super) fn is_chosen(connection: &Connection) -> bool {
    connection.get_ref().1.alpn_protocol() == Some(ALPN)
}

/// Serves a connection to its end; the session it belongs to may go on with another.
pub(super) async fn serve(
    connection: Connection,
    peer: SocketAddr,
    shared: &Arc<Shared>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let chain = connection.get_ref().1.peer_certificates();
    let owner = Owner::of(chain.and_then(|chain| chain.first()).map(AsRef::as_ref));
    let opened = |stream: Stream| {
        // Without one the stream is reset.
        let Some(permit) = shared.permit(peer) else { return };
        let (shared, stop) = (shared.clone(), stop.clone());
        tasks.spawn(async move {
            Box::pin(connection::forward(stream, peer, &shared, &stop, stall(&shared))).await;
            drop(permit);
        });
    };
    let served = shared.sessions.serve(connection, &owner, opened).await;
    shared.notices.say(|| match served {
        Served::Ended(Ended::Broken(why)) => {
            tracing::info!(%peer, "the connection of a session is gone: {why}");
        }
        Served::Ended(Ended::Replaced) => tracing::info!(%peer, "replaced by a new connection"),
        Served::Ended(Ended::Over(why)) => tracing::info!(%peer, "session over: {why}"),
        Served::Refused(why) => tracing::warn!(%peer, "session refused: {why}"),
        Served::NoGreeting(why) => tracing::warn!(%peer, "no session: {why}"),
    });
}

/// A frame may be cut by a break and go on after it.
fn stall(shared: &Shared) -> Duration {
    shared.frame_stall + LONGEST_KEEP
}
