//! Toward the agent: frames pass byte for byte, long ones before they are whole; those of the edited
//! methods are taken out, changed and sent on.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use peerpod_tunnel::link::frame::{FrameError, HEADER, Header, Response};
use peerpod_tunnel::link::gate::{Gate, Step};
use peerpod_tunnel::link::notice::Notices;
use podvm::edit::{Edited, Edits, wanted};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// How much is read at once, in bytes: four records of TLS.
pub(super) const READ: usize = 64 << 10;

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
                Step::Hold(header) => self.edit(header).await?,
                Step::More => {
                    let begun = gate.mid_frame(&self.buffer);
                    if self.read(begun).await? == 0 {
                        let ended = !begun;
                        return ended.then_some(()).ok_or_else(|| self.cut());
                    }
                    moved();
                }
            }
        }
    }

    fn cut(&self) -> RequestsError {
        FrameError::Cut(self.buffer.len()).into()
    }

    async fn read(&mut self, begun: bool) -> Result<usize, RequestsError> {
        if self.buffer.is_empty() && self.buffer.capacity() > READ {
            // A long frame has gone by; its memory goes too.
            self.buffer = BytesMut::new();
        }
        self.buffer.reserve(READ);
        let read = self.from.read_buf(&mut self.buffer);
        let read = match begun {
            false => read.await,
            true => tokio::time::timeout(self.stall, read)
                .await
                .map_err(|_| FrameError::Stalled(self.stall))?,
        };
        read.map_err(RequestsError::Read)
    }

    async fn edit(&mut self, header: Header) -> Result<(), RequestsError> {
        let frame = self.buffer.split_to(HEADER + header.length);
        let request = frame.get(HEADER..).unwrap_or_default();
        match self.edits.apply(request) {
            Edited::Same => self.to.write_all(&frame).await.map_err(RequestsError::Write),
            Edited::Other(request) => {
                let head = Header { length: request.len(), ..header }.bytes();
                let whole = [&head[..], &request].concat();
                self.to.write_all(&whole).await.map_err(RequestsError::Write)
            }
            Edited::Refused(code, why) => {
                let line = || tracing::warn!(stream = header.stream, "refused: {why}");
                self.notices.say(line);
                self.answer(header.stream, code, why).await;
                Ok(())
            }
        }
    }

    async fn answer(&self, stream: u32, code: i32, why: String) {
        let frame = Response::error(code, why).frame(stream);
        let mut bytes = BytesMut::new();
        frame.put(&mut bytes);
        // Nobody takes it when the connection is at its end anyway.
        let _ = self.answers.send(bytes.freeze()).await;
    }
}
