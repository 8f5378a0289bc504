//! Waiting for a VM that boots: short connects that overlap, until its agent has answered.
//!
//! ```text
//!             silence, no route            RST                          accepts
//!   (dark) ──── a SYN each 120 ms ────▶ (booting) ─ 50 ms, as the ────▶ TLS ─▶ agent ─▶ ready
//!                                                    budget allows      └─ not yet: 100 ms ─┘
//! ```
//!
//! An attempt ends before the kernel would send its second SYN (1 s), so that no attempt sits in the
//! kernel's back-off while the VM comes up. Over the whole wait it is at most ten packets a second.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use peerpod_tunnel::link::tls::ClientTls;
use tokio::time::{Instant, sleep_until};

use super::world::{Door, Guest, Pulse, Stage, Unready};

/// Between two SYNs while nothing is heard.
const DARK: Duration = Duration::from_millis(120);
/// Between two SYNs when the VM is up and its port is not yet.
const BOOTING: Duration = Duration::from_millis(50);
/// The same once the budget is used up, and after an accepted connection that came to nothing.
const STEADY: Duration = Duration::from_millis(100);
/// Packets a second, over the whole wait.
const BUDGET: u32 = 10;
/// One connect; less than the kernel's first retransmission.
const KNOCK: Duration = Duration::from_millis(900);
/// TLS, and then again the agent's answer.
const ENTER: Duration = Duration::from_secs(3);
/// Connects under way at a time.
const OVERLAP: usize = 12;

/// When to send the next SYN. A plain value.
#[derive(Debug)]
struct Pace {
    begin: Instant,
    sent: u32,
    booting: bool,
}

impl Pace {
    fn new(begin: Instant) -> Self {
        Self { begin, sent: 0, booting: false }
    }

    /// A SYN leaves now; when the next one may.
    fn sent(&mut self, now: Instant) -> Instant {
        self.sent = self.sent.saturating_add(1);
        now + self.interval(now)
    }

    fn interval(&self, now: Instant) -> Duration {
        if !self.booting {
            return DARK;
        }
        let allowed = now.duration_since(self.begin).as_secs_f64() * f64::from(BUDGET);
        if f64::from(self.sent) < allowed { BOOTING } else { STEADY }
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
    mut note: impl FnMut(&Unready),
) -> Box<dyn Pulse> {
    let mut pace = Pace::new(Instant::now());
    let mut knocks: FuturesUnordered<Knock<'_>> = FuturesUnordered::new();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            Some(knock) = knocks.next() => {
                let unready = match knock {
                    Err(unready) => unready,
                    Ok(door) => match door.enter(tls, ENTER).await {
                        Ok(pulse) => return pulse,
                        Err(unready) => unready,
                    },
                };
                let now = Instant::now();
                match unready.stage {
                    Stage::Refused => {
                        pace.booting = true;
                        next = next.min(now + pace.interval(now));
                    }
                    Stage::Unreachable => {}
                    // Others that were accepted meanwhile would find the same.
                    _ => {
                        knocks.clear();
                        next = now + STEADY;
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
