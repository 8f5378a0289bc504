//! `kill -9` of the node process at random moments, under creates, stops and execs that stream both
//! ways. `PEERPODD_KILLS` (8) and `PEERPODD_PODS` (4) say how many; the seed is printed.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use peerpod_it::{Bed, Churn, Stream, number, root};
use peerpod_standin::shim::Profile;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

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
    let churn = Churn::start(&bed.lab, 3);
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
    let done = churn.finish().await;
    let done = done.unwrap_or_else(|e| panic!("seed {seed}: {e:#}\n{}", bed.daemon.log_tail()));
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
         {} lines in and back, none lost or repeated; {done} pods started and stopped meanwhile, all \
         well; nothing left",
        lines.0, lines.1,
    );
}
