//! The one retry of this crate: full jitter, bounded by count and by time, with an error that tells
//! how often and how long. Whether to repeat at all is [`crate::Kind::advice`]'s decision.
//!
//! Callers that own their clock and their randomness (the actor, a simulation) use [`Backoff`] and
//! wait themselves; everybody else calls [`retry`], which waits on tokio's clock.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Advice;
use crate::{Error, Kind};

/// How often, how long, how patient. The default is providers.md 2.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Longest possible first wait.
    pub base: Duration,
    /// Longest possible wait of our own; a server's hint may be longer.
    pub cap: Duration,
    /// Calls in all, the first included.
    pub attempts: u32,
    /// From the first call on; a wait that would end later is not begun.
    pub limit: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(200),
            cap: Duration::from_secs(30),
            attempts: 10,
            limit: Duration::from_secs(120),
        }
    }
}

/// Failures that no table maps are repeated this often at most, whatever the policy says.
pub const UNMAPPED_ATTEMPTS: u32 = 5;

/// The state of one retried call: a plain value without a clock.
#[derive(Clone, Debug)]
pub struct Backoff {
    policy: Policy,
    failed: u32,
}

impl Backoff {
    /// Before the first call.
    pub fn new(policy: Policy) -> Self {
        Self { policy, failed: 0 }
    }

    /// A call has failed: how long to wait before the next one, or `None` to give up.
    ///
    /// `elapsed` is the time since the first call began; `random` is uniform in `[0, 1)`.
    pub fn after(&mut self, kind: Kind, elapsed: Duration, random: f64) -> Option<Duration> {
        self.failed = self.failed.saturating_add(1);
        let Advice::Repeat(hint) = kind.advice() else {
            return None;
        };
        let most = match kind {
            Kind::Other => self.policy.attempts.min(UNMAPPED_ATTEMPTS),
            _ => self.policy.attempts,
        };
        let wait = hint.unwrap_or_else(|| self.jitter(random));
        let in_time = elapsed.checked_add(wait).is_some_and(|end| end <= self.policy.limit);
        (self.failed < most && in_time).then_some(wait)
    }

    /// Calls that have failed so far.
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// Full jitter: anything from nothing to the doubled base, so that many callers spread out.
    fn jitter(&self, random: f64) -> Duration {
        let doublings = self.failed.saturating_sub(1).min(31);
        let ceiling = self.policy.base.saturating_mul(1 << doublings).min(self.policy.cap);
        ceiling.mul_f64(random.clamp(0.0, 1.0))
    }
}

/// A call that was given up.
#[derive(Debug, thiserror::Error)]
#[error("gave up after {attempts} attempts in {} ms", elapsed.as_millis())]
pub struct GaveUp {
    /// Calls made.
    pub attempts: u32,
    /// From the first call to the last failure.
    pub elapsed: Duration,
    /// The last failure.
    #[source]
    pub last: Error,
}

/// Calls `call` until it succeeds, its failure is one that no repetition helps, or `policy` is
/// used up.
///
/// # Errors
/// [`GaveUp`] with the last failure.
pub async fn retry<T, F>(policy: Policy, mut call: impl FnMut() -> F) -> Result<T, GaveUp>
where
    F: Future<Output = Result<T, Error>>,
{
    let begin = Instant::now();
    let mut backoff = Backoff::new(policy);
    loop {
        let last = match call().await {
            Ok(value) => return Ok(value),
            Err(e) => e,
        };
        let elapsed = begin.elapsed();
        match backoff.after(last.kind, elapsed, rand::random()) {
            Some(wait) => {
                tracing::debug!(error = %last, wait_ms = wait.as_millis(), "trying again");
                tokio::time::sleep(wait).await;
            }
            None => return Err(GaveUp { attempts: backoff.failed(), elapsed, last }),
        }
    }
}

#[cfg(test)]
mod tests;
