//! A daemon is replaced by the next version and that one by the old one again, under running pods. The
//! next version is this source with the feature `next-version`, in `next/` beside the daemon;
//! `tests/run restart` builds it.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::path::PathBuf;
use std::time::Duration;

use peerpod_it::{Bed, Load, Stream, root};
use peerpod_standin::lab::{DaemonOptions, Mode};
use peerpod_standin::shim::{Profile, Shim, ShimError};
use peerpodd::pod::record::VERSION;
use serde_json::{Value, json};

const PRECONDITION: Option<i32> = Some(9);
const BOOT: Duration = Duration::from_millis(800);
/// Unknown VMs would be found within a second and go at once.
const SWEEPING: [&str; 2] = ["--sweep-interval=1s", "--sweep-grace=0s"];

fn this_version() -> DaemonOptions {
    DaemonOptions { mode: Mode::Separate, boot_delay: BOOT, ..Bed::options(&SWEEPING) }
}

fn next_version(bed: &Bed) -> DaemonOptions {
    DaemonOptions { program: Some(bed.lab.binaries().next().unwrap()), ..this_version() }
}

async fn replace(bed: &mut Bed, by: DaemonOptions) {
    bed.daemon.kill_node().await.unwrap();
    bed.daemon.start_node(Some(by)).await.unwrap();
    bed.daemon.ready().await.unwrap();
}

fn record_path(bed: &Bed, sandbox: &str) -> PathBuf {
    bed.lab.dir().state().join("pods").join(sandbox).join("record.json")
}

fn record(bed: &Bed, sandbox: &str) -> Value {
    serde_json::from_slice(&std::fs::read(record_path(bed, sandbox)).unwrap()).unwrap()
}

fn vms(bed: &Bed) -> usize {
    let entries = std::fs::read_dir(bed.lab.dir().local()).unwrap().flatten();
    entries.filter(|e| e.path().join("vm.json").exists()).count()
}

/// A call about a pod of the next version is refused and says why.
fn refused(done: Result<impl std::fmt::Debug, ShimError>) {
    let error = done.expect_err("refused");
    let text = error.to_string();
    assert_eq!(error.code(), PRECONDITION, "{text}");
    assert!(text.contains(&format!("version {}", VERSION + 1)), "{text}");
    assert!(text.contains("left alone"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_version_and_back_keeps_every_pod() {
    if !root("the_next_version_and_back_keeps_every_pod") {
        return;
    }
    let mut bed = Bed::with(this_version()).await.unwrap();
    let relay = bed.daemon.relay_pid().unwrap();
    let load = Load::start(&bed, 1..=2, 10).await.unwrap();
    let old: Vec<String> = load.shims().map(|s| s.spec().sandbox.clone()).collect();
    let seen = load.moves(&load.seen()).await.unwrap();
    // A start that one version begins and the next one finishes.
    let (_net, spec) = bed.pod(3).await.unwrap();
    let (socket, across) = (bed.lab.dir().socket(), spec.sandbox.clone());
    let boot = tokio::spawn(async move { Shim::boot(Profile::RsLike, &socket, spec).await });
    bed.until_phase(&across, "launching").await.unwrap();

    let next = next_version(&bed);
    replace(&mut bed, next.clone()).await;
    let across = boot.await.unwrap().unwrap_or_else(|e| panic!("{e}\n{}", bed.daemon.log_tail()));
    let (_net, new) = bed.boot(Profile::GoLike, 4).await.unwrap();
    let seen = load.moves(&seen).await.unwrap();
    for sandbox in &old {
        assert_eq!(bed.status(sandbox).await.unwrap().unwrap()["phase"], "running");
    }
    let (migrated, made) =
        (record(&bed, &across.spec().sandbox), record(&bed, &new.spec().sandbox));
    assert_eq!(
        (&migrated["version"], &migrated["generation"]),
        (&json!(VERSION + 1), &json!(VERSION))
    );
    assert_eq!((&made["version"], &made["generation"]), (&json!(VERSION + 1), &json!(VERSION + 1)));
    let streams =
        [Stream::start(&across, "up").await.unwrap(), Stream::start(&new, "up").await.unwrap()];

    let before: Vec<_> = streams.iter().map(Stream::seen).collect();
    replace(&mut bed, this_version()).await;
    let seen = load.moves(&seen).await.unwrap();
    for sandbox in &old {
        assert_eq!(bed.status(sandbox).await.unwrap().unwrap()["phase"], "running");
    }
    let newer = [&across, &new];
    let kept = newer.map(|s| std::fs::read(record_path(&bed, &s.spec().sandbox)).unwrap());
    for shim in newer {
        let status = bed.status(&shim.spec().sandbox).await.unwrap().unwrap();
        assert_eq!(status["phase"], "broken", "{status}");
        refused(shim.hypervisor().create_vm(shim.spec()).await);
        refused(shim.hypervisor().start_vm(&shim.spec().sandbox).await);
        refused(shim.hypervisor().stop_vm(&shim.spec().sandbox).await);
    }
    let (_net, other) = bed.boot(Profile::RsLike, 5).await.unwrap();
    bed.two_sweeps().await.unwrap();
    assert_eq!(vms(&bed), 5, "no VM is swept");
    for (stream, before) in streams.iter().zip(before) {
        stream.moves(before).await.unwrap();
    }
    for (shim, kept) in newer.iter().zip(&kept) {
        let now = std::fs::read(record_path(&bed, &shim.spec().sandbox)).unwrap();
        assert!(&now == kept, "a record of the next version was touched");
    }
    other.stop().await.unwrap();

    replace(&mut bed, next).await;
    load.moves(&seen).await.unwrap();
    for shim in newer {
        assert_eq!(bed.status(&shim.spec().sandbox).await.unwrap().unwrap()["phase"], "running");
    }
    for stream in streams {
        stream.finish().await.unwrap();
    }
    let totals = load.finish().await.unwrap();
    across.stop().await.unwrap();
    new.stop().await.unwrap();
    assert_eq!(bed.daemon.relay_pid(), Some(relay), "one relay all the time");
    bed.end().await.unwrap();
    println!(
        "restart: record version {VERSION} to {}, back and forth again: {totals}; 2 pods of the next \
         version untouched meanwhile, 1 start finished by it; no VM lost or deleted",
        VERSION + 1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_this_build_does_not_know_stay_in_the_record() {
    if !root("fields_that_this_build_does_not_know_stay_in_the_record") {
        return;
    }
    let mut bed = Bed::with(this_version()).await.unwrap();
    let (_net, spec) = bed.pod(1).await.unwrap();
    let sandbox = spec.sandbox.clone();
    let mut shim = Shim::create(Profile::GoLike, &bed.lab.dir().socket(), spec).await.unwrap();
    bed.daemon.kill_node().await.unwrap();
    let mut changed = record(&bed, &sandbox);
    let unknown = json!({"since": "a later build", "list": [1, 2.5, {"deep": null}]});
    changed["of_a_later_build"] = unknown.clone();
    changed["link"]["of_a_later_build"] = unknown.clone();
    std::fs::write(record_path(&bed, &sandbox), serde_json::to_vec(&changed).unwrap()).unwrap();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    shim.start_vm().await.unwrap();
    let written = record(&bed, &sandbox);
    assert_ne!(written["phase"], changed["phase"], "it was written anew: {}", written["phase"]);
    assert_eq!(written["of_a_later_build"], unknown);
    assert_eq!(written["link"]["of_a_later_build"], unknown);
    shim.hypervisor().stop_vm(&sandbox).await.unwrap();
    drop(shim);
    bed.end().await.unwrap();
}
