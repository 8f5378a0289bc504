//! How often each class of a cloud's calls may be made: one budget per account and class, shared by
//! all callers of the process (providers.md 2.8).
//!
//! ```text
//!   callers ──▶ fair queue ──▶ token bucket ──▶ call ──▶ answer
//!                                   ▲                      │ throttled: nobody calls for that long
//!                                   └──────────────────────┘ five times out of order: a longer pause
//! ```
//! Creates and deletes have budgets of their own, so that a storm of the ones never blocks the others.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::retry::{Backoff, Policy};
use crate::{Error, Kind};

/// Calls in a row that failed before the class is given a pause.
const FAILURES: u32 = 5;
/// The first pause of a class that fails all the time, doubled up to the last.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(120));

/// A hint longer than that is not believed.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a class may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Calls per second, in the long run; more than 0.
    pub per_second: f64,
    /// Calls at once after a quiet time; at least 1.
    pub burst: u32,
}

/// The budget of one class.
#[derive(Debug)]
pub struct Budget {
    class: &'static str,
    rate: Rate,
    /// Held by whoever is next; tokio's mutex is fair.
    queue: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the bucket was empty: what has flowed in since then can be taken.
    empty_at: Instant,
    /// Nobody calls before that.
    held_until: Option<Instant>,
    throttles: Backoff,
    failures: u32,
}

/// Waits for hints that a cloud did not give: 200 ms, doubled up to 30 s, full jitter.
const NO_LIMIT: Policy = Policy {
    base: Duration::from_millis(200),
    cap: Duration::from_secs(30),
    attempts: u32::MAX,
    limit: Duration::MAX,
};

impl Budget {
    /// A full bucket. `class` is the name in messages.
    pub fn new(class: &'static str, rate: Rate) -> Self {
        let now = Instant::now();
        let full = rate.interval().saturating_mul(rate.burst.max(1));
        let state = State {
            empty_at: now.checked_sub(full).unwrap_or(now),
            held_until: None,
            throttles: Backoff::new(NO_LIMIT),
            failures: 0,
        };
        Self { class, rate, queue: tokio::sync::Mutex::default(), state: Mutex::new(state) }
    }

    /// Makes one call when its turn has come, and learns from its answer. A call that is dropped
    /// while it waits has used nothing.
    ///
    /// # Errors
    /// The call's own.
    pub async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.turn().await;
        let answer = call.await;
        self.learn(answer.as_ref().err().map(|e| e.kind));
        answer
    }

    /// Returns when a call may be made, and counts it.
    pub async fn turn(&self) {
        let _first = self.queue.lock().await;
        loop {
            let Err(at) = self.state().take(self.rate, Instant::now()) else { return };
            sleep_until(at).await;
        }
    }

    /// What a call's answer says to all that come after it.
    pub fn learn(&self, failure: Option<Kind>) {
        let mut state = self.state();
        let now = Instant::now();
        match failure {
            Some(kind @ Kind::Throttled(_)) => {
                let wait = state.throttles.after(kind, Duration::ZERO, rand::random());
                let wait = wait.unwrap_or(NO_LIMIT.cap).min(PATIENCE);
                state.hold(now + wait);
                let class = self.class;
                tracing::debug!(class, wait_ms = wait.as_millis(), "the cloud asks for patience");
            }
            Some(Kind::Unavailable | Kind::Denied) => {
                state.failures = state.failures.saturating_add(1);
                if let Some(beyond) = state.failures.checked_sub(FAILURES) {
                    let pause = PAUSE.0.saturating_mul(1 << beyond.min(16)).min(PAUSE.1);
                    state.hold(now + pause);
                    let (class, failures) = (self.class, state.failures);
                    tracing::warn!(class, failures, ?pause, "calls only fail, pausing them");
                }
            }
            _ => {
                state.failures = 0;
                state.throttles = Backoff::new(NO_LIMIT);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rate {
    fn interval(self) -> Duration {
        Duration::try_from_secs_f64(1.0 / self.per_second).unwrap_or(Duration::from_secs(3600))
    }
}

impl State {
    /// Takes one call out, or says when to ask again.
    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Instant> {
        if let Some(until) = self.held_until.filter(|until| *until > now) {
            return Err(until);
        }
        let interval = rate.interval();
        let fullest = now.checked_sub(interval.saturating_mul(rate.burst.max(1)));
        let empty_at = fullest.map_or(self.empty_at, |full| self.empty_at.max(full));
        let after = empty_at + interval;
        if after > now {
            return Err(after);
        }
        self.empty_at = after;
        Ok(())
    }

    fn hold(&mut self, until: Instant) {
        self.held_until = Some(self.held_until.map_or(until, |held| held.max(until)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 2.0, burst: 5 };

    async fn calls(budget: &Budget, number: u32) -> Duration {
        let begin = Instant::now();
        for _ in 0..number {
            budget.turn().await;
        }
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_calls_take_what_the_bucket_allows_and_no_longer() {
        let taken = calls(&Budget::new("run", RATE), 100).await;
        let best = Duration::from_millis(95 * 500);
        assert!(taken >= best && taken < best + Duration::from_millis(200), "{taken:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_kept_up_to_the_burst() {
        let budget = Budget::new("run", RATE);
        calls(&budget, 5).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(calls(&budget, 5).await, Duration::ZERO);
        assert!(calls(&budget, 1).await >= Duration::from_millis(490));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_throttle_nobody_calls_for_as_long_as_the_cloud_says() {
        let budget = Budget::new("run", RATE);
        let hint = Duration::from_secs(17);
        let error = Error::new("test", "create", Kind::Throttled(Some(hint)), "slow down");
        let refused = budget.call(async { Err::<(), _>(error) }).await;
        assert!(refused.is_err());
        let waited = calls(&budget, 1).await;
        assert!(waited >= hint, "{waited:?}");
        // Whoever waited does not rush in at once.
        assert!(calls(&budget, 8).await >= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_class_that_only_fails_is_paused_longer_and_longer_and_recovers() {
        let budget = Budget::new("run", RATE);
        for _ in 0..FAILURES {
            assert!(calls(&budget, 1).await < PAUSE.0);
            budget.learn(Some(Kind::Unavailable));
        }
        assert!(calls(&budget, 1).await >= PAUSE.0 - Duration::from_millis(1));
        budget.learn(Some(Kind::Unavailable));
        assert!(calls(&budget, 1).await >= PAUSE.0 * 2 - Duration::from_millis(1));
        budget.learn(None);
        budget.learn(Some(Kind::Unavailable));
        assert!(calls(&budget, 1).await < PAUSE.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_leaves_the_queue_uses_nothing() {
        let budget = Budget::new("run", RATE);
        calls(&budget, 5).await;
        let impatient = tokio::time::timeout(Duration::from_millis(10), budget.turn());
        assert!(impatient.await.is_err());
        let waited = calls(&budget, 1).await;
        assert!(waited <= Duration::from_millis(500), "{waited:?}");
    }
}
