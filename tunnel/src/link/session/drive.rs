//! Moves a session's frames over one connection.
//!
//! ```text
//!   connection ─ one buffer per thread ─▶ Machine::receive        until it breaks, is replaced, falls
//!   connection ◀─ one vectored write ─ Burst ◀─ Machine::transmit     silent, or the session is over
//! ```
//!
//! An idle connection owns no buffer: what is read goes through one of the thread's, and only what the
//! streams keep is kept.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Sleep;

use super::READ;
use super::link::{Inner, Shared};
use super::machine::Over;
use super::stream::Stream;
use super::transmit::Burst;

/// How much is put together for one write.
const MOST: usize = 256 << 10;
/// Pieces of one write.
const SLICES: usize = 32;
/// Rounds before others have their turn.
const TURN: usize = 16;
/// How long the last words may take.
const FAREWELL: Duration = Duration::from_secs(1);

thread_local! {
    static SPACE: RefCell<BytesMut> = RefCell::default();
}

/// Why a connection is not driven any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It broke; the session waits for another one.
    Broken(String),
    /// Another one has taken its place, or another process the session.
    Replaced,
    /// The session is over.
    Over(Over),
}

/// Drives `connection`, the session's `number`th. `opened` gets the streams that the other side opens.
pub(super) async fn drive<C: AsyncRead + AsyncWrite + Unpin>(
    shared: &Arc<Shared>,
    number: u64,
    connection: C,
    input: BytesMut,
    opened: impl FnMut(Stream),
) -> Ended {
    let drive = Drive {
        shared: shared.clone(),
        number,
        connection,
        input,
        burst: Burst::default(),
        unflushed: false,
        opened,
    };
    let mut drive = drive;
    let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
    let ended = std::future::poll_fn(|cx| match drive.poll(cx, timer.as_mut()) {
        Ok(()) => Poll::Pending,
        Err(ended) => Poll::Ready(ended),
    });
    let ended = ended.await;
    if let Ended::Over(_) = &ended {
        // Nobody waits for more; what stands in the connection's buffers should still go out.
        let _ = tokio::time::timeout(FAREWELL, drive.connection.shutdown()).await;
    }
    ended
}

struct Drive<C, F> {
    shared: Arc<Shared>,
    number: u64,
    connection: C,
    /// The beginning of a frame.
    input: BytesMut,
    burst: Burst,
    unflushed: bool,
    opened: F,
}

impl<C, F> Drop for Drive<C, F> {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        if inner.connection == self.number {
            inner.machine.part();
            inner.settle();
        }
    }
}

fn broken(doing: &str, error: &io::Error) -> Ended {
    Ended::Broken(format!("{doing}: {error}"))
}

impl<C: AsyncRead + AsyncWrite + Unpin, F: FnMut(Stream)> Drive<C, F> {
    /// An error is the end; else it is pending.
    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Result<(), Ended> {
        for _ in 0..TURN {
            // Reading first: what has come in while this process stood still is a sign of life.
            let read = self.poll_in(cx)?;
            let wrote = self.poll_out(cx)?;
            if !read && !wrote && !self.poll_time(cx, timer.as_mut())? {
                return Ok(());
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Whether something came in.
    fn poll_in(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        if !self.shared.lock().machine.may_read() {
            // What is to be written waits for the other side to read; that wakes us.
            return Ok(false);
        }
        SPACE.with_borrow_mut(|space| {
            space.clear();
            space.extend_from_slice(&self.input);
            if space.capacity() - space.len() < READ / 2 {
                space.reserve(READ);
            }
            let reading = pin!(self.connection.read_buf(space));
            match reading.poll(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => {
                    return Err(Ended::Broken("the other side closed".to_owned()));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Err(broken("reading", &error)),
            }
            let mut come = space.split();
            let mut inner = self.shared.lock();
            self.check(&inner)?;
            inner.at_work();
            let taken = inner.machine.receive(&mut come, self.shared.now());
            self.input.clear();
            self.input.extend_from_slice(&come);
            if self.input.is_empty() {
                self.input = BytesMut::new();
            }
            inner.settle();
            let opened = std::mem::take(&mut inner.opened);
            drop(inner);
            for id in opened {
                (self.opened)(Stream::new(self.shared.clone(), id));
            }
            taken.map(|()| true).map_err(|violation| Ended::Over(violation.into()))
        })
    }

    fn check(&self, inner: &Inner) -> Result<(), Ended> {
        match inner.machine.over() {
            _ if inner.connection != self.number => Err(Ended::Replaced),
            Some(over) => Err(Ended::Over(over.clone())),
            None => Ok(()),
        }
    }

    /// Whether something went out.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        let mut inner = self.shared.lock();
        self.check(&inner)?;
        inner.drive_with(cx);
        if self.burst.len() < MOST / 2 {
            inner.machine.transmit(&mut self.burst, MOST);
        }
        if self.burst.is_empty() && !self.unflushed && inner.machine.end_of_closing() {
            inner.settle();
            return self.check(&inner).map(|()| false);
        }
        drop(inner);
        let mut wrote = false;
        while !self.burst.is_empty() {
            let pieces = self.burst.pieces();
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            for (slice, piece) in slices.iter_mut().zip(pieces.iter()) {
                *slice = IoSlice::new(piece);
                used += 1;
            }
            let slices = slices.get(..used).unwrap_or_default();
            match Pin::new(&mut self.connection).poll_write_vectored(cx, slices) {
                Poll::Pending => return Ok(wrote),
                Poll::Ready(Ok(0)) => {
                    return Err(broken("writing", &io::ErrorKind::WriteZero.into()));
                }
                Poll::Ready(Ok(count)) => self.burst.advance(count),
                Poll::Ready(Err(error)) => return Err(broken("writing", &error)),
            }
            (wrote, self.unflushed) = (true, true);
        }
        if self.unflushed {
            match Pin::new(&mut self.connection).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(broken("writing", &error)),
            }
        }
        Ok(wrote)
    }

    /// Whether it is time for something to be said.
    fn poll_time(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Sleep>,
    ) -> Result<bool, Ended> {
        let mut inner = self.shared.lock();
        let mut said = false;
        loop {
            let Some(deadline) = inner.machine.deadline() else { return Ok(said) };
            let deadline = self.shared.at(deadline);
            // A deadline that has moved on is met when the old one comes.
            if timer.deadline() > deadline || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Ok(said);
            }
            let now = self.shared.now();
            if !inner.machine.tick(now) {
                let why = "no sign of life from the other side".to_owned();
                return Err(Ended::Broken(why));
            }
            said |= inner.machine.wants_to_say();
        }
    }
}
