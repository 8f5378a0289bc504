//! The control API and its client.

use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::proto::relay as proto;
use proto::relay_client::RelayClient as Api;

/// The API without our client around it.
pub(super) async fn raw(dir: &Path) -> Api<Channel> {
    let path = dir.join("control.sock");
    let dial = tower::service_fn(move |_: tonic::transport::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://test.invalid");
    Api::new(endpoint.connect_with_connector(dial).await.expect("control socket"))
}

pub(super) async fn attach(
    api: &mut Api<Channel>,
    node_socket: &Path,
) -> (mpsc::Sender<proto::FromNode>, Streaming<proto::ToNode>) {
    let (say, said) = mpsc::channel(8);
    let attached = proto::Attached {
        oldest: 0,
        api: proto::API,
        build: "raw".to_owned(),
        node_socket: node_socket.to_str().expect("utf-8").to_owned(),
        instance: 77,
    };
    let first = proto::from_node::Message::Attached(attached);
    say.send(proto::FromNode { message: Some(first) }).await.expect("room");
    let hear = within(api.attach(ReceiverStream::new(said))).await.expect("attach").into_inner();
    (say, hear)
}

pub(super) async fn ready(say: &mpsc::Sender<proto::FromNode>) {
    let ready = proto::from_node::Message::Ready(proto::Ready {});
    say.send(proto::FromNode { message: Some(ready) }).await.expect("attached");
}

#[tokio::test]
async fn another_version_is_refused_by_name() {
    let bench = Bench::start().await;
    let mut api = raw(bench.dir.path()).await;
    let hello = proto::HelloRequest { api: proto::API + 1, build: "9.9".to_owned(), oldest: 0 };
    let refused = within(api.hello(hello)).await.expect_err("refused");
    let theirs = format!("version {}", proto::API + 1);
    for part in ["9.9", "build test", theirs.as_str()] {
        assert!(refused.message().contains(part), "{part}: {}", refused.message());
    }
    let hello = proto::HelloRequest { api: proto::API, build: "9.9".to_owned(), oldest: 0 };
    let reply = within(api.hello(hello)).await.expect("hello").into_inner();
    assert_eq!(reply.pid, std::process::id());
}

#[tokio::test]
async fn paths_outside_the_sandboxs_directory_are_refused() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    let pods = bench.dir.path().join("pods");
    let long = format!("{}/s1/{}", pods.display(), "a".repeat(107));
    std::fs::create_dir_all(bench.dir.path().join("elsewhere")).expect("directory");
    std::os::unix::fs::symlink(bench.dir.path().join("elsewhere"), pods.join("s9")).expect("link");
    let cases = [
        ("s1", bench.dir.path().join("agent.ttrpc")),
        ("s1", pods.join("agent.ttrpc")),
        ("s1", pods.join("s2/agent.ttrpc")),
        ("s1", pods.join("s1/../s2/agent.ttrpc")),
        ("s1", pods.join("s1/./agent.ttrpc")),
        ("s1", pods.join("s1//agent.ttrpc")),
        ("s1", pods.join("s1/deeper/agent.ttrpc")),
        ("s1", pods.join("s1/..")),
        ("s1", pods.join("s1")),
        ("s1", PathBuf::from("agent.ttrpc")),
        ("s1", PathBuf::from(long)),
        ("..", pods.join("../agent.ttrpc")),
        ("", pods.join("agent.ttrpc")),
        ("s9", pods.join("s9/agent.ttrpc")),
    ];
    for (sandbox, path) in cases {
        let opened = node.client.open(sandbox, &path, &[]).await;
        assert!(matches!(opened, Err(ControlError::Refused(_))), "{sandbox} {path:?}: {opened:?}");
    }
    assert_eq!(node.client.list().await, Ok(vec![]));
}

#[tokio::test]
async fn open_and_connect_may_be_repeated() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    for _ in 0..3 {
        bench.open(&node, "s1", &[]).await;
    }
    for _ in 0..3 {
        vm.connect(&node, "s1").await;
    }
    let mut shim = bench.agent("s1").await;
    echo(vm.accept().await);
    exchange(&mut shim, b"x").await;
    assert!(vm.accepted.try_recv().is_err(), "one link was made");
    let other = bench.dir.path().join("pods/s1/other");
    let moved = node.client.open("s1", &other, &[]).await;
    assert!(matches!(moved, Err(ControlError::Refused(_))), "{moved:?}");
}

#[tokio::test]
async fn errors_say_where_a_connect_failed() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    let unknown = vm.try_connect(&node, "s1", GIVE_UP).await;
    assert!(matches!(unknown, Err(ControlError::Refused(_))), "{unknown:?}");
    bench.open(&node, "s1", &[]).await;
    let stranger = Vm {
        tls: certificates().client,
        ..Vm::start_at("127.0.0.1:0".parse().expect("address"), certificates()).await
    };
    let tls = stranger.try_connect(&node, "s1", GIVE_UP).await;
    assert!(matches!(tls, Err(ControlError::Tls(_))), "{tls:?}");
    vm.stop_listening().await;
    let away = vm.try_connect(&node, "s1", GIVE_UP).await;
    let Err(ControlError::Unreachable(why)) = &away else { panic!("{away:?}") };
    assert!(why.contains("refused"), "{why}");
    assert!(away.is_err_and(|e| e.may_pass()));
    // A port that accepts and then says nothing, as a VM that hangs.
    let mute = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = mute.local_addr().expect("address");
    let late = within(node.client.connect("s1", address, Some(&vm.tls), GIVE_UP)).await;
    assert!(matches!(late, Err(ControlError::Unreachable(_))), "{late:?}");
    assert_eq!(node.held("s1").await.state, "listening");
}

#[tokio::test]
async fn one_slow_connect_delays_no_other_sandbox() {
    let (bench, vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    bench.open(&node, "slow", &[]).await;
    bench.open(&node, "quick", &[]).await;
    let mute = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = mute.local_addr().expect("address");
    let slow = node.client.connect("slow", address, Some(&vm.tls), GIVE_UP);
    let quick = vm.connect(&node, "quick");
    tokio::select! {
        biased;
        slow = slow => panic!("the slow one was first: {slow:?}"),
        () = quick => {}
    }
}

#[tokio::test]
async fn the_newer_of_two_node_processes_stays() {
    let bench = Bench::start().await;
    let mut api = raw(bench.dir.path()).await;
    let (_say, mut hear) = attach(&mut api, &bench.dir.path().join("node.sock")).await;
    within(hear.message()).await.expect("stream").expect("Pending");
    let mut newer = bench.node().await;
    let end = within(hear.message()).await.expect_err("the older one is told");
    assert!(end.message().contains("another node process attached"), "{end:?}");
    bench.open(&newer, "s1", &[]).await;
    assert!(newer.events.try_recv().is_err());
}

#[tokio::test]
async fn a_call_waits_for_a_relay_that_is_being_restarted() {
    let bench = Bench::start().await;
    let (mut node, _) = Node::start(bench.dir.path()).await;
    let Event::Attached { epoch, .. } = node.event().await else { panic!("Attached") };
    bench.open(&node, "s1", &[]).await;
    let path = bench.agent_path("s1");
    let dir = bench.stop().await;
    assert!(!path.exists(), "a relay that ends leaves no socket");
    assert_eq!(node.event().await, Event::Lost);
    let restart = async { Bench::start_in(dir).await };
    let (opened, _bench) = tokio::join!(node.client.open("s1", &path, &[]), restart);
    opened.expect("it waited");
    let Event::Attached { epoch: later, .. } = node.event().await else { panic!("Attached") };
    assert_ne!(epoch, later);
    assert!(path.exists());
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_away_is_said_to_be_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (node, _) = Node::start(dir.path()).await;
    let begin = tokio::time::Instant::now();
    let away = node.client.list().await;
    let Err(ControlError::Away(why)) = away else { panic!("{away:?}") };
    assert!(why.contains("control.sock") && why.contains("No such file"), "{why}");
    assert_eq!(begin.elapsed().as_secs(), 5);
}
