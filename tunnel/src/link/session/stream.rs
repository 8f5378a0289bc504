//! One stream of a session, as a task uses it. It outlives connections: while there is none, reads
//! wait and writes fill the window.
//!
//! What is read stays until it is [taken](Stream::took), and what is written is kept until the other
//! side has taken it, so a task that is dropped between two steps has lost nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::link::{Inner, Shared};
use super::machine::Over;
use super::users::Front;

/// See the head of this file. Dropping it resets the stream, unless it was shut down: then what was
/// written still goes out.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    id: u32,
    ended: bool,
}

fn wait_with(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        slot => *slot = Some(cx.waker().clone()),
    }
}

/// An error that carries why the session is over; see [`Stream::lost`].
fn over(inner: &Inner) -> io::Error {
    match inner.machine.over() {
        Some(over) => io::Error::new(io::ErrorKind::ConnectionAborted, over.clone()),
        None => io::Error::new(io::ErrorKind::ConnectionReset, "the stream was reset"),
    }
}

/// What a reader gets where there are no bytes: it waits, or this is the end.
fn no_bytes(inner: &mut Inner, id: u32, cx: &Context<'_>) -> Poll<io::Result<()>> {
    match inner.machine.front(id) {
        Front::End => {
            inner.machine.took_end(id);
            inner.settle();
            Poll::Ready(Ok(()))
        }
        Front::Over => Poll::Ready(Err(over(inner))),
        Front::Nothing | Front::Bytes(_) => {
            wait_with(&mut inner.waiting.entry(id).or_default().read, cx);
            Poll::Pending
        }
    }
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { shared, id, ended: false }
    }

    /// Its number in the session.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether an error says that the whole session is over, and why.
    pub fn lost(error: &io::Error) -> Option<&Over> {
        error.get_ref()?.downcast_ref()
    }

    /// Whether this side has sent its end.
    pub fn is_shut_down(&self) -> bool {
        self.shared.lock().machine.is_finished(self.id)
    }

    /// The bytes at the front, or `None` at the end. They are there again the next time until they are
    /// [taken](Self::took).
    ///
    /// # Errors
    /// When the stream or the session is over.
    pub fn poll_front(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        let mut inner = self.shared.lock();
        if let Front::Bytes(_) = inner.machine.front(self.id) {
            return Poll::Ready(Ok(Some(inner.machine.piece(self.id))));
        }
        let end = no_bytes(&mut inner, self.id, cx);
        self.ended = matches!(end, Poll::Ready(Ok(())));
        end.map_ok(|()| None)
    }

    /// Takes `count` bytes of the front.
    pub fn took(&mut self, count: usize) {
        let mut inner = self.shared.lock();
        inner.machine.took(self.id, count);
        inner.settle();
    }

    /// How much may be sent now, more than nothing.
    ///
    /// # Errors
    /// When the stream or the session is over, or after a shutdown.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut inner = self.shared.lock();
        match inner.machine.room(self.id) {
            Some(0) => {
                wait_with(&mut inner.waiting.entry(self.id).or_default().write, cx);
                Poll::Pending
            }
            Some(room) => Poll::Ready(Ok(room)),
            None => Poll::Ready(Err(over(&inner))),
        }
    }

    /// Sends bytes that [`Stream::poll_room`] has room for, without copying long ones.
    pub fn send(&mut self, bytes: Bytes) {
        let mut inner = self.shared.lock();
        inner.machine.push(self.id, bytes);
        inner.settle();
    }

    /// Sends no more.
    pub fn shut_down(&mut self) {
        let mut inner = self.shared.lock();
        inner.machine.finish(self.id);
        inner.settle();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.ended {
            return Poll::Ready(Ok(()));
        }
        // Under one lock: bytes that come between a look and a wait would read as an end.
        let mut inner = this.shared.lock();
        if let Front::Bytes(bytes) = inner.machine.front(this.id) {
            let count = bytes.len().min(buffer.remaining());
            buffer.put_slice(bytes.get(..count).unwrap_or_default());
            inner.machine.took(this.id, count);
            inner.settle();
            return Poll::Ready(Ok(()));
        }
        let end = no_bytes(&mut inner, this.id, cx);
        this.ended = matches!(end, Poll::Ready(Ok(())));
        end
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let room = std::task::ready!(this.poll_room(cx))?;
        let count = room.min(bytes.len());
        let mut inner = this.shared.lock();
        inner.machine.push_slice(this.id, bytes.get(..count).unwrap_or_default());
        inner.settle();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is written goes out by itself, as soon as a connection is there.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().shut_down();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.waiting.remove(&self.id);
        inner.machine.release(self.id);
        inner.settle();
    }
}
