//! One connection of the worker, from its handshake to its end.
//!
//! ```text
//!   accepted ─▶ handshake ─▶ silent ─first byte─▶ dialling ─▶ passing ─▶ ended: by the worker, the agent,
//!                                                                        a break, silence after SIGTERM
//! ```
//!
//! However it ends, the worker is told by close_notify.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use nix::sys::socket::{setsockopt, sockopt};
use peerpod_tunnel::link::ahead::Ahead;
use peerpod_tunnel::link::strangers::Place;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::agent::AgentError;
use super::requests::{READ, Requests, RequestsError};
use super::responses::{self, ResponsesError};
use super::{PLACES, Shared, session};

/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long answers may still come once the worker sends no more.
const AFTERMATH: Duration = Duration::from_secs(5);
/// How long a connection must be silent to be closed when the process stops.
const SILENCE: Duration = Duration::from_millis(250);
/// How long the worker may take to close after us.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a conversation ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the worker closed")]
    Worker,
    #[error("the agent closed")]
    Agent,
    #[error("the forwarder stops")]
    Stopped,
    #[error("{0}")]
    Absent(#[from] AgentError),
    #[error("{0}")]
    Requests(#[from] RequestsError),
    #[error("{0}")]
    Responses(#[from] ResponsesError),
}

/// Serves a connection to its end.
pub(super) async fn serve(
    tcp: TcpStream,
    peer: SocketAddr,
    place: Place,
    shared: &Arc<Shared>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    if let Err(error) = tune(&tcp) {
        tracing::debug!(%peer, "socket options: {error}");
    }
    let stream = Ahead::new(tcp);
    let Some(acceptor) = &shared.tls else {
        let Some(_permit) = known(place, peer, shared) else { return };
        return Box::pin(forward(stream, peer, shared, stop, shared.frame_stall)).await;
    };
    let done = tokio::select! {
        done = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => done,
        () = place.sent_away() => {
            let line = || tracing::warn!(%peer, "TLS handshake: none before {PLACES} others came");
            return shared.notices.say(line);
        }
        () = stop.cancelled() => return,
    };
    match done {
        Ok(Ok(stream)) => {
            let Some(_permit) = known(place, peer, shared) else { return };
            if session::is_chosen(&stream) {
                Box::pin(session::serve(stream, peer, shared, tasks, stop)).await;
            } else {
                Box::pin(forward(stream, peer, shared, stop, shared.frame_stall)).await;
            }
        }
        // Somebody looked whether the port is open.
        Ok(Err(error)) if error.kind() == ErrorKind::UnexpectedEof => {
            tracing::debug!(%peer, "TLS handshake: {error}");
        }
        Ok(Err(error)) => shared.notices.say(|| tracing::warn!(%peer, "TLS handshake: {error}")),
        Err(_) => {
            shared.notices.say(|| tracing::warn!(%peer, "TLS handshake: none in {HANDSHAKE:?}"));
        }
    }
}

/// A stranger no more: room among those that may stay.
fn known(place: Place, peer: SocketAddr, shared: &Shared) -> Option<OwnedSemaphorePermit> {
    drop(place);
    shared.permit(peer)
}

/// Calls are small and wanted at once; a worker that is gone is noticed after half a minute.
fn tune(tcp: &TcpStream) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    setsockopt(tcp, sockopt::KeepAlive, &true)?;
    setsockopt(tcp, sockopt::TcpKeepIdle, &15)?;
    setsockopt(tcp, sockopt::TcpKeepInterval, &5)?;
    setsockopt(tcp, sockopt::TcpKeepCount, &4)?;
    Ok(())
}

/// Joins a stream of bytes to the agent until one of both ends. `stall` is how long a frame that has
/// begun may stand still.
pub(super) async fn forward<S>(
    stream: S,
    peer: SocketAddr,
    shared: &Shared,
    stop: &CancellationToken,
    stall: Duration,
) where
    S: AsyncRead + AsyncWrite,
{
    let _user = shared.volumes.enter();
    let (mut from, mut to) = tokio::io::split(stream);
    let moves = AtomicU64::new(0);
    let end = tokio::select! {
        end = converse(&mut from, &mut to, shared, &moves, stall) => end,
        () = quiet(stop, &moves) => End::Stopped,
    };
    match end {
        End::Worker | End::Agent | End::Stopped => tracing::debug!(%peer, "closed: {end}"),
        _ => shared.notices.say(|| tracing::warn!(%peer, "closed: {end}")),
    }
    // Reading on until the worker closes keeps the kernel from resetting the connection, which would
    // take our last bytes with it.
    let farewell = async {
        if to.shutdown().await.is_ok() {
            let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
        }
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}

/// Ends when the process is to stop and nothing moves any more.
async fn quiet(stop: &CancellationToken, moves: &AtomicU64) {
    stop.cancelled().await;
    loop {
        let before = moves.load(Ordering::Relaxed);
        tokio::time::sleep(SILENCE).await;
        if moves.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

async fn converse<R, W>(
    from: &mut R,
    to: &mut W,
    shared: &Shared,
    moves: &AtomicU64,
    stall: Duration,
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = BytesMut::new();
    let mut agent = match dial(from, &mut buffer, shared).await {
        Ok(agent) => agent,
        Err(end) => return end,
    };
    let (mut agent_from, agent_to) = agent.split();
    let moved = || {
        moves.fetch_add(1, Ordering::Relaxed);
    };
    let (answers, mut taken) = mpsc::channel(1);
    let mut requests = Requests {
        from,
        to: agent_to,
        buffer,
        edits: &shared.edits,
        volumes: &shared.volumes,
        waiting: JoinSet::new(),
        notices: &shared.notices,
        stall,
        answers,
    };
    let responses = responses::pass(&mut agent_from, to, &mut taken, moved);
    tokio::pin!(responses);
    let ended = tokio::select! {
        done = &mut responses => return done.map_or_else(End::from, |()| End::Agent),
        ended = requests.pass(moved) => ended,
    };
    if let Err(error @ (RequestsError::Broken(_) | RequestsError::Read(_))) = ended {
        return error.into();
    }
    // The worker is done, or the agent takes no more: what was asked may still be answered.
    let _ = requests.to.shutdown().await;
    match (tokio::time::timeout(AFTERMATH, responses).await, ended) {
        (Ok(Err(error)), _) => error.into(),
        (_, Err(error)) => error.into(),
        _ => End::Worker,
    }
}

/// Waits for the worker's first bytes, then for the agent, and goes on reading meanwhile: a worker
/// that gives up is noticed, and what it has asked is not done behind its back.
async fn dial<R>(from: &mut R, buffer: &mut BytesMut, shared: &Shared) -> Result<UnixStream, End>
where
    R: AsyncRead + Unpin,
{
    read(from, buffer).await?;
    let connect = shared.agent.connect();
    tokio::pin!(connect);
    loop {
        tokio::select! {
            biased;
            agent = &mut connect => return Ok(agent?),
            more = read(from, buffer), if buffer.len() < READ => more?,
        }
    }
}

async fn read<R: AsyncRead + Unpin>(from: &mut R, buffer: &mut BytesMut) -> Result<(), End> {
    buffer.reserve(READ);
    match from.read_buf(buffer).await {
        Ok(0) => Err(End::Worker),
        Ok(_) => Ok(()),
        Err(error) => Err(RequestsError::Read(error).into()),
    }
}
