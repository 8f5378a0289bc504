//! Calls on the hypervisor socket, and node processes that die under them.

use peerpod_tunnel::link::strangers::Crowd;

use super::*;
use crate::relay::hub::Hub;

#[tokio::test]
async fn frames_pass_as_they_are_whatever_they_call() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    let mut shim = bench.hypervisor().await;
    let mut strange = call(5, "some.Future", "Unheard", vec![0x0a, 0x02, b'h', b'i']);
    strange.flags = 0x2;
    let info = call(7, crate::proto::podvminfo::SERVICE, "GetInfo", "");
    for frame in [&hypervisor_call(1, "StartVM", "s1"), &strange, &info] {
        shim.send(frame).await;
    }
    let mut there = node.accept().await;
    assert_eq!(there.frame().await, hypervisor_call(1, "StartVM", "s1"));
    assert_eq!(there.frame().await, strange);
    assert_eq!(there.frame().await, info);
    // Answers in another order, one of them big.
    let big = answer(7, vec![3; 3 << 20]);
    for frame in [&big, &answer(1, ""), &Response::error(12, "no such call").frame(5)] {
        there.send(frame).await;
    }
    assert_eq!(shim.frame().await, big);
    assert_eq!(shim.frame().await.stream, 1);
    assert_eq!(parse_response(&shim.frame().await).status.expect("status").code, 12);
    drop(shim);
    assert_eq!(there.next().await, None, "the node's connection closes with the shim's");
}

#[tokio::test]
async fn a_call_outlives_the_node_process_that_took_it() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(1, "CreateVM", "s1")).await;
    let mut there = node.accept().await;
    there.frame().await;
    there.send(&answer(1, "/path")).await;
    shim.frame().await;
    shim.send(&hypervisor_call(3, "StartVM", "s1")).await;
    assert_eq!(there.frame().await.stream, 3);
    drop(there);
    node.kill();
    // While nobody is there, the shim goes on talking.
    shim.send(&hypervisor_call(5, "StopVM", "s1")).await;

    let (mut next, attaching) = Node::start(bench.dir.path()).await;
    let pending = next.pending(attaching).await;
    let of = |method: &str| ("s1".to_owned(), method.to_owned());
    assert!(pending.starts_with(&[of("StartVM")]), "{pending:?}");
    assert!(!pending.contains(&of("CreateVM")), "it was answered: {pending:?}");
    let mut there = next.accept().await;
    assert_eq!(there.frame().await, hypervisor_call(3, "StartVM", "s1"));
    assert_eq!(there.frame().await, hypervisor_call(5, "StopVM", "s1"));
    there.send(&answer(3, "started")).await;
    there.send(&answer(5, "stopped")).await;
    assert_eq!(shim.frame().await, answer(3, "started"));
    assert_eq!(shim.frame().await, answer(5, "stopped"));
    let totals = eventually(async || {
        Some(next.client.totals().await.expect("totals")).filter(|t| t.requests_held == 0)
    })
    .await;
    assert_eq!(totals.requests, 3);
    // Two if the relay wrote the StopVM into the dead connection before it saw that it was dead.
    assert!((1..=2).contains(&totals.requests_replayed), "{totals:?}");
}

#[tokio::test]
async fn what_is_pending_is_told_in_the_order_in_which_it_came() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    let mut shims = Vec::new();
    for sandbox in ["s2", "s3", "s1"] {
        let mut shim = bench.hypervisor().await;
        shim.send(&hypervisor_call(1, "CreateVM", sandbox)).await;
        node.accept().await.frame().await;
        shims.push(shim);
    }
    node.kill();
    let (mut next, attaching) = Node::start(bench.dir.path()).await;
    let of = |sandbox: &str| (sandbox.to_owned(), "CreateVM".to_owned());
    assert_eq!(next.pending(attaching).await, [of("s2"), of("s3"), of("s1")]);
}

#[tokio::test]
async fn nothing_reaches_the_node_before_it_knows_what_is_pending() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(3, "StartVM", "s1")).await;
    let mut there = node.accept().await;
    there.frame().await;
    drop(there);
    node.kill();

    // An attached node that has read Pending but has not said Ready.
    let mut api = control::raw(bench.dir.path()).await;
    let path = bench.dir.path().join("node.sock");
    std::fs::remove_file(&path).expect("the old node's");
    let socket = UnixListener::bind(&path).expect("node.sock");
    let (say, mut hear) = control::attach(&mut api, &path).await;
    let first = within(hear.message()).await.expect("stream").expect("message").message;
    let Some(crate::proto::relay::to_node::Message::Pending(pending)) = first else {
        panic!("Pending is first, not {first:?}");
    };
    assert_eq!(pending.calls.len(), 1);
    let early = tokio::time::timeout(Duration::from_millis(300), socket.accept()).await;
    assert!(early.is_err(), "a request came before Ready");
    control::ready(&say).await;
    let mut there = Peer::new(within(socket.accept()).await.expect("accept").0);
    assert_eq!(there.frame().await.stream, 3);
}

#[tokio::test]
async fn half_an_answer_never_reaches_the_shim() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(3, "StartVM", "s1")).await;
    let mut there = node.accept().await;
    there.frame().await;
    let mut wire = bytes::BytesMut::new();
    answer(3, vec![1; 100_000]).put(&mut wire);
    there.writer.write_all(&wire[..60_000]).await.expect("half of it");
    drop(there);
    node.kill();

    let (next, _) = Node::start(bench.dir.path()).await;
    let mut there = next.accept().await;
    assert_eq!(there.frame().await.stream, 3);
    there.send(&answer(3, "whole")).await;
    assert_eq!(shim.frame().await, answer(3, "whole"));
}

#[tokio::test]
async fn a_node_that_takes_over_gets_what_the_living_one_has_not_answered() {
    let bench = Bench::start().await;
    let mut old = bench.node().await;
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(3, "StartVM", "s1")).await;
    let mut there = old.accept().await;
    there.frame().await;
    let (new, _) = Node::start(bench.dir.path()).await;
    let mut here = new.accept().await;
    assert_eq!(here.frame().await.stream, 3);
    assert_eq!(there.next().await, None, "the old one's connection is closed");
    assert_eq!(old.event().await, Event::Lost);
    here.send(&answer(3, "new")).await;
    assert_eq!(shim.frame().await, answer(3, "new"));
}

#[tokio::test]
async fn reading_stops_when_too_much_waits_and_nothing_is_lost() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    // The node is attached but does not serve its socket yet.
    let path = bench.dir.path().join("node.sock");
    std::fs::remove_file(&path).expect("remove");
    let mut shim = bench.hypervisor().await;
    for n in 0..80 {
        shim.send(&hypervisor_call(2 * n + 1, "StartVM", "s1")).await;
    }
    let held = || async { node.client.totals().await.expect("totals").requests_held };
    eventually(async || Some(()).filter(|()| true).and(Some(held().await)).filter(|n| *n >= 64))
        .await;
    assert_eq!(held().await, 64);
    let socket = UnixListener::bind(&path).expect("node.sock");
    let mut there = Peer::new(within(socket.accept()).await.expect("accept").0);
    for n in 0..80 {
        assert_eq!(there.frame().await.stream, 2 * n + 1);
        there.send(&answer(2 * n + 1, "")).await;
        assert_eq!(shim.frame().await.stream, 2 * n + 1);
    }
}

#[test]
fn what_waits_is_bounded_in_bytes_too() {
    use futures_util::FutureExt;
    let queue = crate::relay::queue::Queue::default();
    let mut taken = 0;
    while queue.room().now_or_never().is_some() {
        queue.push(call(2 * taken + 1, "", "", vec![0; 3 << 20]), None, false);
        taken += 1;
    }
    assert_eq!(taken, 3, "MiB: 9 of 8");
}

#[tokio::test]
async fn a_shim_in_a_hurry_is_heard() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(5, "StopVM", "s1")).await;
    drop(shim);
    assert_eq!(node.accept().await.frame().await, hypervisor_call(5, "StopVM", "s1"));
}

/// Requests that wait for their answers, whether a node process is attached or not.
async fn held_requests(bench: &Bench) -> u64 {
    let mut api = control::raw(bench.dir.path()).await;
    let list = within(api.list(crate::proto::relay::ListRequest {})).await.expect("list");
    list.into_inner().totals.expect("totals").requests_held
}

async fn held_become(bench: &Bench, wanted: u64) {
    eventually(async || Some(held_requests(bench).await).filter(|n| *n == wanted)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_outlives_the_shim_that_asked_for_it_while_the_node_is_away() {
    let bench = Bench::start().await;
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(3, "StartVM", "s1")).await;
    shim.send(&hypervisor_call(5, "StopVM", "s1")).await;
    drop(shim);
    held_become(&bench, 2).await;
    tokio::time::sleep(Duration::from_secs(3)).await;

    let (mut node, attaching) = Node::start(bench.dir.path()).await;
    let of = |method: &str| ("s1".to_owned(), method.to_owned());
    assert_eq!(node.pending(attaching).await, [of("StopVM")], "nobody waits for the StartVM");
    let mut there = node.accept().await;
    assert_eq!(there.frame().await, hypervisor_call(5, "StopVM", "s1"));
    // That one dies as well.
    drop(there);
    node.kill();
    let (mut node, attaching) = Node::start(bench.dir.path()).await;
    assert_eq!(node.pending(attaching).await, [of("StopVM")]);
    let mut there = node.accept().await;
    assert_eq!(there.frame().await, hypervisor_call(5, "StopVM", "s1"));
    there.send(&answer(5, "stopped")).await;
    assert_eq!(there.next().await, None, "nothing is left to ask");
    held_become(&bench, 0).await;
}

#[tokio::test]
async fn a_stop_that_is_kept_is_no_sign_of_its_shim() {
    let (bench, vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut agent = bench.agent("s1").await;
    agent.write_all(b"x").await.expect("write");
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(5, "StopVM", "s1")).await;
    let connections = |held: &Held| (held.agent_connections, held.hypervisor_connections);
    node.held_until("s1", |held| connections(held) == (1, 1)).await;
    node.kill();
    drop((agent, shim));

    let (mut next, attaching) = Node::start(bench.dir.path()).await;
    assert_eq!(next.pending(attaching).await, [("s1".to_owned(), "StopVM".to_owned())]);
    assert_eq!(next.event().await, Event::ShimGone { sandbox: "s1".to_owned() });
    let mut there = next.accept().await;
    assert_eq!(there.frame().await.stream, 5);
    assert_eq!(connections(&next.held("s1").await), (0, 0));
}

#[tokio::test]
async fn an_answer_that_comes_too_late_for_its_shim_costs_no_stop() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(3, "StartVM", "s1")).await;
    shim.send(&hypervisor_call(5, "StopVM", "s1")).await;
    let mut there = node.accept().await;
    assert_eq!(there.frame().await.stream, 3);
    assert_eq!(there.frame().await.stream, 5);
    drop(shim);
    there.send(&answer(3, "started")).await;
    held_become(&bench, 1).await;
    drop(there);
    node.kill();
    let (mut next, attaching) = Node::start(bench.dir.path()).await;
    assert_eq!(next.pending(attaching).await, [("s1".to_owned(), "StopVM".to_owned())]);
    assert_eq!(next.accept().await.frame().await.stream, 5);
}

#[tokio::test(start_paused = true)]
async fn stops_of_closed_shims_are_bounded_in_number_length_and_time() {
    let bench = Bench::start().await;
    let mut shim = bench.hypervisor().await;
    let mut payload = prost::Message::encode_to_vec(&StartVmRequest { id: "s1".to_owned() });
    peerpod_tunnel::link::wire::put(&mut payload, 99, &[7; 5 << 10]);
    shim.send(&call(1, crate::proto::hypervisor::SERVICE, "StopVM", payload)).await;
    drop(shim);
    held_become(&bench, 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(held_requests(&bench).await, 0, "a longer one than any");
    for _ in 0..20 {
        let mut shim = bench.hypervisor().await;
        for n in 0..60 {
            shim.send(&hypervisor_call(2 * n + 1, "StopVM", "s1")).await;
        }
    }
    held_become(&bench, 1200).await;
    tokio::time::sleep(Duration::from_secs(590)).await;
    assert_eq!(held_requests(&bench).await, 1020, "17 shims' calls fit");
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(held_requests(&bench).await, 0);
}

#[tokio::test]
async fn a_request_that_the_node_always_breaks_off_on_is_not_sent_for_ever() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(1, "StartVM", "s1")).await;
    let breaking = async {
        loop {
            drop(node.accept().await);
        }
    };
    tokio::select! {
        end = shim.next() => assert_eq!(end, None),
        () = breaking => {}
    }
}

#[tokio::test]
async fn what_one_node_process_breaks_off_on_the_next_one_may_answer() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(1, "StartVM", "s1")).await;
    for _ in 0..6 {
        drop(node.accept().await);
    }
    node.kill();
    let (next, _) = Node::start(bench.dir.path()).await;
    for _ in 0..2 {
        drop(next.accept().await);
    }
    let mut there = next.accept().await;
    assert_eq!(there.frame().await.stream, 1);
    there.send(&answer(1, "started")).await;
    assert_eq!(shim.frame().await, answer(1, "started"));
}

#[tokio::test]
async fn a_connection_counts_for_so_many_sandboxes_and_no_more() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    for sandbox in ["n63", "n64"] {
        bench.open(&node, sandbox, &[]).await;
    }
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(1, "StopVM", "n0")).await;
    let mut there = node.accept().await;
    for n in 0..=64 {
        if n > 0 {
            shim.send(&hypervisor_call(2 * n + 1, "StopVM", &format!("n{n}"))).await;
        }
        assert_eq!(there.frame().await.stream, 2 * n + 1);
        there.send(&answer(2 * n + 1, "")).await;
        assert_eq!(shim.frame().await.stream, 2 * n + 1, "all are passed on");
    }
    let counted = [node.held("n63").await, node.held("n64").await];
    assert_eq!(counted.map(|held| held.hypervisor_connections), [1, 0]);
}

#[tokio::test]
async fn what_is_no_ttrpc_costs_the_connection_only() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    for hostile in
        [&[0xff; 64][..], b"GET / HTTP/1.1\r\n\r\n", &[0, 0, 0, 2, 0, 0, 0, 1, 1, 0, 9, 9]]
    {
        let mut shim = bench.hypervisor().await;
        shim.writer.write_all(hostile).await.expect("write");
        let end = within(shim.reader.next()).await;
        assert!(matches!(end, Ok(None) | Err(_)), "{end:?}");
    }
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(1, "StartVM", "s1")).await;
    assert_eq!(node.accept().await.frame().await.stream, 1);
}

#[tokio::test(start_paused = true)]
async fn half_a_frame_and_silence_is_closed_after_thirty_seconds() {
    let (mut shim, relay) = UnixStream::pair().expect("pair");
    let begin = tokio::time::Instant::now();
    let talk = crate::relay::hypervisor::Talk::new(relay, Crowd::new(1, 1).enter());
    let serving = tokio::spawn(talk.lead(Hub::new(1), crate::relay::gate::Gate::new().member()));
    shim.write_all(&[0, 0, 0, 9]).await.expect("write");
    let read = tokio::time::timeout(Duration::from_secs(60), shim.read(&mut [0])).await;
    assert_eq!(read.expect("it is closed").expect("read"), 0);
    assert_eq!(begin.elapsed().as_secs(), 30);
    serving.await.expect("it ends");
}
