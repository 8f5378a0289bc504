//! The daemon's processes end and come back in every order, with pods that are busy and others on their
//! way up and down: what must go on goes on, what must end leaves nothing.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use nix::sys::signal::Signal;
use peerpod_it::bed::{Booting, PATIENCE, signal};
use peerpod_it::{Bed, Load, root};
use peerpod_standin::lab::{DaemonOptions, Mode, wait_for};
use peerpod_standin::shim::{Health, Profile, Shim};

/// How often each busy pod sends a packet of either kind, in ms.
const PACE: u64 = 10;

/// VMs take a moment to boot, so that a start can be caught under way.
fn slow(mode: Mode, arguments: &[&str]) -> DaemonOptions {
    DaemonOptions { mode, boot_delay: Duration::from_millis(800), ..Bed::options(arguments) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_first_and_nobody_notices() {
    if !root("the_node_first_and_nobody_notices") {
        return;
    }
    let mut bed = Bed::with(slow(Mode::Separate, &[])).await.unwrap();
    let load = Load::start(&bed, 1..=2, PACE).await.unwrap();
    let mut seen = load.moves(&load.seen()).await.unwrap();
    for (number, kill) in [(10, true), (20, false)] {
        let (_net, over) = bed.boot(Profile::GoLike, number).await.unwrap();
        let boots = [
            bed.starting(Profile::GoLike, number + 1).await.unwrap(),
            bed.starting(Profile::RsLike, number + 2).await.unwrap(),
        ];
        let stop = tokio::spawn(over.stop());
        if kill {
            bed.daemon.kill_node().await.unwrap();
        } else {
            signal(bed.daemon.node_pid().unwrap(), Signal::SIGTERM).unwrap();
            bed.daemon.node_ended().await.unwrap();
        }
        seen = load.moves(&seen).await.unwrap();
        bed.daemon.start_node(None).await.unwrap();
        bed.daemon.ready().await.unwrap();
        for boot in boots {
            let shim = boot.await.unwrap();
            let shim = shim.unwrap_or_else(|e| panic!("{e}\n{}", bed.daemon.log_tail()));
            // The Rust shim does not wait for long; the look at the end tells.
            shim.stop().await.ok();
        }
        stop.await.unwrap().unwrap();
        seen = load.moves(&seen).await.unwrap();
    }
    let totals = load.finish().await.unwrap();
    bed.end().await.unwrap();
    println!("restart: node first, killed and ended: {totals}; 4 starts and 2 stops went through");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_start_at_once_are_one_and_make_and_delete_each_vm_once() {
    if !root("two_nodes_that_start_at_once_are_one_and_make_and_delete_each_vm_once") {
        return;
    }
    // Whatever one of them does not know it would sweep at once.
    let sweeping = ["--sweep-interval=1s", "--sweep-grace=0s"];
    let mut bed = Bed::with(slow(Mode::Separate, &sweeping)).await.unwrap();
    let load = Load::start(&bed, 1..=2, PACE).await.unwrap();
    let mut seen = load.moves(&load.seen()).await.unwrap();
    for round in 0..4_u8 {
        let boots = [
            bed.starting(Profile::GoLike, 10 + 2 * round).await.unwrap(),
            bed.starting(Profile::GoLike, 11 + 2 * round).await.unwrap(),
        ];
        // Beside one that serves, and at the same moment as another one.
        if round % 2 == 1 {
            bed.daemon.kill_node().await.unwrap();
            bed.daemon.start_node(None).await.unwrap();
        }
        let code = bed.daemon.rival_node().await.unwrap();
        // 2 would keep systemd from trying again.
        assert_eq!(code, Some(1), "{}", bed.daemon.log_tail());
        bed.daemon.ready().await.unwrap();
        let mut shims = Vec::new();
        for boot in boots {
            let shim = boot.await.unwrap();
            shims.push(shim.unwrap_or_else(|e| panic!("{e}\n{}", bed.daemon.log_tail())));
        }
        assert_eq!(vms(&bed), 4, "one VM for each pod");
        seen = load.moves(&seen).await.unwrap();
        for shim in shims {
            shim.stop().await.unwrap();
        }
        let two = || async { Ok((vms(&bed) == 2).then_some(())) };
        wait_for("the VMs of the pods that go on", PATIENCE, two).await.unwrap();
    }
    let log = std::fs::read_to_string(bed.lab.dir().logs().join("node.log")).unwrap();
    assert_eq!(log.matches("another node process holds it").count(), 4, "each says why");
    let totals = load.finish().await.unwrap();
    bed.end().await.unwrap();
    println!("restart: 4 times two node processes at once, one served: {totals}");
}

fn vms(bed: &Bed) -> usize {
    let entries = std::fs::read_dir(bed.lab.dir().local()).unwrap().flatten();
    entries.filter(|e| e.path().join("vm.json").exists()).count()
}

/// The pods of a relay that was killed are over, and nothing else is: not their VMs' names, not the
/// next pod.
async fn pods_end_and_the_next_one_starts(bed: &mut Bed, old: Vec<Shim>, boot: Booting, next: u8) {
    for shim in old {
        let died = tokio::time::timeout(PATIENCE, shim.died()).await.expect("it hears at once");
        assert!(matches!(died, Health::Dead { .. }), "{died:?}");
    }
    // Its connection has gone: the shim has given up, whatever becomes of its VM.
    boot.await.unwrap().expect_err("its hypervisor connection ended");
    bed.daemon.ready().await.unwrap();
    bed.until_nothing_left().await.unwrap();
    for (number, profile) in [(next, Profile::GoLike), (next + 1, Profile::RsLike)] {
        let (_net, shim) = bed.boot(profile, number).await.unwrap();
        assert!(shim.agent().unwrap().check().await.unwrap());
        shim.stop().await.unwrap();
    }
    bed.until_nothing_left().await.unwrap();
}

/// Two running pods and a start under way.
async fn busy(bed: &Bed, first: u8) -> (Vec<Shim>, Booting) {
    let (_net, go) = bed.boot(Profile::GoLike, first).await.unwrap();
    let (_net, rs) = bed.boot(Profile::RsLike, first + 1).await.unwrap();
    (vec![go, rs], bed.starting(Profile::GoLike, first + 2).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_first_costs_its_pods_and_nothing_else() {
    if !root("the_relay_first_costs_its_pods_and_nothing_else") {
        return;
    }
    let mut bed = Bed::with(slow(Mode::Separate, &["--orphan-grace=1s"])).await.unwrap();
    let (old, boot) = busy(&bed, 1).await;
    bed.daemon.kill_relay().await.unwrap();
    bed.daemon.start_relay().await.unwrap();
    pods_end_and_the_next_one_starts(&mut bed, old, boot, 10).await;
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn both_at_once_in_either_order_leave_nothing() {
    if !root("both_at_once_in_either_order_leave_nothing") {
        return;
    }
    let mut bed = Bed::with(slow(Mode::Separate, &["--orphan-grace=1s"])).await.unwrap();
    for (first, relay_first) in [(1, true), (20, false)] {
        let (old, boot) = busy(&bed, first).await;
        if relay_first {
            bed.daemon.kill_relay().await.unwrap();
            bed.daemon.kill_node().await.unwrap();
            bed.daemon.start_relay().await.unwrap();
            bed.daemon.start_node(None).await.unwrap();
        } else {
            bed.daemon.kill_node().await.unwrap();
            bed.daemon.kill_relay().await.unwrap();
            // It waits for the relay, and takes up its records all the same.
            bed.daemon.start_node(None).await.unwrap();
            let waits = || async {
                let ready = bed.daemon.get("/readyz").await;
                Ok(ready
                    .is_ok_and(|(code, text)| code != 200 && text.contains("relay"))
                    .then_some(()))
            };
            wait_for("a node that waits for its relay", PATIENCE, waits).await.unwrap();
            bed.daemon.start_relay().await.unwrap();
        }
        pods_end_and_the_next_one_starts(&mut bed, old, boot, first + 10).await;
    }
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_killed_is_replaced_and_nobody_notices() {
    if !root("a_parent_that_is_killed_is_replaced_and_nobody_notices") {
        return;
    }
    let mut bed = Bed::with(slow(Mode::Run, &[])).await.unwrap();
    let load = Load::start(&bed, 1..=2, PACE).await.unwrap();
    let seen = load.moves(&load.seen()).await.unwrap();
    let boot = bed.starting(Profile::RsLike, 10).await.unwrap();
    let (node, relay) = (bed.daemon.node_pid().unwrap(), bed.daemon.relay_pid().unwrap());
    bed.daemon.kill_run().await.unwrap();
    assert_eq!(bed.daemon.node_pid(), Some(node), "neither dies with its parent");
    assert_eq!(bed.daemon.relay_pid(), Some(relay));
    let seen = load.moves(&seen).await.unwrap();
    bed.daemon.start_run().await.unwrap();
    bed.daemon.successor_of(node).await.unwrap();
    assert_eq!(bed.daemon.relay_pid(), Some(relay), "the relay that holds the pods is taken over");
    let shim = boot.await.unwrap();
    let shim = shim.unwrap_or_else(|e| panic!("{e}\n{}", bed.daemon.log_tail()));
    shim.stop().await.ok();
    load.moves(&seen).await.unwrap();
    let totals = load.finish().await.unwrap();
    bed.end().await.unwrap();
    println!("restart: parent killed and started anew: {totals}; the start under way went through");
}

/// Runs a subcommand that must end by itself.
async fn ends(bed: &Bed, what: &str) -> String {
    let output = tokio::time::timeout(PATIENCE, bed.daemon.peerpodd(&[what])).await;
    let output = output.expect("ends by itself").expect("starts");
    assert!(!output.status.success(), "{what} must not be content");
    // Logs go to stdout or stderr, as the subcommand has it.
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

#[tokio::test(flavor = "multi_thread")]
async fn run_beside_two_running_units_takes_over_and_the_pods_go_on() {
    if !root("run_beside_two_running_units_takes_over_and_the_pods_go_on") {
        return;
    }
    let mut bed = Bed::with(slow(Mode::Separate, &[])).await.unwrap();
    let load = Load::start(&bed, 1..=2, PACE).await.unwrap();
    let seen = load.moves(&load.seen()).await.unwrap();
    let boot = bed.starting(Profile::GoLike, 10).await.unwrap();
    let (node, relay) = (bed.daemon.node_pid().unwrap(), bed.daemon.relay_pid().unwrap());
    bed.daemon.start_run().await.unwrap();
    bed.daemon.node_ended().await.unwrap();
    let node = bed.daemon.successor_of(node).await.unwrap();
    assert_eq!(bed.daemon.relay_pid(), Some(relay), "the unit's relay stays");
    let shim = boot.await.unwrap();
    let shim = shim.unwrap_or_else(|e| panic!("{e}\n{}", bed.daemon.log_tail()));
    shim.stop().await.unwrap();
    let seen = load.moves(&seen).await.unwrap();
    // The unit that lost its process starts another one, as systemd does.
    let text = ends(&bed, "node").await;
    assert!(text.contains("another node process holds it"), "{text}");
    assert!(text.contains(&format!("(pid {node})")), "{text}");
    assert_eq!(bed.daemon.node_pid(), Some(node));
    load.moves(&seen).await.unwrap();
    let totals = load.finish().await.unwrap();
    bed.end().await.unwrap();
    println!("restart: run beside two units: {totals}; the start under way went through");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_beside_another_run_ends_and_names_it() {
    if !root("run_beside_another_run_ends_and_names_it") {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let pids = (bed.daemon.node_pid(), bed.daemon.relay_pid());
    let text = ends(&bed, "run").await;
    let first = bed.daemon.run_pid().unwrap();
    assert!(text.contains("another `peerpodd run`"), "{text}");
    assert!(text.contains(&format!("(pid {first})")), "{text}");
    assert_eq!((bed.daemon.node_pid(), bed.daemon.relay_pid()), pids, "neither was touched");
    assert!(shim.agent().unwrap().check().await.unwrap());
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}
