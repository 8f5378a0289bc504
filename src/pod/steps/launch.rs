//! StartVM: from a record to a VM whose agent has answered.

use std::net::SocketAddr;
use std::time::Duration;

use peerpod_providers::Vm;
use peerpod_tunnel::link::tls::ClientTls;
use tokio::time::{sleep, timeout};

use super::{StepError, create, machine};
use crate::pod::life::Life;
use crate::pod::phase::{Event, Phase};
use crate::pod::probe;
use crate::pod::world::{Stage, Unready};
use crate::relay::api::ControlError;

/// Between two attempts of the relay to reach a VM that has answered us.
const AGAIN: Duration = Duration::from_millis(100);
/// TLS stood with us; how often the relay may fail at it.
const TLS_FAILURES: u32 = 3;

/// Starts the VM, or goes on with a start that an earlier process began. Whoever drops this future
/// ends the pod: what may have been done stands in the record.
pub(crate) async fn run(life: &Life) -> Result<(), StepError> {
    if life.record().phase == Phase::Prepared {
        // On disk the first candidate's attempt says the same, and comes before any effect.
        life.enter(Event::Start)?;
    }
    life.come_to(Stage::Requested);
    let vm = machine::make(life).await?;
    life.come_to(Stage::Address);
    let (tunnel, target) = (life.tunnel(&vm)?, life.target(&vm)?);
    let tls = life.tls();
    let keep = async {
        // The record said "perhaps" already and overstates; a full disk fails the start further on.
        let _ = life.save().await;
        Ok(())
    };
    let attach = async { life.attach(tunnel).await.map_err(StepError::Attach) };
    let answered = answered(life, target, tls.as_ref());
    tokio::try_join!(keep, attach, answered)?;
    life.step("connect", connect(life, &vm)).await?;
    life.advance(Event::Answered, |r| {
        r.stage = Some(Stage::Ready);
        r.last_error = None;
    })
    .await
}

/// Sends the VM what had no room in its user data, then waits until the agent has answered.
async fn answered(
    life: &Life,
    target: SocketAddr,
    tls: Option<&ClientTls>,
) -> Result<(), StepError> {
    let limit = life.common.options.ready;
    let steps = async {
        if !life.record().machine.follow.is_empty() {
            life.step("deliver", deliver(life, target, tls)).await?;
        }
        life.step("ready", reach(life, target, tls)).await
    };
    match timeout(limit, steps).await {
        Ok(done) => done,
        Err(_) => {
            let record = life.record();
            let last = record.last_error.as_deref().unwrap_or("nothing has failed");
            let reason = format!("given up after {limit:?} (proxy-timeout); last: {last}");
            let stage = record.stage.unwrap_or(Stage::Address);
            Err(StepError::Unready(Unready { stage, reason }))
        }
    }
}

async fn deliver(
    life: &Life,
    target: SocketAddr,
    tls: Option<&ClientTls>,
) -> Result<(), StepError> {
    let (guest, record) = (&*life.common.world.guest, life.record());
    let files = &record.machine.follow;
    let delivered = probe::deliver(guest, target, tls, files, |u| life.reached(u)).await;
    delivered.map_err(StepError::Deliver)?;
    // On disk with the next save; until then they would only be sent once more.
    life.amend(|r| r.machine.follow = Vec::new());
    Ok(())
}

async fn reach(life: &Life, target: SocketAddr, tls: Option<&ClientTls>) -> Result<(), StepError> {
    let guest = &*life.common.world.guest;
    // That connection is not kept: the relay's link is the one that stays.
    drop(probe::reach(guest, target, tls, |u| life.reached(u)).await);
    Ok(())
}

/// Has the relay make its link to the VM; opens the socket again for a relay that was restarted.
pub(crate) async fn connect(life: &Life, vm: &Vm) -> Result<(), StepError> {
    let (record, target, tls) = (life.record(), life.target(vm)?, life.tls());
    let (relay, give_up) = (&life.common.world.relay, life.common.options.give_up);
    let (mut refused, mut tls_failures) = (false, 0);
    loop {
        match relay.connect(&record.sandbox, target, tls.as_ref(), give_up).await {
            Ok(()) => return Ok(()),
            Err(ControlError::Refused(_)) if !refused => {
                refused = true;
                create::open(life).await?;
                continue;
            }
            Err(ControlError::Tls(_)) if tls_failures < TLS_FAILURES => tls_failures += 1,
            Err(error) if error.may_pass() => tracing::debug!(%error, "connecting again"),
            Err(error) => return Err(StepError::Connect(error)),
        }
        sleep(AGAIN).await;
    }
}
