//! Files that had no room in a VM's user data: the VM has them before its agent is asked anything.

use peerpod_providers::Kind;
use peerpod_providers::fake::{Fault, Operation};

use super::harness::*;
use crate::hypervisor::{Failure, FailureKind};

const FILE: &str = "/run/peerpod/initdata: INITDATA";

/// The start of a pod whose VMs are like that fails.
async fn fails(site: &Site, mood: Mood) -> Failure {
    site.guest.be(mood);
    let daemon = site.daemon().await;
    daemon.create("follow1").await.expect("created");
    let failure = daemon.start("follow1").await.expect_err("it fails");
    site.until_nothing_is_left().await;
    failure
}

fn kept(site: &Site) -> usize {
    lock(&site.records.state).all["follow1"].machine.follow.len()
}

#[tokio::test(start_paused = true)]
async fn they_are_sent_before_the_agent_is_asked_and_then_forgotten() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.create("follow1").await.expect("created");
    assert_eq!(kept(&site), 1, "on disk before there is a VM");
    daemon.start("follow1").await.expect("started");
    assert_eq!(*lock(&site.guest.heard), [FILE, "agent"]);
    assert_eq!(kept(&site), 0, "a secret that is of no more use");
    let timeline = daemon.status("follow1").expect("there").timeline;
    assert!(timeline.iter().any(|moment| moment.what == "deliver"), "{timeline:?}");
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_takes_none_ends_the_start_by_name_and_goes() {
    let site = Site::new();
    let failure = fails(&site, Mood::TakesNoFiles).await;
    assert_eq!(failure.kind, FailureKind::Precondition);
    assert!(failure.message.contains("no room in the user data: it takes none"), "{failure}");
    assert_eq!(*lock(&site.guest.heard), [""; 0], "the agent was never asked");
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_does_not_take_them_in_time_is_given_up_as_one_that_is_not_ready() {
    let site = Site::new();
    let failure = fails(&site, Mood::Hangs).await;
    assert_eq!(failure.kind, FailureKind::Deadline);
    assert!(
        failure.message.contains("last: ") && failure.message.contains("not taken"),
        "{failure}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_dies_before_they_were_taken_leaves_them_to_the_next_one() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.guest.be(Mood::Dark);
    daemon.create("follow1").await.expect("created");
    let start = daemon.starting("follow1");
    until("knocked", || !lock(&site.guest.knocks).is_empty()).await;
    daemon.kill().await;
    start.abort();
    assert_eq!(kept(&site), 1);
    site.guest.be(Mood::Answers);
    let daemon = site.daemon_with(&[("follow1", "StartVM")]).await;
    daemon.start("follow1").await.expect("the relay sends it again");
    assert_eq!(*lock(&site.guest.heard), [FILE, "agent"]);
    assert_eq!((kept(&site), site.creates()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn they_go_with_the_pod_that_never_got_them() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.guest.be(Mood::Dark);
    daemon.create("follow1").await.expect("created");
    let start = daemon.starting("follow1");
    until("knocked", || !lock(&site.guest.knocks).is_empty()).await;
    site.provider.script_next(Operation::Delete, Fault::Fail(Kind::Unavailable));
    daemon.stop("follow1").await.expect("stopped");
    until("over, or gone", || {
        let all = lock(&site.records.state).all.clone();
        all.get("follow1").is_none_or(|record| {
            assert!(record.phase.is_young() || record.machine.follow.is_empty());
            record.phase.is_over()
        })
    })
    .await;
    assert!(start.await.expect("task").is_err());
    site.until_nothing_is_left().await;
}
