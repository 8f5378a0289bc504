//! A disk that fails under a running daemon, step by step: new pods are refused with the reason, those
//! that run go on and can be stopped, and all is well again once the disk is.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use nix::mount::{MsFlags, mount};
use peerpod_it::crash::binaries;
use peerpod_it::{Bed, Stream, root};
use peerpod_standin::lab::{DaemonOptions, Lab};
use peerpod_standin::shim::{Profile, Shim};

async fn bed(lab: Lab) -> Bed {
    let faults = lab.dir().path().join("faults");
    let environment = [
        ("PEERPODD_CRASH_FAULTS", faults.display().to_string()),
        ("PEERPODD_CRASH_SETTLE_MS", "300".to_owned()),
    ];
    let environment = environment.map(|(n, v)| (n.to_owned(), v)).to_vec();
    let options = DaemonOptions { environment, ..DaemonOptions::default() };
    let daemon = lab.start(options).await.unwrap();
    Bed { lab, daemon }
}

/// A new pod is refused, and the refusal says what the disk said.
async fn refused(bed: &Bed, number: u8, word: &str) {
    let (_net, spec) = bed.pod(number).await.unwrap();
    let refused = Shim::create(Profile::GoLike, &bed.lab.dir().socket(), spec).await;
    let text = refused.expect_err("nothing can be kept").to_string();
    assert!(text.contains(word) && text.contains("record"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_at_any_step_refuses_new_pods_and_keeps_the_running_ones() {
    let name = "a_disk_that_fails_at_any_step_refuses_new_pods_and_keeps_the_running_ones";
    if !root(name) {
        return;
    }
    let bed = bed(Lab::new(binaries().unwrap()).await.unwrap()).await;
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let stream = Stream::start(&shim, "count").await.unwrap();
    let mut seen = stream.moves((0, 0)).await.unwrap();
    let faults = bed.lab.dir().path().join("faults");
    let all = [
        ("record-directory EIO", "Input/output"),
        ("record-write ENOSPC", "No space"),
        ("record-write short", "storage"),
        ("record-fsync EIO", "Input/output"),
        ("record-rename EIO", "Input/output"),
        ("record-sync EIO", "Input/output"),
        ("record-rename EROFS", "Read-only"),
    ];
    for (number, (fault, word)) in (2..).zip(all) {
        std::fs::write(&faults, fault).unwrap();
        refused(&bed, number, word).await;
        seen = stream.moves(seen).await.unwrap();
        std::fs::remove_file(&faults).unwrap();
        let (_net, next) = bed.boot(Profile::GoLike, 100 + number).await.expect(fault);
        // A stop must go through although its record cannot be changed.
        std::fs::write(&faults, fault).unwrap();
        next.stop().await.expect(fault);
        std::fs::remove_file(&faults).unwrap();
    }
    stream.finish().await.unwrap();
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_no_node_process_from_coming_back() {
    if !root("a_full_disk_keeps_no_node_process_from_coming_back") {
        return;
    }
    let lab = Lab::new(binaries().unwrap()).await.unwrap();
    let state = lab.dir().state();
    let size = Some("size=1m,mode=0700");
    mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), size).unwrap();
    let mut bed = bed(lab).await;
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let stream = Stream::start(&shim, "count").await.unwrap();
    let seen = stream.moves((0, 0)).await.unwrap();
    let filler = state.join("filler");
    std::fs::write(&filler, vec![0; 2 << 20]).expect_err("it becomes full");
    let old = bed.daemon.kill_node().await.unwrap();
    bed.daemon.successor_of(old).await.unwrap();
    refused(&bed, 2, "No space").await;
    stream.moves(seen).await.unwrap();
    stream.finish().await.unwrap();
    shim.stop().await.unwrap();
    bed.until_nothing_left().await.unwrap();
    std::fs::remove_file(&filler).unwrap();
    let (_net, next) = bed.boot(Profile::GoLike, 3).await.unwrap();
    next.stop().await.unwrap();
    bed.end().await.unwrap();
}
