//! What the two ends tell each other beside the streams: typed messages on stream 0, numbered and kept
//! like any stream's bytes, so that none is lost with a connection.
//!
//! ```text
//!   ┌ type u16 ┬ 0 u16 ┬ length u32 ┐ payload: a protobuf message, at most 64 KiB
//!   └ from 0x8000 on: whoever does not know it ends the session; below: skips it
//! ```
//!
//! Fields may be added to a message at any time; a message whose meaning changes gets a new type.

use bytes::{BufMut, Bytes, BytesMut};

use super::MAX_MESSAGE;
use super::frame::Violation;
use super::queue::Queue;

/// Bytes before the payload.
const HEAD: usize = 8;
/// Types that must be understood.
const MUST: u16 = 0x8000;
/// Characters of a word in an [`Interruption`].
const WORD: usize = 32;
/// Characters of the problem of a [`Taken`].
const PROBLEM: usize = 300;
const ABOUT: u16 = 1;
const TAKEN: u16 = 2;
const WATCH: u16 = 3;
const INTERRUPTION: u16 = 4;
const CLOSING: u16 = MUST | 1;
const PIECE: u16 = MUST | 2;

/// Who speaks; each side's first message.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct About {
    /// Program and version, for people: "podvm 0.1.0".
    #[prost(string, tag = "1")]
    pub build: String,
    /// The sender's process, for people.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// The VM's: it takes [`Piece`]s.
    #[prost(bool, tag = "3")]
    pub takes_files: bool,
}

/// The worker's: a piece of a file that had no room in the VM's user data.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub struct Piece {
    /// Where it belongs in the VM.
    #[prost(string, tag = "1")]
    pub path: String,
    /// How much of the file came before it, in bytes.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// At most [`super::MAX_PIECE`] bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub content: Bytes,
}

/// Files hold credentials.
impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {} from {}", self.content.len(), self.path, self.offset)
    }
}

/// The VM's: all files are there, or why they are not taken.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Taken {
    /// What is wrong, for people; empty: nothing.
    #[prost(string, tag = "1")]
    pub problem: String,
}

impl Taken {
    /// Cut to what can be logged.
    pub(super) fn bounded(self) -> Self {
        let problem = self.problem.chars().filter(|c| !c.is_control()).take(PROBLEM).collect();
        Self { problem }
    }
}

/// The session is over, on purpose; nothing is said after it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Closing {
    /// For people.
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// The worker's: the VM is one that its cloud may take back. Whoever hears this asks the cloud from then
/// on, and sends an [`Interruption`] when the cloud says that it will.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Watch {}

/// The VM's: the cloud has said that it takes the VM back. Who gets it has only the VM's word for it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Interruption {
    /// What the cloud does, in its own word: terminate, stop, hibernate, preempt.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Not before then, in milliseconds since 1970 by the cloud's clock; 0 is not said.
    #[prost(uint64, tag = "2")]
    pub deadline_ms: u64,
    /// Whose word it is: aws, azure, gcp.
    #[prost(string, tag = "3")]
    pub source: String,
}

impl Interruption {
    /// Cut to what a cloud would say.
    pub(super) fn bounded(self) -> Self {
        let word = |text: String| {
            text.chars().filter(|c| c.is_ascii_graphic()).take(WORD).collect::<String>()
        };
        Self { kind: word(self.kind), source: word(self.source), ..self }
    }
}

impl About {
    /// Cut to what can be logged.
    pub(super) fn bounded_build(&self) -> String {
        self.build.chars().filter(|c| !c.is_control()).take(WORD).collect()
    }
}

/// A message of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Type 1.
    About(About),
    /// Type 2.
    Taken(Taken),
    /// Type 3.
    Watch(Watch),
    /// Type 4.
    Interruption(Interruption),
    /// Type 0x8001.
    Closing(Closing),
    /// Type 0x8002.
    Piece(Piece),
}

impl Message {
    /// The bytes on the control stream.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, payload) = match self {
            Self::About(m) => (ABOUT, prost::Message::encode_to_vec(m)),
            Self::Taken(m) => (TAKEN, prost::Message::encode_to_vec(m)),
            Self::Watch(m) => (WATCH, prost::Message::encode_to_vec(m)),
            Self::Interruption(m) => (INTERRUPTION, prost::Message::encode_to_vec(m)),
            Self::Closing(m) => (CLOSING, prost::Message::encode_to_vec(m)),
            Self::Piece(m) => (PIECE, prost::Message::encode_to_vec(m)),
        };
        let mut out = BytesMut::with_capacity(HEAD + payload.len());
        out.put_u16(kind);
        out.put_u16(0);
        out.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        out.put_slice(&payload);
        out.to_vec()
    }
}

/// Takes whole messages off the front of the control stream. `None` is "not whole yet"; what is
/// unknown and may be skipped is skipped.
pub(super) fn take(queue: &mut Queue) -> Result<Option<Message>, Violation> {
    loop {
        let Some(head) = first(queue, HEAD) else { return Ok(None) };
        let &[k0, k1, _, _, l0, l1, l2, l3] = &head[..] else { return Ok(None) };
        let kind = u16::from_be_bytes([k0, k1]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_MESSAGE {
            return Err(Violation::Message(length));
        }
        let Some(whole) = first(queue, HEAD + length) else { return Ok(None) };
        queue.advance(HEAD + length);
        let payload = whole.get(HEAD..).unwrap_or_default();
        match kind {
            ABOUT => return decode(payload).map(Message::About).map(Some),
            TAKEN => return decode(payload).map(Message::Taken).map(Some),
            WATCH => return decode(payload).map(Message::Watch).map(Some),
            INTERRUPTION => return decode(payload).map(Message::Interruption).map(Some),
            CLOSING => return decode(payload).map(Message::Closing).map(Some),
            PIECE => return decode(payload).map(Message::Piece).map(Some),
            MUST.. => return Err(Violation::UnknownMessage(kind)),
            _ => {}
        }
    }
}

fn decode<M: prost::Message + Default>(payload: &[u8]) -> Result<M, Violation> {
    M::decode(payload).map_err(|_| Violation::Message(payload.len()))
}

fn first(queue: &Queue, count: usize) -> Option<Vec<u8>> {
    let enough = queue.len() >= count;
    enough.then(|| queue.pieces().flatten().take(count).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> Message {
        Message::About(About { build: "podvm 1".to_owned(), pid: 7, takes_files: true })
    }

    fn raw(kind: u16, length: u32, payload: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &[0, 0], &length.to_be_bytes(), payload].concat()
    }

    #[test]
    fn messages_come_whole_however_they_are_cut_and_unknown_ones_are_skipped() {
        let closing = Message::Closing(Closing { reason: "done".to_owned() });
        let watch = Message::Watch(Watch {});
        let words = ["preempt", "gcp"].map(str::to_owned);
        let [kind, source] = words;
        let interruption = Message::Interruption(Interruption { kind, deadline_ms: 7, source });
        let taken = Message::Taken(Taken { problem: "none".to_owned() });
        let content = Bytes::from_static(b"x");
        let piece = Message::Piece(Piece { path: "/a".to_owned(), offset: 9, content });
        let after = [&watch, &interruption, &taken, &piece, &closing];
        let all = [about().encode(), after.map(Message::encode).concat()].concat();
        let (first, rest) = all.split_at(about().encode().len());
        let bytes = [first, &raw(77, 3, b"new"), rest].concat();
        let (mut queue, mut seen) = (Queue::default(), Vec::new());
        for byte in bytes {
            queue.push_slice(&[byte]);
            seen.extend(take(&mut queue).expect("take"));
        }
        assert_eq!(seen, [about(), watch, interruption, taken, piece, closing]);
        assert!(queue.is_empty());
    }

    #[test]
    fn what_must_be_understood_or_is_too_long_or_broken_is_refused() {
        for (bytes, why) in [
            (raw(0x8777, 0, b""), Violation::UnknownMessage(0x8777)),
            (raw(1, 65_537, b""), Violation::Message(65_537)),
            (raw(1, 2, b"\x0a\x09"), Violation::Message(2)),
        ] {
            let mut queue = Queue::default();
            queue.push_slice(&bytes);
            assert_eq!(take(&mut queue), Err(why));
        }
    }
}
