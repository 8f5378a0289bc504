//! Connections on agent sockets.

use super::*;

#[tokio::test]
async fn silent_connections_are_not_dialled_counted_or_missed() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    let early = bench.agent("s1").await;
    vm.connect(&node, "s1").await;
    let late = bench.agent("s1").await;
    let accepted = || async { node.client.totals().await.expect("totals") };
    eventually(async || (accepted().await.agent_connections_accepted == 2).then_some(())).await;
    // A silent one that closes before anybody has spoken is not the shim's end.
    drop(early);
    let mut spoken = bench.agent("s1").await;
    echo(vm.accept().await);
    for _ in 0..50 {
        exchange(&mut spoken, b"hello").await;
    }
    assert_eq!(node.held("s1").await.agent_connections, 1);
    assert_eq!(accepted().await.links_made, 1, "a silent connection was dialled");
    drop(late);
    exchange(&mut spoken, b"still there").await;
    drop(spoken);

    // Told once: the next thing told is the end of another sandbox's shim.
    assert_eq!(node.event().await, Event::ShimGone { sandbox: "s1".to_owned() });
    bench.open(&node, "s2", &[]).await;
    vm.connect(&node, "s2").await;
    let mut other = bench.agent("s2").await;
    echo(vm.accept().await);
    exchange(&mut other, b"x").await;
    drop(other);
    assert_eq!(node.event().await, Event::ShimGone { sandbox: "s2".to_owned() });
}

#[tokio::test]
async fn every_connection_has_its_own_way_to_the_vm() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut shims = Vec::new();
    for n in 0..40_u8 {
        let mut shim = bench.agent("s1").await;
        shim.write_all(&[n]).await.expect("write");
        let mut tls = vm.accept().await;
        let mut byte = [0];
        within(tls.read_exact(&mut byte)).await.expect("read");
        assert_eq!(byte, [n]);
        shims.push((shim, echo(tls)));
    }
    assert_eq!(node.held("s1").await.agent_connections, 40);
    for (shim, _) in &mut shims {
        exchange(shim, b"mine").await;
    }
}

pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut x = 1_u32;
    let next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[tokio::test]
async fn eight_mebibytes_each_way_arrive_as_they_went() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let (mut read, mut write) = bench.agent("s1").await.into_split();
    let (sent, mut back) = (noise(8 << 20), Vec::new());
    let writing = async {
        write.write_all(&sent).await.expect("write");
        // Half-close: the echo sees the end, and what it still sends must arrive.
        write.shutdown().await.expect("shutdown");
    };
    let vm_side = async { echo(vm.accept().await).await.expect("echo") };
    let reading = read.read_to_end(&mut back);
    let ((), (), read) = within(async { tokio::join!(writing, vm_side, reading) }).await;
    read.expect("read");
    assert!(back == sent, "{} bytes came back, of {}", back.len(), sent.len());
    let totals = node.client.totals().await.expect("totals");
    assert_eq!((totals.bytes_to_vm, totals.bytes_to_shim), (8 << 20, 8 << 20));
}

#[tokio::test]
async fn a_shim_that_does_not_read_does_not_hold_the_others_up() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut lazy = bench.agent("s1").await;
    lazy.write_all(b"x").await.expect("write");
    let mut flood = vm.accept().await;
    let flooding = tokio::spawn(async move {
        let much = vec![5; 1 << 20];
        while flood.write_all(&much).await.is_ok() {}
    });
    let mut brisk = bench.agent("s1").await;
    brisk.write_all(b"!").await.expect("write");
    let mut tls = vm.accept().await;
    within(tls.read_exact(&mut [0])).await.expect("read");
    echo(tls);
    for _ in 0..50 {
        exchange(&mut brisk, &noise(10_000)).await;
    }
    drop(lazy);
    within(flooding).await.expect("the VM's side is closed with the shim's");
}

#[tokio::test]
async fn the_end_of_the_vm_is_the_end_of_the_shims_connection() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut shim = bench.agent("s1").await;
    shim.write_all(b"x").await.expect("write");
    let mut tls = vm.accept().await;
    within(tls.read_exact(&mut [0])).await.expect("read");
    tls.write_all(b"last words").await.expect("write");
    // Without a word of TLS, as a killed forwarder does.
    drop(tls);
    let mut words = Vec::new();
    within(shim.read_to_end(&mut words)).await.expect("read");
    assert_eq!(words, b"last words");
    let Event::LinkDown { sandbox, reason, given_up: false } = node.event().await else {
        panic!("LinkDown comes first");
    };
    assert_eq!(sandbox, "s1");
    assert!(reason.contains("the VM"), "{reason}");
    assert_eq!(node.event().await, Event::ShimGone { sandbox: "s1".to_owned() });
}

#[tokio::test]
async fn a_killed_shim_is_the_end_of_the_vms_connection() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut shim = bench.agent("s1").await;
    shim.write_all(b"x").await.expect("write");
    let mut tls = vm.accept().await;
    within(tls.read_exact(&mut [0])).await.expect("read");
    drop(shim);
    ends(&mut tls).await;
    node.held_until("s1", |held| held.agent_connections == 0).await;
}

#[tokio::test]
async fn connections_are_held_unread_until_connect() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    let mut shim = bench.agent("s1").await;
    shim.write_all(b"early").await.expect("write");
    let held = node.held("s1").await;
    assert_eq!((held.state.as_str(), held.agent_connections), ("listening", 0));
    vm.connect(&node, "s1").await;
    let mut tls = vm.accept().await;
    let mut words = [0; 5];
    within(tls.read_exact(&mut words)).await.expect("read");
    assert_eq!(&words, b"early");
    assert_eq!(node.held("s1").await.state, "connected");
}

#[tokio::test]
async fn a_vm_that_comes_back_in_time_gets_what_the_shim_said() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    // The link made ahead is gone before anybody uses it, and so is the VM's port.
    drop(vm.accept().await);
    vm.stop_listening().await;
    let mut shim = bench.agent("s1").await;
    shim.write_all(b"words").await.expect("write");
    let down = node.event().await;
    assert!(matches!(down, Event::LinkDown { given_up: false, .. }), "{down:?}");

    let again = Certificates { client: vm.tls.clone(), server: certificates().server };
    let address = vm.address;
    drop(vm);
    // Other keys: still down, and the relay says TLS.
    let wrong = Vm::start_at(address, again).await;
    let reason = loop {
        match node.event().await {
            Event::LinkDown { reason, .. } if reason.contains("certificate") => break reason,
            Event::LinkDown { given_up: false, .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(reason.contains(&address.to_string()), "{reason}");
    drop(wrong);
}

#[tokio::test]
async fn a_link_that_stands_again_is_told() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut first = bench.agent("s1").await;
    first.write_all(b"x").await.expect("write");
    let tls = vm.accept().await;
    drop(tls);
    ends(&mut first).await;
    assert!(matches!(node.event().await, Event::LinkDown { .. }));
    assert_eq!(node.event().await, Event::ShimGone { sandbox: "s1".to_owned() });
    let mut second = bench.agent("s1").await;
    second.write_all(b"y").await.expect("write");
    echo(vm.accept().await);
    within(second.read_exact(&mut [0])).await.expect("read");
    assert_eq!(node.event().await, Event::LinkUp { sandbox: "s1".to_owned() });
}

#[tokio::test]
async fn a_vm_that_stays_away_is_given_up_and_told_again_to_the_next_node() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.try_connect(&node, "s1", Duration::from_millis(300)).await.expect("connect");
    drop(vm.accept().await);
    vm.stop_listening().await;
    let mut shim = bench.agent("s1").await;
    shim.write_all(b"x").await.expect("write");
    let given_up = loop {
        match node.event().await {
            Event::LinkDown { given_up: false, .. } => {}
            other => break other,
        }
    };
    assert!(matches!(given_up, Event::LinkDown { given_up: true, .. }), "{given_up:?}");
    ends(&mut shim).await;
    assert_eq!(node.event().await, Event::ShimGone { sandbox: "s1".to_owned() });

    node.kill();
    let mut next = bench.node().await;
    assert_eq!(next.event().await, given_up);
    assert_eq!(next.event().await, Event::ShimGone { sandbox: "s1".to_owned() });
}

#[tokio::test]
async fn close_ends_everything_and_may_be_repeated() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut spoken = bench.agent("s1").await;
    let mut silent = bench.agent("s1").await;
    spoken.write_all(b"x").await.expect("write");
    let mut tls = vm.accept().await;
    within(tls.read_exact(&mut [0])).await.expect("read");

    assert_eq!(node.client.close("s1", "test").await, Ok(true));
    assert!(!bench.agent_path("s1").parent().expect("parent").exists());
    ends(&mut spoken).await;
    ends(&mut silent).await;
    ends(&mut tls).await;
    assert_eq!(node.client.close("s1", "test").await, Ok(false));
    assert_eq!(node.client.list().await, Ok(vec![]));

    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut anew = bench.agent("s1").await;
    echo(vm.accept().await);
    exchange(&mut anew, b"again").await;
}

#[tokio::test]
async fn a_go_like_shim_is_gone_when_its_one_connection_closes() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    for (stream, method) in [(1, "CreateVM"), (1, "StartVM")] {
        let mut shim = bench.hypervisor().await;
        shim.send(&hypervisor_call(stream, method, "s1")).await;
        let mut there = node.accept().await;
        there.frame().await;
        if method == "CreateVM" {
            bench.open(&node, "s1", &[]).await;
        } else {
            vm.connect(&node, "s1").await;
        }
        there.send(&answer(stream, "")).await;
        shim.frame().await;
        drop(shim);
        node.held_until("s1", |held| held.hypervisor_connections == 0).await;
    }
    let held = node.held_until("s1", |held| held.idle_ms > 0).await;
    assert_eq!(held.agent_connections, 0);
    assert!(node.events.try_recv().is_err(), "no agent connection has spoken yet");

    let mut shim = bench.agent("s1").await;
    echo(vm.accept().await);
    exchange(&mut shim, b"x").await;
    assert_eq!(node.held("s1").await.idle_ms, 0);
    drop(shim);
    assert_eq!(node.event().await, Event::ShimGone { sandbox: "s1".to_owned() });
}

#[tokio::test]
async fn an_rs_like_shim_is_gone_when_all_three_connections_have_closed() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    let mut calls = bench.hypervisor().await;
    calls.send(&hypervisor_call(1, "CreateVM", "s1")).await;
    let mut there = node.accept().await;
    there.frame().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    there.send(&answer(1, "")).await;
    calls.frame().await;
    let mut agent = bench.agent("s1").await;
    let log = bench.agent("s1").await;
    echo(vm.accept().await);
    exchange(&mut agent, b"x").await;
    let held = node.held("s1").await;
    assert_eq!((held.agent_connections, held.hypervisor_connections), (1, 1));

    drop((agent, log));
    node.held_until("s1", |held| held.agent_connections == 0).await;
    assert_eq!(node.held("s1").await.idle_ms, 0, "the third connection is there");
    drop(calls);
    assert_eq!(node.event().await, Event::ShimGone { sandbox: "s1".to_owned() });
    node.held_until("s1", |held| held.hypervisor_connections == 0).await;
    assert!(node.events.try_recv().is_err(), "it is told once");
}
