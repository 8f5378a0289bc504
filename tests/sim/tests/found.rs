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

/// Every fault of the seed.
fn seed_breaks_nothing(seed: u64) {
    let plan = Plan { seed, choice: Choice::default(), deaths: Vec::new() };
    let outcome = run(&plan).expect("runs");
    assert_eq!((outcome.breach, outcome.left), (None, 0), "seed {seed}");
}

/// Parts of an earlier attempt were old enough for the sweep, whose delete by name took a VM of the
/// same name along that was not.
#[test]
fn old_parts_do_not_make_a_young_vm_of_the_same_name_old() {
    seed_breaks_nothing(528);
}

/// The record could not be read, the VM was gone, and the tunnel stayed until the next start.
#[test]
fn a_tunnel_goes_with_the_vm_of_an_unusable_record() {
    seed_breaks_nothing(732);
}

/// Two sandboxes of a pod waited for CreateVM when the daemon died; its successor heard the newer one
/// first, and the older one superseded it.
#[test]
fn a_replayed_sandbox_supersedes_none_that_came_later() {
    seed_breaks_nothing(1326);
}

/// The connection to the relay broke while a new sandbox's socket was being opened.
#[test]
fn a_connection_to_the_relay_that_breaks_for_a_moment_fails_no_createvm() {
    seed_breaks_nothing(605);
}

/// The relay was restarted, did not answer what it held, and nobody asked again.
#[test]
fn a_restarted_relay_that_does_not_say_that_it_holds_nothing_is_asked_again() {
    seed_breaks_nothing(9427);
}
