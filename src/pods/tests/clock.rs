//! The machine's clock is set while pods run: nothing of ours is measured by it.

use peerpod_providers::fake;
use tokio::time::sleep;

use super::harness::*;

const DAY: i64 = 24 * 3600;

#[tokio::test(start_paused = true)]
async fn a_clock_set_back_or_forward_a_day_neither_ends_nor_keeps_a_pod() {
    for set in [-DAY, DAY] {
        let mut site = Site::new();
        site.options.sweep_interval = Some(seconds(300));
        let daemon = site.daemon().await;
        daemon.run("s1").await;
        site.relay.shim("s1", true);
        daemon.create("s2").await.expect("created");
        site.clock.set_by(set);
        daemon.run("s3").await;
        site.relay.shim("s3", true);
        sleep(seconds(60)).await;
        daemon.kill().await;
        // The successor knows all ages from records alone.
        let daemon = site.daemon().await;
        sleep(seconds(600)).await;
        assert_eq!(daemon.phase("s1"), "running", "{set}");
        assert_eq!(daemon.phase("s2"), "prepared", "{set}: its fifteen minutes are not over");
        assert_eq!(daemon.phase("s3"), "running", "{set}");
        sleep(seconds(300)).await;
        assert_eq!(daemon.phase("s2"), "gone", "{set}: now they are");
        sleep(seconds(3600)).await;
        assert_eq!((daemon.phase("s1"), daemon.phase("s3")), ("running".into(), "running".into()));
        assert_eq!((site.creates(), site.deletes()), (2, 0), "{set}");
        daemon.stop("s1").await.expect("stopped");
        daemon.stop("s3").await.expect("stopped");
        until("gone", || site.provider.resources().is_empty()).await;
        site.until_nothing_is_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_vm_is_swept_in_time_though_the_clock_was_set_back() {
    let mut site = Site::with(fake::Options::default());
    site.options.sweep_interval = Some(seconds(300));
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    daemon.kill().await;
    lock(&site.records.state).all.clear();
    lock(&site.relay.held).clear();
    site.clock.set_by(-DAY);
    let _daemon = site.daemon().await;
    // The cloud's date is a day ahead of ours now: grace and one interval by our own eyes.
    sleep(seconds(600 + 2 * 300 + 60)).await;
    assert_eq!(site.provider.vms(), [], "not a day later");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_vm_stays_young_though_the_clock_was_set_forward() {
    let mut site = Site::with(fake::Options::default());
    site.options.sweep_interval = Some(seconds(60));
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    daemon.kill().await;
    lock(&site.records.state).all.clear();
    lock(&site.relay.held).clear();
    let _daemon = site.daemon().await;
    sleep(seconds(90)).await;
    site.clock.set_by(DAY);
    sleep(seconds(300)).await;
    assert_eq!(site.provider.vms().len(), 1, "not a day old");
    sleep(seconds(600)).await;
    assert_eq!(site.provider.vms(), [], "old enough by any clock");
}
