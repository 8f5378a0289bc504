//! Frames of `peerpod-link/1` and the two greetings, on the wire.
//!
//! ```text
//!   ┌ length u24 ┬ type u8 ┬ stream u32 ┬ number u64 ┐ payload …        all big-endian, 16 bytes
//!   └ of the payload       └ 0: control └ see `Type`
//! ```

use bytes::{Buf, BufMut, BytesMut};

use super::{ID, MAX_DATA, MAX_GREETING, MAX_STREAMS, VERSION};

/// Bytes before the payload.
pub const HEAD: usize = 16;
/// Unknown types from here on are skipped; others end the connection.
const MAY_SKIP: u8 = 0x80;

/// What a frame is. In brackets: what its number says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Worker, first on every connection (attempt): a greeting.
    Hello,
    /// VM, its answer (0): a greeting.
    Welcome,
    /// VM, instead of Welcome ([`Refusal`]); the connection ends.
    Gone,
    /// Worker: a stream begins (0).
    Open,
    /// Bytes of a stream (offset of the first).
    Data,
    /// No more bytes (how many there were).
    Fin,
    /// Bytes taken by the receiver (how many from the beginning, the end counts as one more).
    Ack,
    /// The stream is over, both ways (0).
    Reset,
    /// Worker: are you there (any)?
    Ping,
    /// VM: yes (as asked).
    Pong,
    /// A type of a later version that may be left unread.
    Skip,
}

impl Type {
    fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Gone,
            4 => Self::Open,
            5 => Self::Data,
            6 => Self::Fin,
            7 => Self::Ack,
            8 => Self::Reset,
            9 => Self::Ping,
            10 => Self::Pong,
            MAY_SKIP.. => Self::Skip,
            _ => return None,
        })
    }

    fn to_wire(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Welcome => 2,
            Self::Gone => 3,
            Self::Open => 4,
            Self::Data => 5,
            Self::Fin => 6,
            Self::Ack => 7,
            Self::Reset => 8,
            Self::Ping => 9,
            Self::Pong => 10,
            Self::Skip => MAY_SKIP,
        }
    }

    fn longest(self) -> usize {
        match self {
            Self::Hello | Self::Welcome => MAX_GREETING,
            Self::Data | Self::Skip => MAX_DATA,
            _ => 0,
        }
    }
}

/// The bytes before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the payload, at most what its type allows.
    pub length: usize,
    /// What it is.
    pub kind: Type,
    /// Whose; 0 is the control stream, or none.
    pub stream: u32,
    /// By type.
    pub number: u64,
}

impl Head {
    /// A frame without a payload.
    pub fn bare(kind: Type, stream: u32, number: u64) -> Self {
        Self { length: 0, kind, stream, number }
    }

    /// Reads and checks a head.
    ///
    /// # Errors
    /// When the peer breaks the protocol.
    pub fn parse(bytes: &[u8; HEAD]) -> Result<Self, Violation> {
        let [l0, l1, l2, kind, s0, s1, s2, s3, number @ ..] = *bytes;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        let kind = Type::from_wire(kind).ok_or(Violation::UnknownType(kind))?;
        if length > kind.longest() {
            return Err(Violation::TooLong(kind, length));
        }
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        Ok(Self { length, kind, stream, number: u64::from_be_bytes(number) })
    }

    /// Appends the head.
    pub fn put(&self, out: &mut BytesMut) {
        out.reserve(HEAD);
        out.put_uint(self.length as u64, 3);
        out.put_u8(self.kind.to_wire());
        out.put_u32(self.stream);
        out.put_u64(self.number);
    }
}

/// How the peer broke the protocol. The connection ends; the session does not, unless the two sides
/// no longer agree on what was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A type below 128 that this version does not know.
    #[error("frame of unknown type {0}")]
    UnknownType(u8),
    /// More than a type allows.
    #[error("{0:?} frame of {1} bytes announced")]
    TooLong(Type, usize),
    /// A type that the other side does not send, or not now.
    #[error("{0:?} frame out of place")]
    OutOfPlace(Type),
    /// A greeting that does not parse.
    #[error("greeting does not parse")]
    Greeting,
    /// Another version of the format.
    #[error("version {0} of the link, this build speaks {VERSION}")]
    Version(u16),
    /// A stream that was never opened.
    #[error("{0:?} frame on stream {1}, which is not open")]
    NoStream(Type, u32),
    /// Stream ids grow by one.
    #[error("stream {0} opened, stream {1} comes next")]
    Order(u32, u32),
    /// More streams than a session may have.
    #[error("more than {MAX_STREAMS} streams")]
    Streams,
    /// A byte that is not the next one.
    #[error("stream {stream}: offset {got}, {want} comes next")]
    Offset {
        /// Which.
        stream: u32,
        /// What came.
        got: u64,
        /// What should have.
        want: u64,
    },
    /// More bytes than were allowed.
    #[error("stream {0}: its window is overrun")]
    Window(u32),
    /// Bytes acknowledged that were never sent, or are forgotten already.
    #[error("stream {0}: {1} acknowledged")]
    Ack(u32, u64),
    /// A message on the control stream that is too long.
    #[error("control message of {0} bytes")]
    Message(usize),
    /// A message that must be understood and is not.
    #[error("control message of unknown type {0}, which must be understood")]
    UnknownMessage(u16),
}

/// Why a VM does not take a session up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such session: lost, expired, ended, or another's.
    Unknown,
    /// As many sessions as there may be.
    Busy,
    /// Another version of the format.
    Version,
    /// An attempt that is older than the last; the session is well.
    Stale,
    /// A later build's reason.
    Other(u64),
}

impl Refusal {
    /// As a frame's number.
    pub fn number(self) -> u64 {
        match self {
            Self::Unknown => 1,
            Self::Busy => 2,
            Self::Version => 3,
            Self::Stale => 4,
            Self::Other(n) => n,
        }
    }

    /// From a frame's number.
    pub fn from_number(number: u64) -> Self {
        match number {
            1 => Self::Unknown,
            2 => Self::Busy,
            3 => Self::Version,
            4 => Self::Stale,
            n => Self::Other(n),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown => f.write_str("the VM has lost the session"),
            Self::Busy => f.write_str("the VM has too many sessions"),
            Self::Version => f.write_str("the VM speaks another version of the link"),
            Self::Stale => f.write_str("a later connection has taken the session over"),
            Self::Other(n) => write!(f, "the VM refuses the session (reason {n})"),
        }
    }
}

/// Names a session; drawn by the VM. Whoever knows it and holds the certificate may resume, so it
/// does not print.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub(super) [u8; ID]);

impl SessionId {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionId(…)")
    }
}

/// The content of Hello and Welcome.
///
/// ```text
///   version u16 ┬ 0 u16 ┬ session 16 B ┬ keep u32 ┬ last u32 ┬ count u32 ┬ count × (stream u32, next u64)
///               │       └ zeros: a new one        │          └ of the streams the sender has
///               └ room for flags                  └ the highest stream that has been opened
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// `None` asks for a new session.
    pub session: Option<SessionId>,
    /// How long the VM should keep the session without a connection, in milliseconds; 0 from the VM.
    pub keep_ms: u32,
    /// Highest stream opened so far.
    pub last: u32,
    /// Streams that live, and the offset that the sender expects next on each.
    pub next: Vec<(u32, u64)>,
}

const GREETING: usize = 2 + 2 + ID + 4 + 4 + 4;
const ENTRY: usize = 4 + 8;

impl Greeting {
    /// Appends the frame.
    pub fn put(&self, kind: Type, number: u64, out: &mut BytesMut) {
        let length = GREETING + self.next.len() * ENTRY;
        Head { length, kind, stream: 0, number }.put(out);
        out.reserve(length);
        out.put_u16(VERSION);
        out.put_u16(0);
        out.put_slice(&self.session.map_or([0; ID], |id| id.0));
        out.put_u32(self.keep_ms);
        out.put_u32(self.last);
        out.put_u32(u32::try_from(self.next.len()).unwrap_or(u32::MAX));
        for (stream, next) in &self.next {
            out.put_u32(*stream);
            out.put_u64(*next);
        }
    }

    /// Reads a payload whose length has been checked.
    ///
    /// # Errors
    /// When it does not parse or is of another version.
    pub fn parse(mut payload: &[u8]) -> Result<Self, Violation> {
        if payload.len() < GREETING {
            return Err(Violation::Greeting);
        }
        let version = payload.get_u16();
        if version != VERSION {
            return Err(Violation::Version(version));
        }
        payload.advance(2);
        let mut id = [0; ID];
        payload.copy_to_slice(&mut id);
        let (keep_ms, last) = (payload.get_u32(), payload.get_u32());
        let count = payload.get_u32() as usize;
        // The control stream is one of them.
        if count > MAX_STREAMS + 1 || payload.len() != count * ENTRY {
            return Err(Violation::Greeting);
        }
        let next: Vec<_> = (0..count).map(|_| (payload.get_u32(), payload.get_u64())).collect();
        let rising = next.iter().zip(next.iter().skip(1)).all(|(a, b)| a.0 < b.0);
        if !rising || next.iter().any(|(stream, _)| *stream > last) {
            return Err(Violation::Greeting);
        }
        let session = (id != [0; ID]).then_some(SessionId(id));
        Ok(Self { session, keep_ms, last, next })
    }

    /// What the sender expects next on a stream, if it has it.
    pub fn of(&self, stream: u32) -> Option<u64> {
        let at = self.next.binary_search_by_key(&stream, |(s, _)| *s).ok()?;
        self.next.get(at).map(|(_, next)| *next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_in_the_networks_order() {
        let id = std::array::from_fn(|n| u8::try_from(n).unwrap_or(0) + 1);
        let greeting = Greeting {
            session: Some(SessionId(id)),
            keep_ms: 0x0102_0304,
            last: 0x0506_0708,
            next: vec![(0x0506_0708, 0x0a0b_0c0d_0e0f_1011)],
        };
        let mut wire = BytesMut::new();
        greeting.put(Type::Hello, 0x2122_2324_2526_2728, &mut wire);
        let head = [0, 0, 44, 1, 0, 0, 0, 0, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28];
        let numbers = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1];
        let entry = [5, 6, 7, 8, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x10, 0x11];
        let [high, low] = [0, u8::try_from(VERSION).expect("small")];
        let wanted = [&head[..], &[high, low, 0, 0], &id, &numbers, &entry].concat();
        assert_eq!(wire[..], wanted[..]);
        let (head, payload) = wire.split_first_chunk().expect("a head");
        assert_eq!(Head::parse(head).expect("parse").length, payload.len());
        assert_eq!(Greeting::parse(payload), Ok(greeting));
    }
}
