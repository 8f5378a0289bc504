//! A connection at the control socket: it ends when too many others have come after it, unless its
//! node process is attached.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use peerpod_tunnel::link::strangers::Place;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Caller {
    stream: UnixStream,
    place: Arc<Place>,
    away: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Caller {
    /// With a place among the others.
    pub(super) fn new(stream: UnixStream, place: Place) -> Self {
        let away = Box::pin(place.sent_away());
        Self { stream, place: Arc::new(place), away }
    }
}

impl Connected for Caller {
    type ConnectInfo = Arc<Place>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.place.clone()
    }
}

impl AsyncRead for Caller {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.away.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Caller {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
