//! The agent link is cut under an exec that streams both ways, between the real relay and the real
//! podvm. `PEERPODD_LINK_MIB` (8) says how much flows each way, `PEERPODD_LINK_CUTS` (1) lists the
//! cuts' seconds.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use peerpod_it::bed::PATIENCE;
use peerpod_it::{Bed, root};
use peerpod_standin::lab::cut::{break_connections, plug};
use peerpod_standin::lab::wait_for;
use peerpod_standin::shim::{Exec, Profile};
use tokio::task::JoinHandle;

/// Seconds after which the link takes a silent connection for dead, at the latest.
const NOTICED: u64 = 6;

#[allow(clippy::disallowed_methods, reason = "a test's own switches")]
fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// Byte `at` of the exec's input: no block of it repeats nearby.
fn pattern(at: u64) -> u8 {
    ((at ^ (at >> 9) ^ (at >> 17)).wrapping_mul(151) >> 1) as u8
}

/// An exec of `cat` that is fed and read at the same time, every byte compared.
struct Flow {
    back: Arc<AtomicU64>,
    writer: JoinHandle<()>,
    reader: JoinHandle<u64>,
}

impl Flow {
    fn start(exec: &Exec, all: u64) -> Self {
        let back = Arc::new(AtomicU64::new(0));
        let (into, from, seen) = (exec.clone(), exec.clone(), back.clone());
        let writer = tokio::spawn(async move {
            let mut at = 0;
            while at < all {
                let count = (all - at).min(64 << 10);
                let piece: Vec<u8> = (at..at + count).map(pattern).collect();
                at += into.write_stdin(piece).await.expect("WriteStdin") as u64;
            }
            into.close_stdin().await.expect("CloseStdin");
        });
        let reader = tokio::spawn(async move {
            let mut at = 0;
            loop {
                let bytes = from.read_stdout().await.expect("ReadStdout");
                if bytes.is_empty() {
                    return at;
                }
                for byte in &bytes {
                    assert_eq!(*byte, pattern(at), "byte {at} is lost, repeated or out of order");
                    at += 1;
                }
                seen.store(at, Ordering::SeqCst);
            }
        });
        Self { back, writer, reader }
    }

    async fn passes(&self, bytes: u64) {
        let look = || async {
            anyhow::ensure!(!self.reader.is_finished(), "the exec has ended");
            Ok((self.back.load(Ordering::SeqCst) >= bytes).then_some(()))
        };
        wait_for("bytes to come back", PATIENCE, look).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_under_a_streaming_exec_loses_and_repeats_no_byte() {
    if !root("a_cut_under_a_streaming_exec_loses_and_repeats_no_byte") {
        return;
    }
    let all = setting("PEERPODD_LINK_MIB", "8").parse::<u64>().unwrap() << 20;
    let cuts = setting("PEERPODD_LINK_CUTS", "1");
    // Neither the relay nor the node may take the longest cut for the VM's end.
    let bed = Bed::new(&["--link-give-up=60s", "--liveness-timeout=90s"]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    for (n, seconds) in cuts.split_whitespace().enumerate() {
        let exec = shim.exec_tool(&format!("cat-{n}"), &["cat"]).await.unwrap();
        let flow = Flow::start(&exec, all);
        flow.passes(all / 4).await;
        let made = bed.daemon.links_made().await.unwrap();
        plug(&bed.lab, false).await.unwrap();
        // TCP itself survives a short cut; a long one is noticed by the link, which has to do where the
        // kernel breaks no connection for us.
        let mut seconds: u64 = seconds.parse().unwrap();
        if seconds < NOTICED && break_connections(&bed.lab).await.is_err() {
            seconds = NOTICED;
        }
        let cut = Instant::now();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let before = flow.back.load(Ordering::SeqCst);
        plug(&bed.lab, true).await.unwrap();
        flow.passes(before + (1 << 20)).await;
        let healed = cut.elapsed();
        let written = flow.writer.await;
        let console = bed.vm_dir().map(|dir| dir.join("console.log"));
        written.unwrap_or_else(|e| {
            let console = console.map(std::fs::read_to_string);
            panic!("{e}\n{}\n{console:?}", bed.daemon.log_tail())
        });
        assert_eq!(flow.reader.await.unwrap(), all);
        assert_eq!(exec.wait().await.unwrap(), 0);
        let again = bed.daemon.links_made().await.unwrap();
        assert!(again > made, "the cut has broken no connection: {made} made, then {again}");
        println!(
            "link: cut of {seconds} s under {} MiB each way: none lost, repeated or out of order; \
             flowing again after {:.1} s",
            all >> 20,
            healed.as_secs_f64()
        );
    }
    let status = bed.status(&shim.spec().sandbox).await.unwrap().unwrap();
    assert_eq!(status["phase"], "running", "{status}");
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}
