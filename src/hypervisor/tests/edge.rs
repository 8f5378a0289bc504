//! A real socket with a server whose sandboxes do what they are told, and peers of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use bytes::Bytes;
use peerpod_tunnel::link::call::{CallError, Caller};
use peerpod_tunnel::link::frame::{FrameReader, Kind, Request, Response};
use prost::Message;
use tempfile::TempDir;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};

use super::super::*;
use crate::proto::hypervisor::{self, StartVmRequest, StopVmRequest, VersionResponse};

/// Long enough for anything that happens at once on a loaded machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

/// Does what the id says: `hang…` waits for [`Scripted::go`], `panic`, `until-shutdown`, a number of
/// bytes to answer with, or the name of a failure's kind.
pub(super) struct Scripted {
    pub(super) events: mpsc::UnboundedSender<String>,
    pub(super) go: Notify,
    pub(super) shutdown: CancellationToken,
    pub(super) failures: Mutex<BTreeMap<&'static str, FailureKind>>,
}

/// Says when a call's future is dropped before its end.
pub(super) struct Dropped<'a>(&'a Scripted, String);

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        self.0.say(format!("{} dropped, shutdown {}", self.1, self.0.shutdown.is_cancelled()));
    }
}

pub(super) const KINDS: [(&str, FailureKind, i32); 9] = [
    ("cancelled", FailureKind::Cancelled, 1),
    ("invalid", FailureKind::Invalid, 3),
    ("deadline", FailureKind::Deadline, 4),
    ("not-found", FailureKind::NotFound, 5),
    ("exhausted", FailureKind::Exhausted, 8),
    ("precondition", FailureKind::Precondition, 9),
    ("unimplemented", FailureKind::Unimplemented, 12),
    ("internal", FailureKind::Internal, 13),
    ("unavailable", FailureKind::Unavailable, 14),
];

impl Scripted {
    pub(super) fn say(&self, event: String) {
        self.events.send(event).ok();
    }

    async fn act(&self, id: &str) -> Result<(), Failure> {
        if let Some(kind) = self.failures.lock().expect("lock").get(id) {
            return Err(Failure::new(*kind, format!("because it is {id}")));
        }
        match id {
            "panic" => panic!("seen by the test"),
            "until-shutdown" => {
                self.shutdown.cancelled().await;
                Err(Failure::new(FailureKind::Cancelled, "ended by a restart"))
            }
            id if id.starts_with("hang") => {
                let dropped = Dropped(self, id.to_owned());
                self.go.notified().await;
                std::mem::forget(dropped);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Sandboxes for Scripted {
    async fn create(&self, request: CreateVmRequest) -> Result<String, Failure> {
        self.say(format!("create {} {}", request.id, request.network_namespace_path));
        self.act(&request.id).await?;
        let length = request.id.parse().unwrap_or(0);
        Ok(format!("/pods/{}/agent.ttrpc{}", request.id, "x".repeat(length)))
    }

    async fn start(&self, id: &str, deadline: Option<Duration>) -> Result<(), Failure> {
        self.say(format!("start {id} {deadline:?}"));
        self.act(id).await
    }

    async fn stop(&self, id: &str) -> Result<(), Failure> {
        self.say(format!("stop {id}"));
        self.act(id).await
    }

    async fn vm_id(&self, namespace: &str, pod: &str, wait: bool) -> Result<String, Failure> {
        self.say(format!("info {namespace} {pod} {wait}"));
        self.act(pod).await?;
        Ok("i-0123".to_owned())
    }
}

pub(super) struct Edge {
    pub(super) dir: TempDir,
    pub(super) scripted: Arc<Scripted>,
    pub(super) events: mpsc::UnboundedReceiver<String>,
    pub(super) shutdown: CancellationToken,
    pub(super) tracker: Tracker,
}

impl Edge {
    pub(super) fn new(limits: Limits) -> Self {
        let dir = TempDir::new().expect("dir");
        let listener = UnixListener::bind(dir.path().join("node.sock")).expect("bind");
        let (sender, events) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let tracker = Tracker::new();
        let scripted = Arc::new(Scripted {
            events: sender,
            go: Notify::new(),
            shutdown: shutdown.clone(),
            failures: Mutex::new(KINDS.iter().map(|(name, kind, _)| (*name, *kind)).collect()),
        });
        let served = serve(
            listener,
            Arc::clone(&scripted) as Arc<dyn Sandboxes>,
            limits,
            shutdown.clone(),
            tracker.clone(),
        );
        tracker.spawn("hypervisor", served);
        Self { dir, scripted, events, shutdown, tracker }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("node.sock")
    }

    pub(super) async fn stream(&self) -> UnixStream {
        UnixStream::connect(self.socket()).await.expect("connect")
    }

    pub(super) async fn caller(&self) -> Caller<UnixStream> {
        Caller::new(self.stream().await)
    }

    pub(super) async fn raw(&self) -> Raw {
        let (read, write) = self.stream().await.into_split();
        Raw { reader: FrameReader::new(read, None), write }
    }

    pub(super) async fn event(&mut self) -> String {
        soon(self.events.recv()).await.expect("an event")
    }

    /// The server answers a new caller.
    pub(super) async fn lives(&self) {
        version(&mut self.caller().await).await.expect("the server lives");
    }
}

pub(super) async fn version(caller: &mut Caller<UnixStream>) -> Result<String, CallError> {
    let answer = soon(caller.call(hypervisor::SERVICE, "Version", Bytes::new())).await?;
    Ok(VersionResponse::decode(answer).expect("message").version)
}

/// A peer that speaks frames.
pub(super) struct Raw {
    pub(super) reader: FrameReader<OwnedReadHalf>,
    pub(super) write: OwnedWriteHalf,
}

impl Raw {
    pub(super) async fn send(
        &mut self,
        stream: u32,
        method: &str,
        message: &impl Message,
        nano: i64,
    ) {
        let request = Request {
            service: hypervisor::SERVICE.into(),
            method: method.into(),
            payload: message.encode_to_vec().into(),
            timeout_nano: nano,
            ..Request::default()
        };
        request.frame(stream, 0).write(&mut self.write).await.expect("write");
    }

    pub(super) async fn start(&mut self, stream: u32, id: &str, nano: i64) {
        self.send(stream, "StartVM", &StartVmRequest { id: id.into() }, nano).await;
    }

    pub(super) async fn stop(&mut self, stream: u32, id: &str, nano: i64) {
        self.send(stream, "StopVM", &StopVmRequest { id: id.into() }, nano).await;
    }

    /// Stream, code and message of the next answer; `None` when the server has closed.
    pub(super) async fn answer(&mut self) -> Option<(u32, i32, String)> {
        let frame = soon(self.reader.next()).await.ok().flatten()?;
        assert_eq!(frame.kind, Kind::Response);
        let status = Response::decode(frame.payload).expect("response").status.unwrap_or_default();
        Some((frame.stream, status.code, status.message))
    }

    pub(super) async fn code(&mut self) -> Option<(u32, i32)> {
        self.answer().await.map(|(stream, code, _)| (stream, code))
    }
}

pub(super) fn refusal(error: CallError) -> (i32, String) {
    match error {
        CallError::Refused { code, message, .. } => (code, message),
        other => panic!("{other}"),
    }
}

/// What is logged on this thread.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(super) fn install(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        crate::telemetry::let_every_line_be_heard();
        tracing::subscriber::set_default(subscriber)
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("lock")).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
