//! The same seed is the same run: byte for byte, in another process, too.
#![allow(clippy::disallowed_methods, missing_docs, reason = "a test that starts the simulation")]

use std::process::Command;

use peerpod_sim::{Plan, run};

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1..40 {
        let plan = Plan { seed, ..Plan::default() };
        let first = run(&plan).expect("runs");
        let second = run(&plan).expect("runs");
        for (a, b) in first.trace.iter().zip(&second.trace) {
            assert_eq!(a, b, "seed {seed}");
        }
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn another_process_gives_the_same_trace() {
    let trace = |seed: &str| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_peerpod-sim"));
        let out = program.args(["--trace", "--seed", seed]).output().expect("runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let lines = text.lines().filter(|l| !l.contains("1 seeds:"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    for seed in ["3", "11", "14", "29", "47"] {
        let (first, second) = (trace(seed), trace(seed));
        assert!(first.len() > 20, "seed {seed} does something: {}", first.len());
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn other_seeds_give_other_traces() {
    let digest = |seed| run(&Plan { seed, ..Plan::default() }).expect("runs").digest;
    assert_ne!(digest(3), digest(11));
}
