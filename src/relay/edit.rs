//! Joins a shim to its VM frame by frame, for pods some of whose requests the node process edits.
//!
//! ```text
//!   shim ─frames─▶ inbound ┬ other methods ──────────────────────────▶ to_vm ─▶ VM
//!                          └ named ones ─Edit─▶ node ─┬ new payload ──▶ to_vm
//!                                       (waits)       └ refused ─▶ error response ─▶ to_shim
//!   shim ◀──────────────────────── to_shim ◀──────────────────────────── frames ─ VM
//! ```
//!
//! A request that waits holds back later frames of its own stream only. What waits is bounded; then
//! nothing more is read from the shim.

use std::collections::BTreeMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::future::FusedFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use peerpod_tunnel::link::frame::{
    Frame, FrameError, FrameReader, Kind, MAX_PAYLOAD, Request, Response,
};
use peerpod_tunnel::link::wire;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;

use super::counters::Counter;
use super::hub::Hub;
use super::pipe::{End, LINGER, hung_up};
use super::pod::Pod;
use crate::proto::relay as proto;

/// What the node process says: the request's new payload, or why the call is refused.
pub(super) type Answer = Result<Bytes, String>;

/// Frames and bytes that may wait for edits on one connection.
const WAITING: (usize, usize) = (64, 8 << 20);
/// How long a frame that has begun may take.
const STALL: Duration = Duration::from_secs(30);
/// Frames on their way to a writer.
const QUEUE: usize = 2;
/// google.rpc code.
const FAILED_PRECONDITION: i32 = 9;
/// Field of a ttrpc request that holds the call's message.
const PAYLOAD: u32 = 3;
/// And the one that names the method.
const METHOD: u32 = 2;

type Closed = mpsc::error::SendError<Frame>;

/// Moves frames until one side ends.
pub(super) async fn join<L>(pod: &Pod, hub: &Arc<Hub>, shim: UnixStream, link: L) -> End
where
    L: AsyncRead + AsyncWrite,
{
    let (shim_read, shim_write) = shim.into_split();
    let (vm_read, vm_write) = tokio::io::split(link);
    // A resumable link may be broken in the middle of a frame, and is well again.
    let stall = STALL + pod.target().map_or(Duration::ZERO, |target| target.give_up);
    let (to_vm, for_vm) = mpsc::channel(QUEUE);
    let (to_shim, for_shim) = mpsc::channel(QUEUE);
    let mut into_shim = pin!(write_all(shim_write, for_shim, &pod.traffic.to_shim));
    let mut into_vm = pin!(write_all(vm_write, for_vm, &pod.traffic.to_vm).fuse());
    let end = {
        let inbound = Inbound::new(pod, hub, to_vm, to_shim.clone());
        // Having written all, it has half-closed the link; the VM's end comes the other way.
        let vm_takes_no_more = async {
            match (&mut into_vm).await {
                Ok(()) => std::future::pending().await,
                Err(e) => End::Vm(Some(e)),
            }
        };
        tokio::select! {
            end = inbound.run(shim_read) => end,
            end = from_vm(vm_read, to_shim, stall) => end,
            end = vm_takes_no_more => end,
            _ = &mut into_shim => End::Shim,
        }
    };
    // No frame is cut: what has come whole still goes on, if the other side takes it in time.
    let _ = match end {
        End::Vm(_) => tokio::time::timeout(LINGER, into_shim).await,
        End::Shim if into_vm.is_terminated() => Ok(Ok(())),
        End::Shim => tokio::time::timeout(LINGER, into_vm).await,
    };
    end
}

async fn from_vm<R>(from: R, to_shim: mpsc::Sender<Frame>, stall: Duration) -> End
where
    R: AsyncRead + Unpin,
{
    let mut reader = FrameReader::new(from, Some(stall));
    loop {
        match reader.next().await {
            Ok(Some(frame)) => {
                if to_shim.send(frame).await.is_err() {
                    return End::Shim;
                }
            }
            Ok(None) => return End::Vm(None),
            Err(e) => return End::Vm(Some(as_io(e))),
        }
    }
}

fn as_io(error: FrameError) -> io::Error {
    match error {
        FrameError::Io(e) => e,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

/// Writes whole frames until there are no more, then half-closes.
async fn write_all<W: AsyncWrite + Unpin>(
    mut to: W,
    mut frames: mpsc::Receiver<Frame>,
    count: &Counter,
) -> io::Result<()> {
    while let Some(frame) = frames.recv().await {
        frame.write(&mut to).await?;
        count.add((peerpod_tunnel::link::frame::HEADER + frame.payload.len()) as u64);
    }
    to.shutdown().await
}

/// A request and what became of it.
struct Edited {
    frame: Frame,
    answer: Answer,
}

/// The shim's side.
struct Inbound<'a> {
    pod: &'a Pod,
    hub: &'a Arc<Hub>,
    to_vm: mpsc::Sender<Frame>,
    to_shim: mpsc::Sender<Frame>,
    /// Per stream with a request that waits: its later frames.
    later: BTreeMap<u32, Vec<Frame>>,
    waiting: (usize, usize),
    edits: FuturesUnordered<BoxFuture<'static, Edited>>,
}

impl<'a> Inbound<'a> {
    fn new(
        pod: &'a Pod,
        hub: &'a Arc<Hub>,
        to_vm: mpsc::Sender<Frame>,
        to_shim: mpsc::Sender<Frame>,
    ) -> Self {
        let (later, edits) = (BTreeMap::new(), FuturesUnordered::new());
        Self { pod, hub, to_vm, to_shim, later, waiting: (0, 0), edits }
    }

    async fn run(mut self, mut shim: OwnedReadHalf) -> End {
        let mut reader = FrameReader::new(&mut shim, Some(STALL));
        loop {
            let room = self.waiting.0 < WAITING.0 && self.waiting.1 < WAITING.1;
            if !room {
                reader.rested();
            }
            let passed = tokio::select! {
                next = reader.next(), if room => match next {
                    Ok(Some(frame)) => self.take(frame).await,
                    Ok(None) => break,
                    Err(e) => {
                        let sandbox = &self.pod.sandbox;
                        let line = || tracing::warn!(sandbox, error = %e, "shim connection");
                        self.pod.notices.say(line);
                        return End::Shim;
                    }
                },
                Some(edited) = self.edits.next() => self.edited(edited).await,
            };
            if passed.is_err() {
                return End::Vm(None);
            }
        }
        self.half_closed(shim.as_ref()).await
    }

    /// The shim sends nothing more; what waits goes on, and then the VM's end is waited for.
    async fn half_closed(mut self, shim: &UnixStream) -> End {
        let mut look = tokio::time::interval(LINGER);
        loop {
            tokio::select! {
                _ = look.tick() => if hung_up(shim) {
                    return End::Shim;
                },
                Some(edited) = self.edits.next() => if self.edited(edited).await.is_err() {
                    return End::Vm(None);
                },
                else => {}
            }
            if self.edits.is_empty() && !self.to_vm.is_closed() {
                // Dropping the one sender there is half-closes the link.
                self.to_vm = mpsc::channel(1).0;
            }
        }
    }

    fn wanted(&self, frame: &Frame) -> Option<String> {
        let method =
            (frame.kind == Kind::Request).then(|| wire::text(&frame.payload, METHOD))??;
        self.pod.edit_methods.iter().find(|m| *m == method).cloned()
    }

    async fn take(&mut self, frame: Frame) -> Result<(), Closed> {
        if let Some(later) = self.later.get_mut(&frame.stream) {
            self.waiting = (self.waiting.0 + 1, self.waiting.1 + frame.payload.len());
            later.push(frame);
            return Ok(());
        }
        let Some(method) = self.wanted(&frame) else { return self.to_vm.send(frame).await };
        let payload = Request::parse(&frame.payload).map(|request| request.payload);
        // A request that does not parse is the agent's to refuse.
        let Ok(payload) = payload else { return self.to_vm.send(frame).await };
        let sandbox = self.pod.sandbox.clone();
        let asked = self.hub.ask(proto::Edit { ticket: 0, sandbox, method, payload });
        self.waiting = (self.waiting.0 + 1, self.waiting.1 + frame.payload.len());
        self.later.insert(frame.stream, Vec::new());
        self.edits.push(Box::pin(async move { Edited { frame, answer: asked.answered().await } }));
        Ok(())
    }

    async fn edited(&mut self, edited: Edited) -> Result<(), Closed> {
        let Edited { frame, answer } = edited;
        let stream = frame.stream;
        let length = frame.payload.len();
        let later = self.later.remove(&stream).unwrap_or_default();
        let bytes = length + later.iter().map(|f| f.payload.len()).sum::<usize>();
        self.waiting = (self.waiting.0 - 1 - later.len(), self.waiting.1 - bytes);
        match answer.and_then(|payload| with_payload(&frame, &payload)) {
            Ok(changed) => self.to_vm.send(changed).await?,
            Err(why) => {
                // The VM never hears of this stream, so nothing later on it is sent either.
                let refusal = Response::error(FAILED_PRECONDITION, why).frame(stream);
                return self.to_shim.send(refusal).await;
            }
        }
        for frame in later {
            self.take(frame).await?;
        }
        Ok(())
    }
}

/// The request with another message inside; everything else stays byte for byte.
fn with_payload(frame: &Frame, message: &[u8]) -> Result<Frame, String> {
    let changed = wire::map::<wire::WireError>(&frame.payload, PAYLOAD, |_| Ok(message.to_vec()));
    let mut changed = changed.map_err(|e| e.to_string())?;
    let had_one = wire::fields(&frame.payload)
        .is_ok_and(|all| all.iter().any(|field| field.number == PAYLOAD));
    if !had_one {
        wire::put(&mut changed, PAYLOAD, message);
    }
    if changed.len() > MAX_PAYLOAD {
        return Err(format!(
            "edited request has {} bytes, the limit is {MAX_PAYLOAD}",
            changed.len()
        ));
    }
    Ok(Frame { payload: changed.into(), ..frame.clone() })
}
