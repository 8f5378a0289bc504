//! Spot VMs that their cloud takes back: what the VM says of it, and what comes of it.

use peerpod_providers::Market;
use tokio::time::{Instant, sleep};

use super::harness::*;
use crate::relay::api::{ControlError, Event, Interruption};

fn said(kind: &str, deadline_ms: u64, source: &str) -> Interruption {
    Interruption { kind: kind.to_owned(), deadline_ms, source: source.to_owned() }
}

fn told(sandbox: &str, said: &Interruption) -> Event {
    Event::Interruption { sandbox: sandbox.to_owned(), said: said.clone() }
}

/// A running pod whose shim is there.
async fn running(site: &Site, sandbox: &str) -> Daemon {
    let daemon = site.daemon().await;
    daemon.run(sandbox).await;
    site.relay.shim(sandbox, true);
    daemon
}

fn notes(daemon: &Daemon, sandbox: &str) -> Vec<String> {
    let status = daemon.status(sandbox).expect("it is there");
    let all = status.timeline.into_iter().map(|moment| moment.what);
    all.filter(|what| what.contains("takes the VM back")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_notice_is_told_everywhere_once_and_ends_nothing() {
    let site = Site::new();
    let daemon = running(&site, "spot1").await;
    until("the VM is asked", || lock(&site.relay.watches).contains(&"spot1".to_owned())).await;
    assert!(daemon.status("spot1").expect("there").spot);
    let now = crate::pod::world::Clock::now_ms(&*site.clock);
    let notice = said("terminate", now + 120_000, "aws");
    daemon.tell(told("spot1", &notice)).await;
    until("told", || !notes(&daemon, "spot1").is_empty()).await;
    let status = daemon.status("spot1").expect("there");
    let word = status.interruption.expect("the word stands");
    assert_eq!((word.kind.as_str(), word.source.as_str()), ("terminate", "aws"));
    assert_eq!(word.deadline_ms, Some(now + 120_000));
    assert!(status.last_error.is_some_and(|e| e.contains("terminate, notice of aws")));
    until("saved", || lock(&site.records.state).all["spot1"].interruption.is_some()).await;
    // Another process hears it again, and again.
    daemon.kill().await;
    let daemon = site.daemon().await;
    for notice in [&notice, &said("stop", 0, "gcp")] {
        daemon.tell(told("spot1", notice)).await;
    }
    sleep(seconds(3600)).await;
    assert_eq!((daemon.phase("spot1").as_str(), notes(&daemon, "spot1").len()), ("running", 1));
    assert_eq!(*lock(&site.counts.interrupted), ["aws"]);
    assert_eq!(site.deletes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_no_spot_vm_is_not_asked_nor_believed() {
    let site = Site::new();
    let daemon = running(&site, "s1").await;
    daemon.tell(told("s1", &said("preempt", 0, "azure"))).await;
    sleep(seconds(600)).await;
    let status = daemon.status("s1").expect("there");
    assert_eq!((status.spot, status.interruption), (false, None));
    assert_eq!((notes(&daemon, "s1").len(), lock(&site.relay.watches).len()), (0, 0));
    site.guest.be(Mood::Refuses);
    site.until_nothing_is_left().await;
    assert_eq!(*lock(&site.counts.lost), ["vm"]);
    assert!(lock(&site.counts.interrupted).is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_vms_end_after_a_notice_is_found_sooner_and_has_its_reason() {
    let usual = end_after(None).await;
    let site = Site::new();
    let now = crate::pod::world::Clock::now_ms(&*site.clock);
    for (seconds_ahead, reason) in [(120, "preempt, notice of gcp"), (0, "preempt, notice of gcp")]
    {
        let notice = said("preempt", now + seconds_ahead * 1000, "gcp");
        let (after, told, lost) = end_after(Some(notice)).await;
        assert!(after < usual.0, "{after:?} is no sooner than {:?}", usual.0);
        assert!(told.contains("the spot VM was taken back by the cloud"), "{told}");
        assert!(told.contains(reason) && told.contains("RST"), "{told}");
        assert_eq!(lost, ["spot"]);
    }
    assert!(usual.1.contains("has not answered") && !usual.1.contains("taken back"), "{}", usual.1);
    assert_eq!(usual.2, ["vm"]);
}

/// How long it takes until a VM that refuses is given up, what its shim is told, what is counted.
async fn end_after(
    notice: Option<Interruption>,
) -> (std::time::Duration, String, Vec<&'static str>) {
    let site = Site::new();
    let daemon = running(&site, "spot1").await;
    sleep(seconds(100)).await;
    if let Some(notice) = &notice {
        daemon.tell(told("spot1", notice)).await;
        until("told", || !notes(&daemon, "spot1").is_empty()).await;
    }
    site.guest.be(Mood::Refuses);
    let begin = Instant::now();
    until("closed", || !lock(&site.relay.closes).is_empty()).await;
    let after = begin.elapsed();
    let told = lock(&site.relay.closes)[0].1.clone();
    site.until_nothing_is_left().await;
    let lost = lock(&site.counts.lost).clone();
    (after, told, lost)
}

#[tokio::test(start_paused = true)]
async fn a_notice_that_nothing_came_of_is_no_reason_for_what_happens_later() {
    let site = Site::new();
    let daemon = running(&site, "spot1").await;
    daemon.tell(told("spot1", &said("preempt", 0, "gcp"))).await;
    until("told", || !notes(&daemon, "spot1").is_empty()).await;
    sleep(seconds(3600)).await;
    site.guest.be(Mood::Dark);
    until("closed", || !lock(&site.relay.closes).is_empty()).await;
    assert!(!lock(&site.relay.closes)[0].1.contains("taken back"));
    site.until_nothing_is_left().await;
    assert_eq!(*lock(&site.counts.lost), ["vm"]);
}

#[tokio::test(start_paused = true)]
async fn of_what_a_hostile_vm_says_only_what_a_cloud_would_say_is_kept() {
    let site = Site::new();
    let daemon = running(&site, "spot1").await;
    daemon.tell(told("spot1", &said("rm -rf /\u{1b}[31m", u64::MAX, "my mother"))).await;
    for n in 0..5000 {
        daemon.tell(told("spot1", &said("terminate", n, "aws"))).await;
    }
    until("told", || !notes(&daemon, "spot1").is_empty()).await;
    sleep(seconds(600)).await;
    let word = daemon.status("spot1").and_then(|s| s.interruption).expect("the word stands");
    assert_eq!((word.kind.as_str(), word.source.as_str()), ("other", "other"));
    assert_eq!(word.deadline_ms, None);
    assert_eq!((daemon.phase("spot1").as_str(), notes(&daemon, "spot1").len()), ("running", 1));
    assert_eq!(*lock(&site.counts.interrupted), ["other"]);
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_cannot_ask_the_vm_or_is_away_is_no_reason_to_do_without_the_pod() {
    for error in [ControlError::Refused("no such call".to_owned()), away()] {
        let site = Site::new();
        lock(&site.relay.refuses).insert("watch", error);
        let daemon = running(&site, "spot1").await;
        sleep(seconds(600)).await;
        assert_eq!(daemon.phase("spot1"), "running");
        // The next relay can.
        lock(&site.relay.refuses).clear();
        daemon.attach(&[]).await;
        until("the VM is asked", || !lock(&site.relay.watches).is_empty()).await;
    }
}

fn away() -> ControlError {
    ControlError::Away("no answer".to_owned())
}

#[tokio::test(start_paused = true)]
async fn which_market_the_vm_got_is_known_after_one_without_room() {
    let site = Site::new();
    site.provider.set_room("small", Some("a"), Market::Spot, 0);
    let daemon = running(&site, "spot1").await;
    assert!(daemon.status("spot1").expect("there").spot);
}
