//! Pods of both shims from CreateVM to nothing left, with the real daemon, the real tunnel and the
//! real program in the VM.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use peerpod_it::bed::{PATIENCE, signal};
use peerpod_it::{Bed, Stream, root};
use peerpod_standin::lab::{DaemonOptions, Mode, wait_for};
use peerpod_standin::shim::{AgentClient, Health, Profile, Shim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_either_shim_lives_and_leaves_nothing() {
    if !root("a_pod_of_either_shim_lives_and_leaves_nothing") {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    for (number, profile) in [(1, Profile::GoLike), (2, Profile::RsLike)] {
        let (_net, shim) = bed.boot(profile, number).await.unwrap();
        let status = bed.status(&shim.spec().sandbox).await.unwrap().unwrap();
        assert_eq!(status["phase"], "running", "{status}");
        let name = status["vm_name"].as_str().unwrap();
        assert_eq!(name, format!("podvm-pod-{number}-{}", &shim.spec().sandbox[..8]));
        let exec = shim.exec_tool("e1", &["say", "hello", "there"]).await.unwrap();
        let output = exec.output().await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "hello there");
        let dump = shim.agent().unwrap().dump().await.unwrap();
        let text = format!("{dump:?}");
        assert!(text.contains("/run/netns/podns"), "CreateContainer names the pod's namespace");
        assert!(dump.dns.is_empty(), "the DNS lines of CreateSandbox are dropped: {:?}", dump.dns);
        shim.stop().await.unwrap();
    }
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_further_connections_do_no_harm() {
    if !root("silent_and_further_connections_do_no_harm") {
        return;
    }
    let bed = Bed::new(&["--orphan-grace=1s"]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(UnixStream::connect(shim.agent_path()).await.unwrap());
    }
    for _ in 0..5 {
        let second = AgentClient::connect(Profile::GoLike, shim.agent_path()).await.unwrap();
        assert!(second.check().await.unwrap(), "a further client is served");
    }
    drop(silent.split_off(10));
    let mut byte = [0];
    for one in &silent {
        assert!(one.try_read(&mut byte).is_err(), "a silent connection gets nothing");
    }
    assert_eq!(bed.status(&shim.spec().sandbox).await.unwrap().unwrap()["phase"], "running");
    assert_eq!(shim.health(), Health::Alive);
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_call_reaches_the_agent_untouched() {
    if !root("an_unknown_call_reaches_the_agent_untouched") {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    let agent = shim.agent().unwrap();
    let payload = vec![0xfa, 0x3e, 0x03, b'a', b'b', b'c'];
    let method = ("grpc.AgentService", "OfAFutureKata");
    let error = agent.rpc().raw(method, payload.into(), None).await;
    assert_eq!(error.expect_err("the agent does not know it").code(), Some(12));
    assert!(format!("{:?}", agent.dump().await.unwrap()).contains("OfAFutureKata"));
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_the_connection_for_stopvm_survive_the_daemon() {
    if !root("streams_and_the_connection_for_stopvm_survive_the_daemon") {
        return;
    }
    let mut bed = Bed::new(&[]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let stream = Stream::start(&shim, "count").await.unwrap();
    let before = stream.moves((0, 0)).await.unwrap();
    let old = bed.daemon.kill_node().await.unwrap();
    let during = stream.moves(before).await.unwrap();
    bed.daemon.successor_of(old).await.unwrap();
    stream.moves(during).await.unwrap();
    stream.finish().await.unwrap();
    // On the hypervisor connection that the shim has held since CreateVM.
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_under_way_goes_through_when_the_daemon_is_killed() {
    if !root("a_start_under_way_goes_through_when_the_daemon_is_killed") {
        return;
    }
    let options = DaemonOptions { boot_delay: Duration::from_millis(1500), ..Default::default() };
    let mut bed = Bed::with(options).await.unwrap();
    for (number, profile) in [(1, Profile::GoLike), (2, Profile::RsLike)] {
        let (_net, spec) = bed.pod(number).await.unwrap();
        let (socket, sandbox) = (bed.lab.dir().socket(), spec.sandbox.clone());
        let boot = tokio::spawn(async move { Shim::boot(profile, &socket, spec).await });
        bed.until_phase(&sandbox, "launching").await.unwrap();
        let old = bed.daemon.kill_node().await.unwrap();
        bed.daemon.successor_of(old).await.unwrap();
        let shim = boot.await.unwrap().map_err(|e| format!("{e}\n{}", bed.daemon.log_tail()));
        let shim = shim.unwrap();
        assert_eq!(bed.pods().await.unwrap().len(), 1, "one pod, one VM");
        bed.vm_dir().unwrap();
        shim.stop().await.unwrap();
        bed.until_nothing_left().await.unwrap();
    }
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_is_noticed_and_its_vm_deleted() {
    if !root("a_killed_shim_is_noticed_and_its_vm_deleted") {
        return;
    }
    let bed = Bed::new(&["--orphan-grace=1s"]).await.unwrap();
    for (number, profile) in [(1, Profile::RsLike), (2, Profile::GoLike)] {
        let (_net, shim) = bed.boot(profile, number).await.unwrap();
        drop(shim);
        bed.until_nothing_left().await.unwrap();
    }
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn createvm_of_a_known_id_needs_no_namespace() {
    if !root("createvm_of_a_known_id_needs_no_namespace") {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    let (net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    let vm = bed.vm_init().unwrap();
    bed.lab.network().remove_pod(&net).unwrap();
    let path = shim.hypervisor().create_vm(shim.spec()).await.unwrap();
    assert_eq!(path, shim.agent_path());
    assert_eq!(bed.vm_init().unwrap(), vm, "the VM is the same");
    // The Go shim's clean-up after its crash: CreateVM, agent calls, StopVM.
    shim.crash().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_vm_reaches_the_shim_and_nothing_stays() {
    if !root("the_end_of_a_vm_reaches_the_shim_and_nothing_stays") {
        return;
    }
    let bed = Bed::new(&["--liveness-timeout=2s"]).await.unwrap();
    for (number, profile) in [(1, Profile::RsLike), (2, Profile::GoLike)] {
        let (_net, shim) = bed.boot(profile, number).await.unwrap();
        signal(bed.vm_init().unwrap(), Signal::SIGKILL).unwrap();
        let died = tokio::time::timeout(PATIENCE, shim.died()).await.unwrap();
        assert!(matches!(died, Health::Dead { .. }), "{died:?}");
        drop(shim);
        bed.until_nothing_left().await.unwrap();
    }
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_vm_is_found_by_our_own_probe() {
    if !root("a_hung_vm_is_found_by_our_own_probe") {
        return;
    }
    let bed = Bed::new(&["--liveness-timeout=2s"]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    signal(bed.in_vm("podvm").unwrap(), Signal::SIGSTOP).unwrap();
    // The shim itself would look after 30 s and wait 90 s more.
    let died = tokio::time::timeout(PATIENCE, shim.died()).await.unwrap();
    assert!(matches!(died, Health::Dead { .. }), "{died:?}");
    drop(shim);
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stopvm_thrice_at_once_and_of_unknown_ids_is_fine() {
    if !root("stopvm_thrice_at_once_and_of_unknown_ids_is_fine") {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let (hypervisor, sandbox) = (shim.hypervisor().clone(), shim.spec().sandbox.clone());
    let all: Vec<_> = (0..3)
        .map(|_| {
            let (hypervisor, sandbox) = (hypervisor.clone(), sandbox.clone());
            tokio::spawn(async move { hypervisor.stop_vm(&sandbox).await })
        })
        .collect();
    for one in all {
        one.await.unwrap().unwrap();
    }
    hypervisor.stop_vm(&sandbox).await.unwrap();
    hypervisor.stop_vm("never-heard-of").await.unwrap();
    let error = hypervisor.start_vm("never-heard-of").await.expect_err("unknown");
    assert_eq!(error.code(), Some(5), "{error}");
    drop(shim);
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_cancelled_by_stopvm_and_by_a_caller_that_leaves() {
    if !root("a_start_is_cancelled_by_stopvm_and_by_a_caller_that_leaves") {
        return;
    }
    let options = DaemonOptions { boot_delay: Duration::from_secs(60), ..Default::default() };
    let bed = Bed::with(options).await.unwrap();
    for (number, stop) in [(1, true), (2, false)] {
        let (_net, spec) = bed.pod(number).await.unwrap();
        let sandbox = spec.sandbox.clone();
        let mut shim = Shim::create(Profile::RsLike, &bed.lab.dir().socket(), spec).await.unwrap();
        let hypervisor = shim.hypervisor().clone();
        let start = tokio::spawn(async move {
            let result = shim.start_vm().await;
            drop(shim);
            result
        });
        bed.until_phase(&sandbox, "launching").await.unwrap();
        if stop {
            hypervisor.stop_vm(&sandbox).await.unwrap();
            start.await.unwrap().expect_err("cancelled");
        } else {
            start.abort();
            hypervisor.close().await;
        }
        bed.until_nothing_left().await.unwrap();
    }
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sandbox_of_a_pod_takes_the_place_of_a_start_under_way() {
    if !root("a_second_sandbox_of_a_pod_takes_the_place_of_a_start_under_way") {
        return;
    }
    let options = DaemonOptions { boot_delay: Duration::from_millis(700), ..Default::default() };
    let bed = Bed::with(options).await.unwrap();
    let (_net, first) = bed.pod(1).await.unwrap();
    let (_net2, mut second) = bed.pod(2).await.unwrap();
    second.name = first.name.clone();
    let (socket, old) = (bed.lab.dir().socket(), first.sandbox.clone());
    let start = tokio::spawn(async move { Shim::boot(Profile::GoLike, &socket, first).await });
    bed.until_phase(&old, "launching").await.unwrap();
    let socket = bed.lab.dir().socket();
    let shim = Shim::boot(Profile::GoLike, &socket, second).await.unwrap();
    start.await.unwrap().expect_err("superseded");
    let gone = || async { Ok(bed.status(&old).await?.is_none().then_some(())) };
    wait_for("the first sandbox to go", PATIENCE, gone).await.unwrap();
    bed.vm_dir().unwrap();
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unstarted_sandbox_expires() {
    if !root("an_unstarted_sandbox_expires") {
        return;
    }
    let bed = Bed::new(&["--sandbox-expiry=1s"]).await.unwrap();
    let (_net, spec) = bed.pod(1).await.unwrap();
    let _shim = Shim::create(Profile::GoLike, &bed.lab.dir().socket(), spec).await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_goes_before_stopvm_leaves_nothing() {
    if !root("a_namespace_that_goes_before_stopvm_leaves_nothing") {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    let (net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    bed.lab.network().remove_pod(&net).unwrap();
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_relay_loses_its_pods_and_nothing_else() {
    if !root("a_killed_relay_loses_its_pods_and_nothing_else") {
        return;
    }
    let mut bed = Bed::new(&["--orphan-grace=1s"]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    bed.daemon.kill_relay().await.unwrap();
    let died = tokio::time::timeout(PATIENCE, shim.died()).await.unwrap();
    assert!(matches!(died, Health::Dead { .. }), "{died:?}");
    drop(shim);
    bed.daemon.ready().await.unwrap();
    bed.until_nothing_left().await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 2).await.unwrap();
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_an_earlier_boot_are_taken_down() {
    if !root("records_of_an_earlier_boot_are_taken_down") {
        return;
    }
    let mut bed = Bed::separate(&[]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    bed.daemon.kill_node().await.unwrap();
    let record = bed.lab.dir().state().join("pods").join(&shim.spec().sandbox).join("record.json");
    let mut value: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    assert!(value["boot"].is_string() || value["boot_id"].is_string(), "{value}");
    let key = if value["boot"].is_string() { "boot" } else { "boot_id" };
    value[key] = "00000000-0000-0000-0000-000000000000".into();
    std::fs::write(&record, serde_json::to_vec(&value).unwrap()).unwrap();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    drop(shim);
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_break_the_protocol_close_only_their_connection() {
    if !root("frames_that_break_the_protocol_close_only_their_connection") {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    let hostile: [&[u8]; 3] = [
        &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0],
        &[0, 0, 0, 0, 0, 0, 0, 1, 9, 0],
        &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
    ];
    for path in [bed.lab.dir().socket(), shim.agent_path().to_owned()] {
        for bytes in hostile {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut rest = Vec::new();
            let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
            end.unwrap_or_else(|_| panic!("{} stays open after {bytes:?}", path.display())).ok();
        }
    }
    assert!(shim.agent().unwrap().check().await.unwrap(), "the pod does not notice");
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_separate_node_and_relay_do_the_same() {
    if !root("a_separate_node_and_relay_do_the_same") {
        return;
    }
    let mut bed =
        Bed::with(DaemonOptions { mode: Mode::Separate, ..Default::default() }).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let shim = Arc::new(shim);
    let stream = Stream::start(&shim, "count").await.unwrap();
    let before = stream.moves((0, 0)).await.unwrap();
    bed.daemon.kill_node().await.unwrap();
    let during = stream.moves(before).await.unwrap();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    stream.moves(during).await.unwrap();
    stream.finish().await.unwrap();
    Arc::into_inner(shim).unwrap().stop().await.unwrap();
    bed.end().await.unwrap();
}
