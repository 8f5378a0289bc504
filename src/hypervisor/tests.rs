//! The edge through a real socket: calls as shims make them, and frames as nobody should.

mod bounds;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use bytes::Bytes;
use peerpod_tunnel::link::call::{CallError, Caller};
use peerpod_tunnel::link::frame::{Frame, FrameReader, Kind, Request, Response};
use proptest::prelude::*;
use prost::Message;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};

use super::*;
use crate::proto::hypervisor::{
    self, CreateVmResponse, StartVmRequest, StopVmRequest, VersionResponse,
};
use crate::proto::podvminfo::{self, GetInfoRequest, GetInfoResponse};

/// Long enough for anything that happens at once on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

/// Does what the id says: `hang…` waits for [`Scripted::go`], `panic`, `until-shutdown`, a number of
/// bytes to answer with, or the name of a failure's kind.
struct Scripted {
    events: mpsc::UnboundedSender<String>,
    go: Notify,
    shutdown: CancellationToken,
    failures: Mutex<BTreeMap<&'static str, FailureKind>>,
}

/// Says when a call's future is dropped before its end.
struct Dropped<'a>(&'a Scripted, String);

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        self.0.say(format!("{} dropped, shutdown {}", self.1, self.0.shutdown.is_cancelled()));
    }
}

const KINDS: [(&str, FailureKind, i32); 9] = [
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
    fn say(&self, event: String) {
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

struct Edge {
    dir: TempDir,
    scripted: Arc<Scripted>,
    events: mpsc::UnboundedReceiver<String>,
    shutdown: CancellationToken,
    tracker: Tracker,
}

impl Edge {
    fn new(limits: Limits) -> Self {
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

    fn socket(&self) -> PathBuf {
        self.dir.path().join("node.sock")
    }

    async fn stream(&self) -> UnixStream {
        UnixStream::connect(self.socket()).await.expect("connect")
    }

    async fn caller(&self) -> Caller<UnixStream> {
        Caller::new(self.stream().await)
    }

    async fn raw(&self) -> Raw {
        let (read, write) = self.stream().await.into_split();
        Raw { reader: FrameReader::new(read, None), write }
    }

    async fn event(&mut self) -> String {
        soon(self.events.recv()).await.expect("an event")
    }

    /// The server answers a new caller.
    async fn lives(&self) {
        version(&mut self.caller().await).await.expect("the server lives");
    }
}

async fn version(caller: &mut Caller<UnixStream>) -> Result<String, CallError> {
    let answer = soon(caller.call(hypervisor::SERVICE, "Version", Bytes::new())).await?;
    Ok(VersionResponse::decode(answer).expect("message").version)
}

/// A peer that speaks frames.
struct Raw {
    reader: FrameReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Raw {
    async fn send(&mut self, stream: u32, method: &str, message: &impl Message, nano: i64) {
        let request = Request {
            service: hypervisor::SERVICE.into(),
            method: method.into(),
            payload: message.encode_to_vec().into(),
            timeout_nano: nano,
            ..Request::default()
        };
        request.frame(stream, 0).write(&mut self.write).await.expect("write");
    }

    async fn start(&mut self, stream: u32, id: &str, nano: i64) {
        self.send(stream, "StartVM", &StartVmRequest { id: id.into() }, nano).await;
    }

    async fn stop(&mut self, stream: u32, id: &str, nano: i64) {
        self.send(stream, "StopVM", &StopVmRequest { id: id.into() }, nano).await;
    }

    /// Stream, code and message of the next answer; `None` when the server has closed.
    async fn answer(&mut self) -> Option<(u32, i32, String)> {
        let frame = soon(self.reader.next()).await.ok().flatten()?;
        assert_eq!(frame.kind, Kind::Response);
        let status = Response::decode(frame.payload).expect("response").status.unwrap_or_default();
        Some((frame.stream, status.code, status.message))
    }

    async fn code(&mut self) -> Option<(u32, i32)> {
        self.answer().await.map(|(stream, code, _)| (stream, code))
    }
}

fn refusal(error: CallError) -> (i32, String) {
    match error {
        CallError::Refused { code, message, .. } => (code, message),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_call_arrives_and_is_answered() {
    let mut edge = Edge::new(Limits::default());
    let mut caller = edge.caller().await;
    let create = CreateVmRequest {
        id: "c1".into(),
        network_namespace_path: "/run/netns/x".into(),
        ..CreateVmRequest::default()
    };
    let answer = caller.call(hypervisor::SERVICE, "CreateVM", create.encode_to_vec().into());
    let answer = CreateVmResponse::decode(soon(answer).await.expect("create")).expect("message");
    assert_eq!(answer.agent_socket_path, "/pods/c1/agent.ttrpc");
    assert_eq!(edge.event().await, "create c1 /run/netns/x");

    let id = Bytes::from(StartVmRequest { id: "c1".into() }.encode_to_vec());
    soon(caller.call(hypervisor::SERVICE, "StartVM", id.clone())).await.expect("start");
    assert_eq!(edge.event().await, "start c1 None");
    soon(caller.call(hypervisor::SERVICE, "StopVM", id)).await.expect("stop");
    assert_eq!(edge.event().await, "stop c1");
    assert_eq!(version(&mut caller).await.expect("version"), "0.0.0");

    let info = GetInfoRequest { pod_name: "web".into(), pod_namespace: "ns".into(), wait: true };
    let answer = caller.call(podvminfo::SERVICE, "GetInfo", info.encode_to_vec().into());
    let answer = GetInfoResponse::decode(soon(answer).await.expect("info")).expect("message");
    assert_eq!(answer.vmid, "i-0123");
    assert_eq!(edge.event().await, "info ns web true");
}

#[tokio::test]
async fn answers_come_as_they_are_ready() {
    let mut edge = Edge::new(Limits::default());
    let mut raw = edge.raw().await;
    raw.start(1, "hang", 0).await;
    assert_eq!(edge.event().await, "start hang None");
    raw.stop(3, "c2", 0).await;
    assert_eq!(raw.code().await, Some((3, 0)));
    edge.scripted.go.notify_one();
    assert_eq!(raw.code().await, Some((1, 0)));
    raw.stop(1, "c3", 0).await;
    assert_eq!(raw.code().await, Some((1, 0)), "an answered stream may come again, as in a replay");
}

#[tokio::test]
async fn a_start_is_told_the_time_its_caller_has_left() {
    let mut edge = Edge::new(Limits::default());
    let mut raw = edge.raw().await;
    let day = Duration::from_secs(86_400);
    let cases = [
        (0, None),
        (10_000_000_000_000, Some(Duration::from_secs(10_000))),
        (i64::MAX, Some(day)),
        (-1, Some(Duration::ZERO)),
        (i64::MIN, Some(Duration::ZERO)),
    ];
    for (stream, (nano, left)) in (1..).step_by(2).zip(cases) {
        raw.start(stream, "c1", nano).await;
        assert_eq!(edge.event().await, format!("start c1 {left:?}"));
        assert_eq!(raw.code().await, Some((stream, 0)));
    }
    raw.start(11, "hang", 1).await;
    edge.event().await;
    let create = CreateVmRequest { id: "hang-create".into(), ..CreateVmRequest::default() };
    raw.send(13, "CreateVM", &create, 20_000_000).await;
    assert_eq!(raw.code().await, Some((13, 4)), "long after the nanosecond of the start");
    edge.scripted.go.notify_one();
    assert_eq!(raw.code().await, Some((11, 0)), "keeping it is not the edge's affair");
}

#[tokio::test]
async fn a_deadline_ends_a_create_and_a_question_but_never_a_stop() {
    let mut edge = Edge::new(Limits::default());
    let mut raw = edge.raw().await;
    raw.stop(1, "hang-stop", 1).await;
    assert_eq!(edge.event().await, "stop hang-stop");
    let create = CreateVmRequest { id: "hang-create".into(), ..CreateVmRequest::default() };
    raw.send(3, "CreateVM", &create, 1_000_000).await;
    assert_eq!(raw.code().await, Some((3, 4)));
    assert_eq!(edge.event().await, "create hang-create ");
    assert_eq!(edge.event().await, "hang-create dropped, shutdown false");

    let info = GetInfoRequest { pod_name: "hang-pod".into(), wait: true, ..Default::default() };
    let request = Request {
        service: podvminfo::SERVICE.into(),
        method: "GetInfo".into(),
        payload: info.encode_to_vec().into(),
        timeout_nano: 1_000_000,
        ..Request::default()
    };
    request.frame(5, 0).write(&mut raw.write).await.expect("write");
    assert_eq!(raw.code().await, Some((5, 4)));

    edge.scripted.go.notify_one();
    assert_eq!(raw.code().await, Some((1, 0)), "the stop went on");
}

#[tokio::test]
async fn a_caller_that_goes_takes_its_requests_along_and_nobody_elses() {
    let mut edge = Edge::new(Limits::default());
    let (mut goes, mut stays) = (edge.raw().await, edge.raw().await);
    goes.start(1, "hang-goes", 0).await;
    edge.event().await;
    stays.start(1, "hang-stays", 0).await;
    edge.event().await;
    drop(goes);
    assert_eq!(edge.event().await, "hang-goes dropped, shutdown false");
    edge.scripted.go.notify_waiters();
    assert_eq!(stays.code().await, Some((1, 0)));
}

#[tokio::test]
async fn our_shutdown_answers_nothing_and_drops_only_after_it_was_told() {
    let mut edge = Edge::new(Limits::default());
    let (mut hangs, mut fails) = (edge.raw().await, edge.raw().await);
    hangs.start(1, "hang", 0).await;
    edge.event().await;
    fails.start(1, "until-shutdown", 0).await;
    edge.event().await;
    edge.shutdown.cancel();
    assert_eq!(hangs.answer().await, None, "closed without an answer");
    assert_eq!(fails.answer().await, None, "an error that comes of our ending is not passed on");
    assert_eq!(edge.event().await, "hang dropped, shutdown true");
    soon(edge.tracker.finished()).await;
}

#[tokio::test]
async fn what_is_not_served_is_unimplemented() {
    let edge = Edge::new(Limits::default());
    let mut caller = edge.caller().await;
    for (service, method) in [
        (hypervisor::SERVICE, "Pause"),
        ("grpc.Health", "Check"),
        (podvminfo::SERVICE, "StartVM"),
        ("", ""),
    ] {
        let error = soon(caller.call(service, method, Bytes::new())).await.expect_err("refused");
        assert_eq!(refusal(error).0, 12, "{service}/{method}");
    }
    version(&mut caller).await.expect("the connection goes on");
}

#[tokio::test]
async fn what_does_not_parse_is_invalid_on_its_own_stream() {
    let edge = Edge::new(Limits::default());
    let mut raw = edge.raw().await;
    let junk = Bytes::from_static(b"\x0a\xff\xff");
    let frame = Frame { stream: 5, kind: Kind::Request, flags: 0, payload: junk.clone() };
    frame.write(&mut raw.write).await.expect("write");
    assert_eq!(raw.code().await, Some((5, 3)), "no ttrpc request");
    let request = Request {
        service: hypervisor::SERVICE.into(),
        method: "CreateVM".into(),
        payload: junk,
        ..Request::default()
    };
    request.frame(7, 0).write(&mut raw.write).await.expect("write");
    let (stream, code, words) = raw.answer().await.expect("answer");
    assert_eq!((stream, code), (7, 3));
    assert!(words.contains("CreateVM"), "{words}");

    let data = Frame { stream: 9, kind: Kind::Data, flags: 0, payload: Bytes::new() };
    data.write(&mut raw.write).await.expect("write");
    assert_eq!(raw.code().await, Some((9, 3)), "nothing takes data");
    raw.stop(2, "c1", 0).await;
    assert_eq!(raw.code().await, Some((2, 3)), "an even stream");
    raw.stop(11, "c1", 0).await;
    assert_eq!(raw.code().await, Some((11, 0)), "the connection goes on");
}

fn header(length: u32, stream: u32, kind: u8) -> Vec<u8> {
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0]].concat()
}

#[tokio::test]
async fn a_violation_closes_its_connection_and_not_the_server() {
    let limits = Limits { stall: Duration::from_millis(50), ..Limits::default() };
    let log = Log::default();
    let _guard = log.install();
    let edge = Edge::new(limits);
    let violations: [(&[u8], &str); 6] = [
        (&header(u32::MAX, 1, 1), "4294967295 bytes announced"),
        (&header(0, 1, 9), "unknown type 9"),
        (&header(0, 0, 1), "stream 0"),
        (&header(0, 3, 2), "a response on stream 3"),
        (&[0, 0, 0], "the rest of a frame did not come"),
        (&[&header(9, 1, 1)[..], b"xy"].concat(), "the rest of a frame did not come"),
    ];
    for (bytes, reason) in violations {
        let mut stream = edge.stream().await;
        stream.write_all(bytes).await.expect("write");
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.expect("closed");
        assert_eq!(rest, b"", "{reason}");
        assert!(log.text().contains(reason), "{reason} is not in\n{}", log.text());
        edge.lives().await;
    }
}

#[tokio::test]
async fn a_stream_that_is_used_twice_at_a_time_closes_the_connection() {
    let mut edge = Edge::new(Limits::default());
    let mut raw = edge.raw().await;
    raw.start(1, "hang", 0).await;
    edge.event().await;
    raw.start(1, "hang", 0).await;
    assert_eq!(raw.answer().await, None);
    assert_eq!(edge.event().await, "hang dropped, shutdown false");
    edge.lives().await;
}

#[tokio::test]
async fn every_kind_of_failure_has_its_code_and_keeps_its_words() {
    let edge = Edge::new(Limits::default());
    let mut raw = edge.raw().await;
    for (stream, (name, kind, code)) in (1..).step_by(2).zip(KINDS) {
        raw.start(stream, name, 0).await;
        let words = format!("because it is {name}");
        assert_eq!(raw.answer().await, Some((stream, code, words)), "{kind:?}");
    }
}

#[tokio::test]
async fn a_handler_that_panics_is_an_internal_error_of_one_request() {
    let edge = Edge::new(Limits::default());
    let mut raw = edge.raw().await;
    raw.start(1, "panic", 0).await;
    assert_eq!(raw.code().await, Some((1, 13)));
    raw.stop(3, "c1", 0).await;
    assert_eq!(raw.code().await, Some((3, 0)));
}

#[tokio::test]
async fn another_user_is_not_served() {
    const OTHER: nix::libc::uid_t = 65_534;
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP another_user_is_not_served: only root can become another user");
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let edge = Edge::new(Limits::default());
    for path in [edge.dir.path(), &edge.socket()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    }
    let path = edge.socket();
    let connected = std::thread::spawn(move || {
        // SAFETY: the bare system call changes the ids of this thread alone, and it ends here.
        let done = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, OTHER, OTHER, OTHER) };
        assert_eq!(done, 0);
        let stream = std::os::unix::net::UnixStream::connect(path).expect("connect");
        stream.set_nonblocking(true).expect("nonblocking");
        stream
    });
    let stream = connected.join().expect("connected");
    let mut caller = Caller::new(UnixStream::from_std(stream).expect("stream"));
    version(&mut caller).await.expect_err("not served");
    edge.lives().await;
}

#[tokio::test]
async fn the_log_names_call_sandbox_and_cause_once() {
    let log = Log::default();
    let _guard = log.install();
    let edge = Edge::new(Limits::default());
    edge.scripted.failures.lock().expect("lock").insert("c1\n", FailureKind::Internal);
    let mut raw = edge.raw().await;
    raw.start(1, "c1\n", 0).await;
    assert_eq!(raw.code().await, Some((1, 13)));
    let text = log.text();
    let lines: Vec<_> = text.lines().filter(|l| l.contains("because it is c1")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(lines[0].contains("call=\"StartVM\"") && lines[0].contains("sandbox=\"c1\u{fffd}\""));
}

#[test]
fn causes_are_said_once() {
    #[derive(Debug, thiserror::Error)]
    #[error("no route")]
    struct Inner;
    #[derive(Debug, thiserror::Error)]
    #[error("dialling: {0}")]
    struct Says(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("starting")]
    struct Outer(#[source] Says);
    assert_eq!(chain(&Outer(Says(Inner))), "starting: dialling: no route");
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let failure = Failure::new(FailureKind::Internal, format!("x{}", "é".repeat(4096)));
    let status = failure.response().status.expect("status");
    assert_eq!(status.message.len(), 4095);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hostile_bytes_never_end_the_server(
        junk in proptest::collection::vec(any::<u8>(), 0..200),
        payload in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let edge = Edge::new(Limits { stall: Duration::from_millis(5), ..Limits::default() });
            for bytes in [&junk, &[&header(payload.len() as u32, 1, 1)[..], &payload].concat()] {
                let mut stream = edge.stream().await;
                stream.write_all(bytes).await.ok();
                stream.shutdown().await.ok();
                let mut rest = Vec::new();
                soon(stream.read_to_end(&mut rest)).await.ok();
            }
            edge.lives().await;
        });
    }
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn install(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        crate::telemetry::let_every_line_be_heard();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
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
