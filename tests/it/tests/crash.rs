//! Deaths at every crash point, and at pairs of them, with real kills over `local`.
//!
//! Every point that the table has is died at once, at a time of coming there that is drawn; one that
//! no scenario reaches fails the test by its name. `PEERPODD_PAIRS` (24) says how many pairs,
//! `PEERPODD_LABS` (4) how many labs stand side by side; the seed is printed, `PEERPODD_SEED` repeats.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use peerpod_it::crash::{Death, Outcome, Plan, Scenario, run};
use peerpod_it::root;
use peerpodd::crash::Point;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

#[allow(clippy::disallowed_methods, reason = "a test's own switches")]
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Lives through all plans, some side by side.
async fn all(plans: Vec<Plan>, labs: usize) -> Vec<(Plan, anyhow::Result<Outcome>)> {
    let lives = plans.into_iter().map(|plan| async move {
        let lived = tokio::spawn(async move {
            let outcome = run(&plan).await;
            (plan, outcome)
        });
        lived.await.expect("a life does not panic")
    });
    futures_util::stream::iter(lives).buffer_unordered(labs).collect().await
}

/// How often each scenario comes by each point if nobody dies.
async fn visits(labs: usize) -> BTreeMap<Point, Vec<(Scenario, usize)>> {
    let plans = Scenario::ALL.map(|scenario| Plan { scenario, deaths: Vec::new() });
    let mut visits: BTreeMap<Point, Vec<(Scenario, usize)>> = BTreeMap::new();
    for (plan, outcome) in all(plans.to_vec(), labs).await {
        let outcome = outcome.unwrap_or_else(|e| panic!("without any death: {e:#}"));
        let mut times: BTreeMap<Point, usize> = BTreeMap::new();
        outcome.log.lives.iter().flatten().for_each(|p| *times.entry(*p).or_default() += 1);
        for (point, times) in times {
            visits.entry(point).or_default().push((plan.scenario, times));
        }
    }
    visits
}

/// Panics with everything that went wrong.
fn judge(what: &str, seed: u64, outcomes: &[(Plan, anyhow::Result<Outcome>)]) {
    let bad: Vec<String> = outcomes
        .iter()
        .filter_map(|(_, outcome)| outcome.as_ref().err())
        .map(|error| format!("{error:#}"))
        .collect();
    assert!(bad.is_empty(), "{what}, seed {seed}: {} failed\n{}", bad.len(), bad.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_at_any_point_loses_leaks_and_doubles_nothing() {
    if !root("a_death_at_any_point_loses_leaks_and_doubles_nothing") {
        return;
    }
    let (pairs, labs) =
        (number("PEERPODD_PAIRS", 24) as usize, number("PEERPODD_LABS", 4) as usize);
    let seed = number("PEERPODD_SEED", rand::random());
    let mut random = StdRng::seed_from_u64(seed);
    println!("crash: seed {seed}");
    let visits = visits(labs).await;
    let missing: Vec<_> = Point::all().iter().filter(|p| !visits.contains_key(p)).collect();
    assert!(missing.is_empty(), "no scenario comes by {missing:?}");

    let singles: Vec<Plan> =
        Point::all().iter().map(|p| single(*p, &visits, &mut random)).collect();
    let mut lived = all(singles, labs).await;
    judge("single deaths", seed, &lived);
    let spared: Vec<_> =
        lived.iter().filter(|(_, o)| deaths(o) < 1).map(|(p, _)| first(p)).collect();
    let again = all(spared, labs).await;
    judge("single deaths, at the first time", seed, &again);
    let singles = lived.len() + again.len();
    lived.retain(|(_, o)| deaths(o) == 1);
    lived.extend(again);
    let never: BTreeSet<_> =
        lived.iter().filter(|(_, o)| deaths(o) < 1).map(|(p, _)| p.to_string()).collect();
    assert!(never.is_empty(), "nobody died at {never:?}, seed {seed}");

    let mut drawn = Vec::new();
    while drawn.len() < pairs {
        drawn.extend(pair(&lived, &mut random));
    }
    let paired = all(drawn, labs).await;
    judge("pairs", seed, &paired);
    let both = paired.iter().filter(|(_, o)| deaths(o) == 2).count();
    println!(
        "crash: {} points, each died at; {singles} lives with one death, {pairs} with two ({both} of \
         them died twice), seed {seed}: nothing lost, leaked or doubled",
        Point::all().len()
    );
}

fn deaths(outcome: &anyhow::Result<Outcome>) -> usize {
    outcome.as_ref().map_or(0, |o| o.log.deaths())
}

/// A death at that point, in a scenario and at a time that are drawn.
fn single(
    point: Point,
    visits: &BTreeMap<Point, Vec<(Scenario, usize)>>,
    random: &mut StdRng,
) -> Plan {
    let (scenario, times) = *visits[&point].choose(random).expect("somebody comes by");
    let time = random.random_range(1..=times);
    Plan { scenario, deaths: vec![Death { point, time }] }
}

/// The same at the first time: how often a point comes differs from life to life.
fn first(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    plan.deaths.iter_mut().for_each(|d| d.time = 1);
    plan
}

/// A death that was seen, and one at a point that came after it.
fn pair(lived: &[(Plan, anyhow::Result<Outcome>)], random: &mut StdRng) -> Option<Plan> {
    let (plan, outcome) = lived.choose(random)?;
    let after: BTreeSet<Point> = outcome.as_ref().ok()?.log.lives.get(1)?.iter().copied().collect();
    let after: Vec<Point> = after.into_iter().collect();
    let point = *after.choose(random)?;
    let mut plan = plan.clone();
    plan.deaths.push(Death { point, time: 1 });
    Some(plan)
}
