//! From a run that breaks something to the fewest faults with which it still does.

use std::collections::BTreeSet;

use crate::run::{Outcome, Plan, run};

/// Most runs that are spent on it.
const RUNS: usize = 400;

/// The same breach with fewer faults: first whole kinds are left out, then single ones.
///
/// # Errors
/// As [`run`].
pub fn shrink(plan: &Plan, outcome: Outcome) -> std::io::Result<(Plan, Outcome)> {
    let Some(wanted) = outcome.breach.as_ref().map(|b| b.invariant) else {
        return Ok((plan.clone(), outcome));
    };
    let (mut plan, mut best, mut runs) = (plan.clone(), outcome, 0);
    let all: BTreeSet<String> = best.fired.iter().cloned().collect();
    let attempt = |plan: &Plan, only: &BTreeSet<String>| -> std::io::Result<_> {
        let mut fewer = plan.clone();
        fewer.choice.only = Some(only.clone());
        let outcome = run(&fewer)?;
        let same = outcome.breach.as_ref().is_some_and(|b| b.invariant == wanted);
        Ok(same.then_some((fewer, outcome)))
    };
    let Some((same, outcome)) = attempt(&plan, &all)? else { return Ok((plan, best)) };
    (plan, best) = (same, outcome);
    for by_kind in [true, false] {
        let fired: BTreeSet<String> = best.fired.iter().cloned().collect();
        let key = |id: &String| match by_kind {
            true => id.split('#').next().unwrap_or_default().to_owned(),
            false => id.clone(),
        };
        for leave in fired.iter().map(key).collect::<BTreeSet<_>>() {
            let now: BTreeSet<String> = best.fired.iter().cloned().collect();
            let fewer: BTreeSet<String> =
                now.iter().filter(|id| key(id) != leave).cloned().collect();
            if fewer.len() == now.len() || runs >= RUNS {
                continue;
            }
            runs += 1;
            if let Some((same, outcome)) = attempt(&plan, &fewer)? {
                (plan, best) = (same, outcome);
            }
        }
    }
    Ok((plan, best))
}

/// The command that repeats a run.
pub fn command(plan: &Plan) -> String {
    let mut command = format!("cargo run -p peerpod-sim -- --seed {}", plan.seed);
    let join = |all: &BTreeSet<String>| all.iter().cloned().collect::<Vec<_>>().join(",");
    if let Some(only) = &plan.choice.only {
        command.push_str(&format!(" --only '{}'", join(only)));
    }
    if !plan.choice.without.is_empty() {
        command.push_str(&format!(" --without {}", join(&plan.choice.without)));
    }
    if !plan.deaths.is_empty() {
        command.push_str(&format!(" --die {}", plan.deaths.join(",")));
    }
    command
}
