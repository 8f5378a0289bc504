//! The edge through a real socket: calls as shims make them, and frames as nobody should.

mod bounds;
mod edge;

use bytes::Bytes;
use peerpod_tunnel::link::call::Caller;
use peerpod_tunnel::link::frame::{Frame, Kind, Request};
use proptest::prelude::*;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::proto::hypervisor::{self, CreateVmResponse, StartVmRequest};
use crate::proto::podvminfo::{self, GetInfoRequest, GetInfoResponse};

use edge::*;

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
