//! A spot VM that its cloud takes back: what is done with the VM's word for it.
//!
//! ```text
//!   relay ─ the VM says so ─▶ heard ─ a spot VM's first word ─▶ record, timeline, log, metric
//!                                └ anything else ─▶ a line in the log
//!   the VM does not answer ─▶ patience: fewer failures are enough ─▶ explain: that is why
//! ```
//!
//! The word comes out of the VM, which may be hostile: it never ends a pod. It shortens how long a VM that
//! does not answer is waited for, which the VM could as well do by not being there.

use std::fmt::{self, Display};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::sleep;

use super::life::Life;
use crate::relay::api::{self, ControlError};

/// A time that lies further ahead is no notice: the longest ahead that a cloud gives is Azure's, some
/// minutes.
const AHEAD_MS: u64 = 60 * 60 * 1000;
/// How long after its time a VM may still go because of the notice.
const AFTER_MS: u64 = 10 * 60 * 1000;
/// The time that a VM has at least when no time was said: Google gives 30 s.
const UNSAID_MS: u64 = 30 * 1000;
/// Between attempts to ask a relay that is away.
const AGAIN: Duration = Duration::from_secs(2);
/// How often; the next Attached asks again.
const ATTEMPTS: u32 = 5;

/// The word that stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interruption {
    /// When it came here, in milliseconds since 1970.
    pub at_ms: u64,
    /// terminate, stop, hibernate, preempt or other.
    pub kind: String,
    /// Not before then, in milliseconds since 1970, where the cloud has said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// aws, azure, gcp or other.
    pub source: String,
}

impl Interruption {
    /// What can be believed of the VM's words.
    fn read(said: &api::Interruption, now: u64) -> (Self, &'static str) {
        let kinds = ["terminate", "stop", "hibernate", "preempt"];
        let source = one_of(&["aws", "azure", "gcp"], &said.source);
        let likely = now.saturating_sub(AFTER_MS)..now.saturating_add(AHEAD_MS);
        let deadline_ms = Some(said.deadline_ms).filter(|deadline| likely.contains(deadline));
        let kind = one_of(&kinds, &said.kind).to_owned();
        (Self { at_ms: now, kind, deadline_ms, source: source.to_owned() }, source)
    }

    fn deadline(&self) -> u64 {
        self.deadline_ms.unwrap_or(self.at_ms.saturating_add(UNSAID_MS))
    }

    /// Whether a VM that goes now goes because of it.
    fn holds(&self, now: u64) -> bool {
        (self.at_ms..self.deadline().saturating_add(AFTER_MS)).contains(&now)
    }
}

impl Display for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at_ms, kind, source, .. } = self;
        write!(f, "{kind}, notice of {source} at {}", utc(*at_ms))?;
        self.deadline_ms.map_or(Ok(()), |deadline| write!(f, ", not before {}", utc(deadline)))
    }
}

fn one_of(known: &[&'static str], word: &str) -> &'static str {
    known.iter().find(|known| **known == word).copied().unwrap_or("other")
}

fn utc(ms: u64) -> String {
    let time = i64::try_from(ms / 1000).ok().map(OffsetDateTime::from_unix_timestamp);
    let text = time.and_then(Result::ok).map(|time| time.format(&Rfc3339));
    text.and_then(Result::ok).unwrap_or_else(|| format!("{ms} ms"))
}

/// The VM says that it is taken back. True when the record has changed and is to be saved.
pub(crate) fn heard(life: &Life, said: api::Interruption) -> bool {
    let (record, world) = (life.record(), &life.common.world);
    if record.interruption.is_some() {
        return false;
    }
    let now = world.clock.now_ms();
    let (word, source) = Interruption::read(&said, now);
    if !record.spot {
        tracing::warn!("the VM says that its cloud takes it back, and is no spot VM: {word}");
        return false;
    }
    tracing::warn!(kind = word.kind, source, "the cloud takes the pod's VM back: {word}");
    world.observer.interrupted(source);
    life.amend(|r| {
        r.note(now, format!("the cloud takes the VM back: {word}"), None);
        r.fail(format!("the cloud takes the VM back: {word}"));
        r.interruption = Some(word);
    });
    true
}

/// Has a spot VM say when it is taken back. A relay that cannot ask for that is no reason to do without
/// the pod.
pub(crate) async fn watch(life: &Life) {
    let record = life.record();
    if !record.spot || record.interruption.is_some() {
        return;
    }
    for _ in 0..ATTEMPTS {
        match life.common.world.relay.watch(&record.sandbox).await {
            Ok(()) => return,
            Err(error @ ControlError::Away(_)) => tracing::debug!(%error, "asking again"),
            Err(error) => return tracing::info!(%error, "no notice will come of the VM"),
        }
        sleep(AGAIN).await;
    }
}

/// Failures in a row, and the time without an answer, that it takes to give a VM up.
pub(crate) fn patience(life: &Life, failures: u32, bound: Duration) -> (u32, Duration) {
    let now = life.common.world.clock.now_ms();
    match &life.record().interruption {
        Some(word) if word.holds(now) && now >= word.deadline() => (1, Duration::ZERO),
        Some(word) if word.holds(now) => (failures, Duration::ZERO),
        _ => (failures, bound),
    }
}

/// Why a VM has gone: for metrics, and for people.
pub(crate) fn explain(life: &Life, reason: String) -> (&'static str, String) {
    let now = life.common.world.clock.now_ms();
    match &life.record().interruption {
        Some(word) if word.holds(now) => {
            ("spot", format!("the spot VM was taken back by the cloud ({word}): {reason}"))
        }
        _ => ("vm", reason),
    }
}
