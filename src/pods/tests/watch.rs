//! Pods that end without StopVM, and VMs without a pod.

use bytes::Bytes;
use peerpod_providers::fake::{Fault, Operation};
use peerpod_providers::{Market, VmName, tags};
use peerpod_tunnel::link::wire;
use tokio::time::{Instant, sleep};

use crate::config::Epochs;
use crate::hypervisor::Sandboxes;
use crate::relay::api::{Event, Payload};
use crate::request::keys;

use super::harness::*;

fn shim_gone(sandbox: &str) -> Event {
    Event::ShimGone { sandbox: sandbox.to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_shim_was_killed_is_deleted_after_the_grace_period() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.relay.shim("s1", true);
    sleep(seconds(3600)).await;
    assert_eq!(daemon.phase("s1"), "running");
    site.relay.shim("s1", false);
    daemon.tell(shim_gone("s1")).await;
    sleep(seconds(59)).await;
    assert_eq!(daemon.phase("s1"), "running");
    sleep(seconds(2)).await;
    assert_ne!(daemon.phase("s1"), "running");
    site.until_nothing_is_left().await;
    assert_eq!(*lock(&site.counts.lost), ["shim"]);
}

#[tokio::test(start_paused = true)]
async fn a_shim_that_is_back_within_the_grace_period_keeps_its_pod() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.relay.shim("s1", true);
    sleep(seconds(100)).await;
    site.relay.shim("s1", false);
    daemon.tell(shim_gone("s1")).await;
    sleep(seconds(30)).await;
    site.relay.shim("s1", true);
    sleep(seconds(3600)).await;
    assert_eq!(daemon.phase("s1"), "running");
}

#[tokio::test(start_paused = true)]
async fn a_pod_to_which_no_shim_ever_connected_is_deleted() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    sleep(seconds(50)).await;
    assert_eq!(daemon.phase("s1"), "running");
    sleep(seconds(40)).await;
    assert_eq!(daemon.phase("s1"), "gone");
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_is_taken_for_gone_while_daemon_or_relay_are_being_restarted() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    sleep(seconds(50)).await;
    daemon.kill().await;
    sleep(seconds(600)).await;
    let daemon = site.unattached().await;
    sleep(seconds(600)).await;
    assert_eq!(daemon.phase("s1"), "running", "the relay has not been heard");
    daemon.attach(&[]).await;
    sleep(seconds(59)).await;
    assert_eq!(daemon.phase("s1"), "running", "the grace begins with that");
    daemon.tell(Event::Lost).await;
    sleep(seconds(600)).await;
    assert_eq!(daemon.phase("s1"), "running");
    daemon.attach(&[]).await;
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_socket_of_no_sandbox_is_closed() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    daemon.kill().await;
    lock(&site.records.state).all.clear();
    let _daemon = site.daemon().await;
    until("closed", || site.relay.sandboxes().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_hung_vm_is_found_within_the_bound_and_its_shim_hears_at_once() {
    for age in [0, 100] {
        let site = Site::new();
        let daemon = site.daemon().await;
        daemon.run("s1").await;
        site.relay.shim("s1", true);
        sleep(seconds(age)).await;
        site.guest.be(Mood::Hangs);
        let begin = Instant::now();
        until("closed", || site.relay.sandboxes().is_empty()).await;
        assert!(begin.elapsed() < seconds(20), "{:?}", begin.elapsed());
        let status = daemon.status("s1");
        let reason = status.and_then(|s| s.reason).unwrap_or_default();
        let told = lock(&site.relay.closes)[0].1.clone();
        assert!(
            told.contains("has not answered") && (reason.is_empty() || reason == told),
            "{told}"
        );
        site.until_nothing_is_left().await;
        assert_eq!(*lock(&site.counts.lost), ["vm"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_answers_again_in_time_keeps_its_pod() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.relay.shim("s1", true);
    for mood in [Mood::Hangs, Mood::Refuses, Mood::Dark] {
        sleep(seconds(100)).await;
        site.guest.be(mood);
        sleep(seconds(10)).await;
        site.guest.be(Mood::Answers);
    }
    sleep(seconds(100)).await;
    assert_eq!(daemon.phase("s1"), "running");
}

#[tokio::test(start_paused = true)]
async fn a_link_that_goes_down_makes_us_ask_at_once() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.relay.shim("s1", true);
    sleep(seconds(100)).await;
    site.guest.be(Mood::Refuses);
    let knocks = lock(&site.guest.knocks).len();
    let (sandbox, reason) = ("s1".to_owned(), "reset".to_owned());
    daemon.tell(Event::LinkDown { sandbox, reason, given_up: false }).await;
    let begin = Instant::now();
    until("asked", || lock(&site.guest.knocks).len() > knocks).await;
    assert!(begin.elapsed() < seconds(1), "{:?}", begin.elapsed());
    site.until_nothing_is_left().await;
    assert!(begin.elapsed() < seconds(20), "{:?}", begin.elapsed());
}

/// A site whose daemon sweeps every ten minutes.
fn swept() -> Site {
    let mut site = Site::new();
    site.options.sweep_interval = Some(seconds(600));
    site
}

fn plant(site: &Site, name: &str, sandbox: &str, node: &str) {
    let spec = spec(VmName::from_existing(name), sandbox, node);
    site.provider.plant(&spec, &candidate(0, "a", Market::OnDemand)).expect("planted");
}

#[tokio::test(start_paused = true)]
async fn a_vm_without_a_record_is_deleted_when_it_is_old_enough() {
    let site = swept();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.relay.shim("s1", true);
    plant(&site, "podvm-lost", "lost", "node-1");
    plant(&site, "podvm-other", "other", "node-2");
    sleep(seconds(14 * 60)).await;
    assert_eq!(site.provider.vms().len(), 3, "not before the grace period");
    sleep(seconds(10 * 60)).await;
    let names: Vec<_> = site.provider.vms().iter().map(|vm| vm.spec.sandbox.clone()).collect();
    assert_eq!(names, ["other", "s1"], "another node's VM is not ours to delete");
    assert_eq!(*lock(&site.counts.sweeps), [(Some(0), 0), (Some(1), 1)]);
}

/// Epochs are real times of starts; those of a fake cloud's VMs are made up.
fn plant_of(site: &Site, sandbox: &str, epoch: &str) {
    let mut spec = spec(VmName::first_form("pod", sandbox), sandbox, "node-1");
    spec.tags.insert(tags::EPOCH.to_owned(), epoch.to_owned());
    site.provider.plant(&spec, &candidate(0, "a", Market::OnDemand)).expect("planted");
}

#[tokio::test(start_paused = true)]
async fn what_a_daemon_with_a_copy_of_the_state_directory_has_made_is_not_swept() {
    let state = tempfile::tempdir().expect("directory");
    Epochs::begin(state.path(), 1_000).expect("begun");
    let mut site = swept();
    site.options.epochs = Epochs::begin(state.path(), 3_000).expect("begun");
    let _daemon = site.daemon().await;
    plant_of(&site, "copys", "2000");
    plant_of(&site, "former", "1000");
    plant_of(&site, "forgotten", "500");
    sleep(seconds(3600)).await;
    let left: Vec<_> = site.provider.vms().iter().map(|vm| vm.spec.sandbox.clone()).collect();
    assert_eq!(left, ["copys"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_swept_once_a_later_daemon_has_begun() {
    let state = tempfile::tempdir().expect("directory");
    let mut site = swept();
    site.options.epochs = Epochs::begin(state.path(), 1_000).expect("begun");
    let _daemon = site.daemon().await;
    plant_of(&site, "lost", "1000");
    Epochs::begin(state.path(), 2_000).expect("begun");
    sleep(seconds(3600)).await;
    assert_eq!((site.provider.vms().len(), site.deletes()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn parts_without_a_record_are_swept_too() {
    let site = swept();
    let daemon = site.daemon().await;
    site.provider.script_next(Operation::Create, Fault::Partial(peerpod_providers::Kind::Denied));
    daemon.create("s1").await.expect("created");
    site.provider.script_always(Operation::Delete, Fault::Hang);
    daemon.start("s1").await.expect_err("refused");
    daemon.kill().await;
    // Record and socket are lost; the parts are not.
    lock(&site.records.state).all.clear();
    site.provider.clear_script();
    let _daemon = site.daemon().await;
    until("swept", || site.provider.resources().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_and_a_failing_list_delete_nothing() {
    let mut site = swept();
    site.options.sweep_dry_run = true;
    let dry = site.daemon().await;
    plant(&site, "podvm-lost", "lost", "node-1");
    sleep(seconds(3600)).await;
    assert_eq!((site.provider.vms().len(), site.deletes()), (1, 0));
    assert_eq!(lock(&site.counts.sweeps).last(), Some(&(Some(1), 0)));
    dry.kill().await;
    site.options.sweep_dry_run = false;
    site.provider.script_always(Operation::List, Fault::BreaksAfter(0));
    let _daemon = site.daemon().await;
    sleep(seconds(3600)).await;
    assert_eq!((site.provider.vms().len(), site.deletes()), (1, 0));
    assert_eq!(lock(&site.counts.sweeps).last(), Some(&(None, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_vm_whose_socket_the_relay_still_holds_is_not_swept() {
    let site = swept();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.relay.shim("s1", true);
    daemon.kill().await;
    // Its record could not be read, but the pod runs.
    lock(&site.records.state).all.clear();
    let _daemon = site.daemon().await;
    sleep(seconds(3600)).await;
    assert_eq!(site.provider.vms().len(), 1);
    site.relay.shim("s1", false);
    until("swept", || site.provider.vms().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_vm_the_cloud_has_lost_is_over() {
    let mut site = swept();
    site.options.liveness = seconds(24 * 3600);
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    daemon.run("s2").await;
    site.relay.shim("s1", true);
    site.relay.shim("s2", true);
    site.provider.vanish(&VmName::first_form("s1", "s1"));
    site.provider.kill(&VmName::first_form("s2", "s2"));
    site.guest.be(Mood::Refuses);
    sleep(seconds(601)).await;
    assert!(site.relay.sandboxes().is_empty(), "their shims hear at once");
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_answers_is_there_whatever_the_list_says() {
    let site = swept();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.relay.shim("s1", true);
    site.provider.vanish(&VmName::first_form("s1", "s1"));
    sleep(seconds(3600)).await;
    assert_eq!(daemon.phase("s1"), "running");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_was_under_way_does_not_confirm_that_the_cloud_has_lost_a_vm() {
    let mut site = swept();
    site.options.liveness = seconds(60);
    let begin = Instant::now();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.relay.shim("s1", true);
    sleep(seconds(590) - begin.elapsed()).await;
    site.guest.be(Mood::Hangs);
    let (sandbox, reason) = ("s1".to_owned(), "reset".to_owned());
    daemon.tell(Event::LinkDown { sandbox, reason, given_up: false }).await;
    // Two fifths of a minute pass before it has failed, and the sweep is in between.
    site.provider.vanish(&VmName::first_form("s1", "s1"));
    sleep(seconds(20)).await;
    assert!(!lock(&site.counts.sweeps).is_empty(), "swept");
    site.guest.be(Mood::Answers);
    sleep(seconds(60)).await;
    assert_eq!(daemon.phase("s1"), "running");
}

#[tokio::test(start_paused = true)]
async fn requests_of_pods_with_gpus_are_edited_others_handed_back_and_strangers_refused() {
    let site = Site::new();
    let daemon = site.daemon().await;
    let mut gpu = request("s1");
    gpu.annotations.insert(keys::GPUS.to_owned(), "1".to_owned());
    daemon.pods.create(gpu).await.expect("created");
    daemon.create("s2").await.expect("created");
    let mut payload = Vec::new();
    wire::put(&mut payload, 6, b"");
    let payload = Bytes::from(payload);
    for (ticket, sandbox) in [(1, "s1"), (2, "s2"), (3, "unknown")] {
        let (sandbox, method) = (sandbox.to_owned(), "CreateContainer".to_owned());
        daemon
            .tell(Event::Edit { ticket, sandbox, method, payload: Payload(payload.clone()) })
            .await;
    }
    until("answered", || lock(&site.relay.edits).len() == 3).await;
    let edits = lock(&site.relay.edits).clone();
    for (ticket, outcome) in edits {
        if ticket == 3 {
            let why = outcome.expect_err("it might go without what its pod has");
            assert!(why.contains("\"unknown\""), "{why}");
            continue;
        }
        let outcome = outcome.expect("no refusal");
        assert_eq!(outcome != payload, ticket == 1, "ticket {ticket}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_somebody_has_taken_away_is_made_again_while_the_pod_runs() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.relay.shim("s1", true);
    let tunnel = lock(&site.network.attached).remove("s1").expect("attached");
    until("repaired", || lock(&site.network.attached).get("s1") == Some(&tunnel)).await;
    assert_eq!(daemon.phase("s1"), "running");
}
