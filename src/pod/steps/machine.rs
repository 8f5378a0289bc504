//! The VM: one candidate after the other, each written down before it is tried.

use std::sync::Arc;
use std::time::Duration;

use peerpod_providers::error::Advice;
use peerpod_providers::retry::{Backoff, Policy};
use peerpod_providers::{Candidate, Market, Vm, VmSpec};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use super::StepError;
use crate::pod::life::Life;
use crate::pod::phase::{Event, Made, Phase};

/// Most calls at one place; what bounds them really is the start's deadline.
const ATTEMPTS: u32 = 40;
/// No further place is begun that long after the first one had no room: who waits wants to hear of it. The
/// first one's own time does not count, since most of it may be the wait for a turn.
const WALK: Duration = Duration::from_secs(60);

/// The pod's VM: the one it has, or a new one.
pub(crate) async fn make(life: &Life) -> Result<Vm, StepError> {
    let record = life.record();
    let (first, begun) = match &record.phase {
        Phase::Launching { made: Made::Known(vm), .. } => return Ok(vm.clone()),
        Phase::Launching { candidate, made: Made::Parts } => (candidate.saturating_add(1), None),
        Phase::Launching { candidate, made: Made::Perhaps } => (*candidate, Some(*candidate)),
        Phase::Launching { candidate, .. } => (*candidate, None),
        _ => (0, None),
    };
    let slot = slot(life).await;
    let placement = &life.common.placement;
    let candidates = record.machine.candidates.get(first as usize..).unwrap_or_default();
    let (mut tried, mut since) = (Vec::new(), None);
    for ((number, candidate), open) in (first..).zip(candidates).zip(placement.open(candidates)) {
        // What an earlier process began may have had an effect and is gone on with, wherever it is.
        if !open && begun != Some(number) {
            continue;
        }
        if since.is_some_and(|first: Instant| first.elapsed() >= WALK) {
            break;
        }
        let spot = candidate.market == Market::Spot;
        life.advance(Event::Attempt(number), |r| r.spot = spot).await?;
        match attempt(life, &slot, &record.machine.spec, candidate).await {
            Ok(vm) => {
                placement.worked(candidate);
                life.enter(Event::Made(vm.clone()))?;
                return Ok(vm);
            }
            Err((error, advice)) => {
                if let StepError::Create { source, .. } = &error {
                    placement.failed(candidate, source);
                }
                tried.push(refused(life, error, advice)?);
                since.get_or_insert_with(Instant::now);
            }
        }
    }
    Err(StepError::no_room(tried))
}

/// A place among the creates that run at once. Whoever holds a part of it holds all of it.
pub(crate) type Slot = Option<Arc<OwnedSemaphorePermit>>;

/// Takes a place; the wait for it is told. The semaphore is never closed.
async fn slot(life: &Life) -> Slot {
    let creates = &life.common.creates;
    if let Ok(slot) = Arc::clone(creates).try_acquire_owned() {
        return Some(Arc::new(slot));
    }
    let now = life.common.world.clock.now_ms();
    life.amend(|r| r.note(now, "waiting for other creates", None));
    Arc::clone(creates).acquire_owned().await.ok().map(Arc::new)
}

/// One candidate, repeated as long as that may help.
async fn attempt(
    life: &Life,
    slot: &Slot,
    spec: &VmSpec,
    candidate: &Candidate,
) -> Result<Vm, (StepError, Advice)> {
    let world = &life.common.world;
    let policy = Policy {
        attempts: ATTEMPTS,
        limit: life.common.options.start_deadline,
        ..Policy::default()
    };
    let (begin, mut backoff) = (Instant::now(), Backoff::new(policy));
    loop {
        let error = match life.step("create", life.create(slot, spec, candidate)).await {
            Ok(vm) => return Ok(vm),
            Err(error) => error,
        };
        world.observer.provider_error("create", error.kind.as_str());
        let random = f64::from(world.random.next()) / (f64::from(u32::MAX) + 1.0);
        match backoff.after(error.kind, begin.elapsed(), random) {
            Some(wait) => sleep(wait).await,
            None => {
                let (advice, attempts) = (error.kind.advice(), backoff.failed());
                let place = place(candidate);
                return Err((StepError::Create { place, attempts, source: error }, advice));
            }
        }
    }
}

/// Notes that a candidate has failed; `Ok` when the next one may be tried. While an earlier call may
/// yet take effect it may not: a second VM would come of that.
fn refused(life: &Life, error: StepError, advice: Advice) -> Result<StepError, StepError> {
    if life.is_unsure() {
        return Err(error);
    }
    life.enter(Event::Refused)?;
    match advice {
        Advice::NextCandidate => Ok(error),
        Advice::Repeat(_) | Advice::Stop => Err(error),
    }
}

fn place(candidate: &Candidate) -> String {
    match &candidate.zone {
        Some(zone) => format!("{} in {zone}", candidate.instance_type),
        None => candidate.instance_type.clone(),
    }
}
