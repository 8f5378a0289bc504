//! The part of a pod's life before its start: CreateVM, waiting for StartVM, and waiting, after a
//! restart, for word of a start that an earlier process had begun.

use std::sync::Arc;
use std::time::Duration;

use peerpod_providers::VmName;
use tokio::time::{Instant, sleep};

use super::{Actor, Next, Slow, path, stopped};
use crate::hypervisor::FailureKind;
use crate::pod::desk::{Command, End, Heard, Held};
use crate::pod::life::Life;
use crate::pod::record::Record;
use crate::pod::steps::create;
use crate::pod::vnis::Reserved;
use crate::request::PodRequest;

impl Actor {
    /// CreateVM up to where something would be left.
    pub(super) async fn draft(
        &mut self,
        request: PodRequest,
        name: VmName,
    ) -> Option<(Record, Reserved)> {
        let common = Arc::clone(&self.common);
        let draft = create::draft(&common, &request, name);
        tokio::pin!(draft);
        let failure = loop {
            let heard = tokio::select! {
                biased;
                heard = self.desk.next() => heard,
                done = &mut draft => match done {
                    Ok(drafted) => return Some(drafted),
                    Err(error) => break error.failure(&self.whose),
                },
            };
            match heard {
                Heard::Shutdown => return None,
                Heard::Command(command) => {
                    if let Some(end) = self.early(command) {
                        break self.whose.failure(end.failure, &end.reason);
                    }
                }
                Heard::CallersGone | Heard::Deadline => {}
            }
        };
        tracing::warn!("{failure}");
        self.desk.created(&Err(failure));
        self.desk.stopped();
        None
    }

    /// The rest of CreateVM.
    pub(super) async fn keep(&mut self, life: &Life) -> Next {
        let keep = create::keep(life);
        tokio::pin!(keep);
        loop {
            let heard = tokio::select! {
                biased;
                heard = self.desk.next() => heard,
                done = &mut keep => break match done {
                    Ok(()) => {
                        self.desk.created(&Ok(path(life)));
                        Next::Go
                    }
                    Err(error) => self.failed("create", &error),
                },
            };
            match heard {
                Heard::Shutdown => return Next::Leave,
                Heard::Command(command) => {
                    if let Some(end) = self.early(command) {
                        return Next::End(end);
                    }
                }
                Heard::CallersGone | Heard::Deadline => {}
            }
        }
    }

    /// A command while CreateVM is under way; what ends it is returned.
    fn early(&mut self, command: Command) -> Option<End> {
        match command {
            Command::Create(reply) => self.desk.create(reply),
            Command::Start { reply, .. } => {
                let early = "StartVM before CreateVM was answered";
                let _ = reply.send(Err(self.whose.failure(FailureKind::Precondition, early)));
            }
            Command::Stop(reply) => {
                self.desk.stop(reply);
                return Some(stopped());
            }
            Command::Over(end) => return Some(end),
            _ => {}
        }
        None
    }

    /// Prepared: waits for StartVM.
    pub(super) async fn wait(&mut self, life: &Life) -> Next {
        let expiry = self.common.options.expiry;
        // Records of another boot never come here. One without that clock begins anew.
        let boot = self.common.world.clock.boot_ms();
        let age = life.record().created_boot_ms.map_or(0, |created| boot.saturating_sub(created));
        let expired = sleep(expiry.saturating_sub(Duration::from_millis(age)));
        tokio::pin!(expired);
        let mut open = Slow::none();
        loop {
            let heard = tokio::select! {
                biased;
                heard = self.desk.next() => heard,
                () = open.done() => continue,
                () = &mut expired => {
                    let reason = format!("no StartVM within {} s", expiry.as_secs());
                    return Next::End(End::new("expired", FailureKind::Deadline, reason));
                }
            };
            match heard {
                Heard::Shutdown => return Next::Leave,
                Heard::Command(Command::Start { deadline, reply }) => {
                    self.begun = Instant::now();
                    self.join(deadline, reply);
                    return Box::pin(self.launch(life)).await;
                }
                Heard::Command(Command::Held(Held::Nothing)) => {
                    // A relay that does not answer now attaches again, and this comes again.
                    open.begin(async { drop(create::open(life).await) });
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

    /// Launching, as an earlier process left it: goes on only if a shim still waits for it.
    pub(super) async fn await_replay(&mut self) -> Next {
        self.begun = Instant::now();
        self.desk.expect(self.begun + self.common.options.start_deadline);
        let lost = "the daemon was restarted, and no shim waits for the start any more";
        let lost = || Next::End(End::new("restart", FailureKind::Cancelled, lost));
        loop {
            match self.desk.next().await {
                Heard::Shutdown => return Next::Leave,
                Heard::Deadline => return lost(),
                Heard::Command(Command::Replayed { start: true }) => return Next::Go,
                Heard::Command(Command::Replayed { start: false }) => return lost(),
                Heard::Command(Command::Start { deadline, reply }) => {
                    self.join(deadline, reply);
                    return Next::Go;
                }
                Heard::Command(Command::Stop(reply)) => {
                    self.desk.stop(reply);
                    return Next::End(stopped());
                }
                Heard::Command(Command::Over(end)) => return Next::End(end),
                Heard::Command(Command::Create(reply)) => self.desk.create(reply),
                Heard::Command(_) | Heard::CallersGone => {}
            }
        }
    }
}
