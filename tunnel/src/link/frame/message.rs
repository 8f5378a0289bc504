//! What ttrpc says in a frame: requests and responses. The call's own message stays bytes, which no
//! log shows: a container's environment may be in them.

use bytes::Bytes;

use super::{Frame, FrameError, Kind, MAX_PAIRS, wire};

/// A ttrpc request; the call's own message stays bytes.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct Request {
    /// `grpc.AgentService`, `hypervisor.Hypervisor`, …
    #[prost(string, tag = "1")]
    pub service: String,
    /// `CreateContainer`, …
    #[prost(string, tag = "2")]
    pub method: String,
    /// The call's message.
    #[prost(bytes = "bytes", tag = "3")]
    pub payload: Bytes,
    /// Time left in nanoseconds; 0 is no deadline.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    /// Passed on untouched.
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} of {} bytes", self.service, self.method, self.payload.len())
    }
}

/// A pair of a request's metadata.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    /// Name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Text.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A ttrpc response.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct Response {
    /// Absent is OK.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// The call's message.
    #[prost(bytes = "bytes", tag = "2")]
    pub payload: Bytes,
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} and {} bytes", self.status, self.payload.len())
    }
}

/// How a call ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    /// google.rpc code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}

impl Request {
    /// Decodes a request frame's payload.
    ///
    /// # Errors
    /// When it is no ttrpc request, or one with more metadata than anybody sends.
    pub fn parse(payload: &Bytes) -> Result<Self, FrameError> {
        let pairs = wire::count(payload, 5)?;
        if pairs > MAX_PAIRS {
            return Err(FrameError::Metadata(pairs));
        }
        Ok(<Self as prost::Message>::decode(payload.clone())?)
    }

    /// The request as a frame on `stream`.
    pub fn frame(&self, stream: u32, flags: u8) -> Frame {
        let payload = prost::Message::encode_to_vec(self).into();
        Frame { stream, kind: Kind::Request, flags, payload }
    }
}

impl Response {
    /// An error answer.
    pub fn error(code: i32, message: impl Into<String>) -> Self {
        let status = Some(Status { code, message: message.into() });
        Self { status, payload: Bytes::new() }
    }

    /// The response as a frame on `stream`.
    pub fn frame(&self, stream: u32) -> Frame {
        let payload = prost::Message::encode_to_vec(self).into();
        Frame { stream, kind: Kind::Response, flags: 0, payload }
    }
}
