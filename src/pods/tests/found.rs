//! What seeds of the simulation (tests/sim) have found in the daemon, each as a test of its own.

use peerpod_providers::fake::{self, Fault, Operation};
use peerpod_providers::{Kind, Market, VmName};
use tokio::time::sleep;

use super::fakes::lock;
use super::harness::*;
use crate::hypervisor::Sandboxes;
use crate::relay::ControlError;
use crate::relay::api::Event;

/// Seed 59: a start whose caller had gone gave its place up while its create was still under way.
#[tokio::test(start_paused = true)]
async fn a_create_takes_up_its_place_until_it_ends_even_if_its_start_was_dropped() {
    let mut site =
        Site::with(fake::Options { boot_takes: seconds(30), ..fake::Options::default() });
    site.options.concurrent_creates = 1;
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    daemon.create("s2").await.expect("created");
    let dropped = daemon.starting("s1");
    sleep(seconds(1)).await;
    dropped.abort();
    let waits = daemon.starting("s2");
    sleep(seconds(10)).await;
    assert_eq!(site.creates(), 1, "the first one is still under way");
    waits.await.expect("joins").expect("started");
}

/// Seed 164: the first place's create timed out and took effect late, its repetition found no room,
/// and the next place made a second VM.
#[tokio::test(start_paused = true)]
async fn no_other_place_is_tried_while_an_earlier_create_may_take_effect() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    site.provider.script(Operation::Create, 1, Fault::LateEffect(seconds(20)));
    site.provider.script(Operation::Create, 2, Fault::Fail(Kind::Capacity));
    daemon.start("s1").await.expect_err("there is no room");
    assert_eq!(site.creates(), 2);
    site.until_nothing_is_left().await;
}

/// Seed 155: a create that landed made the delete come again before the cloud's hint.
#[tokio::test(start_paused = true)]
async fn a_throttled_delete_is_not_repeated_before_its_time_when_a_create_lands() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    site.provider.script_next(Operation::Create, Fault::Delay(seconds(30)));
    let throttled = Fault::Fail(Kind::Throttled(Some(seconds(60))));
    site.provider.script_next(Operation::Delete, throttled);
    let start = daemon.starting("s1");
    sleep(seconds(1)).await;
    daemon.stop("s1").await.expect("stopped");
    start.await.expect("joins").expect_err("stopped");
    until("a delete", || site.deletes() == 1).await;
    sleep(seconds(50)).await;
    assert_eq!(site.deletes(), 1, "sixty seconds were asked for");
    site.until_nothing_is_left().await;
}

/// Seed 876: a VM of the same name that was another sandbox's kept a record for ever.
#[tokio::test(start_paused = true)]
async fn another_sandboxs_vm_of_the_same_name_keeps_no_record() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    site.provider.script_always(Operation::Create, Fault::Fail(Kind::Unavailable));
    let start = daemon.starting("s1");
    until("a create", || site.creates() > 1).await;
    let other = spec(VmName::first_form("s1", "s1"), "another", "node-1");
    site.provider.plant(&other, &candidate(0, "a", Market::OnDemand)).expect("there is room");
    daemon.stop("s1").await.expect("stopped");
    start.await.expect("joins").expect_err("stopped");
    until("no record", || site.records.all().is_empty()).await;
    assert_eq!(site.provider.vms().len(), 1, "the other one is not touched");
}

/// Seed 1326: two sandboxes of a pod waited for CreateVM when the daemon died; its successor heard the
/// newer one first, and the older one superseded it.
#[tokio::test(start_paused = true)]
async fn a_replayed_sandbox_supersedes_none_that_came_later() {
    let site = Site::new();
    let daemon = site.daemon_with(&[("web.1", "CreateVM"), ("web.2", "CreateVM")]).await;
    daemon.create("web.2").await.expect("created");
    daemon.create("web.1").await.expect("created");
    assert_eq!(daemon.phase("web.2"), "prepared", "it came later");
    daemon.start("web.2").await.expect("started");
}

/// The same, and the newer one had its answer already.
#[tokio::test(start_paused = true)]
async fn a_replayed_sandbox_supersedes_none_that_is_on_disk() {
    let site = Site::new();
    site.daemon().await.create("web.2").await.expect("created");
    let daemon = site.daemon_with(&[("web.1", "CreateVM")]).await;
    daemon.create("web.1").await.expect("created");
    assert_eq!(daemon.phase("web.2"), "prepared", "it may have come later");
    daemon.create("web.3").await.expect("created");
    daemon.start("web.1").await.expect_err("superseded by a new call, as is the other one");
    daemon.start("web.2").await.expect_err("superseded");
}

#[tokio::test(start_paused = true)]
async fn a_replayed_sandbox_supersedes_those_that_came_earlier() {
    let site = Site::new();
    let daemon = site.unattached().await;
    let pods = daemon.pods.clone();
    let first = tokio::spawn(async move { pods.create(request("web.1")).await });
    sleep(seconds(1)).await;
    assert_eq!(daemon.phase("web.1"), "gone", "not let in before the relay has told the order");
    daemon.attach(&[("web.1", "CreateVM"), ("web.2", "CreateVM")]).await;
    first.await.expect("joins").expect("created");
    daemon.create("web.2").await.expect("created");
    daemon.start("web.1").await.expect_err("superseded");
}

#[tokio::test(start_paused = true)]
async fn what_was_replayed_once_is_new_when_it_comes_after_another_attach() {
    let site = Site::new();
    let daemon = site.daemon_with(&[("web.1", "CreateVM")]).await;
    daemon.tell(Event::Lost).await;
    daemon.attach(&[]).await;
    sleep(seconds(1)).await;
    daemon.create("web.2").await.expect("created");
    daemon.create("web.1").await.expect("created");
    daemon.start("web.2").await.expect_err("superseded by the later call");
}

/// Seed 605: the connection to the relay broke while a new sandbox's socket was being opened.
#[tokio::test(start_paused = true)]
async fn a_connection_to_the_relay_that_breaks_for_a_moment_fails_no_createvm() {
    let site = Site::new();
    let daemon = site.daemon().await;
    let away = ControlError::Away("no answer".to_owned());
    lock(&site.relay.refuses).insert("open", away);
    let pods = daemon.pods.clone();
    let created = tokio::spawn(async move { pods.create(request("s1")).await });
    sleep(seconds(3)).await;
    assert!(!created.is_finished());
    lock(&site.relay.refuses).clear();
    created.await.expect("joins").expect("created");
}

/// Seed 9427: the relay was restarted, did not answer what it held, and nobody asked again.
#[tokio::test(start_paused = true)]
async fn a_restarted_relay_that_does_not_say_that_it_holds_nothing_is_asked_again() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    lock(&site.relay.held).clear();
    lock(&site.relay.refuses).insert("list", ControlError::Away("no answer".to_owned()));
    daemon.attach(&[]).await;
    sleep(seconds(1)).await;
    lock(&site.relay.refuses).clear();
    until("its socket again", || site.relay.sandboxes().contains("s1")).await;
    site.until_nothing_is_left().await;
}
