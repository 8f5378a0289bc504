//! StopVM, and every other end: first what is local, then the cloud. Nothing here fails; what did not
//! succeed is done again until it has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use peerpod_providers::{Deletion, Kind, VmRef};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::mortem;
use crate::crash::sent;
use crate::pod::life::Life;
use crate::pod::phase::{Event, Made, Phase};
use crate::relay::api::ControlError;

/// How long a slow disk may hold the rest up.
const SAVE: Duration = Duration::from_millis(250);
/// First wait before something is tried again, and the longest one.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// How long a create that is under way is waited for before its VM is deleted.
const IN_FLIGHT: Duration = Duration::from_secs(20);

/// Why a pod is over that its shim has stopped.
pub(crate) const STOPVM: &str = "StopVM";

/// What has been done of an end.
#[derive(Debug, Default)]
pub(crate) struct Done {
    saved: AtomicBool,
    closed: AtomicBool,
    detached: AtomicBool,
    /// Nothing of the VM is left: then it matters no more what the record says.
    gone: AtomicBool,
}

impl Done {
    fn is(flag: &AtomicBool) -> bool {
        flag.load(Ordering::Relaxed)
    }

    fn local(&self) -> bool {
        let kept = Self::is(&self.saved) || Self::is(&self.gone);
        kept && Self::is(&self.closed) && Self::is(&self.detached)
    }
}

/// The local part, once through: record, shim's connections, tunnel. Whatever of it fails is noted
/// and left to [`rest`].
pub(crate) async fn local(life: &Life, done: &Done) {
    if !Done::is(&done.saved)
        && let Ok(Ok(())) = timeout(SAVE, life.save()).await
    {
        done.saved.store(true, Ordering::Relaxed);
    }
    tokio::join!(close(life, done), detach(life, done));
}

async fn close(life: &Life, done: &Done) {
    if Done::is(&done.closed) {
        return;
    }
    let record = life.record();
    let reason = match &record.phase {
        Phase::Deleting { reason, .. } => reason.as_str(),
        _ => "",
    };
    let closed = life.step("close", life.common.world.relay.close(&record.sandbox, reason)).await;
    // A relay that refuses a name does not know it: that is closed, too.
    if matches!(closed, Ok(_) | Err(ControlError::Refused(_))) {
        done.closed.store(true, Ordering::Relaxed);
    }
}

async fn detach(life: &Life, done: &Done) {
    let none = matches!(&life.record().phase, Phase::Deleting { made: Made::Nothing, .. });
    if Done::is(&done.detached) || none {
        done.detached.store(true, Ordering::Relaxed);
        return;
    }
    if life.detach(life.any_tunnel()).await.is_ok() {
        done.detached.store(true, Ordering::Relaxed);
    }
}

/// Everything that is left: the cloud, whatever failed before, and at last the record.
pub(crate) async fn rest(life: &Life, done: &Done) {
    let cloud = async {
        machine(life).await;
        done.gone.store(true, Ordering::Relaxed);
    };
    tokio::join!(cloud, again(life, done));
    // In memory only: the record goes in a moment, and overstates until then.
    if let Err(error) = life.enter(Event::Gone) {
        tracing::error!(%error, "cannot end");
        return;
    }
    let mut wait = FIRST;
    while life.forget().await.is_err() {
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST);
    }
    let record = life.record();
    if !matches!(&record.phase, Phase::Deleting { reason, .. } if reason == STOPVM) {
        life.common.ended.keep(record);
    }
}

async fn again(life: &Life, done: &Done) {
    let mut wait = FIRST;
    while !done.local() {
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST);
        local(life, done).await;
    }
}

/// Deletes the VM until the cloud says that it is gone. Where a create may still take effect, "gone"
/// has to hold for a while, and a list has to agree.
async fn machine(life: &Life) {
    mortem::look(life).await;
    let record = life.record();
    let Phase::Deleting { made, .. } = &record.phase else { return };
    let mut settle = match made {
        Made::Nothing => return,
        Made::Parts | Made::Known(_) => Duration::ZERO,
        Made::Perhaps => life.common.options.settle,
    };
    let mut landed = std::pin::pin!(life.landed().fuse());
    // A delete in the middle of a create makes its answer worth nothing.
    if timeout(IN_FLIGHT, &mut landed).await.is_ok() && !life.is_unsure() {
        settle = Duration::ZERO;
    }
    let mut gone_since = None;
    let mut wait = FIRST;
    let mut not_before = Instant::now();
    loop {
        match delete(life).await {
            Answer::Gone => {
                let since = *gone_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= settle && (settle.is_zero() || !is_listed(life).await) {
                    return;
                }
            }
            Answer::Wait(hint) => {
                gone_since = None;
                wait = hint.map_or(wait, |h| h.max(wait));
                not_before = Instant::now() + hint.unwrap_or_default();
            }
        }
        let left = gone_since.map(|since: Instant| settle.saturating_sub(since.elapsed()));
        tokio::select! {
            biased;
            () = sleep(wait.min(left.filter(|l| !l.is_zero()).unwrap_or(wait))) => {
                wait = (wait * 2).min(LONGEST);
            }
            // From now on nothing new comes of it.
            () = &mut landed => {
                gone_since = None;
                sleep_until(not_before).await;
            }
        }
    }
}

enum Answer {
    Gone,
    Wait(Option<Duration>),
}

async fn delete(life: &Life) -> Answer {
    let (world, vm) = (&life.common.world, life.record().vm_ref());
    let call = sent!(world, DeleteSentAfter, world.provider.delete(&vm));
    match life.step("delete", call).await {
        Ok(Deletion::Gone) => Answer::Gone,
        Ok(Deletion::Accepted) => Answer::Wait(None),
        Err(error) => {
            world.observer.provider_error("delete", error.kind.as_str());
            match error.kind {
                Kind::NotFound => Answer::Gone,
                Kind::Throttled(hint) => Answer::Wait(hint),
                _ => Answer::Wait(None),
            }
        }
    }
}

/// Whether the cloud still lists something of the sandbox; a list that fails counts as yes.
async fn is_listed(life: &Life) -> bool {
    let vm = life.record().vm_ref();
    match life.step("list", life.common.world.provider.list()).await {
        Ok(all) => all.iter().any(|r| is_of(&vm, &r.vm)),
        Err(_) => true,
    }
}

/// Some clouds cut or lose a long tag; what is left of it must fit. The same name with another
/// sandbox's tag is another pod's VM.
fn is_of(vm: &VmRef, listed: &VmRef) -> bool {
    let same_name = listed.name == vm.name && vm.sandbox.starts_with(&listed.sandbox);
    listed.sandbox == vm.sandbox || same_name
}
