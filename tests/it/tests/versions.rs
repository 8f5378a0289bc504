//! Relays, node processes and `peerpodd run` of different builds beside one another, under pods that
//! stream. The other build is this source with the feature `next-version`; told to speak the versions of
//! its own alone it stands for a build two versions away, newer or, where ours is asked, older.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::path::Path;

use peerpod_it::bed::PATIENCE;
use peerpod_it::{Bed, Load, root};
use peerpod_standin::lab::{Binaries, DaemonOptions, Lab, Mode, wait_for};
use peerpod_standin::shim::Profile;

/// How often each busy pod sends a packet of either kind, in ms.
const PACE: u64 = 10;

#[derive(Clone, Copy, Debug)]
enum Build {
    This,
    Next,
    /// The next one, which speaks none of our versions.
    NextAlone,
}

fn become_of(lab: &Lab, options: &mut DaemonOptions, build: Build) {
    let next = lab.binaries().next().unwrap();
    options.program = (!matches!(build, Build::This)).then_some(next);
    options.environment.retain(|(name, _)| name != "PEERPODD_NEXT_ALONE");
    if matches!(build, Build::NextAlone) {
        options.environment.push(("PEERPODD_NEXT_ALONE".to_owned(), "1".to_owned()));
    }
}

async fn bed(mode: Mode) -> Bed {
    Bed::with(DaemonOptions { mode, ..Bed::options(&[]) }).await.unwrap()
}

async fn log_has(bed: &Bed, log: &str, words: &[&str]) {
    let path = bed.lab.dir().logs().join(log);
    let said = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| words.iter().all(|word| line.contains(word)))
    };
    let look = || async { Ok(said(&path).then_some(())) };
    let what = format!("{log} with {words:?}");
    wait_for(&what, PATIENCE, look).await.map_err(|e| e.context(bed.daemon.log_tail())).unwrap();
}

async fn replace_node(bed: &mut Bed, build: Build) {
    bed.daemon.kill_node().await.unwrap();
    become_of(&bed.lab.clone(), bed.daemon.options_mut(), build);
    bed.daemon.start_node(None).await.unwrap();
}

/// The relay of that build takes the place of the one that serves, which ends.
async fn replace_relay(bed: &mut Bed, build: Build) {
    become_of(&bed.lab.clone(), bed.daemon.options_mut(), build);
    let mut old = bed.daemon.succeed_relay().await.unwrap();
    let old = tokio::task::spawn_blocking(move || old.wait().unwrap());
    let status = tokio::time::timeout(PATIENCE, old).await.expect("the old relay ends").unwrap();
    assert!(status.success(), "{build:?}: {status}\n{}", bed.daemon.log_tail());
}

async fn a_pod_starts_and_stops(bed: &Bed, number: u8) {
    let (_net, shim) = bed.boot(Profile::alternately(number.into()), number).await.unwrap();
    assert!(shim.agent().unwrap().check().await.unwrap());
    let sandbox = shim.spec().sandbox.clone();
    shim.stop().await.unwrap();
    // To the end: the build that comes next may have to leave its record alone.
    let gone = || async { Ok(bed.status(&sandbox).await?.is_none().then_some(())) };
    wait_for("the end of a pod", PATIENCE, gone).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_and_a_node_of_neighbouring_builds_work_together() {
    if !root("a_relay_and_a_node_of_neighbouring_builds_work_together") {
        return;
    }
    let mut bed = bed(Mode::Separate).await;
    let load = Load::start(&bed, 1..=2, PACE).await.unwrap();
    let mut seen = load.moves(&load.seen()).await.unwrap();
    let steps = [
        ("relay", Build::Next),
        ("node", Build::Next),
        ("relay", Build::This),
        // The node process goes back first: the relay is the older one, and then the newer one again.
        ("node", Build::This),
        ("node", Build::Next),
        ("relay", Build::Next),
    ];
    for (number, (what, build)) in (10..).zip(steps) {
        match what {
            "relay" => replace_relay(&mut bed, build).await,
            _ => replace_node(&mut bed, build).await,
        }
        bed.daemon.ready().await.unwrap();
        seen = load.moves(&seen).await.unwrap();
        a_pod_starts_and_stops(&bed, number).await;
    }
    let totals = load.finish().await.unwrap();
    bed.end().await.unwrap();
    println!("restart: {} replacements by neighbouring builds, either way: {totals}", steps.len());
}

/// A relay that comes is refused the hand-over and ends, a node process that comes is not ready, both
/// say why; the pods do not notice, and the build that served goes on.
async fn refused(bed: &mut Bed, load: &Load, serves: Build, comes: Build) {
    let seen = load.moves(&load.seen()).await.unwrap();
    become_of(&bed.lab.clone(), bed.daemon.options_mut(), comes);
    let serving = bed.daemon.succeed_relay().await.unwrap();
    let mut refused = bed.daemon.keep_relay(serving).unwrap();
    let refused = tokio::task::spawn_blocking(move || refused.wait().unwrap());
    let status = tokio::time::timeout(PATIENCE, refused).await.expect("it ends").unwrap();
    assert!(!status.success(), "{comes:?}: {status}");
    log_has(bed, "relay.log", &["hands over by version", "no pod can be kept"]).await;
    let seen = load.moves(&seen).await.unwrap();

    replace_node(bed, comes).await;
    log_has(bed, "node.log", &["pods that run go on", "speaks", "replace the older one"]).await;
    let waits = || async {
        let ready = bed.daemon.get("/readyz").await;
        Ok(ready.is_ok_and(|(code, text)| code != 200 && text.contains("relay")).then_some(()))
    };
    wait_for("a node that is not ready", PATIENCE, waits).await.unwrap();
    let seen = load.moves(&seen).await.unwrap();

    replace_node(bed, serves).await;
    bed.daemon.ready().await.unwrap();
    load.moves(&seen).await.unwrap();
    a_pod_starts_and_stops(bed, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_or_node_two_versions_away_is_refused_in_words_and_costs_no_pod() {
    if !root("a_relay_or_node_two_versions_away_is_refused_in_words_and_costs_no_pod") {
        return;
    }
    for (serves, comes) in [(Build::This, Build::NextAlone), (Build::NextAlone, Build::This)] {
        let lab = Lab::new(Binaries::find().unwrap()).await.unwrap();
        let mut options = DaemonOptions { mode: Mode::Separate, ..Bed::options(&[]) };
        become_of(&lab, &mut options, serves);
        let daemon = lab.start(options).await.unwrap();
        let mut bed = Bed { lab, daemon };
        let load = Load::start(&bed, 1..=2, PACE).await.unwrap();
        refused(&mut bed, &load, serves, comes).await;
        let totals = load.finish().await.unwrap();
        bed.end().await.unwrap();
        println!("restart: {comes:?} refused by {serves:?} as relay and as node: {totals}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_that_is_ended_leaves_its_pods_to_the_next_build_and_that_one_to_this_again() {
    if !root("run_that_is_ended_leaves_its_pods_to_the_next_build_and_that_one_to_this_again") {
        return;
    }
    let mut bed = bed(Mode::Run).await;
    let load = Load::start(&bed, 1..=2, PACE).await.unwrap();
    let mut seen = load.moves(&load.seen()).await.unwrap();
    for (number, build) in (10..).zip([Build::Next, Build::This, Build::This]) {
        let relay = bed.daemon.relay_pid().unwrap();
        let same = bed.daemon.options_mut().program.is_none() == matches!(build, Build::This);
        bed.daemon.end_run().await.unwrap();
        assert_eq!(bed.daemon.relay_pid(), Some(relay), "it stays, since pods hang on it");
        seen = load.moves(&seen).await.unwrap();
        become_of(&bed.lab.clone(), bed.daemon.options_mut(), build);
        bed.daemon.start_run().await.unwrap();
        bed.daemon.ready().await.unwrap();
        if !same {
            let gone = || async { Ok((bed.daemon.relay_pid() != Some(relay)).then_some(())) };
            wait_for("another relay", PATIENCE, gone).await.unwrap();
        }
        let kept = bed.daemon.relay_pid() == Some(relay);
        assert_eq!(kept, same, "one of the same build is adopted, another one replaced");
        seen = load.moves(&seen).await.unwrap();
        a_pod_starts_and_stops(&bed, number).await;
    }
    let totals = load.finish().await.unwrap();
    bed.until_nothing_left().await.unwrap();
    // Nothing hangs on the relay, which was adopted: it goes, too.
    bed.daemon.end_run().await.unwrap();
    assert_eq!(bed.daemon.relay_pid(), None, "no relay is left without pods");
    bed.end().await.unwrap();
    println!(
        "restart: run ended and started anew as the next build, this and this again: {totals}"
    );
}
