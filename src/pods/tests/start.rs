//! StartVM.

use std::time::Duration;

use peerpod_providers::fake::{self, Fault, Operation};
use peerpod_providers::{Kind, Market};
use tokio::time::{Instant, sleep};

use crate::hypervisor::{FailureKind, Sandboxes};
use crate::pod::phase::{Made, Phase};
use crate::pod::world::Stage;
use crate::relay::api::ControlError;

use super::harness::*;

#[tokio::test(start_paused = true)]
async fn start_makes_vm_tunnel_and_link_and_then_forgets_the_key() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    let vm = site.provider.vms().pop().expect("a VM");
    let tunnel = lock(&site.network.attached)["s1"].clone();
    assert_eq!((tunnel.vm, tunnel.mtu), (vm.address, 1450));
    let target = lock(&site.relay.held)["s1"].target.expect("connected");
    assert_eq!((target.ip(), target.port()), (vm.address, 15150));
    let record = &site.records.all()["s1"];
    assert!(matches!(record.phase, Phase::Running { .. }));
    assert!(!serde_json::to_string(record).expect("writes").contains("PRIVATE"));
    let status = daemon.status("s1").expect("there");
    assert_eq!(status.vm.as_deref(), Some("fake-1"));
    let steps: Vec<_> = status.timeline.iter().map(|m| m.what.as_str()).collect();
    for step in ["open", "create", "attach", "ready", "connect", "running"] {
        assert!(steps.contains(&step), "{steps:?}");
    }
    assert_eq!(lock(&site.counts.phases)["running"], 1);
    assert_eq!(*lock(&site.counts.starts), [true]);
}

#[tokio::test(start_paused = true)]
async fn start_of_an_unknown_id_is_not_found() {
    let daemon = Site::new().daemon().await;
    let failure = daemon.start("s1").await.expect_err("unknown");
    assert_eq!(failure.kind, FailureKind::NotFound);
    assert!(failure.message.contains("s1"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_second_start_joins_the_first_and_is_fine_when_running() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    let (first, second) = tokio::join!(daemon.start("s1"), daemon.start("s1"));
    first.expect("started");
    second.expect("joined");
    daemon.start("s1").await.expect("runs already");
    assert_eq!(site.creates(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_on_disk_before_it_is_made() {
    let site = Site::new();
    site.provider.set_room("small", Some("a"), Market::OnDemand, 0);
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    let log = lock(&site.records.state).log.clone();
    let attempts: Vec<_> = log
        .iter()
        .filter_map(|(_, phase, creates)| match phase {
            Phase::Launching { candidate, made: Made::Perhaps } => Some((*candidate, *creates)),
            _ => None,
        })
        .collect();
    assert_eq!(attempts, [(0, 0), (1, 1)], "candidate, creates sent so far");
}

#[tokio::test(start_paused = true)]
async fn no_capacity_goes_on_to_the_next_place_and_at_last_says_why() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.provider.set_room("small", Some("a"), Market::OnDemand, 0);
    daemon.run("s1").await;
    assert_eq!(site.provider.vms()[0].candidate.zone.as_deref(), Some("b"));
    site.provider.set_room("small", Some("b"), Market::OnDemand, 0);
    daemon.create("s2").await.expect("created");
    let failure = daemon.start("s2").await.expect_err("no room");
    assert_eq!(failure.kind, FailureKind::Exhausted);
    for part in ["capacity", "small in b", "stage reached: requested"] {
        assert!(failure.message.contains(part), "{failure}");
    }
    assert_eq!(site.creates(), 3, "each place once, no storm");
}

#[tokio::test(start_paused = true)]
async fn what_no_repetition_helps_is_not_repeated() {
    for (kind, mapped) in
        [(Kind::Denied, FailureKind::Precondition), (Kind::Invalid, FailureKind::Invalid)]
    {
        let site = Site::new();
        let daemon = site.daemon().await;
        site.provider.script_always(Operation::Create, Fault::Fail(kind));
        daemon.create("s1").await.expect("created");
        let failure = daemon.start("s1").await.expect_err("refused");
        assert_eq!((failure.kind, site.creates()), (mapped, 1));
        assert!(failure.message.contains(kind.as_str()), "{failure}");
        site.until_nothing_is_left().await;
        assert_eq!(site.deletes(), 1, "parts may have been left");
    }
}

#[tokio::test(start_paused = true)]
async fn a_throttled_create_waits_as_long_as_it_is_told() {
    let site = Site::new();
    let daemon = site.daemon().await;
    let hint = Some(seconds(30));
    site.provider.script_next(Operation::Create, Fault::Fail(Kind::Throttled(hint)));
    let begin = Instant::now();
    daemon.run("s1").await;
    assert!(begin.elapsed() >= seconds(30));
    assert_eq!(site.creates(), 2);
    assert_eq!(*lock(&site.counts.errors), [("create", "throttled")]);
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_reply_is_lost_is_repeated_as_it_was_and_gives_one_vm() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.provider.script_next(Operation::Create, Fault::LostReply(Kind::Unavailable));
    daemon.run("s1").await;
    assert_eq!((site.creates(), site.provider.vms().len()), (2, 1));
    let calls = site.provider.calls();
    let creates: Vec<_> = calls.iter().filter(|c| c.operation == Operation::Create).collect();
    assert_eq!(creates[0].candidate, creates[1].candidate);
}

#[tokio::test(start_paused = true)]
async fn a_create_that_left_parts_is_cleaned_up() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.provider.script_next(Operation::Create, Fault::Partial(Kind::Invalid));
    daemon.create("s1").await.expect("created");
    daemon.start("s1").await.expect_err("refused");
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_without_an_address_is_given_up_in_time_and_deleted() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.provider.script_always(Operation::Create, Fault::NoAddress);
    daemon.create("s1").await.expect("created");
    let begin = Instant::now();
    let failure = daemon.start("s1").await.expect_err("no address");
    assert!(begin.elapsed() <= site.options.start_deadline + seconds(1));
    assert!(failure.message.contains("stage reached: requested"), "{failure}");
    assert!(failure.message.contains("no address yet"), "{failure}");
    site.provider.clear_script();
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn no_more_creates_run_at_once_than_the_cap_and_all_get_their_turn() {
    let mut site = Site::with(fake::Options { boot_takes: seconds(5), ..fake::Options::default() });
    site.options.concurrent_creates = 2;
    let daemon = site.daemon().await;
    let names: Vec<String> = (0..6).map(|n| format!("s{n}")).collect();
    for name in &names {
        daemon.create(name).await.expect("created");
    }
    let begin = Instant::now();
    let starts: Vec<_> = names.iter().map(|n| daemon.starting(n)).collect();
    sleep(seconds(1)).await;
    let all = daemon.pods.snapshot();
    let waits = |s: &&crate::pods::PodStatus| {
        s.timeline.iter().any(|m| m.what == "waiting for other creates")
    };
    assert_eq!(all.iter().filter(waits).count(), 4, "who waits says so");
    while daemon.pods.snapshot().iter().any(|s| s.phase != "running") {
        let calls = site.provider.calls();
        assert!(calls.iter().filter(|c| c.outcome.is_none()).count() <= 2);
        sleep(Duration::from_millis(100)).await;
    }
    for start in starts {
        start.await.expect("joins").expect("started");
    }
    assert!(begin.elapsed() >= seconds(15), "three rounds of two");
    assert!(begin.elapsed() <= seconds(16));
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_cannot_be_made_fails_the_start_and_leaves_nothing() {
    let site = Site::new();
    let daemon = site.daemon().await;
    lock(&site.network.refuses).insert("attach");
    daemon.create("s1").await.expect("created");
    let failure = daemon.start("s1").await.expect_err("no tunnel");
    assert!(failure.message.contains("tunnel") && failure.message.contains("attach refused"));
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_of_its_own_interface_takes_the_vms_second_address() {
    let site = Site::new();
    *lock(&site.network.dedicated) = true;
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    // The fake's VMs have one address.
    let failure = daemon.start("s1").await.expect_err("refused");
    assert!(failure.message.contains("needs a second"), "{failure}");
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_vm_is_told_by_the_stage_it_reached() {
    let moods = [
        (Mood::Dark, Stage::Unreachable, "silence"),
        (Mood::Refuses, Stage::Refused, "RST"),
        (Mood::BreaksTls, Stage::Tls, "bad certificate"),
        (Mood::AgentMissing, Stage::Agent, "no agent"),
    ];
    for (mood, stage, seen) in moods {
        let site = Site::new();
        let daemon = site.daemon().await;
        site.guest.be(mood);
        daemon.create("s1").await.expect("created");
        let start = daemon.starting("s1");
        sleep(seconds(60)).await;
        let status = daemon.status("s1").expect("there");
        assert_eq!(status.stage, Some(stage), "told while it waits");
        let failure = start.await.expect("joins").expect_err("never ready");
        assert_eq!(failure.kind, FailureKind::Deadline);
        for part in [stage.as_str(), stage.explain(), seen] {
            assert!(failure.message.contains(part), "{failure}");
        }
        assert_eq!(*lock(&site.counts.failed_at), [stage]);
        assert_eq!(*lock(&site.counts.starts), [false]);
        site.until_nothing_is_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_stops_while_its_pod_starts_is_told_within_two_minutes() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.guest.be(Mood::Dark);
    daemon.create("s1").await.expect("created");
    let (begin, start) = (Instant::now(), daemon.starting("s1"));
    until("a VM", || !site.provider.vms().is_empty()).await;
    let name = site.provider.vms()[0].spec.name.clone();
    let lists = || site.provider.count(Operation::List);
    sleep(seconds(58)).await;
    assert_eq!(lists(), 0, "most VMs have booted by then");
    assert!(site.provider.kill(&name));
    let failure = start.await.expect("joins").expect_err("it has stopped");
    assert!(begin.elapsed() <= seconds(120), "{:?}", begin.elapsed());
    assert_eq!(failure.kind, FailureKind::Unavailable);
    assert!(failure.message.contains("the cloud says that the VM has stopped"), "{failure}");
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_vm_that_runs_is_waited_for() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.guest.be(Mood::Dark);
    daemon.create("s1").await.expect("created");
    let start = daemon.starting("s1");
    sleep(seconds(200)).await;
    site.guest.be(Mood::Answers);
    start.await.expect("joins").expect("started");
}

#[tokio::test(start_paused = true)]
async fn probing_is_dense_and_within_its_budget() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.guest.be(Mood::Dark);
    daemon.create("s1").await.expect("created");
    let start = daemon.starting("s1");
    sleep(seconds(20)).await;
    site.guest.be(Mood::Refuses);
    sleep(seconds(20)).await;
    let ready_at = Instant::now();
    site.guest.be(Mood::Answers);
    start.await.expect("joins").expect("started");
    assert!(ready_at.elapsed() <= Duration::from_millis(150));
    let knocks = lock(&site.guest.knocks).len();
    assert!((300..=400).contains(&knocks), "{knocks} in 40 s");
}

#[tokio::test(start_paused = true)]
async fn a_start_whose_caller_has_gone_is_undone_within_a_second() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.guest.be(Mood::Dark);
    daemon.create("s1").await.expect("created");
    let start = daemon.starting("s1");
    until("tunnel", || !lock(&site.network.attached).is_empty()).await;
    start.abort();
    let begin = Instant::now();
    until("undone", || {
        lock(&site.network.attached).is_empty() && site.relay.sandboxes().is_empty()
    })
    .await;
    assert!(begin.elapsed() <= seconds(1), "{:?}", begin.elapsed());
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_goes_on_as_long_as_one_caller_waits() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.guest.be(Mood::Dark);
    daemon.create("s1").await.expect("created");
    let (first, second) = (daemon.starting("s1"), daemon.starting("s1"));
    sleep(seconds(5)).await;
    first.abort();
    sleep(seconds(5)).await;
    site.guest.be(Mood::Answers);
    second.await.expect("joins").expect("started");
}

#[tokio::test(start_paused = true)]
async fn a_caller_hears_before_its_own_deadline_how_far_the_start_came() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.guest.be(Mood::Refuses);
    daemon.create("s1").await.expect("created");
    let begin = Instant::now();
    let failure = daemon.pods.start("s1", Some(seconds(30))).await.expect_err("too late");
    assert!(begin.elapsed() < seconds(30), "{:?}", begin.elapsed());
    assert!(failure.message.contains("stage reached: refused"), "{failure}");
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_does_not_reach_the_vm_at_once_is_asked_again() {
    let site = Site::new();
    let daemon = site.daemon().await;
    let error = ControlError::Unreachable("by the test".to_owned());
    lock(&site.relay.refuses).insert("connect", error);
    daemon.create("s1").await.expect("created");
    let start = daemon.starting("s1");
    sleep(seconds(5)).await;
    lock(&site.relay.refuses).clear();
    start.await.expect("joins").expect("started");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_fails_a_start_before_any_cloud_call() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    lock(&site.records.state).full = true;
    let failure = daemon.start("s1").await.expect_err("refused");
    assert_eq!((failure.kind, site.creates()), (FailureKind::Exhausted, 0));
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_the_vm_of_a_pod_waits_until_it_is_known_or_the_pod_has_gone() {
    let site = Site::new();
    let daemon = site.daemon().await;
    let pods = daemon.pods.clone();
    let early = tokio::spawn(async move { pods.vm_id("default", "s1", true).await });
    sleep(seconds(1)).await;
    daemon.create("s1").await.expect("created");
    let failure = daemon.pods.vm_id("default", "s1", false).await.expect_err("not yet");
    assert_eq!(failure.kind, FailureKind::NotFound);
    daemon.start("s1").await.expect("started");
    assert_eq!(early.await.expect("joins").expect("known"), "fake-1");
    assert_eq!(daemon.pods.vm_id("default", "s1", false).await.expect("known"), "fake-1");
    daemon.create("s2").await.expect("created");
    let pods = daemon.pods.clone();
    let waits = tokio::spawn(async move { pods.vm_id("default", "s2", true).await });
    sleep(seconds(1)).await;
    daemon.stop("s2").await.expect("stopped");
    let failure = waits.await.expect("joins").expect_err("gone");
    assert_eq!(failure.kind, FailureKind::NotFound);
}
