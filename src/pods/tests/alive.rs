//! Whether a running VM lives: by the relay's word, and by questions of our own.

use std::sync::{Arc, Mutex};

use tokio::time::{Instant, sleep};

use super::harness::*;

/// A site with a running pod whose VM is asked by the relay, on the link it has.
async fn vouched_for() -> (Site, Daemon) {
    let site = Site::new();
    *lock(&site.relay.links) = Some(Arc::clone(&site.guest.mood));
    let daemon = site.daemon().await;
    daemon.run("s1").await;
    site.relay.shim("s1", true);
    sleep(seconds(10)).await;
    (site, daemon)
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_the_relay_asks_costs_no_connection_of_its_own() {
    let (site, daemon) = vouched_for().await;
    sleep(seconds(3600)).await;
    // The guest and the relay have it; a connection would, too.
    assert_eq!(Arc::strong_count(&site.guest.mood), 2);
    assert_eq!(lock(&site.guest.knocks).len(), 1, "that of its start");
    assert_eq!(daemon.phase("s1"), "running");
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_our_own_lasts_as_long_as_the_relay_cannot_ask_and_no_longer() {
    let (site, _daemon) = vouched_for().await;
    let links = lock(&site.relay.links).take();
    sleep(seconds(3600)).await;
    assert_eq!(lock(&site.guest.knocks).len(), 2, "one for all questions");
    assert_eq!(Arc::strong_count(&site.guest.mood), 3);
    *lock(&site.relay.links) = links;
    sleep(seconds(10)).await;
    assert_eq!(Arc::strong_count(&site.guest.mood), 2);
}

#[tokio::test(start_paused = true)]
async fn a_vm_whose_link_is_frozen_makes_no_other_be_asked() {
    let (site, daemon) = vouched_for().await;
    lock(&site.relay.frozen).insert("s1".to_owned());
    sleep(seconds(20)).await;
    let knocks = lock(&site.guest.knocks).len();
    daemon.run("s2").await;
    site.relay.shim("s2", true);
    sleep(seconds(3600)).await;
    assert_eq!(lock(&site.guest.knocks).len(), knocks + 1, "that of its start");
    assert_eq!((daemon.phase("s1"), daemon.phase("s2")), ("running".into(), "running".into()));
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_does_not_answer_the_relay_either_is_found_within_the_bound() {
    for mood in [Mood::Hangs, Mood::Refuses, Mood::Dark] {
        let (site, _daemon) = vouched_for().await;
        site.guest.be(mood);
        let begin = Instant::now();
        until("closed", || site.relay.sandboxes().is_empty()).await;
        assert!(begin.elapsed() < seconds(20), "{mood:?}: {:?}", begin.elapsed());
        site.until_nothing_is_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_silent_on_its_link_is_asked_as_soon_as_that_is_known() {
    for ahead in [0, 1, 2] {
        let (site, _daemon) = vouched_for().await;
        sleep(seconds(ahead)).await;
        let knocks = lock(&site.guest.knocks).len();
        lock(&site.relay.frozen).insert("s1".to_owned());
        let begin = Instant::now();
        until("asked", || lock(&site.guest.knocks).len() > knocks).await;
        // A period until the relay asks, and one in which no answer comes.
        assert!(begin.elapsed().as_secs() <= 6, "{:?}", begin.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_dies_together_with_its_relay_is_found_within_the_bound() {
    let (site, _daemon) = vouched_for().await;
    *lock(&site.relay.links) = None;
    site.guest.be(Mood::Hangs);
    let begin = Instant::now();
    until("closed", || site.relay.sandboxes().is_empty()).await;
    assert!(begin.elapsed() < seconds(20), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_answers_the_relay_again_in_time_keeps_its_pod() {
    let (site, daemon) = vouched_for().await;
    // A question that began before the VM answers again takes three seconds more.
    for (mood, away) in [(Mood::Hangs, 7), (Mood::Refuses, 10), (Mood::Dark, 7)] {
        sleep(seconds(100)).await;
        site.guest.be(mood);
        sleep(seconds(away)).await;
        site.guest.be(Mood::Answers);
    }
    sleep(seconds(100)).await;
    assert_eq!(daemon.phase("s1"), "running");
}

/// This process stands still for longer than the bound, and the VM does not answer at first; gives
/// how often it was asked by then.
async fn stand_still(site: &Site) -> usize {
    *lock(&site.relay.links) = None;
    site.guest.be(Mood::Dark);
    let knocks = lock(&site.guest.knocks).len();
    tokio::time::advance(seconds(60)).await;
    until("the second question", || lock(&site.guest.knocks).len() >= knocks + 2).await;
    knocks
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stood_still_asks_three_times_before_it_gives_a_vm_up() {
    let (site, daemon) = vouched_for().await;
    for answers_the_relay in [false, true, true, false, false] {
        stand_still(&site).await;
        // Either way the failures begin anew.
        if answers_the_relay {
            *lock(&site.relay.links) = links_of(Mood::Answers);
        } else {
            site.guest.be(Mood::Answers);
        }
        sleep(seconds(8)).await;
        assert_eq!(daemon.phase("s1"), "running");
    }
    let knocks = stand_still(&site).await;
    until("closed", || site.relay.sandboxes().is_empty()).await;
    assert_eq!(lock(&site.guest.knocks).len(), knocks + 3);
}

/// Links on which all VMs behave like that.
fn links_of(mood: Mood) -> Option<Arc<Mutex<Mood>>> {
    Some(Arc::new(Mutex::new(mood)))
}

#[tokio::test(start_paused = true)]
async fn a_silent_link_alone_ends_no_pod() {
    let (site, daemon) = vouched_for().await;
    *lock(&site.relay.links) = links_of(Mood::Hangs);
    sleep(seconds(3600)).await;
    assert_eq!(daemon.phase("s1"), "running");
}

#[tokio::test(start_paused = true)]
async fn an_older_relay_that_cannot_ask_is_no_reason_to_ask_less() {
    let (site, daemon) = vouched_for().await;
    *lock(&site.relay.links) = None;
    sleep(seconds(3600)).await;
    assert_eq!(daemon.phase("s1"), "running");
    site.guest.be(Mood::Hangs);
    let begin = Instant::now();
    until("closed", || site.relay.sandboxes().is_empty()).await;
    assert!(begin.elapsed() < seconds(20), "{:?}", begin.elapsed());
}
