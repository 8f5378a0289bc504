//! The daemon's own crash points (`peerpodd::crash`) inside the simulation: at each of them, and at each
//! pair, it dies once, and everything must come out well all the same.
//!
//! ```text
//!   explore ─ calm lives, lives with one death, stormy lives ─▶ the first life that comes by each point
//!                                                                  └▶ the same life, with a death there
//! ```
//! A point of the world that no life comes by is an error, unless [`ABSENT`] says why.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Choice, Plan, run};

/// The daemon's points stand among those of the simulation's own parts under their name with this
/// before it.
pub(crate) const PREFIX: &str = "at-";

/// Points of the world that no simulated daemon comes by, and why.
const ABSENT: &[(&str, &str)] = &[];

/// Seeds with every fault that are looked through for the points that calm lives do not come by.
const STORMS: u64 = 60;
/// What happened before, for points that only a successor comes by.
const BEFORE: [&str; 4] = ["", "create.sent", "save.after", "StopVM.after"];

/// For each point the first life that comes by it.
pub struct Lives {
    lives: BTreeMap<String, Plan>,
}

impl Lives {
    /// Looks for a life for each of the daemon's points.
    ///
    /// # Errors
    /// When there is no runtime to be had.
    pub fn explore(seed: u64) -> std::io::Result<Self> {
        let mut found = Self { lives: BTreeMap::new() };
        for death in BEFORE {
            let deaths = Some(death.to_owned()).filter(|d| !d.is_empty()).into_iter().collect();
            let only = Some(BTreeSet::new());
            found.look(Plan { seed, choice: Choice { only, ..Choice::default() }, deaths })?;
        }
        for seed in seed..seed + STORMS {
            if found.missing().is_empty() {
                break;
            }
            found.look(Plan { seed, ..Plan::default() })?;
        }
        Ok(found)
    }

    fn look(&mut self, plan: Plan) -> std::io::Result<()> {
        for point in run(&plan)?.points.into_keys().filter(|p| p.starts_with(PREFIX)) {
            self.lives.entry(point).or_insert_with(|| plan.clone());
        }
        Ok(())
    }

    /// Points of the world that no life comes by though one should.
    pub fn missing(&self) -> Vec<&'static str> {
        let absent = |name: &str| ABSENT.iter().any(|(point, _)| *point == name);
        let names = world().into_iter().filter(|name| !absent(name));
        names.filter(|name| !self.lives.contains_key(&format!("{PREFIX}{name}"))).collect()
    }

    /// A death at each point.
    pub fn singles(&self) -> Vec<Plan> {
        self.lives.iter().map(|(point, plan)| dying(plan, [point.clone()])).collect()
    }

    /// A death at each point, and then one of the successor at each point.
    pub fn pairs(&self) -> Vec<Plan> {
        let seconds = || self.lives.keys().cloned();
        let pairs = self.lives.iter().flat_map(|(first, plan)| {
            seconds().map(move |second| dying(plan, [first.clone(), second]))
        });
        pairs.collect()
    }
}

fn dying<const N: usize>(plan: &Plan, at: [String; N]) -> Plan {
    let deaths = plan.deaths.iter().cloned().chain(at).collect();
    Plan { deaths, ..plan.clone() }
}

/// All points that lie in what sees nothing but its world.
#[cfg(feature = "crash-points")]
fn world() -> Vec<&'static str> {
    use peerpodd::crash::{Place, Point};
    Point::all().iter().filter(|p| p.place() == Place::World).map(|p| p.name()).collect()
}

/// Other builds have none.
#[cfg(not(feature = "crash-points"))]
fn world() -> Vec<&'static str> {
    Vec::new()
}
