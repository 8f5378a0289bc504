//! What the simulation has found that needs its disk to be seen.
#![allow(missing_docs, reason = "a test")]

use std::collections::BTreeSet;

use peerpod_sim::{Choice, Plan, run};

/// Seed 35: a daemon that died between the rename of a record and the sync of its directory left one
/// that could be read and would not have survived a power loss; its successor answered by it.
#[test]
fn a_record_that_was_not_synced_lasts_once_it_is_read() {
    for nth in 1..12 {
        let deaths = vec![format!("disk-sync-directory:{nth}")];
        let choice = Choice { only: Some(BTreeSet::new()), ..Choice::default() };
        let outcome = run(&Plan { seed: 4, choice, deaths }).expect("runs");
        assert_eq!((outcome.breach, outcome.left), (None, 0), "death {nth}");
    }
}
