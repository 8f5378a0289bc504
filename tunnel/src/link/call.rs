//! One unary ttrpc call over any stream: enough for a probe that asks an agent whether it serves.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::frame::{Frame, FrameError, FrameReader, Kind, Request, Response};

/// Bytes of an answer: there is little to say in one.
const MAX_ANSWER: usize = 64 << 10;
/// Frames that answer nothing, before the answer.
const STRAY: usize = 16;

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request could not be sent.
    #[error("sending {method}: {source}")]
    Send {
        /// The method called.
        method: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The answer could not be read.
    #[error("waiting for the answer to {method}: {source}")]
    Receive {
        /// The method called.
        method: &'static str,
        /// Why not.
        source: FrameError,
    },
    /// The peer closed instead of answering.
    #[error("connection closed before the answer to {0}")]
    Closed(&'static str),
    /// The peer says a great deal, but not what it was asked.
    #[error("{STRAY} frames instead of the answer to {0}")]
    Stray(&'static str),
    /// The peer answered with an error.
    #[error("{method} refused: code {code}: {message}")]
    Refused {
        /// The method called.
        method: &'static str,
        /// google.rpc code.
        code: i32,
        /// The peer's words, cut to a length that can be logged.
        message: String,
    },
}

/// A connection that makes one call after the other.
#[derive(Debug)]
pub struct Caller<S> {
    reader: FrameReader<tokio::io::ReadHalf<S>>,
    writer: tokio::io::WriteHalf<S>,
    stream: u32,
}

impl<S: AsyncRead + AsyncWrite> Caller<S> {
    /// Speaks over `stream`.
    pub fn new(stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader: FrameReader::new(reader, None).at_most(MAX_ANSWER), writer, stream: 1 }
    }

    /// Calls and waits for the answer's payload. The caller bounds the time.
    ///
    /// # Errors
    /// When the peer refuses, closes or breaks the protocol; after any but `Refused` the
    /// connection is of no more use.
    pub async fn call(
        &mut self,
        service: &'static str,
        method: &'static str,
        payload: Bytes,
    ) -> Result<Bytes, CallError> {
        let stream = self.stream;
        self.stream = self.stream.wrapping_add(2) | 1;
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            ..Request::default()
        };
        let sent = request.frame(stream, 0).write(&mut self.writer).await;
        sent.map_err(|source| CallError::Send { method, source })?;
        for _ in 0..STRAY {
            let frame = self.reader.next().await;
            let frame = frame.map_err(|source| CallError::Receive { method, source })?;
            match frame {
                None => return Err(CallError::Closed(method)),
                Some(Frame { stream: s, kind: Kind::Response, payload, .. }) if s == stream => {
                    return answer(method, payload);
                }
                Some(_) => {}
            }
        }
        Err(CallError::Stray(method))
    }

    /// Says that nothing more is asked, and waits for the peer to close, too.
    pub async fn finish(mut self) {
        if self.writer.shutdown().await.is_ok() {
            while let Ok(Some(_)) = self.reader.next().await {}
        }
    }

    /// Asks `grpc.Health/Check`, as kata shims do; an answer of any status is a sign of life.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub async fn check(&mut self) -> Result<(), CallError> {
        self.call("grpc.Health", "Check", Bytes::new()).await.map(drop)
    }
}

fn answer(method: &'static str, payload: Bytes) -> Result<Bytes, CallError> {
    let response = <Response as prost::Message>::decode(payload)
        .map_err(|e| CallError::Receive { method, source: e.into() })?;
    match response.status {
        Some(status) if status.code != 0 => Err(CallError::Refused {
            method,
            code: status.code,
            message: status.message.chars().filter(|c| !c.is_control()).take(300).collect(),
        }),
        _ => Ok(response.payload),
    }
}
