//! Reads ahead of TLS, which on its own asks the kernel for 4 KiB at a time: a call of 32 KiB then takes
//! six reads instead of one.
//!
//! ```text
//!   socket ─ at most 64 KiB ─▶ the thread's buffer ─▶ TLS         all taken: the buffer stays the thread's
//!                                                                 else: the connection's until it is
//! ```
//!
//! So an idle connection owns no buffer.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Read at once, in bytes: four records of TLS.
const SIZE: usize = 64 << 10;

thread_local! {
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

fn spare() -> Box<[u8]> {
    SPARE.take().unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
}

/// What was read and is not taken yet; never empty.
#[derive(Debug)]
struct Held {
    buffer: Box<[u8]>,
    at: usize,
    end: usize,
}

impl Held {
    fn bytes(&self) -> &[u8] {
        self.buffer.get(self.at..self.end).unwrap_or_default()
    }
}

/// See the head of this file. Writes go straight on.
#[derive(Debug)]
pub struct Ahead<S> {
    inner: S,
    held: Option<Held>,
}

impl<S> Ahead<S> {
    /// Reads from `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner, held: None }
    }

    /// Gives of what is held; the buffer goes back once all is given.
    fn give(&mut self, to: &mut ReadBuf<'_>) {
        let Some(mut held) = self.held.take() else { return };
        let count = held.bytes().len().min(to.remaining());
        to.put_slice(held.bytes().get(..count).unwrap_or_default());
        held.at += count;
        if held.bytes().is_empty() {
            SPARE.set(Some(held.buffer));
        } else {
            self.held = Some(held);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.held.is_none() {
            if to.remaining() >= SIZE {
                return Pin::new(&mut this.inner).poll_read(cx, to);
            }
            let mut buffer = spare();
            let mut read = ReadBuf::new(&mut buffer);
            let done = Pin::new(&mut this.inner).poll_read(cx, &mut read);
            let end = read.filled().len();
            if end == 0 {
                SPARE.set(Some(buffer));
                ready!(done)?;
                return Poll::Ready(Ok(()));
            }
            this.held = Some(Held { buffer, at: 0, end });
        }
        this.give(to);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Counts how often it is read from.
    struct Counting<'a>(&'a [u8], usize);

    impl AsyncRead for Counting<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            to: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_read(cx, to)
        }
    }

    #[tokio::test]
    async fn bytes_come_in_order_with_one_read_for_many_small_ones_and_then_the_end() {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let mut ahead = Ahead::new(Counting(&bytes, 0));
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let count = ahead.read(&mut piece).await.expect("read");
            all.extend_from_slice(&piece[..count]);
            if count == 0 {
                break;
            }
        }
        assert!(all == bytes);
        assert_eq!(ahead.inner.1, 3, "two reads of 64 KiB, and the end");
        assert!(ahead.held.is_none(), "an idle connection owns a buffer");
    }

    #[tokio::test]
    async fn two_connections_of_a_thread_do_not_share_what_they_hold() {
        let ((mut a, far_a), (mut b, far_b)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        a.write_all(b"aaaa").await.expect("write");
        b.write_all(b"bbbb").await.expect("write");
        let (mut from_a, mut from_b) = (Ahead::new(far_a), Ahead::new(far_b));
        let (mut read_a, mut read_b) = ([0; 4], [0; 4]);
        for part in [0..1, 1..3, 3..4] {
            from_a.read_exact(&mut read_a[part.clone()]).await.expect("read");
            from_b.read_exact(&mut read_b[part]).await.expect("read");
        }
        assert_eq!((&read_a, &read_b), (b"aaaa", b"bbbb"));
    }
}
