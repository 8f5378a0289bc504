//! One task per pod, the only one that changes it. Requests wait at its [`Desk`] and hold no work.
//!
//! ```text
//!   prepare ─▶ wait ─▶ launch ─▶ run ─▶ take down      each a future beside the desk: whatever ends
//!                                                      the pod drops the future and goes on to the last
//! ```

mod young;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use peerpod_providers::{Vm, VmName};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::Common;
use super::desk::{Command, Desk, End, Heard, Held};
use super::interruption;
use super::life::Life;
use super::liveness::{self, Hints};
use super::phase::{Event, Phase};
use super::record::Record;
use super::steps::{StepError, Whose, launch, resume, stop};
use super::vnis::Reserved;
use super::world::{Stage, Unready};
use crate::hypervisor::{Failure, FailureKind};
use crate::request::PodRequest;

/// A StopVM is answered after that time, whatever hangs; the Rust shim waits for one second.
const LOCAL: Duration = Duration::from_millis(700);

/// Why a start has failed by itself.
const START: &str = "start";
const DEADLINE: &str = "deadline";

/// What others see of the record.
pub(crate) type Seen = watch::Sender<Option<Arc<Record>>>;

/// What comes after a phase.
enum Next {
    /// The next phase, as the record says.
    Go,
    /// The pod is over.
    End(End),
    /// The task ends: the pod has gone, or the process goes.
    Leave,
}

/// A pod's task.
pub(crate) struct Actor {
    common: Arc<Common>,
    desk: Desk,
    whose: Whose,
    /// When the start that is under way began.
    begun: Instant,
    /// A start has gone through in this process, so all is as it should be.
    started: bool,
}

impl Actor {
    pub(crate) fn new(common: Arc<Common>, desk: Desk, whose: Whose) -> Self {
        Self { common, desk, whose, begun: Instant::now(), started: false }
    }

    /// The life of a sandbox that CreateVM asks for.
    pub(crate) async fn begin(mut self, request: PodRequest, name: VmName, seen: Seen) {
        let drafted = Box::pin(self.draft(request, name)).await;
        let Some((record, reserved)) = drafted else { return };
        let life = Life::new(Arc::clone(&self.common), record, seen);
        let next = Box::pin(self.keep(&life)).await;
        self.live(&life, next, reserved).await;
    }

    /// The life of a sandbox from where its record says it is.
    pub(crate) async fn resume(mut self, record: Record, seen: Seen) {
        let reserved = self.common.vnis.take(record.network.vni);
        let other_boot = record.boot != self.common.options.boot_id;
        let launching = matches!(record.phase, Phase::Launching { .. });
        let life = Life::new(Arc::clone(&self.common), record, seen);
        let next = if other_boot {
            Next::End(End::new("boot", FailureKind::Cancelled, "the machine was started anew"))
        } else if launching {
            self.await_replay().await
        } else {
            if let Some(vm) = life.record().phase.vm() {
                tracing::Span::current().record("vm", vm.native_id.as_str());
            }
            Next::Go
        };
        self.live(&life, next, reserved).await;
    }

    /// Goes from phase to phase. The VXLAN id is free again only after that. Each phase has memory of
    /// its own, so that a pod that runs, as most do for long, does not hold that of its start.
    async fn live(&mut self, life: &Life, mut next: Next, reserved: Reserved) {
        loop {
            match next {
                Next::Leave => break,
                Next::Go => {}
                Next::End(end) => self.end(life, end),
            }
            let record = life.record();
            next = match &record.phase {
                Phase::Prepared => Box::pin(self.wait(life)).await,
                Phase::Launching { .. } => Box::pin(self.launch(life)).await,
                Phase::Running { vm } => Box::pin(self.run(life, vm)).await,
                Phase::Deleting { .. } => Box::pin(self.take_down(life)).await,
            };
        }
        drop(reserved);
    }

    /// The pod is over from now on; the desk is told once it is so on disk, too.
    fn end(&mut self, life: &Life, end: End) {
        let record = life.record();
        tracing::info!(why = end.why, reason = end.reason, "the pod is over");
        match record.phase {
            Phase::Running { .. } if end.why != "stop" => {
                self.common.world.observer.pod_lost(end.why);
            }
            Phase::Launching { .. } => {
                self.common.world.observer.step("start", self.begun.elapsed(), false);
                let stage = record.stage.unwrap_or(Stage::Requested);
                self.common.world.observer.start_failed(stage);
                let failed = matches!(end.why, START | DEADLINE);
                life.amend(|r| r.failed_start = failed);
            }
            _ => {}
        }
        // Always accepted.
        let _ = life.enter(Event::End(end.reason.clone()));
        life.amend(Record::wipe);
        let failure = self.whose.failure(end.failure, &end.reason);
        self.desk.created(&Err(failure.clone()));
        self.desk.started(&Err(failure));
    }

    /// Launching: the start runs beside the desk.
    async fn launch(&mut self, life: &Life) -> Next {
        self.desk.created(&Ok(path(life)));
        let start = launch::run(life);
        tokio::pin!(start);
        loop {
            let heard = tokio::select! {
                biased;
                heard = self.desk.next() => heard,
                done = &mut start => return match done {
                    Ok(()) => {
                        self.started = true;
                        self.common.world.observer.step("start", self.begun.elapsed(), true);
                        self.desk.started(&Ok(()));
                        Next::Go
                    }
                    Err(error) => self.failed_start(life, START, &error),
                },
            };
            match heard {
                Heard::Shutdown => return Next::Leave,
                Heard::CallersGone => {
                    let reason = "everybody who waited for the start has gone";
                    return Next::End(End::new("cancelled", FailureKind::Cancelled, reason));
                }
                Heard::Deadline => {
                    return self.failed_start(life, DEADLINE, &late(life, self.begun));
                }
                Heard::Command(Command::Start { deadline, reply }) => self.join(deadline, reply),
                Heard::Command(Command::Doubt(reason)) => {
                    let stage = life.record().stage.unwrap_or(Stage::Address);
                    let stopped = StepError::Stopped(Unready { stage, reason });
                    return self.failed_start(life, START, &stopped);
                }
                Heard::Command(command) => {
                    if let Some(end) = self.known(life, command) {
                        return Next::End(end);
                    }
                }
            }
        }
    }

    /// Running: watches the VM.
    async fn run(&mut self, life: &Life, vm: &Vm) -> Next {
        let hints = Hints::default();
        let alive = liveness::watch(life, &hints);
        tokio::pin!(alive);
        let taken_up = !self.started;
        let (mut tunnel, mut link, mut notice) = (Slow::none(), Slow::none(), Slow::none());
        notice.begin(interruption::watch(life));
        tunnel.begin(async {
            if taken_up {
                wipe(life).await;
            }
            resume::keep(life, vm).await;
        });
        loop {
            let heard = tokio::select! {
                biased;
                heard = self.desk.next() => heard,
                reason = &mut alive => {
                    let (why, reason) = interruption::explain(life, reason);
                    return Next::End(End::new(why, FailureKind::Unavailable, reason));
                }
                () = tunnel.done() => continue,
                () = link.done() => continue,
                () = notice.done() => continue,
            };
            match heard {
                Heard::Shutdown => return Next::Leave,
                Heard::Command(Command::Start { reply, .. }) => drop(reply.send(Ok(()))),
                Heard::Command(Command::Ask) => hints.ask(),
                Heard::Command(Command::Alive(when)) => hints.alive(when),
                Heard::Command(Command::Doubt(reason)) => hints.doubt(reason),
                Heard::Command(Command::Held(Held::Nothing | Held::Socket)) => {
                    link.begin(async {
                        resume::link(life, vm).await;
                        interruption::watch(life).await;
                    });
                }
                Heard::Command(Command::Held(Held::Link)) => {
                    notice.begin(interruption::watch(life))
                }
                Heard::Command(Command::Interrupted(said)) => {
                    if interruption::heard(life, said) {
                        notice.begin(async { drop(life.save().await) });
                    }
                }
                Heard::Command(command) => {
                    if let Some(end) = self.known(life, command) {
                        return Next::End(end);
                    }
                }
                Heard::CallersGone | Heard::Deadline => {}
            }
        }
    }

    /// Deleting: what is local, the answer, and then the cloud.
    async fn take_down(&mut self, life: &Life) -> Next {
        let done = stop::Done::default();
        {
            let local = timeout(LOCAL, stop::local(life, &done));
            tokio::pin!(local);
            loop {
                let heard = tokio::select! {
                    biased;
                    heard = self.desk.next() => heard,
                    _ = &mut local => break,
                };
                if !self.over(life, heard) {
                    return Next::Leave;
                }
            }
        }
        let rest = stop::rest(life, &done);
        tokio::pin!(rest);
        loop {
            self.desk.stopped();
            let heard = tokio::select! {
                biased;
                heard = self.desk.next() => heard,
                () = &mut rest => return Next::Leave,
            };
            if !self.over(life, heard) {
                return Next::Leave;
            }
        }
    }

    /// A command to a pod that is over; false when the process ends.
    fn over(&mut self, life: &Life, heard: Heard) -> bool {
        let refuse = || {
            let record = life.record();
            let reason = match &record.phase {
                Phase::Deleting { reason, .. } => reason.as_str(),
                _ => "",
            };
            self.whose
                .failure(FailureKind::Precondition, &format!("it is being deleted ({reason})"))
        };
        match heard {
            Heard::Shutdown => return false,
            Heard::Command(Command::Stop(reply)) => self.desk.stop(reply),
            Heard::Command(Command::Start { reply, .. }) => drop(reply.send(Err(refuse()))),
            Heard::Command(Command::Create(reply)) => drop(reply.send(Err(refuse()))),
            Heard::Command(_) | Heard::CallersGone | Heard::Deadline => {}
        }
        true
    }

    /// A command that means the same to every pod that is known and not over.
    fn known(&mut self, life: &Life, command: Command) -> Option<End> {
        match command {
            Command::Create(reply) => drop(reply.send(Ok(path(life)))),
            Command::Stop(reply) => {
                self.desk.stop(reply);
                return Some(stopped());
            }
            Command::Over(end) => return Some(end),
            _ => {}
        }
        None
    }

    fn join(&mut self, deadline: Option<Instant>, reply: super::desk::Reply<()>) {
        let bound = self.common.options.start_deadline;
        self.desk.start(reply, deadline, self.begun, bound);
    }

    fn failed_start(&self, life: &Life, why: &'static str, error: &StepError) -> Next {
        let stage = life.record().stage.unwrap_or(Stage::Requested);
        match self.failed(why, error) {
            Next::End(end) => {
                let reason = format!("{} (stage reached: {})", end.reason, stage.as_str());
                Next::End(End { reason, ..end })
            }
            next => next,
        }
    }

    fn failed(&self, why: &'static str, error: &StepError) -> Next {
        let Failure { kind, message } = error.failure(&self.whose);
        let prefix = format!("{}: ", self.whose);
        let reason = message.strip_prefix(&prefix).unwrap_or(&message);
        Next::End(End::new(why, kind, reason))
    }
}

/// Something slow beside the desk, if there is something; what begins anew replaces it.
struct Slow<'a>(Option<BoxFuture<'a, ()>>);

impl<'a> Slow<'a> {
    fn none() -> Self {
        Self(None)
    }

    fn begin(&mut self, work: impl Future<Output = ()> + Send + 'a) {
        self.0 = Some(Box::pin(work));
    }

    async fn done(&mut self) {
        match &mut self.0 {
            Some(work) => work.await,
            None => std::future::pending().await,
        }
        self.0 = None;
    }
}

fn stopped() -> End {
    End::new("stop", FailureKind::Cancelled, stop::STOPVM)
}

fn path(life: &Life) -> String {
    life.record().link.socket.display().to_string()
}

/// The start's time is over: how far it came, and what was seen last.
fn late(life: &Life, begun: Instant) -> StepError {
    let record = life.record();
    let last = record.last_error.as_deref().unwrap_or("nothing has failed");
    let reason = format!("given up after {} s; last: {last}", begun.elapsed().as_secs());
    StepError::Unready(Unready { stage: record.stage.unwrap_or(Stage::Requested), reason })
}

/// The VM of a record that is taken up runs: its key is of no more use.
async fn wipe(life: &Life) {
    if !life.record().machine.spec.user_data.0.is_empty() {
        life.amend(Record::wipe);
        // Tried again with the next save.
        let _ = life.save().await;
    }
}
