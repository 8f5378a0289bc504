//! Moves the bytes between a shim and its VM, unread.
//!
//! ```text
//!   shim ─▶ to_vm ─▶ VM      end of the shim's side ─▶ half-close, wait for the VM's end
//!   shim ◀─ to_shim ◀─ VM    end of the VM's side ───▶ both are closed
//! ```
//!
//! Bytes are read into one buffer per thread and written on from there; only what the other side
//! does not take at once is kept with the connection. So an idle connection owns no buffer, a busy
//! one moves [`CHUNK`] at a time, and nothing is allocated per read.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Sleep;

use super::counters::{Counter, Traffic};
use super::link::Link;

/// Four TLS records; more would leave the processor's second cache.
const CHUNK: usize = 64 << 10;
/// Chunks one direction may move before others have their turn.
const TURN: usize = 16;
/// Capacity that a connection may keep while it waits.
const KEEP: usize = 512;
/// How often a half-closed connection is looked at, and how long the last bytes may take.
pub(super) const LINGER: Duration = Duration::from_secs(1);

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// Which side ended a connection.
#[derive(Debug)]
pub(super) enum End {
    /// The shim closed.
    Shim,
    /// The VM's side ended, cleanly without an error.
    Vm(Option<io::Error>),
}

/// Where one direction failed.
enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// Read, but not yet taken by the writer, from `at` on.
    left: Vec<u8>,
    at: usize,
    /// The reader has ended, by a failure if there is one; what it gave before is still written.
    ended: bool,
    failed: Option<io::Error>,
    /// Written since the last flush.
    dirty: bool,
}

impl Flow {
    /// Moves what can be moved. Ready when the reader has ended and its end was passed on.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &Counter,
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..TURN {
            ready!(self.poll_left(cx, to)).map_err(Failed::Writing)?;
            if let Some(e) = self.failed.take() {
                return Poll::Ready(Err(Failed::Reading(e)));
            }
            if self.ended {
                return Pin::new(to).poll_shutdown(cx).map_err(Failed::Writing);
            }
            let moved = SCRATCH
                .with_borrow_mut(|scratch| self.poll_chunk(cx, from, to, scratch))
                .map_err(Failed::Writing)?;
            count.add(moved as u64);
            if moved == 0 && !self.ended {
                if self.dirty {
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Failed::Writing)?;
                    self.dirty = false;
                }
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_left<W>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        while let Some(rest) = self.left.get(self.at..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut *to).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.at += n,
            }
            self.dirty = true;
        }
        self.left.clear();
        self.at = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads as much as there is and fits, writes as much as is taken, keeps the rest. Returns how
    /// much was read; 0 without an end means that the reader has nothing now and will wake us.
    fn poll_chunk<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        scratch: &mut [u8],
    ) -> io::Result<usize>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut buffer = ReadBuf::new(scratch);
        while buffer.remaining() > 0 && !self.ended {
            let before = buffer.filled().len();
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Ok(())) => self.ended = buffer.filled().len() == before,
                Poll::Ready(Err(e)) => {
                    self.ended = true;
                    self.failed = Some(e);
                }
            }
        }
        let mut rest = buffer.filled();
        let moved = rest.len();
        while !rest.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => rest = rest.get(n..).unwrap_or_default(),
                Poll::Ready(Err(e)) => return Err(e),
                Poll::Pending => break,
            }
            self.dirty = true;
        }
        self.left.extend_from_slice(rest);
        Ok(moved)
    }

    /// Gives memory back; called while there is nothing to do.
    fn rest(&mut self) {
        if self.left.is_empty() && self.left.capacity() > KEEP {
            self.left = Vec::new();
        }
    }
}

/// A shim's connection and the VM's, until one of them ends. Dropping it closes both.
#[derive(Debug)]
pub(super) struct Pipe {
    shim: UnixStream,
    link: Link,
    to_vm: Flow,
    to_shim: Flow,
    /// The end of the shim's side has been passed on.
    half_closed: bool,
    /// Runs once one side has ended.
    linger: Option<Pin<Box<Sleep>>>,
}

impl Pipe {
    /// Joins the two.
    pub(super) fn new(shim: UnixStream, link: Link) -> Self {
        let (to_vm, to_shim) = (Flow::default(), Flow::default());
        Self { shim, link, to_vm, to_shim, half_closed: false, linger: None }
    }

    /// Moves bytes until one side ends.
    pub(super) async fn run(&mut self, traffic: &Traffic) -> End {
        std::future::poll_fn(|cx| self.poll(cx, traffic)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, traffic: &Traffic) -> Poll<End> {
        if let Poll::Ready(end) = self.poll_to_shim(cx, traffic) {
            return Poll::Ready(end);
        }
        if !self.half_closed {
            match self.to_vm.poll(cx, &mut self.shim, &mut self.link, &traffic.to_vm) {
                Poll::Ready(Ok(())) if hung_up(&self.shim) => return Poll::Ready(End::Shim),
                Poll::Ready(Ok(())) => self.half_closed = true,
                Poll::Ready(Err(Failed::Reading(_))) => return Poll::Ready(End::Shim),
                Poll::Ready(Err(Failed::Writing(e))) => {
                    // The VM may have said something before it went.
                    return match self.poll_to_shim(cx, traffic) {
                        Poll::Ready(end) => Poll::Ready(end),
                        Poll::Pending => Poll::Ready(End::Vm(Some(e))),
                    };
                }
                Poll::Pending => {}
            }
        }
        self.to_vm.rest();
        self.to_shim.rest();
        if self.to_vm.ended || self.to_shim.ended { self.poll_linger(cx) } else { Poll::Pending }
    }

    fn poll_to_shim(&mut self, cx: &mut Context<'_>, traffic: &Traffic) -> Poll<End> {
        match self.to_shim.poll(cx, &mut self.link, &mut self.shim, &traffic.to_shim) {
            Poll::Ready(Ok(())) => Poll::Ready(End::Vm(None)),
            Poll::Ready(Err(Failed::Reading(e))) => Poll::Ready(End::Vm(Some(e))),
            Poll::Ready(Err(Failed::Writing(_))) => Poll::Ready(End::Shim),
            Poll::Pending => Poll::Pending,
        }
    }

    /// A shim that is gone without a trace but a half-close, or does not take the last bytes.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let timer = self.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
            ready!(timer.as_mut().poll(cx));
            self.linger = None;
            if self.to_shim.ended {
                return Poll::Ready(End::Vm(None));
            }
            if hung_up(&self.shim) {
                return Poll::Ready(End::Shim);
            }
        }
    }
}

/// Whether the peer has closed both directions, unread bytes or not.
pub(super) fn hung_up(stream: &impl AsFd) -> bool {
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let found = nix::poll::poll(&mut asked, PollTimeout::ZERO);
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    found.is_ok() && asked.iter().any(|fd| fd.revents().is_some_and(|r| r.intersects(gone)))
}
