//! Where a daemon is to die, and what its log says of it.

use std::fmt;
use std::path::Path;

use peerpodd::crash::{Place, Point};

use super::Scenario;

/// One death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// Where.
    pub point: Point,
    /// At which time of coming there since the death before.
    pub time: usize,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.point, self.time)
    }
}

/// A scenario with its deaths, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is lived through.
    pub scenario: Scenario,
    /// None is a life without any.
    pub deaths: Vec<Death>,
}

impl Plan {
    /// As the daemon is told.
    pub fn words(&self) -> String {
        self.deaths.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// Whether the relay is among the dead: then pods may end, but nothing may stay.
    pub fn ends_pods(&self) -> bool {
        self.deaths.iter().any(|d| d.point.place() == Place::Relay)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.scenario, self.words())
    }
}

/// Points in the order in which they came; deaths stand between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// One list for the time before the first death, one for that after each.
    pub lives: Vec<Vec<Point>>,
}

impl Log {
    /// Reads the file that `PEERPODD_CRASH_LOG` names; one that is not there has nothing.
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut lives = vec![Vec::new()];
        for line in text.lines() {
            if line.starts_with("! ") {
                lives.push(Vec::new());
            } else if let (Some(point), Some(life)) = (Point::named(line), lives.last_mut()) {
                life.push(point);
            }
        }
        Self { lives }
    }

    /// How many deaths there were.
    pub fn deaths(&self) -> usize {
        self.lives.len().saturating_sub(1)
    }
}
