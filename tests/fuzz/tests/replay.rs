//! Every file of the corpus, by the target it is for, on the stable compiler: no panic, and never
//! more memory than a reader of such bytes may take.
#![allow(missing_docs, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use peerpod_fuzz::TARGETS;

/// Memory a target may take at a time for one input, in bytes. The largest inputs unpack to 1 MiB of
/// TOML, whose reader takes some forty times as much.
const MEMORY: usize = 64 << 20;
/// What is kept in git, in bytes.
const CORPUS: u64 = 600 << 10;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Memory is counted for the whole process, so one target at a time.
static TURN: Mutex<()> = Mutex::new(());

struct Counting;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller keeps the contract of the same method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of the same method.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(directory).expect("a corpus");
    let mut all: Vec<_> = all.map(|entry| entry.expect("an entry").path()).collect();
    all.sort();
    all
}

/// The names of the files in a directory that a target fails on, and why; and how many there are.
fn failures(directory: &Path, target: fn(&[u8])) -> (Vec<String>, usize) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let files = files(directory);
    let mut bad = Vec::new();
    for file in &files {
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        let bytes = std::fs::read(file).expect("a file");
        let before = NOW.load(Relaxed);
        PEAK.store(before, Relaxed);
        if catch_unwind(AssertUnwindSafe(|| target(&bytes))).is_err() {
            bad.push(format!("{name}: it panics"));
        }
        let taken = PEAK.load(Relaxed).saturating_sub(before);
        if taken > MEMORY {
            bad.push(format!("{name}: {} bytes cost {taken} bytes of memory", bytes.len()));
        }
    }
    (bad, files.len())
}

fn replay(target: &str) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    let (bad, count) = failures(&corpus(target), *run);
    assert!(bad.is_empty(), "{target}: {bad:#?}");
    assert!(count > 0, "{target} has no corpus");
    println!("fuzz: {target}: {count} inputs");
}

macro_rules! replays {
    ($($target:ident)*) => {
        $(#[test] fn $target() { replay(stringify!($target)); })*
        const REPLAYED: &[&str] = &[$(stringify!($target)),*];
    };
}

replays! {
    frame gate wire edit cloud_config apf initdata record create_vm hypervisor
    route_netlink nft_netlink session session_export
}

#[test]
fn every_target_is_replayed_has_a_program_and_a_corpus_that_stays_small() {
    let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, REPLAYED);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let programs: Vec<_> = files(&manifest.join("fuzz_targets"));
    let mut wanted: Vec<_> =
        names.iter().map(|n| manifest.join("fuzz_targets").join(format!("{n}.rs"))).collect();
    wanted.sort();
    assert_eq!(programs, wanted);
    let all = names.iter().flat_map(|name| files(&corpus(name)));
    let bytes: u64 = all.map(|file| std::fs::metadata(file).expect("a file").len()).sum();
    assert!(bytes <= CORPUS, "the corpus has {bytes} bytes, {CORPUS} are kept at most");
}

/// The replay can fail: with the feature there is a panic to be found, and it is.
#[cfg(feature = "planted")]
#[test]
fn a_planted_panic_is_found() {
    let directory = tempfile::tempdir().expect("a directory");
    for file in files(&corpus("frame")) {
        let name = file.file_name().expect("a name");
        std::fs::copy(&file, directory.path().join(name)).expect("copied");
    }
    assert_eq!(failures(directory.path(), peerpod_fuzz::frame).0, Vec::<String>::new());
    let frame = b"\0\0\0\0\0\x09\0\0\0\x01\x03\0peerpod!!";
    std::fs::write(directory.path().join("planted"), frame).expect("written");
    assert_eq!(failures(directory.path(), peerpod_fuzz::frame).0, ["planted: it panics"]);
}

/// And so it does when memory is what is wasted.
#[test]
fn wasted_memory_is_found() {
    fn waste(data: &[u8]) {
        let wasted = vec![1; MEMORY + data.len()];
        assert_eq!(wasted.last(), Some(&1));
    }
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("some"), "x").expect("written");
    let (bad, _) = failures(directory.path(), waste);
    assert!(bad.len() == 1 && bad[0].contains("of memory"), "{bad:?}");
}
