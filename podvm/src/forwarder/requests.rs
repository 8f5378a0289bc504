//! Toward the agent: frames pass byte for byte, long ones before they are whole; those of the held
//! methods are taken out, changed and sent on. One that has to wait for a volume waits beside the others,
//! which pass it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use peerpod_tunnel::link::frame::{FrameError, HEADER, Header, Response};
use peerpod_tunnel::link::gate::{Gate, Step};
use peerpod_tunnel::link::notice::Notices;
use podvm::edit::{Edited, Edits, wanted};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::volumes::Volumes;

/// How much is read at once, in bytes: four records of TLS.
pub(super) const READ: usize = 64 << 10;

/// Requests of one connection that may wait for volumes; a pod has some ten containers.
const WAITING: usize = 16;

/// A request that has waited: the head of its frame, and what is sent in its place, or code and words.
pub(super) type Waited = (Header, Result<Vec<u8>, (i32, String)>);

/// Why no more requests come.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestsError {
    #[error("the worker broke the protocol: {0}")]
    Broken(#[from] FrameError),
    #[error("reading from the worker: {0}")]
    Read(std::io::Error),
    #[error("writing to the agent: {0}")]
    Write(std::io::Error),
}

/// One connection's way in.
pub(super) struct Requests<'a, R, W> {
    /// The worker.
    pub(super) from: R,
    /// The agent.
    pub(super) to: W,
    /// What has been read already.
    pub(super) buffer: BytesMut,
    pub(super) edits: &'a Edits,
    pub(super) volumes: &'a Arc<Volumes>,
    /// Requests that wait for volumes; they are dropped with the connection.
    pub(super) waiting: JoinSet<Waited>,
    pub(super) notices: &'a Notices,
    pub(super) stall: Duration,
    /// Frames for the worker that are written here and not by the agent.
    pub(super) answers: mpsc::Sender<Bytes>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Requests<'_, R, W> {
    /// Passes requests on until the worker ends its side between two frames. `moved` is called
    /// whenever bytes have come.
    pub(super) async fn pass(&mut self, moved: impl Fn()) -> Result<(), RequestsError> {
        let mut gate = Gate::new(wanted);
        loop {
            match gate.step(&self.buffer)? {
                Step::Pass(length) => {
                    let passing = self.buffer.get(..length).unwrap_or_default();
                    self.to.write_all(passing).await.map_err(RequestsError::Write)?;
                    self.buffer.advance(length);
                }
                Step::Hold(header) => self.hold(header).await?,
                Step::More => {
                    let begun = gate.mid_frame(&self.buffer);
                    // What has waited goes between two frames, never into one.
                    match self.more(begun, !gate.mid_frame(&[])).await? {
                        More::Waited(waited) => self.go_on(waited).await?,
                        More::Read(0) if begun => return Err(self.cut()),
                        More::Read(0) => return self.finish().await,
                        More::Read(_) => moved(),
                    }
                }
            }
        }
    }

    fn cut(&self) -> RequestsError {
        FrameError::Cut(self.buffer.len()).into()
    }

    async fn more(&mut self, begun: bool, between: bool) -> Result<More, RequestsError> {
        if self.buffer.is_empty() && self.buffer.capacity() > READ {
            // A long frame has gone by; its memory goes too.
            self.buffer = BytesMut::new();
        }
        self.buffer.reserve(READ);
        let (from, buffer, stall) = (&mut self.from, &mut self.buffer, self.stall);
        let read = async {
            let read = from.read_buf(buffer);
            let read = match begun {
                false => read.await,
                true => {
                    let read = tokio::time::timeout(stall, read).await;
                    read.map_err(|_| FrameError::Stalled(stall))?
                }
            };
            read.map(More::Read).map_err(RequestsError::Read)
        };
        if self.waiting.is_empty() || !between {
            return read.await;
        }
        tokio::select! {
            more = read => more,
            Some(waited) = self.waiting.join_next() => Ok(More::Waited(waited.ok())),
        }
    }

    /// The worker asks nothing more; what waits is still asked of the agent.
    async fn finish(&mut self) -> Result<(), RequestsError> {
        while let Some(waited) = self.waiting.join_next().await {
            self.go_on(waited.ok()).await?;
        }
        Ok(())
    }

    async fn hold(&mut self, header: Header) -> Result<(), RequestsError> {
        let frame = self.buffer.split_to(HEADER + header.length);
        let request = frame.get(HEADER..).unwrap_or_default();
        let Some(task) = Volumes::concerns(request) else {
            return self.edit(header, request).await;
        };
        while self.waiting.len() >= WAITING {
            let waited = self.waiting.join_next().await;
            self.go_on(waited.and_then(Result::ok)).await?;
        }
        let volumes = Arc::clone(self.volumes);
        self.waiting.spawn(async move {
            let request = frame.get(HEADER..).unwrap_or_default();
            (header, volumes.prepare(task, request).await)
        });
        Ok(())
    }

    /// Nothing has come of a task that broke; whoever asked hears so when the connection ends.
    async fn go_on(&mut self, waited: Option<Waited>) -> Result<(), RequestsError> {
        match waited {
            Some((header, Ok(request))) => self.edit(header, &request).await,
            Some((header, Err((code, why)))) => self.refuse(header, code, why).await,
            None => Ok(()),
        }
    }

    async fn edit(&mut self, header: Header, request: &[u8]) -> Result<(), RequestsError> {
        let edited = match self.edits.apply(request) {
            Edited::Same => None,
            Edited::Other(request) => Some(request),
            Edited::Refused(code, why) => return self.refuse(header, code, why).await,
        };
        let request = edited.as_deref().unwrap_or(request);
        let head = Header { length: request.len(), ..header }.bytes();
        let whole = [&head[..], request].concat();
        self.to.write_all(&whole).await.map_err(RequestsError::Write)
    }

    async fn refuse(&self, header: Header, code: i32, why: String) -> Result<(), RequestsError> {
        let line = || tracing::warn!(stream = header.stream, "refused: {why}");
        self.notices.say(line);
        let frame = Response::error(code, why).frame(header.stream);
        let mut bytes = BytesMut::new();
        frame.put(&mut bytes);
        // Nobody takes it when the connection is at its end anyway.
        let _ = self.answers.send(bytes.freeze()).await;
        Ok(())
    }
}

/// What comes next.
enum More {
    /// So many bytes; 0 is the end.
    Read(usize),
    /// A request has waited long enough.
    Waited(Option<Waited>),
}
