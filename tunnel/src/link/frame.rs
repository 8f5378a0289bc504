//! ttrpc frames, as kata shims and agents put them on the wire. Payloads stay bytes: only who is
//! addressed is ever decoded, so methods and fields of a newer Kata pass untouched.
//!
//! ```text
//!   ┌ length u32 ┬ stream u32 ┬ type u8 ┬ flags u8 ┐ payload …      all big-endian
//!   └ payload only ┴ odd: client ┴ 1 request, 2 response, 3 data
//! ```

use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

use super::wire;

mod message;

pub use message::{KeyValue, Request, Response, Status};

/// Bytes before the payload.
pub const HEADER: usize = 10;
/// Largest payload of the ttrpc protocol.
pub const MAX_PAYLOAD: usize = 4 << 20;
/// How much is read ahead into an idle connection's buffer.
const READ_AHEAD: usize = 4 << 10;
/// A slow peer gets as much time again for so many bytes of a frame that have come.
const PIECE: usize = 1 << 20;
/// Pairs of metadata of a request. A pair of two bytes takes 48 when it is decoded.
const MAX_PAIRS: usize = 1024;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From the client.
    Request,
    /// From the server, ends a unary call.
    Response,
    /// Part of a stream.
    Data,
}

impl Kind {
    /// From the byte that stands for it.
    pub fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Request),
            2 => Some(Self::Response),
            3 => Some(Self::Data),
            _ => None,
        }
    }

    /// The byte that stands for it.
    pub fn to_wire(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Data => 3,
        }
    }
}

/// The ten bytes before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the payload, at most [`MAX_PAYLOAD`].
    pub length: usize,
    /// Stream id, never 0; odd ids belong to the client.
    pub stream: u32,
    /// What the frame is.
    pub kind: Kind,
    /// Flags, passed on as they came.
    pub flags: u8,
}

impl Header {
    /// Reads and checks a header.
    ///
    /// # Errors
    /// When the peer breaks the protocol.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, FrameError> {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = *bytes;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        if length > MAX_PAYLOAD {
            return Err(FrameError::TooLong(length));
        }
        let kind = Kind::from_wire(kind).ok_or(FrameError::UnknownType(kind))?;
        if stream == 0 {
            return Err(FrameError::StreamZero);
        }
        Ok(Self { length, stream, kind, flags })
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> [u8; HEADER] {
        let [l0, l1, l2, l3] = u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, l3, s0, s1, s2, s3, self.kind.to_wire(), self.flags]
    }
}

/// A frame taken off the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Stream id, never 0; odd ids belong to the client.
    pub stream: u32,
    /// What it is.
    pub kind: Kind,
    /// Flags, passed on as they came.
    pub flags: u8,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Bytes,
}

/// Without the payload, which may hold a container's environment.
impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, bytes) = (self.kind, self.payload.len());
        write!(f, "{kind:?} of {bytes} bytes on stream {}, flags {}", self.stream, self.flags)
    }
}

/// Why a connection cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The header announces more than the protocol allows.
    #[error("frame of {0} bytes announced, the limit is {MAX_PAYLOAD}")]
    TooLong(usize),
    /// More than a frame can have to say here.
    #[error("frame of {0} bytes announced, at most {1} are awaited")]
    Unawaited(usize, usize),
    /// A type that ttrpc does not have.
    #[error("frame of unknown type {0}")]
    UnknownType(u8),
    /// Stream ids start at 1.
    #[error("frame on stream 0")]
    StreamZero,
    /// The peer closed in the middle of a frame.
    #[error("connection closed after {0} bytes of a frame")]
    Cut(usize),
    /// The rest of a frame did not come.
    #[error("the rest of a frame did not come within {0:?}")]
    Stalled(Duration),
    /// The socket failed.
    #[error("reading a frame: {0}")]
    Io(#[from] std::io::Error),
    /// A request that names another method once its payload has gone by.
    #[error("request names its method again behind its payload")]
    NamedTwice,
    /// A request with more metadata than anybody sends.
    #[error("request has {0} pairs of metadata, the limit is {MAX_PAIRS}")]
    Metadata(usize),
    /// A payload that is no protobuf.
    #[error("request does not parse: {0}")]
    Wire(#[from] wire::WireError),
    /// A payload that is no ttrpc request.
    #[error("request does not parse: {0}")]
    Request(#[from] prost::DecodeError),
}

/// Takes frames off a byte stream. Its buffer grows with what is announced and checked, and goes
/// back to nothing while the connection is idle.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    buffer: BytesMut,
    stall: Option<Duration>,
    /// Since when the rest of a frame is waited for.
    begun: Option<Instant>,
    largest: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `inner`. With `stall`, a frame that has begun must be whole within that time, and as
    /// much again for each MiB of it.
    pub fn new(inner: R, stall: Option<Duration>) -> Self {
        Self::resume(inner, stall, &[])
    }

    /// Takes no frame with a longer payload, where nothing long can be meant.
    pub fn at_most(self, largest: usize) -> Self {
        Self { largest, ..self }
    }

    /// Reads on where another reader has stopped: `buffered` is what that one had read and not given
    /// out.
    pub fn resume(inner: R, stall: Option<Duration>, buffered: &[u8]) -> Self {
        let buffer = BytesMut::from(buffered);
        Self { inner, buffer, stall, begun: None, largest: MAX_PAYLOAD }
    }

    /// It was not read from for a while: that was not the peer's doing.
    pub fn rested(&mut self) {
        self.begun = None;
    }

    /// What was read and is not given out yet.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// What is read from.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The next frame, or `None` at a clean end. Cancel-safe: what was read stays in the buffer.
    ///
    /// # Errors
    /// When the peer breaks the protocol or the connection breaks; nothing more can be read then.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.take()? {
                self.begun = None;
                return Ok(Some(frame));
            }
            if self.buffer.is_empty() {
                self.buffer = BytesMut::new();
                if !self.first().await? {
                    return Ok(None);
                }
                continue;
            }
            let more = match self.stall {
                Some(limit) => {
                    let begun = *self.begun.get_or_insert_with(Instant::now);
                    let pieces = u32::try_from(self.buffer.len() / PIECE).unwrap_or(u32::MAX);
                    let allowed = limit.saturating_mul(pieces.saturating_add(1));
                    tokio::time::timeout_at(begun + allowed, self.fill())
                        .await
                        .map_err(|_| FrameError::Stalled(allowed))??
                }
                None => self.fill().await?,
            };
            if !more {
                return Err(FrameError::Cut(self.buffer.len()));
            }
        }
    }

    /// The first bytes of a frame. They are waited for without a buffer: most connections are idle.
    async fn first(&mut self) -> Result<bool, FrameError> {
        let Self { inner, buffer, .. } = self;
        let read = std::future::poll_fn(|cx| {
            let mut space = [0; READ_AHEAD];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut *inner).poll_read(cx, &mut read))?;
            buffer.extend_from_slice(read.filled());
            Poll::Ready(std::io::Result::Ok(!read.filled().is_empty()))
        });
        Ok(read.await?)
    }

    async fn fill(&mut self) -> Result<bool, FrameError> {
        self.buffer.reserve(READ_AHEAD);
        Ok(self.inner.read_buf(&mut self.buffer).await? > 0)
    }

    fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let Header { length, stream, kind, flags } = Header::parse(header)?;
        if length > self.largest {
            return Err(FrameError::Unawaited(length, self.largest));
        }
        if self.buffer.len() < HEADER + length {
            // Only now, with the length checked, is memory set aside for it; it grows by what
            // really arrives, so an announced length alone costs nothing.
            return Ok(None);
        }
        let mut whole = self.buffer.split_to(HEADER + length);
        let payload = whole.split_off(HEADER).freeze();
        Ok(Some(Frame { stream, kind, flags, payload }))
    }
}

impl Frame {
    /// Appends the frame to `out`.
    pub fn put(&self, out: &mut BytesMut) {
        let Self { stream, kind, flags, .. } = *self;
        let header = Header { length: self.payload.len(), stream, kind, flags };
        out.reserve(HEADER + header.length);
        out.put_slice(&header.bytes());
        out.put_slice(&self.payload);
    }

    /// Writes the frame and flushes.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn write<W: AsyncWrite + Unpin>(&self, to: &mut W) -> std::io::Result<()> {
        let mut out = BytesMut::with_capacity(HEADER + self.payload.len());
        self.put(&mut out);
        to.write_all(&out).await?;
        to.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        FrameReader::new(bytes, Some(Duration::from_millis(50))).next().await
    }

    fn header(length: u32, stream: u32, kind: u8) -> Vec<u8> {
        [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0]].concat()
    }

    #[test]
    fn a_header_is_in_the_networks_order() {
        let bytes = [0, 1, 2, 3, 4, 5, 6, 7, 1, 0x80];
        let (length, stream) = (0x0001_0203, 0x0405_0607);
        let header = Header { length, stream, kind: Kind::Request, flags: 0x80 };
        assert_eq!(header.bytes(), bytes);
        assert_eq!(Header::parse(&bytes).expect("parse"), header);
    }

    #[tokio::test]
    async fn a_frame_comes_back_as_it_went() {
        let frame =
            Frame { stream: 7, kind: Kind::Data, flags: 5, payload: vec![9; 70_000].into() };
        let mut wire = BytesMut::new();
        frame.put(&mut wire);
        frame.put(&mut wire);
        let mut reader = FrameReader::new(&wire[..], None);
        assert_eq!(reader.next().await.expect("read"), Some(frame.clone()));
        assert_eq!(reader.next().await.expect("read"), Some(frame));
        assert_eq!(reader.next().await.expect("read"), None);
    }

    #[tokio::test]
    async fn a_giant_length_is_refused_before_it_costs_memory() {
        let error = read(&header(u32::MAX, 1, 1)).await.expect_err("too long");
        assert!(matches!(error, FrameError::TooLong(_)), "{error}");
    }

    #[tokio::test]
    async fn unknown_type_and_stream_zero_are_refused() {
        assert!(matches!(read(&header(0, 1, 9)).await, Err(FrameError::UnknownType(9))));
        assert!(matches!(read(&header(0, 0, 1)).await, Err(FrameError::StreamZero)));
    }

    #[tokio::test]
    async fn half_a_header_then_the_end_is_a_cut() {
        assert!(matches!(read(&[0, 0, 0]).await, Err(FrameError::Cut(3))));
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_header_then_silence_stalls() {
        let (mut near, far) = tokio::io::duplex(64);
        near.write_all(&[0, 0, 0]).await.expect("write");
        let mut reader = FrameReader::new(far, Some(Duration::from_secs(5)));
        assert!(matches!(reader.next().await, Err(FrameError::Stalled(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_a_second_does_not_hold_a_frame_open_for_long() {
        let (mut near, far) = tokio::io::duplex(64);
        let sender = tokio::spawn(async move {
            for byte in header(1000, 1, 1).into_iter().chain([7; 1000]) {
                near.write_all(&[byte]).await.expect("write");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let mut reader = FrameReader::new(far, Some(Duration::from_secs(5)));
        let begin = Instant::now();
        // Whoever waits for other things as well comes back to the same frame.
        let error = loop {
            if let Ok(read) = tokio::time::timeout(Duration::from_secs(2), reader.next()).await {
                break read.expect_err("too slow");
            }
        };
        assert!(matches!(error, FrameError::Stalled(_)), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(7), "{:?}", begin.elapsed());
        sender.abort();
    }

    #[tokio::test]
    async fn a_long_frame_is_refused_where_short_ones_are_awaited() {
        let long = [&header(5, 1, 1)[..], &[0; 5]].concat();
        let mut reader = FrameReader::new(&long[..], None).at_most(4);
        let error = reader.next().await.expect_err("too long");
        assert!(matches!(error, FrameError::Unawaited(5, 4)), "{error}");
    }

    #[test]
    fn metadata_that_would_take_a_multiple_of_its_bytes_is_refused() {
        let payload = Bytes::from([0x2a, 0].repeat(MAX_PAIRS + 1));
        let error = Request::parse(&payload).expect_err("too many");
        assert!(matches!(error, FrameError::Metadata(_)), "{error}");
        assert!(Request::parse(&payload.slice(2..)).is_ok());
        // What the count cannot read, the decoder must not either.
        let hidden = Bytes::from([&[0x4b, 0x4c][..], &payload].concat());
        assert!(matches!(Request::parse(&hidden), Err(FrameError::Wire(_))));
    }

    #[test]
    fn a_request_keeps_what_it_carries() {
        let request = Request {
            service: "grpc.Future".into(),
            method: "Unheard".into(),
            payload: Bytes::from_static(b"\x0a\x03abc"),
            timeout_nano: 3,
            metadata: vec![KeyValue { key: "k".into(), value: "v".into() }],
        };
        let frame = request.frame(1, 0);
        assert_eq!(Request::parse(&frame.payload).expect("parse"), request);
    }
}
