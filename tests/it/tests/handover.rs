//! The relay is replaced under pods that stream, start and stop, in both modes of the link; and old or
//! new die in the middle. `PEERPODD_SEED` repeats the moments of the kills.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::Signal;
use peerpod_it::bed::{PATIENCE, signal};
use peerpod_it::{Bed, Stream, root};
use peerpod_standin::lab::{Binaries, DaemonOptions, Mode, wait_for};
use peerpod_standin::shim::{Profile, Shim};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const PODS: u8 = 4;

async fn bed(arguments: &[&str], boot_delay: Duration) -> Bed {
    let options = DaemonOptions { mode: Mode::Separate, boot_delay, ..Bed::options(arguments) };
    Bed::with(options).await.unwrap()
}

/// Without TLS there is no ALPN, and so no session: a plain link, as to an upstream VM. Both ends must
/// be told.
async fn plain_bed() -> Bed {
    let podvm = Binaries::find().unwrap().podvm;
    let podvm = format!("'{}' run -disable-tls", podvm.display());
    let options = DaemonOptions {
        mode: Mode::Separate,
        environment: vec![("LOCAL_PODVM".to_owned(), podvm)],
        ..Bed::options(&["--disable-tls"])
    };
    Bed::with(options).await.unwrap()
}

async fn streaming(bed: &Bed) -> (Vec<Shim>, Vec<Stream>) {
    let (mut shims, mut streams) = (Vec::new(), Vec::new());
    for n in 1..=PODS {
        let (_net, shim) = bed.boot(Profile::alternately(n.into()), n).await.unwrap();
        streams.push(Stream::start(&shim, "count").await.unwrap());
        shims.push(shim);
    }
    (shims, streams)
}

async fn all_move(streams: &[Stream]) {
    for stream in streams {
        stream.moves(stream.seen()).await.unwrap();
    }
}

async fn ends(what: &str, child: &mut Child) {
    let child = std::sync::Mutex::new(child);
    let look = || async { Ok(child.lock().unwrap().try_wait()?) };
    let status = wait_for(what, PATIENCE, look).await.unwrap();
    assert!(status.success(), "{what}: {status}");
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

/// Waits until so many relays have said that they serve.
async fn relays_served(bed: &Bed, wanted: usize) {
    let log = bed.lab.dir().logs().join("relay.log");
    let look = || async {
        let served = std::fs::read_to_string(&log)?.matches("relay serves").count();
        Ok((served >= wanted).then_some(()))
    };
    let served = wait_for("a relay that serves", PATIENCE, look).await;
    served.map_err(|e| e.context(bed.daemon.log_tail())).unwrap();
}

/// Who serves, as the status says; for a pod how many connections older relays hold.
async fn links(bed: &Bed) -> serde_json::Value {
    let (_, text) = bed.daemon.get("/status").await.unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["links"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn resumable_links_go_to_the_next_relay_and_lose_nothing() {
    if !root("resumable_links_go_to_the_next_relay_and_lose_nothing") {
        return;
    }
    let mut bed = bed(&[], Duration::from_millis(700)).await;
    let (mut shims, streams) = streaming(&bed).await;
    for round in 0..3_u8 {
        // A start under way, and a stop that comes with the hand-over.
        let (_net, spec) = bed.pod(100 + round).await.unwrap();
        let (socket, sandbox) = (bed.lab.dir().socket(), spec.sandbox.clone());
        let profile = Profile::alternately(round.into());
        let boot = tokio::spawn(async move { Shim::boot(profile, &socket, spec).await });
        bed.until_phase(&sandbox, "launching").await.unwrap();
        let mut old = bed.daemon.succeed_relay().await.unwrap();
        ends("the old relay, which holds nothing more", &mut old).await;
        all_move(&streams).await;
        let started = boot.await.unwrap();
        shims.push(started.unwrap_or_else(|e| panic!("{e}\n{}", bed.daemon.log_tail())));
        let other = shims.swap_remove(usize::from(PODS));
        let (stopped, old) = tokio::join!(other.stop(), bed.daemon.succeed_relay());
        stopped.unwrap();
        ends("the old relay again", &mut old.unwrap()).await;
    }
    let all = links(&bed).await;
    assert!(all.as_object().unwrap().values().all(|l| l["mode"] == "peerpod-link/1"), "{all}");
    let mut lines = (0, 0);
    for stream in streams {
        let (out, back) = stream.finish().await.unwrap();
        lines = (lines.0 + out, lines.1 + back);
    }
    for shim in shims {
        shim.stop().await.unwrap();
    }
    bed.end().await.unwrap();
    println!(
        "handover: 6 relays under {PODS} pods with resumable links: {} lines out, {} in and back, none \
         lost or repeated",
        lines.0, lines.1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_links_keep_their_relay_until_they_end() {
    if !root("plain_links_keep_their_relay_until_they_end") {
        return;
    }
    let mut bed = plain_bed().await;
    let (shims, streams) = streaming(&bed).await;
    let mut first = bed.daemon.succeed_relay().await.unwrap();
    all_move(&streams).await;
    // Pods of the second relay, and a third one: all three hold something.
    let (_net, late) = bed.boot(Profile::RsLike, 100).await.unwrap();
    let stream = Stream::start(&late, "count").await.unwrap();
    let mut second = bed.daemon.succeed_relay().await.unwrap();
    all_move(&streams).await;
    stream.moves(stream.seen()).await.unwrap();
    let held = || async {
        let all = links(&bed).await;
        let all: Vec<_> = all.as_object().unwrap().values().cloned().collect();
        Ok(all.iter().all(|l| l["elsewhere"].as_u64() > Some(0)).then_some(all.len()))
    };
    assert_eq!(wait_for("all links at older relays", PATIENCE, held).await.unwrap(), 5);
    assert!(first.try_wait().unwrap().is_none() && second.try_wait().unwrap().is_none());
    for stream in streams {
        stream.finish().await.unwrap();
    }
    for shim in shims {
        shim.stop().await.unwrap();
    }
    ends("the first relay, with its last pod", &mut first).await;
    // The second one is hurried.
    signal(pid(&second), Signal::SIGTERM).unwrap();
    stream.moves(stream.seen()).await.unwrap();
    stream.finish().await.unwrap();
    late.stop().await.unwrap();
    ends("the second relay", &mut second).await;
    bed.end().await.unwrap();
    println!("handover: 2 relays under plain links, each ended with its last pod");
}

#[allow(clippy::disallowed_methods, reason = "a test's own switch")]
fn seed() -> u64 {
    std::env::var("PEERPODD_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or_else(rand::random)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_relay_killed_at_any_moment_costs_no_plain_link() {
    if !root("a_new_relay_killed_at_any_moment_costs_no_plain_link") {
        return;
    }
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut bed = plain_bed().await;
    let (mut shims, mut streams) = (Vec::new(), Vec::new());
    for n in 1..=PODS {
        let (_net, shim) = bed.boot(Profile::GoLike, n).await.unwrap();
        streams.push(Stream::start(&shim, "count").await.unwrap());
        shims.push(shim);
    }
    for kill in 0..8 {
        let old = bed.daemon.succeed_relay().await.unwrap();
        // The moment is drawn, it waits for nothing: before, in and after the hand-over.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..60))).await;
        bed.daemon.kill_relay().await.unwrap();
        drop(bed.daemon.keep_relay(old));
        for stream in &streams {
            let moved = stream.moves(stream.seen()).await;
            moved.unwrap_or_else(|e| panic!("seed {seed} kill {kill}: {e:#}"));
        }
        bed.daemon.ready().await.unwrap_or_else(|e| panic!("seed {seed} kill {kill}: {e:#}"));
        let number = 100 + kill;
        let (_net, shim) = bed.boot(Profile::RsLike, number).await.unwrap();
        shim.stop().await.unwrap();
    }
    for stream in streams {
        stream.finish().await.unwrap();
    }
    for shim in shims {
        shim.stop().await.unwrap();
    }
    bed.end().await.unwrap();
    println!(
        "handover: 8 new relays killed (seed {seed}): no plain link lost, every next pod started"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_relay_killed_at_any_moment_leaves_one_that_serves() {
    if !root("an_old_relay_killed_at_any_moment_leaves_one_that_serves") {
        return;
    }
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut bed = bed(&["--orphan-grace=1s"], Duration::ZERO).await;
    for kill in 0..6 {
        let (_net, shim) = bed.boot(Profile::GoLike, 1 + kill).await.unwrap();
        let mut old = bed.daemon.succeed_relay().await.unwrap();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..40))).await;
        // It may have ended by itself.
        let _ = old.kill();
        old.wait().unwrap();
        // Where it died before the end of the hand-over, the new one has to make all sockets anew.
        relays_served(&bed, usize::from(kill) + 2).await;
        bed.daemon.ready().await.unwrap_or_else(|e| panic!("seed {seed} kill {kill}: {e:#}"));
        let (_net, next) = bed.boot(Profile::RsLike, 100 + kill).await.unwrap();
        next.stop().await.unwrap();
        // Its pod may have failed with it.
        let _ = shim.stop().await;
        bed.until_nothing_left().await.unwrap();
    }
    bed.end().await.unwrap();
    println!("handover: 6 old relays killed (seed {seed}): one served each time, nothing left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_relay_that_stands_by_ends_when_told_and_serves_if_its_successor_dies() {
    let name = "a_replaced_relay_that_stands_by_ends_when_told_and_serves_if_its_successor_dies";
    if !root(name) {
        return;
    }
    let stands_by = ("PEERPODD_RELAY_STAND_BY".to_owned(), "true".to_owned());
    let options = DaemonOptions {
        mode: Mode::Separate,
        environment: vec![stands_by],
        ..Bed::options(&["--orphan-grace=1s"])
    };
    let mut bed = Bed::with(options).await.unwrap();
    let (_net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    let stream = Stream::start(&shim, "count").await.unwrap();
    let log = bed.lab.dir().logs().join("relay.log");
    let stand_by = async |times: usize| {
        let look = || async {
            let said = std::fs::read_to_string(&log)?.matches("standing by").count();
            Ok((said >= times).then_some(()))
        };
        wait_for("a relay that stands by", PATIENCE, look).await.unwrap();
    };
    let mut old = bed.daemon.succeed_relay().await.unwrap();
    stand_by(1).await;
    stream.moves(stream.seen()).await.unwrap();
    assert!(old.try_wait().unwrap().is_none(), "it would be started anew, and take over");
    signal(pid(&old), Signal::SIGTERM).unwrap();
    ends("a relay that stands by and is told to end", &mut old).await;
    stream.moves(stream.seen()).await.unwrap();
    stream.finish().await.unwrap();
    shim.stop().await.unwrap();
    let old = bed.daemon.succeed_relay().await.unwrap();
    stand_by(2).await;
    relays_served(&bed, 3).await;
    bed.daemon.kill_relay().await.unwrap();
    drop(bed.daemon.keep_relay(old));
    relays_served(&bed, 4).await;
    bed.daemon.ready().await.unwrap();
    let (_net, next) = bed.boot(Profile::RsLike, 2).await.unwrap();
    next.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_handed_nothing() {
    if !root("a_stranger_is_handed_nothing") {
        return;
    }
    let bed = bed(&[], Duration::ZERO).await;
    let (_net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    let path = bed.lab.dir().run().join("relay.sock");
    // Of root, as the relay, but no relay: this test.
    let said = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    });
    let said = said.await.unwrap();
    assert!(said.contains("no relay") && said.contains("handover"), "{said:?}");
    assert!(shim.agent().unwrap().check().await.unwrap(), "the pod does not notice");
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}
