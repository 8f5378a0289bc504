//! Moves the bytes between a shim and a stream of its pod's session, unread.
//!
//! ```text
//!   shim ─▶ as much as there is room for ─▶ stream     shim ◀─ what it takes ◀─ stream
//! ```
//!
//! Nothing is held in between: what the shim does not take stays with the stream, and what the stream
//! has no room for stays with the shim. So this may be dropped at any time without losing a byte.

use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{BufMut, BytesMut};
use peerpod_tunnel::link::session::Stream;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::Sleep;

use super::counters::Traffic;
use super::pipe::{End, LINGER, hung_up};

/// Room that is made at once. What the session keeps of it keeps all of it.
const CHUNK: usize = 64 << 10;
/// With less of it left more is made: a call of 32 KiB is to come in one piece.
const LEAST: usize = 40 << 10;
/// Chunks one direction may move before others have their turn.
const TURN: usize = 16;

thread_local! {
    static SPACE: RefCell<BytesMut> = RefCell::default();
}

/// A shim's connection and its stream, until one of them ends.
#[derive(Debug)]
pub(super) struct StreamPipe {
    shim: UnixStream,
    stream: Stream,
    /// The end of the shim's side has been passed on.
    half_closed: bool,
    /// Runs while nothing is read from the shim, whose end would go unnoticed.
    look: Option<Pin<Box<Sleep>>>,
}

impl StreamPipe {
    /// Joins the two.
    pub(super) fn new(shim: UnixStream, stream: Stream) -> Self {
        let half_closed = stream.is_shut_down();
        Self { shim, stream, half_closed, look: None }
    }

    /// The stream.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The shim's connection.
    pub(super) fn shim(&self) -> &UnixStream {
        &self.shim
    }

    /// Goes on with the same stream of the same session, had anew.
    pub(super) fn replace(&mut self, stream: Stream) {
        self.half_closed = stream.is_shut_down();
        self.stream = stream;
    }

    /// Moves bytes until one side ends. May be dropped and called again.
    pub(super) async fn run(&mut self, traffic: &Traffic) -> End {
        std::future::poll_fn(|cx| match self.poll(cx, traffic) {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        })
        .await
    }

    /// An error is the end; else it is pending.
    fn poll(&mut self, cx: &mut Context<'_>, traffic: &Traffic) -> Result<(), End> {
        self.poll_to_shim(cx, traffic)?;
        let reading = !self.half_closed && self.poll_to_vm(cx, traffic)?;
        match reading {
            true => self.look = None,
            false => self.poll_look(cx)?,
        }
        Ok(())
    }

    fn poll_to_shim(&mut self, cx: &mut Context<'_>, traffic: &Traffic) -> Result<(), End> {
        for _ in 0..TURN {
            let bytes = match self.stream.poll_front(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(Some(bytes))) => bytes,
                Poll::Ready(Ok(None)) => return Err(End::Vm(None)),
                Poll::Ready(Err(e)) => return Err(End::Vm(Some(e))),
            };
            match Pin::new(&mut self.shim).poll_write(cx, &bytes) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0) | Err(_)) => return Err(End::Shim),
                Poll::Ready(Ok(count)) => {
                    drop(bytes);
                    self.stream.took(count);
                    traffic.to_shim.add(count as u64);
                }
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Whether the shim is being read.
    fn poll_to_vm(&mut self, cx: &mut Context<'_>, traffic: &Traffic) -> Result<bool, End> {
        for _ in 0..TURN {
            let room = match self.stream.poll_room(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(room)) => room,
                Poll::Ready(Err(e)) => return Err(End::Vm(Some(e))),
            };
            let read = SPACE.with_borrow_mut(|space| self.poll_chunk(cx, space, room));
            match read {
                Poll::Pending => return Ok(true),
                Poll::Ready(Ok(0)) => {
                    self.stream.shut_down();
                    self.half_closed = true;
                    return if hung_up(&self.shim) { Err(End::Shim) } else { Ok(false) };
                }
                Poll::Ready(Ok(count)) => traffic.to_vm.add(count as u64),
                Poll::Ready(Err(_)) => return Err(End::Shim),
            }
        }
        cx.waker().wake_by_ref();
        Ok(true)
    }

    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        space: &mut BytesMut,
        room: usize,
    ) -> Poll<io::Result<usize>> {
        space.clear();
        if space.capacity() < LEAST {
            space.reserve(CHUNK);
        }
        let read = {
            let mut limited = (&mut *space).limit(room);
            let mut reading = pin!(self.shim.read_buf(&mut limited));
            std::task::ready!(reading.as_mut().poll(cx))
        };
        if !space.is_empty() {
            self.stream.send(space.split().freeze());
        }
        Poll::Ready(read)
    }

    fn poll_look(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        loop {
            let timer = self.look.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
            if timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.look = None;
            if hung_up(&self.shim) {
                return Err(End::Shim);
            }
        }
    }
}
