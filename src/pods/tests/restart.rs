//! A daemon that dies in any phase, and its successor.

use std::time::Duration;

use peerpod_providers::fake::{self, Fault, Operation};
use tokio::time::{Instant, sleep, timeout};

use crate::hypervisor::{FailureKind, Sandboxes};
use crate::pod::phase::{Made, Phase};
use crate::pod::record::Broken;
use crate::proto::hypervisor::CreateVmRequest;
use crate::relay::api::Event;

use super::harness::*;

#[tokio::test(start_paused = true)]
async fn a_prepared_pod_listens_again_and_can_be_started() {
    let site = Site::new();
    let daemon = site.daemon().await;
    let path = daemon.create("s1").await.expect("created");
    daemon.kill().await;
    // The relay went, too.
    lock(&site.relay.held).clear();
    let daemon = site.daemon().await;
    until("open", || site.relay.sandboxes().len() == 1).await;
    assert_eq!(daemon.create("s1").await.expect("known"), path);
    daemon.start("s1").await.expect("started");
}

#[tokio::test(start_paused = true)]
async fn a_prepared_pod_expires_by_its_age_not_by_the_daemons() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    sleep(seconds(14 * 60)).await;
    daemon.kill().await;
    let daemon = site.daemon().await;
    sleep(seconds(2 * 60)).await;
    assert_eq!(daemon.phase("s1"), "gone");
    site.until_nothing_is_left().await;
}

/// A daemon that was killed while the first VM of `s1` was being made.
async fn killed_while_launching(site: &Site) {
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    site.provider.script_next(Operation::Create, Fault::LostReply(peerpod_providers::Kind::Other));
    let start = daemon.starting("s1");
    until("sent", || site.creates() == 1 && !site.provider.vms().is_empty()).await;
    daemon.kill().await;
    start.abort();
}

#[tokio::test(start_paused = true)]
async fn a_start_that_a_shim_still_waits_for_goes_on_with_the_same_bytes_and_place() {
    let site = Site::new();
    killed_while_launching(&site).await;
    let first = site.provider.vms().pop().expect("made");
    let daemon = site.daemon_with(&[("s1", "StartVM")]).await;
    daemon.start("s1").await.expect("the relay sends it again");
    assert_eq!(site.provider.vms(), [first], "the same VM, none besides");
    assert_eq!(daemon.phase("s1"), "running");
}

#[tokio::test(start_paused = true)]
async fn what_comes_for_a_start_before_the_relay_has_told_is_answered_by_that_start() {
    let site = Site::new();
    killed_while_launching(&site).await;
    let daemon = site.unattached().await;
    let pods = daemon.pods.clone();
    let create = tokio::spawn(async move { pods.create(request("s1")).await });
    let start = daemon.starting("s1");
    until("running", || daemon.phase("s1") == "running").await;
    let path = timeout(seconds(60), create).await.expect("answered").expect("joins");
    let path = path.expect("its path");
    assert_eq!(path, daemon.create("s1").await.expect("known"));
    start.await.expect("joins").expect("started");
    assert_eq!(site.provider.vms().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_start_whose_relay_never_comes_is_undone_in_its_time() {
    let site = Site::new();
    killed_while_launching(&site).await;
    let daemon = site.unattached().await;
    sleep(site.options.start_deadline - seconds(1)).await;
    assert_eq!(daemon.phase("s1"), "launching");
    sleep(seconds(2)).await;
    assert_ne!(daemon.phase("s1"), "launching");
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_relay_tells_before_the_records_are_read_reaches_their_pods() {
    let site = Site::new();
    killed_while_launching(&site).await;
    let begin = Instant::now();
    let _daemon = site.attached_before(&[("s1", "StopVM")]).await;
    site.until_nothing_is_left().await;
    assert!(begin.elapsed() < site.options.start_deadline, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_start_that_nobody_waits_for_any_more_is_undone() {
    let site = Site::new();
    killed_while_launching(&site).await;
    let daemon = site.unattached().await;
    sleep(seconds(60)).await;
    assert_eq!(daemon.phase("s1"), "launching", "until the relay has told");
    assert_eq!(site.creates(), 1, "and nothing is done");
    daemon.attach(&[("s1", "StopVM"), ("other", "StartVM")]).await;
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_had_an_address_goes_on_from_there() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.guest.be(Mood::Dark);
    daemon.create("s1").await.expect("created");
    let start = daemon.starting("s1");
    let known = |p| matches!(p, Some(Phase::Launching { made: Made::Known(_), .. }));
    until("address", || known(site.on_disk("s1"))).await;
    daemon.kill().await;
    start.abort();
    site.guest.be(Mood::Answers);
    let daemon = site.daemon_with(&[("s1", "/hypervisor.Hypervisor/StartVM")]).await;
    daemon.start("s1").await.expect("started");
    assert_eq!(site.creates(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_running_pod_notices_nothing() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.relay.shim("s1", true);
    daemon.kill().await;
    let (attaches, connects) = (*lock(&site.network.attaches), *lock(&site.relay.connects));
    let daemon = site.daemon().await;
    sleep(seconds(3600)).await;
    assert_eq!(daemon.phase("s1"), "running");
    assert_eq!((site.creates(), site.deletes()), (1, 0));
    assert_eq!(*lock(&site.network.attaches), attaches, "the tunnel stands");
    assert_eq!(*lock(&site.relay.connects), connects, "the link stands");
    assert!(lock(&site.relay.closes).is_empty());
    daemon.start("s1").await.expect("a StartVM whose answer was lost");
    daemon.stop("s1").await.expect("stopped");
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_running_pods_tunnel_and_link_are_repaired() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    let tunnel = lock(&site.network.attached)["s1"].clone();
    daemon.kill().await;
    lock(&site.network.attached).clear();
    lock(&site.relay.held).clear();
    let daemon = site.daemon().await;
    until("repaired", || {
        lock(&site.network.attached).get("s1") == Some(&tunnel)
            && lock(&site.relay.held).get("s1").is_some_and(|s| s.target.is_some())
    })
    .await;
    assert_eq!(daemon.phase("s1"), "running");
    assert_eq!(site.creates(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_was_restarted_is_told_again_what_to_hold() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    daemon.create("s2").await.expect("created");
    daemon.tell(Event::Lost).await;
    lock(&site.relay.held).clear();
    daemon.tell(Event::Attached { epoch: 2, pending: Vec::new() }).await;
    until("told", || site.relay.sandboxes().len() == 2).await;
    until("link", || lock(&site.relay.held)["s1"].target.is_some()).await;
    assert_eq!(daemon.phase("s2"), "prepared");
}

#[tokio::test(start_paused = true)]
async fn pods_of_an_earlier_boot_are_over() {
    let mut site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    daemon.create("s2").await.expect("created");
    daemon.kill().await;
    lock(&site.relay.held).clear();
    site.options.boot_id = "boot-2".to_owned();
    let _daemon = site.daemon().await;
    site.until_nothing_is_left().await;
    assert_eq!(*lock(&site.counts.lost), ["boot"]);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_deletes_no_vm_and_takes_no_dropped_caller_for_gone() {
    let site = Site::with(fake::Options { boot_takes: seconds(5), ..fake::Options::default() });
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    daemon.create("s2").await.expect("created");
    let start = daemon.starting("s2");
    until("sent", || site.creates() == 2).await;
    let waits = daemon.starting("s2");
    sleep(seconds(1)).await;
    daemon.shutdown.tell("SIGTERM");
    start.abort();
    let pods = daemon.pods.clone();
    let late = tokio::spawn(async move { pods.stop("s1").await });
    let pods = daemon.pods.clone();
    let refused = tokio::spawn(async move { pods.create(CreateVmRequest::default()).await });
    let unknown = daemon.starting("s9");
    let left = daemon.shutdown.drain(seconds(30)).await;
    assert!(left.is_empty(), "{left:?}");
    sleep(seconds(1)).await;
    let left = late.is_finished() || refused.is_finished() || unknown.is_finished();
    assert!(!left, "left to the successor, not refused");
    assert!(!waits.is_finished(), "what was waiting is not answered either");
    assert!(matches!(site.on_disk("s1"), Some(Phase::Running { .. })));
    assert!(matches!(site.on_disk("s2"), Some(Phase::Launching { .. })));
    assert_eq!(site.deletes(), 0);
    let daemon = site.daemon_with(&[("s2", "StartVM"), ("s1", "StopVM")]).await;
    daemon.start("s2").await.expect("goes on");
    daemon.stop("s1").await.expect("sent again");
    until("gone", || daemon.phase("s1") == "gone").await;
    assert_eq!(site.provider.vms().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_used_stops_no_other_and_is_told() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    daemon.kill().await;
    lock(&site.records.state).broken = vec![Broken {
        sandbox: "s9".to_owned(),
        path: "/state/broken/s9-1".into(),
        reason: "not a record".to_owned(),
        newer: false,
    }];
    let daemon = site.daemon().await;
    assert_eq!(daemon.phase("s1"), "running");
    let status = daemon.status("s9").expect("told");
    assert_eq!(status.phase, "broken");
    assert!(status.reason.expect("why").contains("/state/broken/s9-1"));
    assert_eq!(*lock(&site.counts.broken), 1);
    daemon.stop("s9").await.expect("fine");
}

#[tokio::test(start_paused = true)]
async fn a_record_of_a_newer_daemon_and_its_vm_are_left_alone() {
    let mut site = Site::new();
    site.options.sweep_interval = Some(seconds(600));
    let old = site.daemon().await;
    old.run("s1").await;
    old.kill().await;
    let record = lock(&site.records.state).all.remove("s1").expect("there");
    lock(&site.records.state).broken = vec![Broken {
        sandbox: "s1".to_owned(),
        path: "/state/pods/s1".into(),
        reason: "version 2 is newer than 1".to_owned(),
        newer: true,
    }];
    let daemon = site.daemon().await;
    for refused in [
        daemon.create("s1").await.expect_err("refused").to_string(),
        daemon.start("s1").await.expect_err("refused").to_string(),
        daemon
            .stop("s1")
            .await
            .expect_err("its VM goes on, and whoever stops it hears so")
            .to_string(),
    ] {
        assert!(refused.contains("version 2") && refused.contains("left alone"), "{refused}");
    }
    assert!(lock(&site.relay.closes).is_empty(), "its shim's connections stay");
    let failure = daemon.start("s1").await.expect_err("refused");
    assert_eq!(failure.kind, FailureKind::Precondition);
    sleep(seconds(3 * 3600)).await;
    assert_eq!(site.provider.vms().len(), 1);
    assert_eq!(lock(&site.network.attached).len(), 1);
    daemon.kill().await;
    lock(&site.records.state).broken.clear();
    lock(&site.records.state).all.insert("s1".to_owned(), record);
    let daemon = site.daemon().await;
    assert_eq!(daemon.phase("s1"), "running", "the newer daemon takes it up again");
}

#[tokio::test(start_paused = true)]
async fn network_objects_of_no_record_are_removed_at_start() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    daemon.run("s2").await;
    daemon.kill().await;
    lock(&site.records.state).all.remove("s2");
    let _daemon = site.daemon().await;
    assert_eq!(lock(&site.network.attached).keys().collect::<Vec<_>>(), ["s1"]);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_killed_at_any_moment_of_a_life_leaks_nothing() {
    // Each round kills the first daemon a little later in the same life.
    for round in 0..60 {
        let site = Site::with(fake::Options {
            boot_takes: Duration::from_millis(40),
            delete_takes: seconds(1),
            ..fake::Options::default()
        });
        let daemon = site.daemon().await;
        let pods = daemon.pods.clone();
        let life = tokio::spawn(async move {
            let _ = pods.create(request("s1")).await;
            let _ = pods.start("s1", None).await;
            sleep(Duration::from_millis(20)).await;
            let _ = pods.stop("s1").await;
        });
        sleep(Duration::from_millis(2 * round)).await;
        daemon.kill().await;
        life.abort();
        let daemon = site.daemon_with(&[("s1", "StartVM")]).await;
        // The shim repeats what was not answered.
        let begin = Instant::now();
        let _ = daemon.pods.create(request("s1")).await;
        let _ = daemon.start("s1").await;
        assert!(site.provider.vms().len() <= 1, "round {round}");
        daemon.stop("s1").await.expect("stopped");
        site.until_nothing_is_left().await;
        assert!(begin.elapsed() < seconds(600), "round {round}");
    }
}
