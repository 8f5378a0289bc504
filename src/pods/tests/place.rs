//! Where a VM is tried: what had no room for one pod is left out for the next.

use peerpod_providers::Kind;
use peerpod_providers::fake::{Fault, Operation};
use tokio::time::sleep;

use super::harness::*;

fn zone(daemon: &Daemon, sandbox: &str) -> Option<String> {
    daemon.status(sandbox).and_then(|s| s.zone)
}

#[tokio::test(start_paused = true)]
async fn a_place_without_room_is_spared_the_next_pod_for_a_while() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.provider.script(Operation::Create, 1, Fault::Fail(Kind::Capacity));
    daemon.run("s1").await;
    assert_eq!((site.creates(), zone(&daemon, "s1").as_deref()), (2, Some("b")));
    daemon.run("s2").await;
    assert_eq!((site.creates(), zone(&daemon, "s2").as_deref()), (3, Some("b")));
    sleep(site.options.capacity_cooldown).await;
    daemon.run("s3").await;
    assert_eq!((site.creates(), zone(&daemon, "s3").as_deref()), (4, Some("a")));
}

/// Many pods at once wait for their turn at the cloud's rate, which is no reason to try one place only.
#[tokio::test(start_paused = true)]
async fn a_first_place_that_took_long_to_refuse_does_not_shut_the_others_out() {
    let site = Site::new();
    let daemon = site.daemon().await;
    site.provider.script(Operation::Create, 1, Fault::Delay(seconds(200)));
    site.provider.script(Operation::Create, 1, Fault::Fail(Kind::Capacity));
    daemon.run("s1").await;
    assert_eq!((site.creates(), zone(&daemon, "s1").as_deref()), (2, Some("b")));
}

#[tokio::test(start_paused = true)]
async fn without_room_anywhere_the_failure_names_every_place_and_all_are_tried_again() {
    let site = Site::new();
    let daemon = site.daemon().await;
    daemon.create("s1").await.expect("created");
    site.provider.script_always(Operation::Create, Fault::Fail(Kind::Capacity));
    let failure = daemon.start("s1").await.expect_err("no room");
    let text = failure.message;
    for part in ["no room at any of 2 places", "small in a: ", "small in b: "] {
        assert!(text.contains(part), "{text}");
    }
    site.provider.clear_script();
    daemon.run("s2").await;
    assert_eq!(zone(&daemon, "s2").as_deref(), Some("a"));
}
