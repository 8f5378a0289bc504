//! The CA is rotated under running pods, which do not notice, and forgotten once nobody needs it.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use peerpod_it::bed::PATIENCE;
use peerpod_it::{Bed, Stream, root};
use peerpod_standin::lab::{DaemonOptions, wait_for};
use peerpod_standin::shim::{Profile, Shim};

fn authorities(bed: &Bed) -> usize {
    let pem = std::fs::read_to_string(bed.lab.dir().state().join("pki/ca.pem")).unwrap();
    pem.matches("BEGIN CERTIFICATE").count()
}

fn authority(bed: &Bed, shim: &Shim) -> String {
    let sandbox = &shim.spec().sandbox;
    let path = bed.lab.dir().state().join("pods").join(sandbox).join("record.json");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    record["link"]["authority"].as_str().expect("it names its CA").to_owned()
}

async fn rotate(bed: &Bed) {
    let done = bed.daemon.peerpodd(&["rotate-ca"]).await.unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}\n{}", bed.daemon.log_tail());
}

async fn until_believed(bed: &Bed, count: usize) {
    let look = || async { Ok((authorities(bed) == count).then_some(())) };
    wait_for(&format!("{count} CAs to be believed"), PATIENCE, look).await.unwrap();
}

async fn says(shim: &Shim, word: &str) {
    let output = shim.exec_tool(word, &["say", word]).await.unwrap().output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), word);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pod_notices_that_another_ca_issues_and_the_old_one_goes_with_its_last_pod() {
    if !root("no_pod_notices_that_another_ca_issues_and_the_old_one_goes_with_its_last_pod") {
        return;
    }
    let options = DaemonOptions { boot_delay: Duration::from_millis(700), ..Default::default() };
    let mut bed = Bed::with(options).await.unwrap();
    let (_net, old) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let stream = Stream::start(&old, "count").await.unwrap();
    // One whose VM boots while the CA changes.
    let (_net, spec) = bed.pod(2).await.unwrap();
    let (socket, sandbox) = (bed.lab.dir().socket(), spec.sandbox.clone());
    let starting = tokio::spawn(async move { Shim::boot(Profile::GoLike, &socket, spec).await });
    bed.until_phase(&sandbox, "launching").await.unwrap();
    let before = stream.seen();
    rotate(&bed).await;
    // No pod will need the one between: it goes, and those that are needed stay.
    rotate(&bed).await;
    let between =
        starting.await.unwrap().unwrap_or_else(|e| panic!("{e}\n{}", bed.daemon.log_tail()));
    let (_net, new) = bed.boot(Profile::RsLike, 3).await.unwrap();
    until_believed(&bed, 2).await;
    assert_eq!(authority(&bed, &old), authority(&bed, &between));
    assert_ne!(authority(&bed, &old), authority(&bed, &new));
    let moved = stream.moves(before).await.unwrap();
    // The next process dials every VM anew and has only what is on disk.
    let killed = bed.daemon.kill_node().await.unwrap();
    bed.daemon.successor_of(killed).await.unwrap();
    for (shim, word) in [(&old, "old"), (&between, "between"), (&new, "new")] {
        assert_eq!(
            bed.until_phase(&shim.spec().sandbox, "running").await.unwrap()["phase"],
            "running"
        );
        says(shim, word).await;
    }
    stream.moves(moved).await.unwrap();
    stream.finish().await.unwrap();
    old.stop().await.unwrap();
    says(&between, "still").await;
    assert_eq!(authorities(&bed), 2, "one pod still needs it");
    between.stop().await.unwrap();
    until_believed(&bed, 1).await;
    says(&new, "well").await;
    new.stop().await.unwrap();
    bed.end().await.unwrap();
    println!(
        "rotation: 2 under 3 pods with 1 kill of the node process, no pod noticed; CAs went with their last pods"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_nobody_can_do_is_told_and_kept_for_the_next() {
    if !root("a_rotation_that_nobody_can_do_is_told_and_kept_for_the_next") {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let state = format!("--state-dir={}", elsewhere.path().display());
    let done = bed.daemon.peerpodd(&["rotate-ca", &state]).await.unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && said.contains("there is no CA of ours"), "{said}");
    bed.end().await.unwrap();
}
