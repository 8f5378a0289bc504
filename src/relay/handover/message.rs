//! What two relays say to each other. Protobuf, so that a field may be added at any time: who does
//! not know it passes over it. A field that must be understood raises [`VERSION`].

use bytes::Bytes;
use peerpod_tunnel::link::frame::{Frame, Kind as FrameKind};

use crate::proto::relay as proto;

/// What this build speaks.
pub(crate) const VERSION: u32 = 1 + crate::next::STEP;
/// The oldest one that it still understands. A release keeps the one before its own, so that a node
/// can go one release up or down without a pod noticing.
const OLDEST: u32 = 1;

/// The oldest version that this build speaks.
pub(crate) fn oldest() -> u32 {
    crate::next::oldest(OLDEST, VERSION)
}

/// One message; descriptors travel beside it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Envelope {
    #[prost(
        oneof = "Say",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21"
    )]
    pub(crate) say: Option<Say>,
}

/// See [`Envelope`]. Tags 1 to 10, 19 and 20 belong to the hand-over, the rest to the time after it.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Say {
    /// New to old, first.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// Old to new.
    #[prost(message, tag = "2")]
    Welcome(Welcome),
    /// Old to new, instead of anything else: the reason.
    #[prost(string, tag = "3")]
    Refused(String),
    /// Old to new, with three listeners.
    #[prost(message, tag = "4")]
    Sockets(Sockets),
    /// Old to new, with a listener.
    #[prost(message, tag = "5")]
    Pod(Pod),
    /// Old to new, with a shim's connection that is not joined to a VM: its sandbox.
    #[prost(string, tag = "6")]
    Agent(String),
    /// Old to new, with a shim's connection and perhaps one to the node process.
    #[prost(message, tag = "7")]
    Talk(Talk),
    /// Old to new, with the connection to a relay that is older still.
    #[prost(message, tag = "8")]
    Kin(Kin),
    /// Old to new: that was all, so many messages since Welcome.
    #[prost(uint32, tag = "9")]
    All(u32),
    /// New to old: I serve from now on. The one moment at which the hand-over is done.
    #[prost(message, tag = "10")]
    Done(Empty),
    /// New to old: tell what still holds.
    #[prost(message, tag = "11")]
    Again(Empty),
    /// Old to new: one connection that stayed behind has ended.
    #[prost(string, tag = "12")]
    Left(String),
    /// Old to new: of a connection that stayed behind.
    #[prost(message, tag = "13")]
    LinkDown(proto::LinkDown),
    /// Old to new.
    #[prost(message, tag = "14")]
    LinkUp(proto::LinkUp),
    /// Old to new.
    #[prost(message, tag = "15")]
    Edit(proto::Edit),
    /// New to old.
    #[prost(message, tag = "16")]
    Edited(proto::EditReply),
    /// New to old.
    #[prost(message, tag = "17")]
    Close(proto::CloseRequest),
    /// New to old: I end in order, and you are to end as well.
    #[prost(message, tag = "18")]
    End(Empty),
    /// Old to new: a pod's session with its VM.
    #[prost(message, tag = "19")]
    Session(Session),
    /// Old to new, with a shim's connection that is joined to a stream of its pod's session.
    #[prost(message, tag = "20")]
    Stream(Stream),
    /// Old to new: of a VM whose session stayed behind.
    #[prost(message, tag = "21")]
    Interruption(proto::Interruption),
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Empty {}

/// Who asks, what it speaks, and what it would serve.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) oldest: u32,
    #[prost(string, tag = "3")]
    pub(crate) build: String,
    #[prost(string, tag = "4")]
    pub(crate) hypervisor: String,
    #[prost(string, tag = "5")]
    pub(crate) control: String,
    #[prost(string, tag = "6")]
    pub(crate) pods_dir: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Welcome {
    /// What is spoken from now on.
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(message, optional, tag = "2")]
    pub(crate) about: Option<About>,
}

/// A relay.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct About {
    #[prost(uint64, tag = "1")]
    pub(crate) epoch: u64,
    #[prost(string, tag = "2")]
    pub(crate) build: String,
    #[prost(uint32, tag = "3")]
    pub(crate) pid: u32,
}

/// The files of the three listeners, in the order of the descriptors.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Sockets {
    #[prost(message, repeated, tag = "1")]
    pub(crate) files: Vec<File>,
}

/// Tells a file from another that has taken its name since.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct File {
    #[prost(uint64, tag = "1")]
    pub(crate) device: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) inode: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Pod {
    #[prost(string, tag = "1")]
    pub(crate) sandbox: String,
    #[prost(string, tag = "2")]
    pub(crate) path: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) edit_methods: Vec<String>,
    /// The last Connect, if there was one.
    #[prost(message, optional, tag = "4")]
    pub(crate) target: Option<proto::ConnectRequest>,
    #[prost(message, optional, tag = "5")]
    pub(crate) file: Option<File>,
    /// A connection of its shim has spoken.
    #[prost(bool, tag = "6")]
    pub(crate) spoken: bool,
    /// As in Held.
    #[prost(uint64, tag = "7")]
    pub(crate) idle_ms: u64,
    /// Connections that stay behind.
    #[prost(uint32, tag = "8")]
    pub(crate) stayed: u32,
    #[prost(message, optional, tag = "9")]
    pub(crate) down: Option<proto::LinkDown>,
    /// The VM was asked to tell when its cloud takes it back.
    #[prost(bool, tag = "10")]
    pub(crate) watched: bool,
    /// What it has told.
    #[prost(message, optional, boxed, tag = "11")]
    pub(crate) interruption: Option<Box<proto::Interruption>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Session {
    #[prost(string, tag = "1")]
    pub(crate) sandbox: String,
    /// As the tunnel exports it, with a version of its own.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) export: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Stream {
    #[prost(string, tag = "1")]
    pub(crate) sandbox: String,
    #[prost(uint32, tag = "2")]
    pub(crate) stream: u32,
}

/// A connection on the hypervisor socket.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Talk {
    #[prost(message, optional, tag = "1")]
    pub(crate) shim: Option<Air>,
    /// With a second descriptor.
    #[prost(message, optional, tag = "2")]
    pub(crate) node: Option<Air>,
    /// Which node process that is.
    #[prost(uint64, tag = "3")]
    pub(crate) instance: u64,
    /// The shim has closed.
    #[prost(bool, tag = "4")]
    pub(crate) ended: bool,
    #[prost(string, repeated, tag = "5")]
    pub(crate) named: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) calls: Vec<Call>,
}

/// What hangs in the air at one end: read and not yet understood, understood and not yet written.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Air {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) read: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) unwritten: Bytes,
}

/// A frame that has no answer yet.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Call {
    #[prost(uint32, tag = "1")]
    stream: u32,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(uint32, tag = "3")]
    flags: u32,
    #[prost(bytes = "bytes", tag = "4")]
    payload: Bytes,
    #[prost(bool, tag = "5")]
    pub(crate) sent: bool,
    #[prost(bool, tag = "6")]
    pub(crate) outlives: bool,
}

impl Call {
    pub(crate) fn new(frame: &Frame, sent: bool, outlives: bool) -> Self {
        Self {
            stream: frame.stream,
            kind: frame.kind.to_wire().into(),
            flags: frame.flags.into(),
            payload: frame.payload.clone(),
            sent,
            outlives,
        }
    }

    /// The frame, if it is one.
    pub(crate) fn frame(&self) -> Option<Frame> {
        let kind = FrameKind::from_wire(u8::try_from(self.kind).ok()?)?;
        let flags = u8::try_from(self.flags).ok()?;
        let payload = self.payload.clone();
        (self.stream != 0).then_some(Frame { stream: self.stream, kind, flags, payload })
    }
}

/// A relay that is older than the old one, as the old one knows it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Kin {
    #[prost(message, optional, tag = "1")]
    pub(crate) about: Option<About>,
    #[prost(message, optional, tag = "2")]
    pub(crate) wire: Option<Air>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) stayed: Vec<Stayed>,
}

/// How many connections of a sandbox stayed behind somewhere.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Stayed {
    #[prost(string, tag = "1")]
    pub(crate) sandbox: String,
    #[prost(uint32, tag = "2")]
    pub(crate) connections: u32,
}

/// Which version two sides speak, each from `oldest` to `version`.
pub(crate) fn agreed(version: u32, oldest: u32) -> Option<u32> {
    let common = version.min(VERSION);
    (common >= oldest.max(self::oldest())).then_some(common)
}
