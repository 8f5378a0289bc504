//! Frames and messages of the agent link: what both the VM and the worker read of each other.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use peerpod_tunnel::link::frame::{
    Frame, FrameError, FrameReader, HEADER, Kind, Request, Response,
};
use peerpod_tunnel::link::gate::{Gate, Step};
use peerpod_tunnel::link::wire as protobuf;
use prost::Message;
use tokio::io::{AsyncRead, ReadBuf};

use crate::Parts;

/// Gives out bytes in pieces of a size, and never waits.
struct Pieces<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let most = self.size.min(buffer.remaining()).min(self.bytes.len());
        let (piece, rest) = self.bytes.split_at(most);
        buffer.put_slice(piece);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

/// All frames, and what ended them.
fn frames(bytes: &[u8], size: usize) -> (Vec<Frame>, String) {
    let mut reader = FrameReader::new(Pieces { bytes, size }, None);
    let mut all = Vec::new();
    loop {
        match reader.next().now_or_never().expect("it never waits") {
            Ok(Some(frame)) => all.push(frame),
            Ok(None) => return (all, "end".to_owned()),
            Err(error) => return (all, error.to_string()),
        }
    }
}

/// Frames: however the bytes are cut, the same frames come out and the same end; put together again
/// they are the bytes that came; requests and responses that parse do so again, unchanged.
pub fn frame(data: &[u8]) {
    let mut parts = Parts(data);
    let size = parts.number() % 5000 + 1;
    let bytes = parts.rest();
    let (whole, end) = frames(bytes, usize::MAX);
    assert_eq!(frames(bytes, size), (whole.clone(), end), "cut into pieces of {size}");
    let mut again = BytesMut::new();
    whole.iter().for_each(|frame| frame.put(&mut again));
    assert!(bytes.starts_with(&again), "frames are what came");
    for frame in whole {
        if let Ok(request) = Request::parse(&frame.payload) {
            let back = request.frame(frame.stream, frame.flags).payload;
            assert_eq!(Request::parse(&back).expect("ours parses"), request);
        }
        if let Ok(response) = Response::decode(frame.payload.clone()) {
            let back = response.frame(frame.stream).payload;
            assert_eq!(Response::decode(back).expect("ours parses"), response);
        }
        planted(&frame.payload);
    }
}

/// Something to be found, where a test asks for it.
#[cfg(feature = "planted")]
fn planted(payload: &[u8]) {
    assert!(!payload.starts_with(b"peerpod!"), "the planted panic");
}

#[cfg(not(feature = "planted"))]
fn planted(_: &[u8]) {}

fn wanted(service: &[u8], method: &[u8]) -> bool {
    service == b"svc" && method == b"Stop"
}

/// What came of a gate: bytes that passed, frames that were held, in order and joined.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    events: Vec<(bool, Vec<u8>)>,
    error: Option<String>,
    named_twice: bool,
}

impl Outcome {
    fn add(&mut self, held: bool, bytes: &[u8]) {
        match self.events.last_mut() {
            Some((false, passed)) if !held => passed.extend_from_slice(bytes),
            _ => self.events.push((held, bytes.to_vec())),
        }
    }
}

impl Outcome {
    /// Without what came of the bytes from `end` on.
    fn before(&self, end: usize) -> Self {
        let (mut events, mut at) = (Vec::new(), 0);
        for (held, bytes) in &self.events {
            let here = bytes.get(..bytes.len().min(end - at)).unwrap_or_default();
            at += here.len();
            if !here.is_empty() {
                events.push((*held, here.to_vec()));
            }
        }
        Self { events, error: self.error.clone(), ..Self::default() }
    }
}

fn run(bytes: &[u8], cut: usize) -> Outcome {
    let (mut gate, mut buffer, mut outcome) =
        (Gate::new(wanted), BytesMut::new(), Outcome::default());
    for part in bytes.chunks(cut) {
        buffer.extend_from_slice(part);
        loop {
            match gate.step(&buffer) {
                Ok(Step::Pass(n)) => {
                    assert!(n > 0 && n <= buffer.len(), "it passes what there is");
                    outcome.add(false, &buffer.split_to(n));
                }
                Ok(Step::Hold(header)) => {
                    outcome.add(true, &buffer.split_to(HEADER + header.length));
                }
                Ok(Step::More) => break,
                Err(error) => {
                    outcome.named_twice = matches!(error, FrameError::NamedTwice);
                    outcome.error = Some(error.to_string());
                    return outcome;
                }
            }
        }
    }
    outcome
}

/// Frames with the names and the order of fields that a gate has to judge, or the bytes as they are.
fn gate_input(data: &[u8]) -> Vec<u8> {
    let mut parts = Parts(data);
    if parts.byte() & 1 == 0 {
        return parts.rest().to_vec();
    }
    let mut out = BytesMut::new();
    while !parts.0.is_empty() {
        let (fields, mut payload) = (parts.byte() % 8, Vec::new());
        for _ in 0..fields {
            match parts.byte() % 12 {
                0 => protobuf::put(&mut payload, 1, b"svc"),
                1 => protobuf::put(&mut payload, 2, b"Stop"),
                2 => protobuf::put(&mut payload, 2, b"Go"),
                3 => protobuf::put(&mut payload, 3, &vec![7; parts.number() % 2048]),
                4 => protobuf::put(&mut payload, 3, parts.bytes(9)),
                5 => payload.extend_from_slice(&[0x20, parts.byte() & 0x7f]),
                6 => protobuf::put(&mut payload, 5, parts.bytes(5)),
                7 => payload.extend_from_slice(&[0x10, parts.byte()]),
                8 => protobuf::put(&mut payload, parts.number() as u32 + 1, parts.bytes(3)),
                _ => payload.extend_from_slice(parts.bytes(3)),
            }
        }
        let kind = [Kind::Request, Kind::Request, Kind::Response, Kind::Data];
        let kind = kind[usize::from(parts.byte() % 4)];
        Frame { stream: 1, kind, flags: 0, payload: payload.into() }.put(&mut out);
    }
    out.to_vec()
}

/// The gate: nothing passes that another reader of protobuf takes for a wanted call, nothing is lost
/// or changed, and the decision on a whole frame does not depend on how the bytes are cut, but that a
/// method named again behind the payload breaks the connection where the payload had passed. Of a
/// frame whose end never comes, more or less may have passed.
pub fn gate(data: &[u8]) {
    let cut = usize::from(data.last().copied().unwrap_or(0)) + 1;
    let bytes = gate_input(data);
    let whole = run(&bytes, bytes.len().max(1));
    let end = frames(&bytes, usize::MAX).0.iter().map(|f| HEADER + f.payload.len()).sum();
    for cut in [1, cut, cut * 16] {
        let pieces = run(&bytes, cut);
        let came: Vec<u8> = pieces.events.iter().flat_map(|(_, b)| b.clone()).collect();
        assert!(bytes.starts_with(&came), "what passed is what came");
        if !pieces.named_twice {
            assert_eq!(pieces.before(end), whole.before(end), "cut into pieces of {cut}");
        }
    }
    for (held, bytes) in &whole.events {
        let (frames, _) = frames(bytes, usize::MAX);
        for frame in frames.iter().filter(|f| !held && f.kind == Kind::Request) {
            if let Ok(request) = Request::parse(&frame.payload) {
                let (service, method) = (request.service.as_bytes(), request.method.as_bytes());
                assert!(!wanted(service, method), "a wanted call has passed");
            }
            assert!(!named_as_wanted(&frame.payload), "a wanted call has passed");
        }
    }
}

/// As a reader sees it that skips what is of another type than it expects, as most do.
fn named_as_wanted(payload: &[u8]) -> bool {
    let Ok(all) = protobuf::fields(payload) else { return false };
    let last = |n| all.iter().rev().find(|f| f.number == n && f.content.is_some());
    let text = |n| last(n).and_then(|f| f.content).unwrap_or_default();
    wanted(text(1), text(2))
}

/// Protobuf: what parses is kept byte for byte, leaving out leaves out, mapping maps, and the text of
/// a field is what another implementation reads.
pub fn wire(data: &[u8]) {
    let mut parts = Parts(data);
    let number = u32::from(parts.byte() % 8) + 1;
    let message = parts.rest();
    let Ok(all) = protobuf::fields(message) else {
        assert!(protobuf::without(message, number).is_err());
        return;
    };
    let again: Vec<u8> = all.iter().flat_map(|f| f.raw).copied().collect();
    assert_eq!(again, message);
    let without = protobuf::without(message, number).expect("it parses");
    let left = protobuf::fields(&without).expect("it parses still");
    assert!(left.iter().all(|f| f.number != number));
    assert!(left.iter().eq(all.iter().filter(|f| f.number != number)));
    let upper = |c: &[u8]| Ok::<_, protobuf::WireError>(c.to_ascii_uppercase());
    let mapped = protobuf::map(message, number, upper).expect("it parses");
    let mapped = protobuf::fields(&mapped).expect("it parses still");
    assert_eq!(mapped.len(), all.len());
    for (before, after) in all.iter().zip(&mapped) {
        let changed = before.number == number;
        let want =
            before.content.map(|c| if changed { c.to_ascii_uppercase() } else { c.to_vec() });
        assert_eq!((after.number, after.content.map(<[u8]>::to_vec)), (before.number, want));
    }
    let mut bytes = Bytes::copy_from_slice(message);
    if let Ok(request) = Request::decode(&mut bytes) {
        assert_eq!(protobuf::text(message, 1).unwrap_or_default(), request.service);
        assert_eq!(protobuf::text(message, 2).unwrap_or_default(), request.method);
        assert!(!bytes.has_remaining());
    }
}

/// Holds what a server sent back against what it was sent.
pub(crate) fn answers_to(sent: &[u8], back: &[u8]) {
    let (asked, _) = frames(sent, usize::MAX);
    let (answered, _) = frames(back, usize::MAX);
    for answer in answered {
        assert_eq!(answer.kind, Kind::Response);
        assert!(asked.iter().any(|f| f.stream == answer.stream), "nobody asked on this stream");
        Response::decode(answer.payload).expect("answers are responses");
    }
}
