//! One connection: frames in, a task for each request, answers out as they come.
//!
//! ```text
//!   reading ──request──▶ a task ──answer──▶ written, in any order
//!      │ end, violation, peer does not read       │ our shutdown
//!      └──▶ closed: its tasks are dropped         └──▶ closed: its tasks are dropped, but the
//!           (the caller has gone)                      caller has not gone
//! ```

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use peerpod_tunnel::link::frame::{Frame, FrameError, FrameReader, Kind, Request, Response};
use peerpod_tunnel::link::notice::Notices;
use peerpod_tunnel::link::strangers::Room;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::call::Call;
use super::{Failure, FailureKind, Limits, Sandboxes};
use crate::crash::here;
use crate::shutdown::Tracker;

/// What a connection works with.
pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) sandboxes: Arc<dyn Sandboxes>,
    pub(super) limits: Limits,
    pub(super) shutdown: CancellationToken,
    pub(super) tracker: Tracker,
    pub(super) notices: Arc<Notices>,
}

/// Why a connection ends before its peer wants it to.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("stream {0} is used again before its answer")]
    StreamTwice(u32),
    #[error("a response on stream {0}, but nothing was asked")]
    Response(u32),
    #[error("writing an answer: {0}")]
    Write(std::io::Error),
    #[error("the peer does not take its answers")]
    NotRead,
    #[error("too many connections")]
    TooMany,
}

/// What comes of a frame that starts no task.
enum Refusal {
    Answer(Failure),
    Close(Broken),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Answer(failure)
    }
}

/// Requests that are unanswered, by stream, and their bytes.
#[derive(Debug, Default)]
struct Held {
    streams: BTreeMap<u32, usize>,
    bytes: usize,
}

impl Held {
    fn add(&mut self, frame: &Frame) {
        self.bytes += frame.payload.len();
        self.streams.insert(frame.stream, frame.payload.len());
    }

    fn remove(&mut self, stream: u32) {
        self.bytes -= self.streams.remove(&stream).unwrap_or_default();
    }
}

/// The task of a request; dropping it ends the task.
type Task = AbortOnDropHandle<Result<Bytes, Failure>>;

/// A request that runs.
struct Running {
    stream: u32,
    task: Task,
}

impl Future for Running {
    type Output = (u32, Result<Bytes, Failure>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = std::task::ready!(Pin::new(&mut self.task).poll(cx));
        let failed = |_| Err(Failure::new(FailureKind::Internal, "the request's task has failed"));
        Poll::Ready((self.stream, ended.unwrap_or_else(failed)))
    }
}

impl Connection {
    /// Serves until the peer closes, breaks the protocol, or we shut down.
    pub(super) async fn run(self, stream: UnixStream, room: Room) {
        let (read, mut write) = stream.into_split();
        let mut reader = FrameReader::new(read, Some(self.limits.stall));
        let connection = self.number;
        match self.speak(&mut reader, &mut write, room).await {
            Ok(()) => tracing::debug!(connection, "hypervisor connection closed"),
            Err(reason) => {
                self.notices.say(|| {
                    tracing::warn!(connection, %reason, "hypervisor connection closed by us");
                });
            }
        }
    }

    async fn speak(
        &self,
        reader: &mut FrameReader<OwnedReadHalf>,
        write: &mut OwnedWriteHalf,
        mut room: Room,
    ) -> Result<(), Broken> {
        let mut running = FuturesUnordered::<Running>::new();
        let mut held = Held::default();
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(()),
                Some((stream, result)) = running.next() => {
                    held.remove(stream);
                    if result.is_err() && self.shutdown.is_cancelled() {
                        // The successor answers: an error now would fail a pod for our restart.
                        return Ok(());
                    }
                    self.answer(write, stream, result).await?;
                }
                frame = reader.next() => {
                    let Some(frame) = frame? else { return Ok(()) };
                    if !room.speaks() {
                        return Err(Broken::TooMany);
                    }
                    let stream = frame.stream;
                    if held.streams.contains_key(&stream) {
                        return Err(Broken::StreamTwice(stream));
                    }
                    match self.accept(&frame, &held) {
                        Ok(task) => {
                            held.add(&frame);
                            running.push(Running { stream, task });
                        }
                        Err(Refusal::Answer(words)) => {
                            let connection = self.number;
                            self.notices.say(|| {
                                tracing::warn!(connection, stream, %words, "refused");
                            });
                            self.answer(write, stream, Err(words)).await?;
                        }
                        Err(Refusal::Close(reason)) => return Err(reason),
                    }
                }
            }
        }
    }

    /// Starts a request's task.
    fn accept(&self, frame: &Frame, held: &Held) -> Result<Task, Refusal> {
        let invalid = |words: &str| Err(Failure::new(FailureKind::Invalid, words).into());
        match frame.kind {
            Kind::Request => {}
            Kind::Data => return invalid("no call here takes a stream of data"),
            Kind::Response => return Err(Refusal::Close(Broken::Response(frame.stream))),
        }
        if frame.stream.is_multiple_of(2) {
            return invalid("the stream of a client's request has an odd number");
        }
        let bytes = held.bytes + frame.payload.len();
        if held.streams.len() >= self.limits.requests || bytes > self.limits.bytes {
            let (running, before) = (held.streams.len(), held.bytes);
            let words =
                format!("{running} requests of this connection, of {before} bytes, are unanswered");
            return Err(Failure::new(FailureKind::Exhausted, words).into());
        }
        Ok(self.start(frame)?)
    }

    fn start(&self, frame: &Frame) -> Result<Task, Failure> {
        let request = Request::parse(&frame.payload)
            .map_err(|e| Failure::caused_by(FailureKind::Invalid, &e))?;
        let call = Call::parse(&request)?;
        let span = tracing::info_span!(
            "hypervisor",
            call = call.name(),
            sandbox = call.sandbox(),
            connection = self.number,
            stream = frame.stream,
        );
        let sandboxes = Arc::clone(&self.sandboxes);
        let (shutdown, notices) = (self.shutdown.clone(), Arc::clone(&self.notices));
        let work = async move { call.run(&*sandboxes, &shutdown, &notices).await };
        let task = self.tracker.spawn("hypervisor request", work.instrument(span));
        Ok(AbortOnDropHandle::new(task))
    }

    async fn answer(
        &self,
        write: &mut OwnedWriteHalf,
        stream: u32,
        result: Result<Bytes, Failure>,
    ) -> Result<(), Broken> {
        let response = match result {
            Ok(payload) => Response { status: None, payload },
            Err(failure) => failure.response(),
        };
        let frame = response.frame(stream);
        here!(AnswerBefore);
        let written = async {
            let written = frame.write(write).await;
            here!(AnswerAfter);
            written
        };
        tokio::select! {
            biased;
            written = written => written.map_err(Broken::Write),
            () = self.shutdown.cancelled() => Ok(()),
            () = tokio::time::sleep(self.limits.stall) => Err(Broken::NotRead),
        }
    }
}
