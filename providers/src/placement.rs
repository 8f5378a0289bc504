//! What is remembered of places that had no room, for all pods of the process: a plan's candidates
//! that have just failed for another pod are left out for a while (providers.md 2.9).
//!
//! ```text
//!   no room for a type    ─▶ that type × zone × market
//!   no room in the subnet ─▶ that zone
//!   no quota              ─▶ that family × market everywhere
//!   3 members of a family ─▶ that family × zone × market
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Scope;
use crate::{Candidate, Error, Market};

/// Longest time for which a place is left out, however often it has failed.
const LONGEST: Duration = Duration::from_secs(30 * 60);
/// So many types of a family that fail in a zone speak for all of it.
const FAMILY: usize = 3;

/// The places that are left out for now.
#[derive(Debug)]
pub struct Placement {
    cooldown: Duration,
    places: Mutex<BTreeMap<Place, Cool>>,
}

/// What is left out; `None` is any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    what: What,
    zone: Option<Option<String>>,
    market: Option<Market>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Any,
    Family(String),
    Type(String),
}

#[derive(Debug)]
struct Cool {
    until: Instant,
    /// How long it was left out last, doubled the next time.
    last: Duration,
}

impl Placement {
    /// Leaves a place out for `cooldown` after its first failure.
    pub fn new(cooldown: Duration) -> Self {
        Self { cooldown, places: Mutex::default() }
    }

    /// Notes that a candidate had no room, if that is what the error says.
    pub fn failed(&self, candidate: &Candidate, error: &Error) {
        let Some(scope) = error.scope else { return };
        let now = Instant::now();
        let mut places = self.places();
        // A place that has long recovered starts again at the first wait.
        places.retain(|_, cool| cool.until + LONGEST > now);
        let place = Place::of(candidate, scope);
        self.cool(&mut places, place, now);
        if scope == Scope::Place {
            let family = Place::of_family(candidate);
            let members = places
                .iter()
                .filter(|(place, cool)| cool.until > now && place.is_member_of(&family))
                .count();
            if members >= FAMILY {
                self.cool(&mut places, family, now);
            }
        }
    }

    /// Notes that a candidate had room.
    pub fn worked(&self, candidate: &Candidate) {
        self.places().retain(|place, _| !place.has(candidate));
    }

    /// Which of a plan's candidates to try, by position: all that are not left out; all of them when
    /// there is no other.
    pub fn open(&self, candidates: &[Candidate]) -> Vec<bool> {
        let now = Instant::now();
        let places = self.places();
        let is_open = |candidate: &Candidate| {
            !places.iter().any(|(place, cool)| cool.until > now && place.has(candidate))
        };
        let open: Vec<bool> = candidates.iter().map(is_open).collect();
        if open.contains(&true) { open } else { vec![true; candidates.len()] }
    }

    fn cool(&self, places: &mut BTreeMap<Place, Cool>, place: Place, now: Instant) {
        let again = places.get(&place).map(|cool| (cool.last * 2).min(LONGEST));
        let last = again.unwrap_or(self.cooldown);
        places.insert(place, Cool { until: now + last, last });
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<Place, Cool>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn of(candidate: &Candidate, scope: Scope) -> Self {
        let Candidate { instance_type, zone, market, .. } = candidate;
        let (zone, market) = (Some(zone.clone()), Some(*market));
        match scope {
            Scope::Place => Self { what: What::Type(instance_type.clone()), zone, market },
            Scope::Zone => Self { what: What::Any, zone, market: None },
            Scope::Family => Self { what: What::Family(family(instance_type)), zone: None, market },
        }
    }

    fn of_family(candidate: &Candidate) -> Self {
        let what = What::Family(family(&candidate.instance_type));
        Self { what, ..Self::of(candidate, Scope::Place) }
    }

    fn has(&self, candidate: &Candidate) -> bool {
        let what = match &self.what {
            What::Any => true,
            What::Family(name) => *name == family(&candidate.instance_type),
            What::Type(name) => *name == candidate.instance_type,
        };
        what && self.zone.as_ref().is_none_or(|zone| *zone == candidate.zone)
            && self.market.is_none_or(|market| market == candidate.market)
    }

    fn is_member_of(&self, other: &Self) -> bool {
        let What::Type(name) = &self.what else { return false };
        What::Family(family(name)) == other.what
            && self.zone == other.zone
            && self.market == other.market
    }
}

/// What types that share machines, and as a rule a quota, have in common: `m6a` of `m6a.large`, `e2`
/// of `e2-medium`, `Standard_D#as_v5` of `Standard_D4as_v5`.
fn family(name: &str) -> String {
    if let Some((family, _)) = name.split_once('.') {
        return family.to_owned();
    }
    if let Some(size) = name.strip_prefix("Standard_") {
        let letters = size.find(|c: char| c.is_ascii_digit()).unwrap_or(size.len());
        let (letters, rest) = size.split_at(letters);
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        return format!("Standard_{letters}#{rest}");
    }
    name.split('-').next().unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::Kind;

    const COOLDOWN: Duration = Duration::from_secs(180);

    fn candidates(names: &[(&str, &str)]) -> Vec<Candidate> {
        let one = |(number, (name, zone)): (u32, &(&str, &str))| Candidate {
            number,
            instance_type: (*name).to_owned(),
            zone: Some((*zone).to_owned()),
            market: Market::OnDemand,
        };
        (0..).zip(names).map(one).collect()
    }

    fn full() -> Error {
        Error::new("test", "create", Kind::Capacity, "no room")
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_without_room_is_left_out_for_a_while_and_longer_the_next_time() {
        let (placement, plan) =
            (Placement::new(COOLDOWN), candidates(&[("m6a.large", "a"), ("m6a.large", "b")]));
        assert_eq!(placement.open(&plan), [true, true]);
        placement.failed(&plan[0], &full());
        assert_eq!(placement.open(&plan), [false, true]);
        advance(COOLDOWN).await;
        assert_eq!(placement.open(&plan), [true, true]);
        placement.failed(&plan[0], &full());
        advance(COOLDOWN * 2 - Duration::from_secs(1)).await;
        assert_eq!(placement.open(&plan), [false, true], "doubled");
        placement.worked(&plan[0]);
        assert_eq!(placement.open(&plan), [true, true]);
        placement.failed(&plan[0], &full());
        advance(COOLDOWN).await;
        assert_eq!(placement.open(&plan), [true, true], "not doubled after a success");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_open_nowhere_is_tried_all_the_same() {
        let (placement, plan) = (Placement::new(COOLDOWN), candidates(&[("m6a.large", "a")]));
        placement.failed(&plan[0], &full());
        assert_eq!(placement.open(&plan), [true]);
    }

    #[tokio::test(start_paused = true)]
    async fn other_failures_say_nothing_of_a_place() {
        let placement = Placement::new(COOLDOWN);
        let plan = candidates(&[("m6a.large", "a"), ("c6a.large", "a")]);
        for kind in [Kind::Denied, Kind::Invalid, Kind::Throttled(None), Kind::Unavailable] {
            placement.failed(&plan[0], &Error::new("test", "create", kind, "no"));
        }
        assert_eq!(placement.open(&plan), [true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quota_is_the_familys_and_a_subnet_the_zones() {
        let placement = Placement::new(COOLDOWN);
        let plan = candidates(&[("m6a.large", "a"), ("m6a.xlarge", "b"), ("c6a.large", "a")]);
        placement.failed(&plan[0], &Error::new("test", "create", Kind::Quota, "vcpus"));
        assert_eq!(placement.open(&plan), [false, false, true]);
        let placement = Placement::new(COOLDOWN);
        placement.failed(&plan[0], &full().about(Scope::Zone));
        assert_eq!(placement.open(&plan), [false, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn three_members_of_a_family_speak_for_all_of_it_in_their_zone() {
        let placement = Placement::new(COOLDOWN);
        let plan = candidates(&[
            ("m6a.large", "a"),
            ("m6a.xlarge", "a"),
            ("m6a.2xlarge", "a"),
            ("m6a.4xlarge", "a"),
            ("m6a.4xlarge", "b"),
        ]);
        plan[..2].iter().for_each(|candidate| placement.failed(candidate, &full()));
        assert_eq!(placement.open(&plan), [false, false, true, true, true]);
        placement.failed(&plan[2], &full());
        assert_eq!(placement.open(&plan), [false, false, false, false, true]);
    }

    #[test]
    fn families_are_those_of_the_clouds() {
        for (name, of) in [
            ("m6a.large", "m6a"),
            ("e2-medium", "e2"),
            ("n2d-standard-4", "n2d"),
            ("Standard_D4as_v5", "Standard_D#as_v5"),
            ("Standard_DC16as_v5", "Standard_DC#as_v5"),
            ("local", "local"),
        ] {
            assert_eq!(family(name), of);
        }
    }
}
