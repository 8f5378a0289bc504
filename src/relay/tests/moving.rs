//! Sessions that go from one relay to another, and back when that fails.

use super::agent::noise;
use super::handover::{Until, die_at};
use super::session::bench;
use super::*;

#[tokio::test]
async fn no_byte_of_a_session_is_lost_or_repeated_by_hand_overs_and_failed_ones() {
    let (bench, mut node, vm) = bench(&[]).await;
    let (mut read, mut write) = bench.agent("s1").await.into_split();
    let sent = noise(4 << 20);
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        for chunk in sent.chunks(16 << 10) {
            write.write_all(chunk).await.expect("write");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        write.shutdown().await.expect("half-close");
    });
    let reading = tokio::spawn(async move {
        let mut back = Vec::new();
        read.read_to_end(&mut back).await.expect("read");
        back
    });
    let mut idle = bench.agent("s1").await;
    exchange(&mut idle, b"idle").await;
    let mut relays = Vec::new();
    for _ in 0..3 {
        die_at(bench.dir.path(), Until::Parts).await;
        die_at(bench.dir.path(), Until::All).await;
        exchange(&mut idle, b"as before").await;
        relays.push(bench.successor().await);
        node.attached_again().await;
        exchange(&mut idle, b"moved").await;
    }
    let back = within(reading).await.expect("join");
    within(writing).await.expect("join");
    assert!(back == expected, "{} of {} bytes came back as they went", back.len(), expected.len());
    let held = node.held_until("s1", |held| held.agent_connections == 1).await;
    assert_eq!((held.mode.as_str(), held.elsewhere.len()), ("peerpod-link/1", 0));
    assert_eq!(vm.count(), 1, "it is one session all the time");
    drop(idle);
    // Before it comes the word that the VM has ended the stream that was shut down.
    while node.event().await != (Event::ShimGone { sandbox: "s1".to_owned() }) {}
    let _dir = bench.ended().await;
    let last = relays.pop().expect("three");
    for relay in relays {
        within(relay.serving).await.expect("join").expect("it ends by itself");
    }
    last.stop().await;
}

#[tokio::test]
async fn a_session_whose_frames_are_read_stays_and_goes_on() {
    let (bench, mut node, _vm) = bench(&["CreateContainer"]).await;
    let mut shim = Peer::new(bench.agent("s1").await);
    let frame = call(1, "grpc.AgentService", "Check", "before");
    shim.send(&frame).await;
    assert_eq!(shim.frame().await, frame);
    let second = bench.successor().await;
    node.attached_again().await;
    let frame = call(3, "grpc.AgentService", "Check", "after");
    shim.send(&frame).await;
    assert_eq!(shim.frame().await, frame);
    assert_eq!(node.held("s1").await.elsewhere.len(), 1);
    drop(shim);
    let _dir = bench.ended().await;
    second.stop().await;
}

#[tokio::test]
async fn what_the_node_must_know_of_a_link_and_a_shim_that_are_gone_is_told_again_by_the_next_relay()
 {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut shim = bench.agent("s1").await;
    shim.write_all(b"x").await.expect("write");
    drop(vm.accept().await);
    ends(&mut shim).await;
    let down = node.event().await;
    assert!(matches!(down, Event::LinkDown { .. }), "{down:?}");
    let gone = Event::ShimGone { sandbox: "s1".to_owned() };
    assert_eq!(node.event().await, gone);
    let idle = node.held_until("s1", |held| held.idle_ms > 1).await.idle_ms;
    let second = bench.successor().await;
    node.attached_again().await;
    assert_eq!((node.event().await, node.event().await), (down, gone));
    assert!(node.held("s1").await.idle_ms >= idle, "since it was gone, not since the hand-over");
    let _dir = bench.ended().await;
    second.stop().await;
}
