//! StopVM and every other end.

use std::time::Duration;

use peerpod_providers::Kind;
use peerpod_providers::fake::{self, Fault, Operation};
use tokio::time::{Instant, sleep};

use crate::hypervisor::FailureKind;
use crate::pod::phase::Phase;
use crate::relay::api::ControlError;

use super::harness::*;

#[tokio::test(start_paused = true)]
async fn stop_of_an_unknown_id_is_fine_and_calls_nobody() {
    let site = Site::new();
    let daemon = site.daemon().await;
    for id in ["s1", "", "../x"] {
        daemon.stop(id).await.expect("fine");
    }
    assert_eq!(site.deletes(), 0);
}

#[tokio::test(start_paused = true)]
async fn stop_takes_everything_away_and_three_at_once_are_fine() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    let (a, b, c) = tokio::join!(daemon.stop("s1"), daemon.stop("s1"), daemon.stop("s1"));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    site.until_nothing_is_left().await;
    assert_eq!(site.deletes(), 1);
    assert_eq!(*lock(&site.counts.lost), [] as [&str; 0]);
    daemon.stop("s1").await.expect("fine afterwards");
    assert!(lock(&site.counts.phases).values().all(|n| *n == 0));
}

#[tokio::test(start_paused = true)]
async fn stop_is_on_disk_and_local_things_are_gone_when_it_is_answered() {
    let site = Site::with(fake::Options { delete_takes: seconds(60), ..fake::Options::default() });
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    let begin = Instant::now();
    daemon.stop("s1").await.expect("stopped");
    assert!(begin.elapsed() <= Duration::from_millis(200), "{:?}", begin.elapsed());
    assert!(matches!(site.on_disk("s1"), Some(Phase::Deleting { .. })));
    assert!(lock(&site.network.attached).is_empty() && site.relay.sandboxes().is_empty());
    assert_eq!(site.provider.vms().len(), 1, "the cloud takes its time");
    let record = serde_json::to_string(&site.records.all()["s1"]).expect("writes");
    assert!(!record.contains("PRIVATE"), "no key is kept for a pod that is over");
    daemon.stop("s1").await.expect("repeated");
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn stop_is_answered_within_a_second_whatever_hangs_or_fails() {
    for trouble in ["delete", "close", "detach", "disk", "full", "away"] {
        let site = Site::new();
        let daemon = site.daemon().await;
        daemon.run("s1").await;
        match trouble {
            "delete" => site.provider.script_always(Operation::Delete, Fault::Delay(seconds(60))),
            "close" => drop(lock(&site.relay.hangs).insert("close")),
            "detach" => drop(lock(&site.network.hangs).insert("detach")),
            "disk" => lock(&site.records.state).hangs = true,
            "full" => lock(&site.records.state).full = true,
            _ => {
                let away = ControlError::Away("by the test".to_owned());
                lock(&site.relay.refuses).insert("close", away);
            }
        }
        let begin = Instant::now();
        daemon.stop("s1").await.expect(trouble);
        assert!(begin.elapsed() < seconds(1), "{trouble}: {:?}", begin.elapsed());
        let (tunnel, socket) = (&site.network.attached, &site.relay.held);
        let gone = (lock(tunnel).is_empty(), lock(socket).is_empty());
        let wanted = (trouble != "detach", !["close", "away"].contains(&trouble));
        assert_eq!(gone, wanted, "{trouble} holds nothing else up");
        sleep(seconds(5)).await;
        lock(&site.relay.hangs).clear();
        lock(&site.relay.refuses).clear();
        lock(&site.network.hangs).clear();
        lock(&site.records.state).hangs = false;
        lock(&site.records.state).full = false;
        site.until_nothing_is_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn stop_of_a_sandbox_that_was_never_started_makes_no_cloud_call() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    daemon.stop("s1").await.expect("stopped");
    site.until_nothing_is_left().await;
    assert_eq!(site.deletes(), 0);
}

#[tokio::test(start_paused = true)]
async fn stop_during_a_create_cancels_it_and_whatever_comes_of_it_later_is_deleted() {
    let site = Site::new();
    let daemon = site.daemon().await;
    // The request times out, and takes effect a minute later.
    site.provider.script_next(Operation::Create, Fault::LateEffect(seconds(60)));
    site.provider.script_always(Operation::Create, Fault::Hang);
    daemon.create("s1").await.expect("created");
    let start = daemon.starting("s1");
    until("sent", || site.creates() >= 1).await;
    let begin = Instant::now();
    daemon.stop("s1").await.expect("stopped");
    assert!(begin.elapsed() < seconds(1));
    let record = serde_json::to_string(&site.records.all()["s1"]).expect("writes");
    assert!(!record.contains("PRIVATE"), "no key is kept for a pod that is over");
    let failure = start.await.expect("joins").expect_err("cancelled");
    assert_eq!(failure.kind, FailureKind::Cancelled);
    sleep(seconds(30)).await;
    assert!(site.on_disk("s1").is_some(), "the record stays while the VM may still appear");
    sleep(seconds(31)).await;
    site.until_nothing_is_left().await;
    assert!(begin.elapsed() >= site.options.settle);
    assert!(site.provider.count(Operation::List) >= 1, "the list was asked, too");
}

#[tokio::test(start_paused = true)]
async fn a_create_that_answers_after_the_stop_leaves_no_doubt_to_wait_for() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.provider.script_next(Operation::Create, Fault::Delay(seconds(7)));
    daemon.create("s1").await.expect("created");
    let start = daemon.starting("s1");
    until("sent", || site.creates() >= 1).await;
    let begin = Instant::now();
    daemon.stop("s1").await.expect("stopped");
    start.await.expect("joins").expect_err("cancelled");
    site.until_nothing_is_left().await;
    assert!(begin.elapsed() >= seconds(7), "the create's own answer is waited for");
    assert!(begin.elapsed() < site.options.settle, "{:?}", begin.elapsed());
    assert!(site.provider.vms().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_the_list_still_has_is_deleted_again_after_gone_was_said() {
    let site = Site::new();
    let daemon = site.daemon().await;
    // Takes effect when "gone" has been said for the whole time already.
    let late = site.options.settle + seconds(1);
    site.provider.script_next(Operation::Create, Fault::LateEffect(late));
    site.provider.script_always(Operation::Create, Fault::Hang);
    // The list fails at first: it is not taken for an empty one.
    for call in 1..4 {
        site.provider.script(Operation::List, call, Fault::BreaksAfter(0));
    }
    daemon.create("s1").await.expect("created");
    let start = daemon.starting("s1");
    until("sent", || site.creates() >= 1).await;
    daemon.stop("s1").await.expect("stopped");
    start.await.expect("joins").expect_err("cancelled");
    site.until_nothing_is_left().await;
    assert!(site.provider.count(Operation::List) >= 4);
    assert!(site.provider.vms().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_fails_is_repeated_until_the_vm_is_gone() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    for call in 1..=6 {
        let kind = if call % 2 == 0 { Kind::Denied } else { Kind::Unavailable };
        site.provider.script(Operation::Delete, call, Fault::Fail(kind));
    }
    daemon.stop("s1").await.expect("stopped");
    sleep(seconds(10)).await;
    assert!(site.on_disk("s1").is_some());
    site.until_nothing_is_left().await;
    assert_eq!(site.deletes(), 7);
    assert_eq!(lock(&site.counts.errors).len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_delete_is_repeated_across_restarts() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.provider.script_always(Operation::Delete, Fault::Fail(Kind::Unavailable));
    daemon.stop("s1").await.expect("stopped");
    sleep(seconds(5)).await;
    daemon.kill().await;
    let daemon = site.daemon().await;
    sleep(seconds(60)).await;
    assert_eq!(daemon.phase("s1"), "deleting");
    site.provider.clear_script();
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn not_found_at_a_delete_is_success() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.provider.vanish(&site.provider.vms()[0].spec.name.clone());
    site.provider.script_next(Operation::Delete, Fault::Fail(Kind::NotFound));
    daemon.stop("s1").await.expect("stopped");
    site.until_nothing_is_left().await;
    assert_eq!(site.deletes(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_does_not_come_down_holds_nothing_up_and_is_tried_again() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    lock(&site.network.refuses).insert("detach");
    daemon.stop("s1").await.expect("stopped");
    until("VM gone", || site.provider.vms().is_empty()).await;
    assert!(site.relay.sandboxes().is_empty());
    sleep(seconds(60)).await;
    assert!(site.on_disk("s1").is_some(), "kept until all is gone");
    lock(&site.network.refuses).clear();
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn start_of_a_sandbox_that_is_being_deleted_is_refused() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.provider.script_always(Operation::Delete, Fault::Hang);
    daemon.stop("s1").await.expect("stopped");
    let failure = daemon.start("s1").await.expect_err("refused");
    assert_eq!(failure.kind, FailureKind::Precondition);
}

#[tokio::test(start_paused = true)]
async fn an_attach_under_way_does_not_outlive_the_stop_that_cancels_it() {
    let site = Site::new();
    let daemon = site.daemon().await;
    lock(&site.network.hangs).insert("attach");
    daemon.create("s1").await.expect("created");
    let start = daemon.starting("s1");
    until("attaching", || *lock(&site.network.attaches) == 1).await;
    daemon.stop("s1").await.expect("stopped");
    start.await.expect("joins").expect_err("cancelled");
    sleep(seconds(5)).await;
    // Only now the kernel finishes what the start had asked for.
    lock(&site.network.hangs).clear();
    site.until_nothing_is_left().await;
    sleep(seconds(60)).await;
    assert!(lock(&site.network.attached).is_empty());
}
