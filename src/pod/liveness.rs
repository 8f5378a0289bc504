//! Whether a running VM lives: by what the relay says of it, else asked on a connection of its own.
//!
//! ```text
//!             period (a fifth of the bound), or a hint
//!   (well) ──────────────────────▶ ask ── answered ──▶ (well)
//!     ▲                             │ no: new connection, ask again …
//!     │                             └─ no answer for the bound, and three times at least ──▶ dead
//!     │                             ▲ its word is overdue
//!   (vouched for: no connection) ───┘ ◀── the relay has had an answer ── anywhere
//! ```
//!
//! Of a VM that its cloud has said it takes back, three failures are enough whatever the bound, and once its
//! time is over, one.
//!
//! Three times at least, since a process that itself stood still for a while has not asked at all.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use peerpod_tunnel::link::notice::Notices;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::Options;
use super::interruption;
use super::life::Life;
use super::world::{Pulse, Unready};

/// Periods in the bound.
const PERIODS: u32 = 5;
/// Failures in a row that it takes.
const FAILURES: u32 = 3;
/// Periods after which the relay's word is good no more: it may take one to get all answers.
const OVERDUE: u32 = 3;
/// Periods until the first question, so that the relay may have its say before.
const FIRST: u32 = 2;
/// Between failures that came at once, as a part of the period.
const HASTE: u32 = 5;

/// Hints from outside.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    ask: Notify,
    doubt: Mutex<Option<String>>,
    vouched: Notify,
    alive: Mutex<Option<Instant>>,
}

/// Between two questions to a VM that is well.
pub(crate) fn period(options: &Options) -> Duration {
    options.liveness / PERIODS
}

impl Hints {
    /// Something happened to the link: ask at once.
    pub(crate) fn ask(&self) {
        self.ask.notify_one();
    }

    /// Somebody says that the VM is no more: one failure is enough to believe it.
    pub(crate) fn doubt(&self, reason: String) {
        *self.doubt.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.ask();
    }

    /// The relay has had an answer to a question that it began then.
    pub(crate) fn alive(&self, when: Instant) {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = Some(when);
        self.vouched.notify_one();
    }

    async fn vouched(&self) -> Instant {
        loop {
            self.vouched.notified().await;
            if let Some(when) = self.alive.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return when;
            }
        }
    }

    fn take_doubt(&self) -> Option<String> {
        self.doubt.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Asks as long as the VM answers; returns why it is taken for dead.
pub(crate) async fn watch(life: &Life, hints: &Hints) -> String {
    let bound = life.common.options.liveness;
    let period = period(&life.common.options);
    let (mut well, mut failures) = (Instant::now(), 0u32);
    let mut pulse = None;
    let mut next = well + FIRST * period;
    // A VM that answers now and then must not fill the log.
    let notices = Notices::new();
    loop {
        tokio::select! {
            biased;
            () = hints.ask.notified() => {}
            when = hints.vouched() => {
                (well, failures, pulse) = (well.max(when), 0, None);
                next = when + OVERDUE * period;
                continue;
            }
            () = sleep_until(next) => {}
        }
        // A doubt that comes while we ask belongs to the next question.
        let doubt = hints.take_doubt();
        let Err(unready) = ask(life, &mut pulse, period).await else {
            (well, failures) = (Instant::now(), 0);
            next = well + period;
            continue;
        };
        failures += 1;
        next = Instant::now() + period / HASTE;
        notices.say(|| tracing::warn!(failures, "the VM does not answer: {unready}"));
        if let Some(doubt) = doubt {
            return format!("{doubt}; {unready}");
        }
        let (enough, bound) = interruption::patience(life, FAILURES, bound);
        if failures >= enough && well.elapsed() >= bound {
            return format!(
                "the VM has not answered for {} s: {unready}",
                well.elapsed().as_secs()
            );
        }
    }
}

/// Asks on the connection there is, else on a new one. Takes twice `bound` at most.
async fn ask(
    life: &Life,
    pulse: &mut Option<Box<dyn Pulse>>,
    bound: Duration,
) -> Result<(), Reason> {
    if let Some(connection) = pulse {
        if let Ok(Ok(())) = timeout(bound, connection.beat()).await {
            return Ok(());
        }
        *pulse = None;
    }
    match timeout(bound, renew(life, bound)).await {
        Ok(Ok(connection)) => {
            *pulse = Some(connection);
            Ok(())
        }
        Ok(Err(unready)) => Err(Reason(unready.to_string())),
        Err(_) => Err(Reason(format!("no answer within {bound:?}"))),
    }
}

async fn renew(life: &Life, bound: Duration) -> Result<Box<dyn Pulse>, Unready> {
    let record = life.record();
    let target = record.phase.vm().and_then(|vm| life.target(vm).ok());
    let Some(target) = target else {
        let stage = super::world::Stage::Requested;
        return Err(Unready { stage, reason: "no address".to_owned() });
    };
    let door = life.common.world.guest.knock(target, bound).await?;
    door.enter(life.tls().as_ref(), bound).await
}

struct Reason(String);

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
