//! Toward the worker: bytes as they come. Only the ends of frames are followed, so that an answer of
//! our own can be put between two of the agent's.

use bytes::{Bytes, BytesMut};
use peerpod_tunnel::link::frame::HEADER;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Room for what is read at once, in bytes.
const LEAST: usize = 8 << 10;
const MOST: usize = 256 << 10;

/// Why no more responses go out.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResponsesError {
    #[error("reading from the agent: {0}")]
    Read(std::io::Error),
    #[error("writing to the worker: {0}")]
    Write(std::io::Error),
}

/// Where in a frame the stream of the agent's bytes is.
#[derive(Debug, Default)]
struct Place {
    /// Bytes of a header that has begun.
    header: [u8; HEADER],
    seen: usize,
    /// Bytes of the payload still to come.
    rest: usize,
}

impl Place {
    fn between_frames(&self) -> bool {
        self.seen == 0 && self.rest == 0
    }

    /// Follows `bytes`; gives where in them the first frame ends.
    fn follow(&mut self, mut bytes: &[u8]) -> Option<usize> {
        let whole = bytes.len();
        let mut first = None;
        while !bytes.is_empty() {
            let taken = if self.rest > 0 {
                let taken = self.rest.min(bytes.len());
                self.rest -= taken;
                taken
            } else {
                self.head(bytes)
            };
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.between_frames() {
                first = first.or(Some(whole - bytes.len()));
            }
        }
        first
    }

    fn head(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(HEADER - self.seen);
        for (to, from) in self.header.iter_mut().skip(self.seen).zip(bytes) {
            *to = *from;
        }
        self.seen += taken;
        if self.seen == HEADER {
            let [l0, l1, l2, l3, ..] = self.header;
            self.rest = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
            self.seen = 0;
        }
        taken
    }
}

/// A buffer that grows while it is filled and shrinks when it is not.
struct Room {
    size: usize,
    buffer: BytesMut,
}

impl Room {
    fn new() -> Self {
        Self { size: LEAST, buffer: BytesMut::new() }
    }

    /// Empty, with place for as much as is wise.
    fn emptied(&mut self) -> &mut BytesMut {
        let last = self.buffer.len();
        if last >= self.size {
            self.size = (self.size * 2).min(MOST);
        } else if last > 0 && last < self.size / 4 {
            self.size = (self.size / 2).max(LEAST);
        }
        if self.size < self.buffer.capacity() / 4 {
            self.buffer = BytesMut::new();
        }
        self.buffer.clear();
        self.buffer.reserve(self.size);
        &mut self.buffer
    }
}

/// Passes the agent's bytes on until the agent ends its side. `moved` is called whenever bytes have
/// come.
pub(super) async fn pass<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    from: &mut R,
    to: &mut W,
    answers: &mut mpsc::Receiver<Bytes>,
    moved: impl Fn(),
) -> Result<(), ResponsesError> {
    let (mut place, mut room) = (Place::default(), Room::new());
    let mut waiting: Option<Bytes> = None;
    loop {
        if let Some(answer) = waiting.take_if(|_| place.between_frames()) {
            write(to, &answer).await?;
        }
        let buffer = room.emptied();
        // Ours first: an agent that always has something to say must not keep it waiting.
        let read = tokio::select! {
            biased;
            Some(answer) = answers.recv(), if waiting.is_none() => {
                waiting = Some(answer);
                continue;
            }
            read = from.read_buf(buffer) => read.map_err(ResponsesError::Read)?,
        };
        if read == 0 {
            return Ok(());
        }
        moved();
        let end = place.follow(buffer);
        match (waiting.take_if(|_| end.is_some()), end) {
            (Some(answer), Some(end)) => {
                let (before, after) = buffer.split_at(end);
                to.write_all(before).await.map_err(ResponsesError::Write)?;
                to.write_all(&answer).await.map_err(ResponsesError::Write)?;
                write(to, after).await?;
            }
            _ => write(to, buffer).await?,
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8]) -> Result<(), ResponsesError> {
    to.write_all(bytes).await.map_err(ResponsesError::Write)?;
    to.flush().await.map_err(ResponsesError::Write)
}

#[cfg(test)]
mod tests {
    use peerpod_tunnel::link::frame::{Frame, FrameReader, Response};

    use super::*;

    fn frame(stream: u32, length: usize) -> Frame {
        let payload = vec![1; length].into();
        Frame { payload, ..Response::default().frame(stream) }
    }

    #[tokio::test]
    async fn an_answer_of_our_own_stands_between_two_of_the_agents() {
        let mut wire = BytesMut::new();
        frame(1, 5000).put(&mut wire);
        frame(3, 0).put(&mut wire);
        frame(5, 70_000).put(&mut wire);
        for chunk in [1, 9, 10, 11, 4999, 5020, wire.len()] {
            let (mut agent, mut from) = tokio::io::duplex(1 << 20);
            let (mut to, worker) = tokio::io::duplex(1 << 20);
            let (answers, mut taken) = mpsc::channel(1);
            let own = frame(7, 3);
            let mut bytes = BytesMut::new();
            own.put(&mut bytes);
            let feed = async {
                for (n, part) in wire.chunks(chunk).enumerate() {
                    agent.write_all(part).await.expect("write");
                    if n == 0 {
                        answers.send(bytes.clone().freeze()).await.expect("send");
                    }
                    tokio::task::yield_now().await;
                }
                drop((agent, answers));
            };
            let (passed, ()) = tokio::join!(pass(&mut from, &mut to, &mut taken, || {}), feed);
            passed.expect("pass");
            drop(to);
            let mut reader = FrameReader::new(worker, None);
            let mut streams = Vec::new();
            while let Some(frame) = reader.next().await.expect("whole frames only") {
                streams.push(frame.stream);
            }
            assert!(streams.contains(&7), "chunks of {chunk}: {streams:?}");
            streams.retain(|s| *s != 7);
            assert_eq!(streams, [1, 3, 5], "chunks of {chunk}");
        }
    }
}
