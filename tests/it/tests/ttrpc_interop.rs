//! The hypervisor socket under the client that the Rust shim is built on: the `ttrpc` crate's.
#![allow(missing_docs, reason = "a test")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpodd::hypervisor::{Failure, FailureKind, Limits, Sandboxes, serve};
use peerpodd::proto::hypervisor::{
    self, CreateVmRequest, CreateVmResponse, StartVmRequest, StopVmRequest, VersionResponse,
};
use peerpodd::proto::podvminfo::{self, GetInfoRequest, GetInfoResponse};
use peerpodd::shutdown::Shutdown;
use prost::Message;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::Notify;
use ttrpc::Code;
use ttrpc::asynchronous::Client;

/// Long enough for anything that happens at once on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Fails as the id says, `hang` until released.
#[derive(Default)]
struct Small {
    go: Notify,
}

const FAILURES: [(&str, FailureKind, Code); 9] = [
    ("cancelled", FailureKind::Cancelled, Code::CANCELLED),
    ("invalid", FailureKind::Invalid, Code::INVALID_ARGUMENT),
    ("deadline", FailureKind::Deadline, Code::DEADLINE_EXCEEDED),
    ("not-found", FailureKind::NotFound, Code::NOT_FOUND),
    ("exhausted", FailureKind::Exhausted, Code::RESOURCE_EXHAUSTED),
    ("precondition", FailureKind::Precondition, Code::FAILED_PRECONDITION),
    ("unimplemented", FailureKind::Unimplemented, Code::UNIMPLEMENTED),
    ("internal", FailureKind::Internal, Code::INTERNAL),
    ("unavailable", FailureKind::Unavailable, Code::UNAVAILABLE),
];

#[async_trait]
impl Sandboxes for Small {
    async fn create(&self, request: CreateVmRequest) -> Result<String, Failure> {
        Ok(format!("/run/peerpod/pods/{}/agent.ttrpc", request.id))
    }

    async fn start(&self, id: &str, deadline: Option<Duration>) -> Result<(), Failure> {
        if let Some((name, kind, _)) = FAILURES.iter().find(|(name, ..)| *name == id) {
            return Err(Failure::new(*kind, format!("step {name}")));
        }
        if id == "hang" {
            self.go.notified().await;
        }
        match deadline {
            None => Ok(()),
            Some(left) => Err(Failure::new(FailureKind::Deadline, format!("had {left:?}"))),
        }
    }

    async fn stop(&self, _: &str) -> Result<(), Failure> {
        Ok(())
    }

    async fn vm_id(&self, _: &str, pod: &str, wait: bool) -> Result<String, Failure> {
        if wait {
            std::future::pending::<()>().await;
        }
        Ok(format!("vm-of-{pod}"))
    }
}

/// A server and a client of it.
struct Pair {
    client: Client,
    small: Arc<Small>,
    shutdown: Shutdown,
    _dir: TempDir,
}

impl Pair {
    async fn new() -> Self {
        let dir = TempDir::new().expect("dir");
        let path = dir.path().join("hypervisor.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let (small, shutdown) = (Arc::new(Small::default()), Shutdown::new());
        let sandboxes = Arc::clone(&small) as Arc<dyn Sandboxes>;
        let (token, tracker) = (shutdown.token(), shutdown.tracker());
        let served = serve(listener, sandboxes, Limits::default(), token, tracker.clone());
        tracker.spawn("hypervisor", served);
        let client = Client::connect(&format!("unix://{}", path.display())).await.expect("connect");
        Self { client, small, shutdown, _dir: dir }
    }

    async fn call(
        &self,
        service: &str,
        method: &str,
        message: &impl Message,
        timeout: Duration,
    ) -> ttrpc::Result<Vec<u8>> {
        let request = ttrpc::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: message.encode_to_vec(),
            timeout_nano: i64::try_from(timeout.as_nanos()).expect("timeout"),
            ..ttrpc::Request::default()
        };
        let answered = tokio::time::timeout(PATIENCE, self.client.request(request));
        answered.await.expect("in time").map(|response| response.payload)
    }

    async fn start(&self, id: &str) -> ttrpc::Result<Vec<u8>> {
        let message = StartVmRequest { id: id.to_owned() };
        self.call(hypervisor::SERVICE, "StartVM", &message, Duration::ZERO).await
    }
}

fn status(error: ttrpc::Error) -> (Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_rust_shims_calls_are_answered() {
    let pair = Pair::new().await;
    let service = hypervisor::SERVICE;
    let id = "0123456789abcdef".repeat(4);
    let create = CreateVmRequest { id: id.clone(), ..CreateVmRequest::default() };
    let answer = pair.call(service, "CreateVM", &create, Duration::ZERO).await.expect("create");
    let answer = CreateVmResponse::decode(&answer[..]).expect("message");
    assert_eq!(answer.agent_socket_path, format!("/run/peerpod/pods/{id}/agent.ttrpc"));

    pair.start(&id).await.expect("start");
    let stop = StopVmRequest { id: id.clone() };
    let second = Duration::from_secs(1);
    let burst = tokio::join!(
        pair.call(service, "StopVM", &stop, second),
        pair.call(service, "StopVM", &stop, second),
        pair.call(service, "StopVM", &stop, second),
    );
    for answer in [burst.0, burst.1, burst.2] {
        assert_eq!(answer.expect("stop"), b"");
    }
    let version = hypervisor::VersionRequest::default();
    let answer = pair.call(service, "Version", &version, Duration::ZERO).await.expect("version");
    assert_eq!(VersionResponse::decode(&answer[..]).expect("message").version, "0.0.0");
}

#[tokio::test]
async fn the_second_service_answers_on_the_same_connection() {
    let pair = Pair::new().await;
    let ask = |wait| GetInfoRequest { pod_name: "web".into(), pod_namespace: "ns".into(), wait };
    let answer = pair.call(podvminfo::SERVICE, "GetInfo", &ask(false), Duration::ZERO).await;
    let answer = GetInfoResponse::decode(&answer.expect("info")[..]).expect("message");
    assert_eq!(answer.vmid, "vm-of-web");
    let short = Duration::from_millis(20);
    let late = pair.call(podvminfo::SERVICE, "GetInfo", &ask(true), short).await;
    assert!(late.is_err(), "neither side waits past the deadline");
    pair.start("c1").await.expect("the connection goes on");
}

#[tokio::test]
async fn every_code_arrives_with_its_words() {
    let pair = Pair::new().await;
    for (name, _, code) in FAILURES {
        let error = pair.start(name).await.expect_err(name);
        assert_eq!(status(error), (code, format!("step {name}")));
    }
    let pause = StopVmRequest::default();
    let error = pair.call("hypervisor.Hypervisor", "Pause", &pause, Duration::ZERO).await;
    assert_eq!(status(error.expect_err("unknown")).0, Code::UNIMPLEMENTED);
    let error = pair.call("grpc.Health", "Check", &pause, Duration::ZERO).await;
    assert_eq!(status(error.expect_err("unknown")).0, Code::UNIMPLEMENTED);
}

#[tokio::test]
async fn the_rust_shims_ten_thousand_seconds_arrive_as_such() {
    let pair = Pair::new().await;
    let message = StartVmRequest { id: "c1".to_owned() };
    let left = Duration::from_secs(10_000);
    let error = pair.call(hypervisor::SERVICE, "StartVM", &message, left).await;
    let wanted = (Code::DEADLINE_EXCEEDED, "had 10000s".to_owned());
    assert_eq!(status(error.expect_err("the stand-in says what it had")), wanted);
}

#[tokio::test]
async fn a_stop_is_answered_while_a_start_still_runs() {
    let pair = Pair::new().await;
    let stop_then_go = async {
        let stop = StopVmRequest { id: "hang".to_owned() };
        let stopped = pair.call(hypervisor::SERVICE, "StopVM", &stop, Duration::from_secs(1)).await;
        stopped.expect("answered first");
        pair.small.go.notify_one();
    };
    let (started, ()) = tokio::join!(pair.start("hang"), stop_then_go);
    started.expect("answered last");
}

#[tokio::test]
async fn our_end_is_a_closed_connection_and_no_failed_call() {
    let pair = Pair::new().await;
    let end = async {
        // Queued behind the start on the same connection, so the start has arrived.
        pair.start("c1").await.expect("start");
        pair.shutdown.drain(PATIENCE).await
    };
    let (started, left) = tokio::join!(pair.start("hang"), end);
    assert!(left.is_empty(), "{left:?}");
    let error = started.expect_err("not answered");
    assert!(!matches!(error, ttrpc::Error::RpcStatus(_)), "{error}");
}
