//! Waiting for a VM that boots: short connects that overlap, until its agent has answered.
//!
//! ```text
//!             silence, no route            RST                          accepts
//!   (dark) ──── a SYN each 200 ms ────▶ (booting) ─ 45 ms, growing ───▶ TLS ─▶ agent ─▶ ready
//!                                                    with the wait      └─ not yet: 100 ms ─┘
//! ```
//!
//! An attempt ends before the kernel would send its second SYN (1 s), so that no attempt sits in the
//! kernel's back-off while the VM comes up. Over the whole wait it is at most ten packets a second:
//! what the dark leaves of them is spent once the VM is known to be up, most of it at first. It lasts
//! until the wait is twice as long as the dark was.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use peerpod_tunnel::link::tls::ClientTls;
use tokio::time::{Instant, sleep_until};

use super::world::{Door, Guest, Pulse, Stage, Undelivered, Unready};
use crate::plan::FollowFile;

/// Between two SYNs while nothing is heard.
const DARK: Duration = Duration::from_millis(200);
/// The same once the budget is used up, and after an accepted connection that came to nothing.
const STEADY: Duration = Duration::from_millis(100);
/// Never less, however short the dark was.
const LEAST: Duration = Duration::from_millis(25);
/// Packets a second, over the whole wait.
const BUDGET: u32 = 10;
/// One connect; less than the kernel's first retransmission.
const KNOCK: Duration = Duration::from_millis(900);
/// TLS, and then again the agent's answer.
const ENTER: Duration = Duration::from_secs(3);
/// TLS, and then again all files and the word that they are there.
const DELIVER: Duration = Duration::from_secs(10);
/// Connects under way at a time.
const OVERLAP: usize = 12;

/// When to send the next SYN. A plain value.
#[derive(Debug)]
struct Pace {
    begin: Instant,
    sent: u32,
    /// How long nothing was heard.
    dark: Option<Duration>,
}

impl Pace {
    fn new(begin: Instant) -> Self {
        Self { begin, sent: 0, dark: None }
    }

    /// A SYN leaves now; when the next one may.
    fn sent(&mut self, now: Instant) -> Instant {
        self.sent = self.sent.saturating_add(1);
        now + self.interval(now)
    }

    /// The VM is up.
    fn heard(&mut self, now: Instant) {
        self.dark.get_or_insert(now.duration_since(self.begin));
    }

    fn interval(&self, now: Instant) -> Duration {
        let Some(dark) = self.dark else { return DARK };
        let waited = now.duration_since(self.begin);
        if f64::from(self.sent) >= waited.as_secs_f64() * f64::from(BUDGET) {
            return STEADY;
        }
        // Short at first, since VMs that are up are mostly soon ready: this way the packets that are
        // left are spent just when the wait is twice the dark.
        let left = 2.0 * f64::from(BUDGET) - 1.0 / DARK.as_secs_f64();
        let first = std::f64::consts::LN_2 / left;
        let grown = first * waited.as_secs_f64() / dark.as_secs_f64().max(DARK.as_secs_f64());
        Duration::from_secs_f64(grown).clamp(LEAST, STEADY)
    }
}

/// A connect that is under way.
type Knock<'a> = BoxFuture<'a, Result<Box<dyn Door>, Unready>>;

/// Waits until the agent behind `to` has answered; the caller bounds the time. `note` hears of every
/// attempt that came to nothing. The connection that was answered on is returned.
pub async fn reach(
    guest: &dyn Guest,
    to: SocketAddr,
    tls: Option<&ClientTls>,
    note: impl FnMut(&Unready),
) -> Box<dyn Pulse> {
    knock(guest, to, |door| door.enter(tls, ENTER), note).await
}

/// Waits until the VM behind `to` has all files; the rest as for [`reach`].
///
/// # Errors
/// When it never will, in words.
pub async fn deliver(
    guest: &dyn Guest,
    to: SocketAddr,
    tls: Option<&ClientTls>,
    files: &[FollowFile],
    note: impl FnMut(&Unready),
) -> Result<(), String> {
    let deliver = |door: Box<dyn Door>| async move {
        match door.deliver(tls, files, DELIVER).await {
            Ok(()) => Ok(Ok(())),
            Err(Undelivered::Refused(why)) => Ok(Err(why)),
            Err(Undelivered::Unready(unready)) => Err(unready),
        }
    };
    knock(guest, to, deliver, note).await
}

/// Until one that is let in comes back with something.
async fn knock<T, F: Future<Output = Result<T, Unready>>>(
    guest: &dyn Guest,
    to: SocketAddr,
    enter: impl Fn(Box<dyn Door>) -> F,
    mut note: impl FnMut(&Unready),
) -> T {
    let mut pace = Pace::new(Instant::now());
    let mut knocks: FuturesUnordered<Knock<'_>> = FuturesUnordered::new();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            Some(knock) = knocks.next() => {
                let accepted = Instant::now();
                let unready = match knock {
                    Err(unready) => unready,
                    Ok(door) => match enter(door).await {
                        Ok(done) => return done,
                        Err(unready) => unready,
                    },
                };
                let now = Instant::now();
                match unready.stage {
                    Stage::Refused => {
                        pace.heard(now);
                        next = next.min(now + pace.interval(now));
                    }
                    Stage::Unreachable => {}
                    // Others that were accepted meanwhile would find the same.
                    // A VM that is not done with its start accepts and lets us wait: then the next one
                    // waits at once.
                    _ => {
                        knocks.clear();
                        next = accepted + STEADY;
                    }
                }
                note(&unready);
            }
            () = sleep_until(next), if knocks.len() < OVERLAP => {
                knocks.push(guest.knock(to, KNOCK));
                next = pace.sent(Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests;
