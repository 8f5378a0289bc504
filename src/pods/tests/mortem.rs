//! What is left for people after a start that failed: the VM's last words and, if wanted, the VM.

use tokio::time::sleep;

use super::fakes::Mood;
use super::harness::*;
use crate::pods::PodStatus;

/// The VM is there, and its agent never answers.
async fn a_failed_start(site: &Site) -> Daemon {
    site.guest.be(Mood::Dark);
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    daemon.start("s1").await.expect_err("its agent does not answer");
    daemon
}

#[tokio::test(start_paused = true)]
async fn the_console_of_a_vm_that_did_not_start_stands_in_the_timeline() {
    let mut site = Site::new();
    site.options.keep_failed = seconds(60);
    let daemon = a_failed_start(&site).await;
    let said = |status: PodStatus| {
        status.timeline.iter().any(|m| m.what.contains("its console said at last: podvm-"))
    };
    until("its last words", || daemon.status("s1").is_some_and(said)).await;
    site.until_nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_did_not_start_is_kept_for_a_while_over_restarts_too() {
    let mut site = Site::new();
    site.options.keep_failed = seconds(600);
    let daemon = a_failed_start(&site).await;
    daemon.stop("s1").await.expect("answered at once");
    sleep(seconds(300)).await;
    assert_eq!((site.deletes(), site.provider.vms().len()), (0, 1));
    daemon.kill().await;
    let daemon = site.daemon().await;
    sleep(seconds(200)).await;
    assert_eq!(site.deletes(), 0, "its time is not over");
    sleep(seconds(110)).await;
    site.until_nothing_is_left().await;
    drop(daemon);
}

#[tokio::test(start_paused = true)]
async fn a_vm_whose_pod_was_stopped_is_not_kept() {
    let mut site = Site::new();
    site.options.keep_failed = seconds(600);
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    daemon.stop("s1").await.expect("stopped");
    until("a delete", || site.deletes() > 0).await;
}
