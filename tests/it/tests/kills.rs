//! `kill -9` of the node process at random moments, under creates, stops and execs that stream both
//! ways. `PEERPODD_KILLS` (8) and `PEERPODD_PODS` (4) say how many; the seed is printed.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use peerpod_it::{Bed, Stream, root};
use peerpod_standin::lab::Lab;
use peerpod_standin::shim::{Profile, Shim};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[allow(clippy::disallowed_methods, reason = "a test's own switches")]
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Starts and stops pods until told to end; every start must go through.
async fn churn(lab: Lab, lane: u8, lanes: u8, over: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let mut round = 0u8;
    while !over.load(Ordering::SeqCst) {
        // Numbers are addresses in the pods' network, so each lane uses its own ones in turn.
        let pod = 200 + lane + lanes * (round % 2);
        let profile = Profile::alternately(usize::from(round));
        let (net, spec) = lab.add_pod(pod).await.expect("namespace");
        let shim = Shim::boot(profile, &lab.dir().socket(), spec).await;
        let shim = shim.unwrap_or_else(|e| panic!("lane {lane} round {round}: {e}"));
        // The Rust shim waits for one second and then leaves as if it had been stopped; its StopVM
        // stays with the relay. The look at the end tells whether it came through.
        match shim.stop().await {
            Err(error) if profile == Profile::GoLike => {
                panic!("lane {lane} round {round}: {error}")
            }
            _ => {}
        }
        lab.network().remove_pod(&net).expect("remove the namespace");
        round = round.wrapping_add(1);
        done.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kill_of_the_node_costs_a_pod_a_byte_or_a_vm() {
    if !root("no_kill_of_the_node_costs_a_pod_a_byte_or_a_vm") {
        return;
    }
    let (kills, pods) = (number("PEERPODD_KILLS", 8), number("PEERPODD_PODS", 4) as u8);
    let seed = number("PEERPODD_SEED", rand::random());
    let mut random = StdRng::seed_from_u64(seed);
    let mut bed = Bed::new(&[]).await.unwrap();
    let (mut shims, mut streams) = (Vec::new(), Vec::new());
    for n in 1..=pods {
        let (_net, shim) = bed.boot(Profile::alternately(n.into()), n).await.unwrap();
        streams.push(Stream::start(&shim, "count").await.unwrap());
        shims.push(shim);
    }
    let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let lanes = 3u8;
    let churns: Vec<_> = (0..lanes)
        .map(|n| tokio::spawn(churn(bed.lab.clone(), n, lanes, over.clone(), done.clone())))
        .collect();
    for kill in 0..kills {
        // The moment of a kill is drawn, it waits for nothing.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        let before: Vec<_> = streams.iter().map(Stream::seen).collect();
        let old = bed.daemon.kill_node().await.unwrap();
        for (stream, before) in streams.iter().zip(before) {
            stream.moves(before).await.unwrap_or_else(|e| panic!("seed {seed} kill {kill}: {e:#}"));
        }
        bed.daemon.successor_of(old).await.unwrap();
    }
    over.store(true, Ordering::SeqCst);
    for churn in churns {
        churn.await.unwrap_or_else(|e| panic!("seed {seed}: {e}\n{}", bed.daemon.log_tail()));
    }
    let mut lines = (0, 0);
    for stream in streams {
        let (numbers, echoes) = stream.finish().await.unwrap();
        lines = (lines.0 + numbers, lines.1 + echoes);
    }
    for shim in shims {
        shim.stop().await.unwrap();
    }
    bed.end().await.unwrap();
    println!(
        "kills: {kills} of the node process under {pods} streaming pods (seed {seed}): {} lines out, \
         {} lines in and back, none lost or repeated; {} pods started and stopped meanwhile, all \
         well; nothing left",
        lines.0,
        lines.1,
        done.load(Ordering::SeqCst)
    );
}
