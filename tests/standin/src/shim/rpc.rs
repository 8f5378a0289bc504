//! A ttrpc client with many calls in flight on one connection: stream ids 1, 3, 5 …, deadlines kept
//! on this side, answers in any order.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use peerpod_tunnel::link::frame::{Frame, FrameReader, Kind, Request, Response};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Why a call brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The peer answered with an error.
    #[error("{method}: code {code}: {message}")]
    Refused {
        /// The method called.
        method: String,
        /// google.rpc code.
        code: i32,
        /// The peer's words.
        message: String,
    },
    /// The connection closed before the answer.
    #[error("{0}: connection closed before the answer")]
    Closed(String),
    /// This side's deadline passed.
    #[error("{method}: no answer within {limit:?}")]
    Deadline {
        /// The method called.
        method: String,
        /// The deadline.
        limit: Duration,
    },
    /// The answer is no message of the expected kind.
    #[error("{method}: the answer does not parse: {reason}")]
    Parse {
        /// The method called.
        method: String,
        /// What was wrong.
        reason: String,
    },
}

impl CallError {
    /// The google.rpc code, if the peer answered with one.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

type Waiting = Mutex<Option<HashMap<u32, oneshot::Sender<Response>>>>;

/// A connection. Dropping the last handle closes it.
#[derive(Debug)]
pub struct Connection {
    send: mpsc::UnboundedSender<Frame>,
    waiting: Arc<Waiting>,
    next: AtomicU32,
    closed: watch::Receiver<bool>,
    tasks: [JoinHandle<()>; 2],
}

impl Connection {
    /// Connects to a unix socket.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(path: &Path) -> std::io::Result<Arc<Self>> {
        Ok(Self::over(UnixStream::connect(path).await?))
    }

    /// Speaks over any stream.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Arc<Self> {
        let (reader, mut writer) = tokio::io::split(stream);
        let (send, mut outgoing) = mpsc::unbounded_channel::<Frame>();
        let (over, closed) = watch::channel(false);
        let waiting: Arc<Waiting> = Arc::new(Mutex::new(Some(HashMap::new())));
        let write = tokio::spawn(async move {
            while let Some(frame) = outgoing.recv().await {
                if frame.write(&mut writer).await.is_err() {
                    return;
                }
            }
        });
        let answers = waiting.clone();
        let read = tokio::spawn(async move {
            receive(FrameReader::new(reader, None), &answers).await;
            answers.lock().unwrap_or_else(PoisonError::into_inner).take();
            over.send_replace(true);
        });
        let tasks = [write, read];
        Arc::new(Self { send, waiting, next: AtomicU32::new(1), closed, tasks })
    }

    /// Calls; `limit` is both sent and kept here, `None` is no deadline.
    ///
    /// # Errors
    /// By [`CallError`].
    pub async fn call<Q: Message, A: Message + Default>(
        &self,
        (service, method): (&str, &str),
        message: &Q,
        limit: Option<Duration>,
    ) -> Result<A, CallError> {
        let payload = self.raw((service, method), message.encode_to_vec().into(), limit).await?;
        let broken = |e: prost::DecodeError| CallError::Parse {
            method: method.to_owned(),
            reason: e.to_string(),
        };
        A::decode(payload).map_err(broken)
    }

    /// Calls with bytes and gives the answer's bytes.
    ///
    /// # Errors
    /// By [`CallError`].
    pub async fn raw(
        &self,
        (service, method): (&str, &str),
        payload: Bytes,
        limit: Option<Duration>,
    ) -> Result<Bytes, CallError> {
        let timeout = limit.map_or(0, |l| i64::try_from(l.as_nanos()).unwrap_or(i64::MAX));
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: timeout,
            metadata: Vec::new(),
        };
        let answer = self.exchange(&request);
        let response = match limit {
            Some(limit) => tokio::time::timeout(limit, answer)
                .await
                .map_err(|_| CallError::Deadline { method: method.to_owned(), limit })?,
            None => answer.await,
        };
        let response = response.ok_or_else(|| CallError::Closed(method.to_owned()))?;
        match response.status {
            Some(status) if status.code != 0 => Err(CallError::Refused {
                method: method.to_owned(),
                code: status.code,
                message: status.message,
            }),
            _ => Ok(response.payload),
        }
    }

    async fn exchange(&self, request: &Request) -> Option<Response> {
        let stream = self.next.fetch_add(2, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let mut forget = Forget { waiting: &self.waiting, stream, armed: true };
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()?
            .insert(stream, answer);
        self.send.send(request.frame(stream, 0)).ok()?;
        let response = answered.await.ok();
        forget.armed = false;
        response
    }

    /// Returns when the peer has closed.
    pub async fn closed(&self) {
        let _ = self.closed.clone().wait_for(|closed| *closed).await;
    }

    /// Whether the peer has closed.
    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Takes a call off the list when its caller no longer waits; a late answer is dropped then.
struct Forget<'a> {
    waiting: &'a Waiting,
    stream: u32,
    armed: bool,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if self.armed
            && let Some(all) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            all.remove(&self.stream);
        }
    }
}

async fn receive<R: AsyncRead + Unpin>(mut reader: FrameReader<R>, waiting: &Waiting) {
    while let Ok(Some(frame)) = reader.next().await {
        let Frame { stream, kind: Kind::Response, payload, .. } = frame else { continue };
        let Ok(response) = Response::decode(payload) else { return };
        let mut all = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = all.as_mut().and_then(|a| a.remove(&stream)) {
            let _ = answer.send(response);
        }
    }
}
