//! The worker's wall clock is set a day back or forward under running pods and a start under way, with
//! the VMs' clocks or without them: no pod ends, no VM is lost or doubled, whatever comes works.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::fs;
use std::time::Duration;

use peerpod_it::bed::PATIENCE;
use peerpod_it::clock::{Clock, DAY, is_now};
use peerpod_it::{Bed, Load, root};
use peerpod_standin::lab::{DaemonOptions, Mode, cut, wait_for};
use peerpod_standin::shim::{Profile, Shim};
use serde_json::Value;

/// How often each busy pod sends a packet of either kind, in ms.
const PACE: u64 = 10;

/// What VMs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vms {
    /// Their clock stays right.
    Right,
    /// Their clock is set with the worker's.
    Set,
    /// The same, without sessions, as upstream's: the node process itself asks them whether they live.
    Plain,
}

/// A daemon that goes by that clock, and sweeps every second what is older than `grace`.
async fn bed(clock: &Clock, vms: Vms, grace: &str) -> Bed {
    let settings = [
        ("PEERPODD_SWEEP_INTERVAL", "1s"),
        ("PEERPODD_SWEEP_GRACE", grace),
        // A start whose VM refuses us is not waited for.
        ("PROXY_TIMEOUT", "20s"),
    ];
    let mut environment = clock.environment();
    environment.extend(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
    match vms {
        Vms::Right => {}
        Vms::Set => environment.push(clock.podvm("")),
        Vms::Plain => environment.push(clock.podvm("--plain-link")),
    }
    let options = DaemonOptions {
        mode: Mode::Separate,
        boot_delay: Duration::from_millis(800),
        environment,
        ..DaemonOptions::default()
    };
    Bed::with(options).await.unwrap()
}

async fn goes_by(bed: &Bed, clock: &Clock) {
    for pid in [bed.daemon.node_pid(), bed.daemon.relay_pid()] {
        assert!(clock.is_in(pid.unwrap()).unwrap(), "a process with a clock of its own");
    }
}

/// A pod of now starts, is dated by the clock as it is, and leaves nothing.
async fn a_pod_comes_and_goes(bed: &Bed, number: u8, ahead: i64) {
    let (_net, shim) = bed.boot(Profile::alternately(number.into()), number).await.unwrap();
    let sandbox = shim.spec().sandbox.clone();
    let status = bed.status(&sandbox).await.unwrap().unwrap();
    assert!(is_now(status["created_ms"].as_u64().unwrap(), ahead), "{ahead}: {status}");
    assert!(shim.agent().unwrap().check().await.unwrap());
    // The Rust shim does not wait for long; its StopVM goes on.
    shim.stop().await.ok();
    let gone = || async { Ok(bed.status(&sandbox).await?.is_none().then_some(())) };
    wait_for("the end of a pod", PATIENCE, gone).await.unwrap();
}

async fn said(bed: &Bed, words: &[&str]) -> String {
    let output = bed.daemon.peerpodd(words).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {text}{error}");
    text
}

/// What people are told of running pods: they run, and nothing is left over.
async fn people_are_told(bed: &Bed, pods: usize) {
    let status = said(bed, &["status"]).await;
    assert_eq!(status.matches(" running ").count(), pods, "{status}");
    assert!(!status.contains("ended without"), "{status}");
    assert!(!status.contains("not ready"), "{status}");
    let one = said(bed, &["status", "pod-1"]).await;
    assert!(one.contains("running for "), "{one}");
    let leaks: Value = serde_json::from_str(&said(bed, &["leaks", "-o", "json"]).await).unwrap();
    assert_eq!(leaks, serde_json::json!([]), "nothing is left over");
}

/// Every link has to be made anew, with the certificates of before.
async fn links_break(bed: &Bed, load: &Load) {
    let before = bed.daemon.links_made().await.unwrap();
    let broken = cut::break_connections(&bed.lab).await.unwrap();
    assert!(broken >= 2, "{broken} connections");
    let made = || async { Ok((bed.daemon.links_made().await? >= before + 2).then_some(())) };
    wait_for("new links", PATIENCE, made)
        .await
        .map_err(|e| e.context(bed.daemon.log_tail()))
        .unwrap();
    load.moves(&load.seen()).await.unwrap();
}

async fn restart_node(bed: &mut Bed, load: &Load) {
    bed.daemon.kill_node().await.unwrap();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    load.moves(&load.seen()).await.unwrap();
    bed.two_sweeps().await.unwrap();
    load.moves(&load.seen()).await.unwrap();
    assert!(bed.metric("sweep_deleted_total").await.unwrap() == 0.0);
}

async fn through_a_day(ahead: i64, vms: Vms) {
    let clock = Clock::new().unwrap();
    let mut bed = bed(&clock, vms, "2s").await;
    let load = Load::start(&bed, 1..=2, PACE).await.unwrap();
    goes_by(&bed, &clock).await;
    let (_net, spec) = bed.pod(3).await.unwrap();
    let socket = bed.lab.dir().socket();
    let mut prepared = Shim::create(Profile::GoLike, &socket, spec).await.unwrap();
    let boot = bed.starting(Profile::GoLike, 4).await.unwrap();

    clock.set(ahead).unwrap();
    let booted = boot.await.unwrap();
    let booted = booted.unwrap_or_else(|e| panic!("{e}\n{}", bed.daemon.log_tail()));
    prepared.start_vm().await.unwrap_or_else(|e| panic!("{e}\n{}", bed.daemon.log_tail()));
    prepared.connect().await.unwrap();
    prepared.start_sandbox().await.unwrap();
    load.moves(&load.seen()).await.unwrap();
    a_pod_comes_and_goes(&bed, 10, ahead).await;
    bed.two_sweeps().await.unwrap();
    people_are_told(&bed, 4).await;
    // A plain link does not outlive its connection.
    if vms != Vms::Plain {
        links_break(&bed, &load).await;
    }

    restart_node(&mut bed, &load).await;
    goes_by(&bed, &clock).await;
    people_are_told(&bed, 4).await;
    a_pod_comes_and_goes(&bed, 11, ahead).await;
    if vms != Vms::Plain {
        let mut old = bed.daemon.succeed_relay().await.unwrap();
        let ended = tokio::task::spawn_blocking(move || old.wait().unwrap());
        assert!(tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap().success());
        load.moves(&load.seen()).await.unwrap();
        links_break(&bed, &load).await;
    }

    // Right again, which is a leap the other way.
    let boot = bed.starting(Profile::RsLike, 5).await.unwrap();
    clock.set(0).unwrap();
    let last = boot.await.unwrap();
    let last = last.unwrap_or_else(|e| panic!("{e}\n{}", bed.daemon.log_tail()));
    if vms != Vms::Plain {
        links_break(&bed, &load).await;
    }
    restart_node(&mut bed, &load).await;
    people_are_told(&bed, 5).await;
    a_pod_comes_and_goes(&bed, 12, 0).await;
    for shim in [booted, prepared, last] {
        assert!(shim.agent().unwrap().check().await.unwrap());
        shim.stop().await.ok();
    }
    let totals = load.finish().await.unwrap();
    bed.end().await.unwrap();
    println!("clock: {} h and back, VMs {vms:?}: {totals}; 3 starts went through", ahead / 3600);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_clock_alone_set_a_day_back_or_forward_ends_nothing() {
    if !root("the_workers_clock_alone_set_a_day_back_or_forward_ends_nothing") {
        return;
    }
    through_a_day(-DAY, Vms::Right).await;
    through_a_day(DAY, Vms::Right).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_clocks_set_a_day_back_or_forward_end_nothing() {
    if !root("all_clocks_set_a_day_back_or_forward_end_nothing") {
        return;
    }
    through_a_day(-DAY, Vms::Set).await;
    through_a_day(DAY, Vms::Set).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_without_sessions_outlive_a_day_that_comes_twice() {
    if !root("vms_without_sessions_outlive_a_day_that_comes_twice") {
        return;
    }
    through_a_day(-DAY, Vms::Plain).await;
}

/// A VM that no record and no relay knows; the daemon is down.
async fn unknown_vm(bed: &mut Bed) {
    let (net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    let sandbox = shim.spec().sandbox.clone();
    bed.daemon.kill_node().await.unwrap();
    bed.daemon.kill_relay().await.unwrap();
    for dir in [bed.lab.dir().state().join("pods"), bed.lab.dir().pods()] {
        fs::remove_dir_all(dir.join(&sandbox)).unwrap();
    }
    bed.lab.network().remove_pod(&net).unwrap();
    bed.vm_dir().unwrap();
}

async fn standings(bed: &Bed) -> Vec<String> {
    let rows: Value =
        serde_json::from_str(&said(bed, &["leaks", "--all", "-o", "json"]).await).unwrap();
    let rows = rows.as_array().unwrap();
    rows.iter().map(|row| row["standing"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_vm_goes_in_time_though_it_is_dated_a_day_ahead() {
    if !root("an_unknown_vm_goes_in_time_though_it_is_dated_a_day_ahead") {
        return;
    }
    let clock = Clock::new().unwrap();
    let mut bed = bed(&clock, Vms::Right, "3s").await;
    unknown_vm(&mut bed).await;
    clock.set(-DAY).unwrap();
    bed.daemon.start_relay().await.unwrap();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    let swept = || async { Ok((bed.metric("sweep_deleted_total").await? >= 1.0).then_some(())) };
    wait_for("the VM to be swept", PATIENCE, swept).await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_vm_is_young_though_the_clock_is_set_forward_a_day() {
    if !root("an_unknown_vm_is_young_though_the_clock_is_set_forward_a_day") {
        return;
    }
    let clock = Clock::new().unwrap();
    let mut bed = bed(&clock, Vms::Right, "1h").await;
    unknown_vm(&mut bed).await;
    bed.daemon.start_relay().await.unwrap();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    assert_eq!(standings(&bed).await, ["young"]);
    clock.set(DAY).unwrap();
    bed.two_sweeps().await.unwrap();
    bed.vm_dir().expect("nobody has waited for an hour");
    clock.set(0).unwrap();
    said(&bed, &["leaks", "--delete", "--sweep-grace=0s"]).await;
    bed.end().await.unwrap();
}
