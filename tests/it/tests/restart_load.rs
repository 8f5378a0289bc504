//! `kill -9` of the node process at random moments under pods that stream execs, datagrams and TCP, with
//! others being started and stopped. `PEERPODD_RESTARTS` (6) and `PEERPODD_PODS` (8) say how many;
//! `PEERPODD_SEED` repeats the moments; the seed is printed.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use peerpod_it::{Bed, Churn, Load, number, root};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[tokio::test(flavor = "multi_thread")]
async fn no_kill_of_the_node_costs_a_byte_a_packet_or_a_start() {
    if !root("no_kill_of_the_node_costs_a_byte_a_packet_or_a_start") {
        return;
    }
    let (kills, pods) = (number("PEERPODD_RESTARTS", 6), number("PEERPODD_PODS", 8));
    let pods = u8::try_from(pods.clamp(1, 180)).unwrap();
    let seed = number("PEERPODD_SEED", rand::random());
    let mut random = StdRng::seed_from_u64(seed);
    let mut bed = Bed::new(&[]).await.unwrap();
    // Some 400 packets a second in all, whatever the number of pods.
    let load = Load::start(&bed, 1..=pods, 5 + u64::from(pods) * 2).await.unwrap();
    let churn = Churn::start(&bed.lab, 2);
    for kill in 0..kills {
        // The moment of a kill is drawn, it waits for nothing.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        let before = load.seen();
        let old = bed.daemon.kill_node().await.unwrap();
        let moved = load.moves(&before).await;
        let log = || bed.daemon.log_tail();
        moved.unwrap_or_else(|e| panic!("seed {seed} kill {kill}: {e:#}\n{}", log()));
        bed.daemon.successor_of(old).await.unwrap();
    }
    let started = churn.finish().await;
    let started =
        started.unwrap_or_else(|e| panic!("seed {seed}: {e:#}\n{}", bed.daemon.log_tail()));
    let totals = load.finish().await;
    let totals = totals.unwrap_or_else(|e| panic!("seed {seed}: {e:#}\n{}", bed.daemon.log_tail()));
    bed.end().await.unwrap();
    println!(
        "restart: {kills} x kill -9 of the node process (seed {seed}): {totals}; {started} others \
         started and stopped meanwhile; nothing left"
    );
}
