//! CreateVM.

use crate::hypervisor::{FailureKind, Sandboxes};
use crate::pod::phase::Phase;
use crate::relay::api::ControlError;
use crate::request::keys;

use super::harness::*;

#[tokio::test(start_paused = true)]
async fn create_is_answered_with_the_path_when_record_and_socket_are_there() {
    let site = Site::new();
    let daemon = site.daemon().await;
    let path = daemon.create("s1").await.expect("created");
    assert_eq!(path, "/run/peerpod/pods/s1/agent.ttrpc");
    assert_eq!(site.on_disk("s1"), Some(Phase::Prepared));
    assert_eq!(lock(&site.relay.held)["s1"].path.to_str(), Some(path.as_str()));
    assert_eq!(site.creates(), 0, "no cloud call");
}

#[tokio::test(start_paused = true)]
async fn create_of_a_known_id_gives_the_same_path_without_a_namespace_and_while_running() {
    let site = Site::new();
    let daemon = site.daemon().await;
    let path = daemon.create("s1").await.expect("created");
    lock(&site.network.missing).insert("/run/netns/s1".into());
    assert_eq!(daemon.create("s1").await.expect("known"), path);
    daemon.start("s1").await.expect("started");
    let mut bare = request("s1");
    bare.annotations.clear();
    bare.network_namespace_path.clear();
    assert_eq!(daemon.pods.create(bare).await.expect("known while running"), path);
    assert_eq!((site.creates(), daemon.phase("s1")), (1, "running".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_missing_field_is_named_and_nothing_is_kept() {
    let site = Site::new();
    let daemon = site.daemon().await;
    for (key, field) in [(keys::NAME, keys::NAME), (keys::NAMESPACE, keys::NAMESPACE)] {
        let mut request = request("s1");
        request.annotations.remove(key);
        let failure = daemon.pods.create(request).await.expect_err("refused");
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert!(failure.message.contains(field) && failure.message.contains("s1"), "{failure}");
    }
    let mut nameless = request("s1");
    nameless.id.clear();
    let failure = daemon.pods.create(nameless).await.expect_err("refused");
    assert!(failure.message.contains("id is missing"), "{failure}");
    let mut host = request("s1");
    host.network_namespace_path.clear();
    let failure = daemon.pods.create(host).await.expect_err("refused");
    assert!(failure.message.contains("hostNetwork"), "{failure}");
    assert!(daemon.pods.snapshot().is_empty());
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_without_a_route_is_named_with_what_was_found() {
    let site = Site::new();
    let daemon = site.daemon().await;
    lock(&site.network.missing).insert("/run/netns/s1".into());
    let failure = daemon.create("s1").await.expect_err("refused");
    assert_eq!(failure.kind, FailureKind::Invalid);
    for part in ["sandbox s1", "pod default/s1", "/run/netns/s1", "no default route"] {
        assert!(failure.message.contains(part), "{failure}");
    }
    site.until_nothing_is_left().await;
    lock(&site.network.missing).clear();
    daemon.create("s1").await.expect("the same id may come again");
}

#[tokio::test(start_paused = true)]
async fn a_create_that_fails_at_any_step_leaves_nothing() {
    let site = Site::new();
    let daemon = site.daemon().await;
    for step in ["inspect", "vnis"] {
        lock(&site.network.refuses).insert(step);
        daemon.create("s1").await.expect_err(step);
        until("gone", || daemon.phase("s1") == "gone").await;
        site.until_nothing_is_left().await;
        lock(&site.network.refuses).clear();
    }
    let away = ControlError::Away("by the test".to_owned());
    lock(&site.relay.refuses).insert("open", away);
    let failure = daemon.create("s1").await.expect_err("open");
    assert_eq!(failure.kind, FailureKind::Unavailable, "{failure}");
    until("gone", || daemon.phase("s1") == "gone").await;
    site.until_nothing_is_left().await;
    assert_eq!(site.deletes(), 0, "no cloud call for what never was");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_new_pods_by_name_and_keeps_those_that_run() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.relay.shim("s1", true);
    lock(&site.records.state).full = true;
    let failure = daemon.create("s2").await.expect_err("refused");
    assert_eq!(failure.kind, FailureKind::Exhausted);
    assert!(failure.message.contains("/state/pods"), "{failure}");
    until("gone", || daemon.phase("s2") == "gone").await;
    assert_eq!(site.relay.sandboxes(), ["s1".to_owned()].into());
    tokio::time::sleep(seconds(3600)).await;
    assert_eq!(daemon.phase("s1"), "running");
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_is_never_started_expires_and_leaves_nothing() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    tokio::time::sleep(seconds(14 * 60)).await;
    assert_eq!(daemon.phase("s1"), "prepared");
    tokio::time::sleep(seconds(2 * 60)).await;
    assert_eq!(daemon.phase("s1"), "gone");
    site.until_nothing_is_left().await;
    assert_eq!(site.deletes(), 0);
}

#[tokio::test(start_paused = true)]
async fn pods_above_the_limit_are_refused_until_one_is_over() {
    let mut site = Site::new();
    site.options.limit = Some(2);
    let daemon = site.daemon().await;
    for sandbox in ["s1", "s2"] {
        daemon.create(sandbox).await.expect("created");
    }
    let failure = daemon.create("s3").await.expect_err("refused");
    assert_eq!(failure.kind, FailureKind::Exhausted);
    assert!(failure.message.contains("limit of 2"), "{failure}");
    daemon.stop("s1").await.expect("stopped");
    daemon.create("s3").await.expect("created");
}

#[tokio::test(start_paused = true)]
async fn two_creates_of_one_id_at_once_are_one() {
    let site = Site::new();
    let daemon = site.daemon().await;
    let (first, second) = tokio::join!(daemon.create("s1"), daemon.create("s1"));
    assert_eq!(first.expect("created"), second.expect("joined"));
    assert_eq!(daemon.pods.snapshot().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_two_pods_get_one_vxlan_id_and_ids_come_back() {
    let mut site = Site::new();
    site.options.vxlan_min_id = (1 << 24) - 50;
    let daemon = site.daemon().await;
    let names: Vec<String> = (0..50).map(|n| format!("s{n}")).collect();
    let all = futures_util::future::join_all(names.iter().map(|n| daemon.create(n))).await;
    assert!(all.iter().all(Result::is_ok));
    let vnis: std::collections::BTreeSet<_> =
        daemon.pods.snapshot().iter().map(|s| s.vni).collect();
    assert_eq!(vnis.len(), 50);
    let failure = daemon.create("one-more").await.expect_err("used up");
    assert_eq!(failure.kind, FailureKind::Exhausted, "{failure}");
    daemon.stop("s7").await.expect("stopped");
    until("gone", || daemon.phase("s7") == "gone").await;
    daemon.create("one-more").await.expect("its id is free again");
}

#[tokio::test(start_paused = true)]
async fn a_vm_name_that_another_sandbox_has_is_not_used_twice() {
    let site = Site::new();
    let daemon = site.daemon().await;
    // The same pod name and first eight characters, in another namespace.
    daemon.create("web.aaaaaaaa-1").await.expect("created");
    let mut other = request("web.aaaaaaaa-2");
    other.annotations.insert(keys::NAMESPACE.to_owned(), "other".to_owned());
    daemon.pods.create(other).await.expect("created");
    let names: std::collections::BTreeSet<_> =
        daemon.pods.snapshot().into_iter().map(|s| s.vm_name).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[tokio::test(start_paused = true)]
async fn create_of_an_id_that_is_being_deleted_is_refused() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.provider.script_always(
        peerpod_providers::fake::Operation::Delete,
        peerpod_providers::fake::Fault::Hang,
    );
    daemon.stop("s1").await.expect("stopped");
    let failure = daemon.create("s1").await.expect_err("refused");
    assert_eq!(failure.kind, FailureKind::Precondition);
    assert!(failure.message.contains("StopVM"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_second_sandbox_of_the_same_pod_supersedes_one_that_does_not_run_yet() {
    let mut site = Site::new();
    site.options.limit = Some(1);
    let daemon = site.daemon().await;
    daemon.create("web.1").await.expect("created");
    site.provider.script_next(
        peerpod_providers::fake::Operation::Create,
        peerpod_providers::fake::Fault::Delay(seconds(60)),
    );
    let first = daemon.starting("web.1");
    daemon.until_phase("web.1", "launching").await;
    daemon.run("web.2").await;
    site.relay.shim("web.2", true);
    let failure = first.await.expect("joins").expect_err("cancelled");
    assert_eq!(failure.kind, FailureKind::Cancelled);
    assert!(failure.message.contains("superseded by sandbox web.2"), "{failure}");
    until("gone", || daemon.phase("web.1") == "gone").await;
    assert_eq!(daemon.phase("web.2"), "running");
}

#[tokio::test(start_paused = true)]
async fn a_start_before_create_is_answered_is_refused_and_the_create_goes_on() {
    let site = Site::new();
    let daemon = site.daemon().await;
    lock(&site.network.hangs).insert("inspect");
    let pods = daemon.pods.clone();
    let create = tokio::spawn(async move { pods.create(request("s1")).await });
    tokio::time::sleep(seconds(1)).await;
    let failure = daemon.start("s1").await.expect_err("too early");
    assert_eq!(failure.kind, FailureKind::Precondition);
    assert!(failure.message.contains("before CreateVM was answered"), "{failure}");
    assert!(!create.is_finished());
    daemon.stop("s1").await.expect("stopped");
    create.await.expect("joins").expect_err("cancelled");
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_create_hangs_ends_it_at_once() {
    let site = Site::new();
    let daemon = site.daemon().await;
    lock(&site.network.hangs).insert("inspect");
    let pods = daemon.pods.clone();
    let create = tokio::spawn(async move { pods.create(request("s1")).await });
    tokio::time::sleep(seconds(1)).await;
    daemon.stop("s1").await.expect("stopped");
    let failure = create.await.expect("joins").expect_err("cancelled");
    assert_eq!(failure.kind, FailureKind::Cancelled);
    site.until_nothing_is_left().await;
}
