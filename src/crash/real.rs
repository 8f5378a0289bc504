//! Real deaths: SIGKILL to the own process.
//!
//! What has happened so far stands in the log, which all processes of one daemon share, so that a
//! successor knows which death comes next and nobody dies twice.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Crash, Point};

/// Dies where `PEERPODD_CRASH` says.
#[derive(Clone, Copy, Debug)]
pub struct Sigkill;

#[async_trait]
impl Crash for Sigkill {
    async fn reach(&self, point: Point) {
        reached(point);
    }
}

/// What this process was told.
#[derive(Debug, Default)]
struct Orders {
    /// One death after the other: where, and at which time of coming there since the one before.
    deaths: Vec<(String, usize)>,
    log: Option<PathBuf>,
    /// Without a log: how often each was reached.
    reached: Mutex<BTreeMap<Point, usize>>,
}

static ORDERS: OnceLock<Orders> = OnceLock::new();

/// A point is reached, on any thread. Does not return where this process is to die.
pub fn reached(point: Point) {
    let orders = ORDERS.get_or_init(Orders::read);
    let dies = match &orders.log {
        Some(log) => orders.note(log, point).unwrap_or(false),
        None if orders.deaths.is_empty() => false,
        None => orders.count(point),
    };
    if dies {
        die();
    }
}

/// How long "gone" has to hold where a create may still take effect: a test build asks for less.
pub fn settle(usual: Duration) -> Duration {
    variable("PEERPODD_CRASH_SETTLE_MS")
        .and_then(|ms| ms.parse().ok())
        .map_or(usual, Duration::from_millis)
}

/// Lets the tunnel's steps come by here.
pub fn tunnel() {
    peerpod_tunnel::crash::tell(|name| {
        if let Some(point) = Point::named(name) {
            reached(point);
        }
    });
}

#[allow(clippy::disallowed_methods, reason = "not a setting: only a test build reads it")]
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Orders {
    fn read() -> Self {
        let deaths = variable("PEERPODD_CRASH").unwrap_or_default();
        let deaths = deaths.split(',').filter(|d| !d.is_empty()).map(|death| {
            let (name, nth) = death.split_once(':').unwrap_or((death, "1"));
            (name.to_owned(), nth.parse().unwrap_or(1))
        });
        let log = variable("PEERPODD_CRASH_LOG").map(PathBuf::from);
        Self { deaths: deaths.collect(), log, reached: Mutex::default() }
    }

    fn count(&self, point: Point) -> bool {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let times = reached.entry(point).or_default();
        *times += 1;
        self.deaths.first().is_some_and(|(name, nth)| name == point.name() && times == nth)
    }

    /// Writes the point down. When this is where to die, that, too, and the log stays locked.
    fn note(&self, log: &PathBuf, point: Point) -> std::io::Result<bool> {
        let file = OpenOptions::new().create(true).append(true).read(true).open(log)?;
        let mut file =
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| std::io::Error::from(e))?;
        let (died, times) = so_far(&mut file, point)?;
        let death = self.deaths.get(died);
        let dies = death.is_some_and(|(name, nth)| name == point.name() && times + 1 == *nth);
        let name = point.name();
        if dies {
            file.write_all(format!("{name}\n! {name}\n").as_bytes())?;
            die();
        }
        file.write_all(format!("{name}\n").as_bytes())?;
        Ok(dies)
    }
}

/// How many deaths the log has, and how often the point was reached since the last one.
fn so_far(file: &mut File, point: Point) -> std::io::Result<(usize, usize)> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let died = text.lines().filter(|l| l.starts_with("! ")).count();
    let since = text.lines().rev().take_while(|l| !l.starts_with("! "));
    Ok((died, since.filter(|l| *l == point.name()).count()))
}

fn die() -> ! {
    loop {
        // Nothing is cleaned up, nothing is flushed: that is the point.
        let _ = kill(Pid::this(), Signal::SIGKILL);
    }
}
