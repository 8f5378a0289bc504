//! One end of a stream of frames, with what hangs in the air there: it can stop between any two
//! bytes and go on in another process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use peerpod_tunnel::link::frame::FrameReader;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;

use super::handover::message::Air;

/// Reads a stream that others hold as well. Dropping it does nothing to the stream: tokio's own
/// halves would shut it down, for every process that has a copy.
#[derive(Clone, Debug)]
pub(super) struct Half(pub(super) Arc<UnixStream>);

impl AsyncRead for Half {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsFd for Half {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) reader: FrameReader<Half>,
    /// Still to be written.
    pub(super) out: BytesMut,
}

impl Side {
    /// With `stall`, a frame that has begun must be whole within that time.
    pub(super) fn new(stream: UnixStream, stall: Option<Duration>) -> Self {
        Self::resume(stream, stall, &Air::default())
    }

    /// Goes on where another has stopped.
    pub(super) fn resume(stream: UnixStream, stall: Option<Duration>, air: &Air) -> Self {
        let reader = FrameReader::resume(Half(Arc::new(stream)), stall, &air.read);
        Self { reader, out: BytesMut::from(&air.unwritten[..]) }
    }

    /// What [`Side::resume`] needs.
    pub(super) fn air(&self) -> Air {
        let copy = Bytes::copy_from_slice;
        Air { read: copy(self.reader.buffered()), unwritten: copy(&self.out) }
    }

    /// The stream, for another process.
    pub(super) fn copy(&self) -> io::Result<OwnedFd> {
        self.reader.get_ref().as_fd().try_clone_to_owned()
    }
}
