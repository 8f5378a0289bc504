//! Serves the pages: few connections at a time and each for a short time, since any process of the
//! machine may connect and none has to show who it is.
//!
//! ```text
//!   accepted ─▶ one request, one answer ─▶ closed
//!      └ more than so many: the oldest one makes room, so that whoever holds on shuts nobody out
//! ```

use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use peerpod_tunnel::link::notice::Notices;
use peerpod_tunnel::link::strangers::{Place, Strangers};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Connections at a time; a kubelet and a scraper need three.
pub(super) const CONNECTIONS: usize = 64;
/// Time for the head of a request, and for all of a connection.
const HEAD: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(10);
/// Bytes that are read before they are a request.
const BUFFER: usize = 16 << 10;
/// Pause when there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until told to end; then all connections are closed.
pub(super) async fn run(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    let (strangers, notices) = (Strangers::new(CONNECTIONS), Notices::new());
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tasks.spawn(answer(stream, router.clone(), strangers.enter()));
                }
                Err(error) => {
                    notices.say(|| tracing::warn!(%error, "accepting a connection for probes"));
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

async fn answer(stream: TcpStream, router: Router, place: Place) {
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        router.clone().oneshot(request.map(axum::body::Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let answered = tokio::select! {
        answered = tokio::time::timeout(WHOLE, connection) => answered,
        () = place.sent_away() => return,
    };
    match answered {
        Ok(Ok(())) => {}
        // Whoever speaks like that is not to fill the log.
        Ok(Err(error)) => tracing::debug!(%error, "a connection for probes broke"),
        Err(_) => tracing::debug!("a connection for probes took too long"),
    }
}
