//! Requests that the node process edits on their way to the VM.

use super::*;
use crate::relay::hub::Hub;
use crate::relay::link::Link;
use crate::relay::pipe::End;
use crate::relay::pod::Pod;

const AGENT: &str = "grpc.AgentService";

struct Joined {
    bench: Bench,
    node: Node,
    shim: Peer<UnixStream>,
    agent: Peer<TlsStream<TcpStream>>,
    _vm: Vm,
}

async fn joined() -> Joined {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    bench.open(&node, "s1", &["CreateContainer"]).await;
    vm.connect(&node, "s1").await;
    let shim = Peer::new(bench.agent("s1").await);
    let agent = Peer::new(vm.accept().await);
    Joined { bench, node, shim, agent, _vm: vm }
}

async fn edit(node: &mut Node) -> (u64, Bytes) {
    match node.event().await {
        Event::Edit { ticket, sandbox, method, payload: Payload(payload) } => {
            assert_eq!((sandbox.as_str(), method.as_str()), ("s1", "CreateContainer"));
            (ticket, payload)
        }
        other => panic!("Edit, not {other:?}"),
    }
}

#[tokio::test]
async fn an_edit_at_an_older_relay_is_asked_for_again_by_each_next_one() {
    let Joined { bench, mut node, mut shim, mut agent, .. } = joined().await;
    shim.send(&call(1, AGENT, "CreateContainer", "before")).await;
    edit(&mut node).await;
    let second = bench.successor().await;
    node.attached_again().await;
    edit(&mut node).await;
    let third = bench.successor().await;
    node.attached_again().await;
    let (ticket, payload) = edit(&mut node).await;
    assert_eq!(payload, "before");
    node.client.edited(ticket, Ok(Bytes::from_static(b"after"))).await.expect("edited");
    let edited = Request::parse(&agent.frame().await.payload).expect("request");
    assert_eq!(edited.payload, "after");
    drop(shim);
    let _dir = bench.ended().await;
    within(second.serving).await.expect("join").expect("it holds nothing");
    third.stop().await;
}

#[tokio::test]
async fn a_request_is_edited_while_others_go_by() {
    let Joined { bench: _bench, mut node, mut shim, mut agent, .. } = joined().await;
    let mut create = call(1, AGENT, "CreateContainer", "before");
    // A field of a newer ttrpc, which must stay.
    let mut newer = create.payload.to_vec();
    peerpod_tunnel::link::wire::put(&mut newer, 99, b"newer");
    create.payload = newer.into();
    shim.send(&create).await;
    let (ticket, payload) = edit(&mut node).await;
    assert_eq!(payload, "before");

    let check = call(3, "grpc.Health", "Check", "");
    shim.send(&check).await;
    assert_eq!(agent.frame().await, check, "another stream does not wait");
    agent.send(&answer(3, "fine")).await;
    assert_eq!(shim.frame().await, answer(3, "fine"));

    node.client.edited(ticket, Ok(Bytes::from_static(b"after"))).await.expect("edited");
    let edited = agent.frame().await;
    let request = Request::parse(&edited.payload).expect("request");
    assert_eq!((edited.stream, request.method.as_str()), (1, "CreateContainer"));
    assert_eq!((&request.payload[..], request.timeout_nano), (&b"after"[..], 7));
    assert_eq!(peerpod_tunnel::link::wire::text(&edited.payload, 99), Some("newer"));
    agent.send(&answer(1, "created")).await;
    assert_eq!(shim.frame().await, answer(1, "created"));
}

#[tokio::test]
async fn a_refused_edit_is_the_shims_answer_and_the_vm_hears_nothing() {
    let Joined { bench: _bench, mut node, mut shim, mut agent, .. } = joined().await;
    shim.send(&call(1, AGENT, "CreateContainer", "x")).await;
    let (ticket, _) = edit(&mut node).await;
    let why = Err("volume vol-1 is attached elsewhere".to_owned());
    node.client.edited(ticket, why).await.expect("edited");
    let refused = shim.frame().await;
    let status = parse_response(&refused).status.expect("status");
    assert_eq!((refused.stream, status.code), (1, 9));
    assert_eq!(status.message, "volume vol-1 is attached elsewhere");
    let next = call(3, AGENT, "StartContainer", "y");
    shim.send(&next).await;
    assert_eq!(agent.frame().await, next);
}

#[tokio::test]
async fn an_edit_waits_for_the_next_node_process() {
    let Joined { bench, mut node, mut shim, mut agent, .. } = joined().await;
    shim.send(&call(1, AGENT, "CreateContainer", "one")).await;
    let (old_ticket, _) = edit(&mut node).await;
    node.kill();
    shim.send(&call(3, AGENT, "CreateContainer", "two")).await;
    shim.send(&call(5, AGENT, "StatsContainer", "")).await;
    assert_eq!(agent.frame().await.stream, 5);

    let mut next = bench.node().await;
    let (first, payload) = edit(&mut next).await;
    assert_eq!((first, payload), (old_ticket, Bytes::from_static(b"one")));
    let (second, payload) = edit(&mut next).await;
    assert_eq!(payload, "two");
    next.client.edited(second, Ok(Bytes::from_static(b"2"))).await.expect("edited");
    assert_eq!(agent.frame().await.stream, 3);
    next.client.edited(first, Ok(Bytes::new())).await.expect("edited");
    assert_eq!(agent.frame().await.stream, 1);
    // Nobody waits for it any more.
    next.client.edited(first, Ok(Bytes::new())).await.expect("ignored");
}

#[tokio::test]
async fn an_edit_that_makes_a_request_too_long_is_refused() {
    let Joined { bench: _bench, mut node, mut shim, agent: _agent, .. } = joined().await;
    shim.send(&call(1, AGENT, "CreateContainer", "x")).await;
    let (ticket, _) = edit(&mut node).await;
    node.client.edited(ticket, Ok(vec![0; 4 << 20].into())).await.expect("edited");
    let status = parse_response(&shim.frame().await).status.expect("status");
    assert!(status.message.contains("limit"), "{}", status.message);
}

#[tokio::test]
async fn ends_pass_and_frames_stay_whole_here_too() {
    let Joined { bench: _bench, node, mut shim, mut agent, .. } = joined().await;
    let big = answer(1, vec![7; 3 << 20]);
    shim.send(&call(1, AGENT, "Big", "")).await;
    agent.frame().await;
    agent.send(&big).await;
    let mut wire = bytes::BytesMut::new();
    answer(3, vec![1; 100_000]).put(&mut wire);
    agent.writer.write_all(&wire[..50_000]).await.expect("half of it");
    agent.writer.flush().await.expect("flush");
    drop(agent);
    assert_eq!(shim.frame().await, big);
    assert_eq!(shim.next().await, None, "half a frame is not passed on");

    let Joined { bench: _bench, shim, mut agent, node: other, .. } = joined().await;
    drop(node);
    let mut shim = shim;
    shim.send(&call(1, AGENT, "x", "")).await;
    agent.frame().await;
    drop(shim);
    assert_eq!(agent.next().await, None);
    other.held_until("s1", |held| held.agent_connections == 0).await;
}

#[tokio::test]
async fn a_half_closed_connection_still_gets_its_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let link = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
    let mut agent = Peer::new(listener.accept().await.expect("accept").0);
    let (shim, relay) = UnixStream::pair().expect("pair");
    let mut shim = Peer::new(shim);
    let pod = Pod::new("s1".to_owned(), PathBuf::new(), vec!["CreateContainer".to_owned()]);
    // Not through a whole relay, so that a panic of this task is seen.
    let joined = tokio::spawn(async move {
        crate::relay::edit::join(&pod, &Hub::new(1), relay, Link::Plain(link)).await
    });
    shim.send(&call(1, AGENT, "x", "")).await;
    shim.writer.shutdown().await.expect("half-close");
    agent.frame().await;
    assert_eq!(agent.next().await, None);
    agent.send(&answer(1, "late")).await;
    assert_eq!(shim.frame().await, answer(1, "late"));
    drop(shim);
    let end = within(joined).await.expect("no panic");
    assert!(matches!(end, End::Shim), "the VM's side is still open: {end:?}");
}

/// A relay's edit path between a shim and a VM without TLS, in a time of its own.
async fn stalled(who: impl AsyncFnOnce(UnixStream, TcpStream)) -> End {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let link = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
    let (vm, _) = listener.accept().await.expect("accept");
    let (shim, relay) = UnixStream::pair().expect("pair");
    let pod = Pod::new("s1".to_owned(), PathBuf::new(), Vec::new());
    let hub = Hub::new(1);
    let (end, ()) =
        tokio::join!(crate::relay::edit::join(&pod, &hub, relay, Link::Plain(link)), who(shim, vm));
    end
}

#[tokio::test(start_paused = true)]
async fn half_a_frame_and_silence_ends_the_connection_on_either_side() {
    let half = [0, 0, 0, 9, 0, 0];
    let end = stalled(async |mut shim, vm| {
        shim.write_all(&half).await.expect("write");
        assert_eq!(shim.read(&mut [0]).await.expect("closed"), 0);
        drop(vm);
    });
    let begin = tokio::time::Instant::now();
    assert!(matches!(end.await, End::Shim));
    assert_eq!(begin.elapsed().as_secs(), 30);
    let end = stalled(async |shim, mut vm| {
        vm.write_all(&half).await.expect("write");
        assert_eq!(vm.read(&mut [0]).await.expect("closed"), 0);
        drop(shim);
    });
    match end.await {
        End::Vm(Some(error)) => assert!(error.to_string().contains("30"), "{error}"),
        end => panic!("the VM stalls: {end:?}"),
    }
}
