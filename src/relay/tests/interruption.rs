//! A VM's word that its cloud takes it back, on its way to the node process: over cuts, without a node
//! process, and over other relays.

use futures_util::FutureExt;
use peerpod_tunnel::link::session::Interruption;

use super::session::{SessionVm, bench};
use super::*;
use crate::proto::relay as proto;
use crate::relay::hub::Hub;
use crate::relay::pod::Pod;

fn word(kind: &str) -> Interruption {
    Interruption { kind: kind.to_owned(), deadline_ms: 5, source: "aws".to_owned() }
}

fn told(kind: &str) -> Event {
    Event::Interruption { sandbox: "s1".to_owned(), said: word(kind) }
}

impl Node {
    /// The next event that is not about the link.
    async fn news(&mut self) -> Event {
        loop {
            match self.event().await {
                Event::LinkDown { .. } | Event::LinkUp { .. } | Event::Lost => {}
                other => return other,
            }
        }
    }
}

#[tokio::test]
async fn the_word_reaches_the_node_process_over_a_cut_and_every_one_after_it() {
    let (bench, mut node, vm) = bench(&[]).await;
    node.client.watch("s1").await.expect("asked");
    within(vm.sessions().watched()).await;
    vm.cut();
    vm.sessions().interrupt(word("terminate"));
    assert_eq!(node.news().await, told("terminate"));
    for _ in 0..2 {
        node.kill();
        node = bench.node().await;
        assert_eq!(node.news().await, told("terminate"));
    }
    // It means nothing for what the pod does.
    exchange(&mut bench.agent("s1").await, b"well").await;
}

#[tokio::test]
async fn what_is_said_while_no_node_process_is_there_is_told_to_the_next_one() {
    let (bench, node, vm) = bench(&[]).await;
    node.client.watch("s1").await.expect("asked");
    within(vm.sessions().watched()).await;
    node.kill();
    vm.sessions().interrupt(word("preempt"));
    // The relay has it once it takes what the VM has sent behind it.
    exchange(&mut bench.agent("s1").await, b"behind it").await;
    assert_eq!(bench.node().await.news().await, told("preempt"));
}

#[tokio::test]
async fn a_wish_before_the_link_stands_and_after_the_session_was_lost_is_passed_on() {
    let (bench, vm) = (Bench::start().await, SessionVm::start().await);
    let mut node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    let unknown = node.client.watch("s2").await;
    assert!(matches!(unknown, Err(ControlError::Refused(_))), "{unknown:?}");
    node.client.watch("s1").await.expect("asked");
    vm.connect(&node, "s1", GIVE_UP).await;
    within(vm.sessions().watched()).await;
    vm.lose_sessions();
    while !matches!(node.event().await, Event::LinkDown { given_up: true, .. }) {}
    exchange(&mut bench.agent("s1").await, b"anew").await;
    within(vm.sessions().watched()).await;
    vm.sessions().interrupt(word("stop"));
    while node.event().await != told("stop") {}
}

#[tokio::test]
async fn other_relays_go_on_with_the_wish_and_with_the_word() {
    let (bench, mut node, vm) = bench(&[]).await;
    node.client.watch("s1").await.expect("asked");
    within(vm.sessions().watched()).await;
    let second = bench.successor().await;
    node.attached_again().await;
    vm.sessions().interrupt(word("terminate"));
    assert_eq!(node.news().await, told("terminate"));
    let third = bench.successor().await;
    node.attached_again().await;
    assert_eq!(node.news().await, told("terminate"), "the third relay has it from the second");
    // A session of the third relay's own is asked, too, though the node process does not ask again.
    vm.lose_sessions();
    while !matches!(node.event().await, Event::LinkDown { given_up: true, .. }) {}
    exchange(&mut bench.agent("s1").await, b"anew").await;
    within(vm.sessions().watched()).await;
    let _dir = bench.ended().await;
    within(second.serving).await.expect("join").expect("it ends by itself");
    third.stop().await;
}

#[tokio::test]
async fn a_session_that_stays_with_an_older_relay_tells_through_that() {
    let (bench, mut node, vm) = bench(&["CreateContainer"]).await;
    let mut shim = Peer::new(bench.agent("s1").await);
    let frame = call(1, "grpc.AgentService", "Check", "before");
    shim.send(&frame).await;
    assert_eq!(shim.frame().await, frame);
    node.client.watch("s1").await.expect("asked");
    within(vm.sessions().watched()).await;
    let second = bench.successor().await;
    node.attached_again().await;
    vm.sessions().interrupt(word("terminate"));
    assert_eq!(node.news().await, told("terminate"));
    node.kill();
    let node = Node::start(bench.dir.path()).await;
    let (mut node, pending) = node;
    node.pending(pending).await;
    assert_eq!(node.news().await, told("terminate"));
    drop(shim);
    let _dir = bench.ended().await;
    second.stop().await;
}

#[tokio::test]
async fn a_vm_that_never_stops_talking_is_passed_on_once_and_its_last_word_is_kept() {
    let hub = Hub::new(1);
    let pod = Arc::new(Pod::new("s1".to_owned(), PathBuf::from("/x"), Vec::new()));
    hub.add(pod.clone());
    let mut events = hub.attach(proto::Attached::default());
    for n in 0..20_000 {
        let said = crate::relay::session::interruption("s1", word(&n.to_string()));
        pod.tell_interruption(&hub, said);
    }
    let mut passed = 0;
    while let Some(Some(Ok(message))) = events.next().now_or_never() {
        passed += usize::from(matches!(message, proto::to_node::Message::Interruption(_)));
    }
    let mut again = hub.attach(proto::Attached::default());
    // One a second; it takes far less than a minute.
    assert!((1..60).contains(&passed), "{passed}");
    within(again.next()).await.expect("pending").expect("first");
    let last = within(again.next()).await.expect("its word").expect("told");
    let proto::to_node::Message::Interruption(last) = last else { panic!("{last:?}") };
    assert_eq!(last.kind, "19999");
}
