//! Older relays, as the one that serves knows them: what stayed with them, and a connection to each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Part;
use super::message::{self, About, Empty, Say};
use super::wire::{LARGEST, Wire, flush, put};
use crate::proto::relay as proto;
use crate::relay::gate::Member;
use crate::relay::hub::{Guard, Side};
use crate::relay::pod::Desk;
use proto::edit_reply::Outcome;

/// How long an older relay may take to close what it holds of a pod.
const CLOSE: Duration = Duration::from_millis(500);
/// And to take our last word.
const LAST: Duration = Duration::from_secs(1);

/// See the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Kins(Mutex<BTreeMap<u64, Known>>);

#[derive(Debug)]
struct Known {
    about: About,
    /// A guard for each connection that it holds, so that a shim there is not missed here.
    stayed: BTreeMap<String, Vec<Guard>>,
    tell: mpsc::UnboundedSender<Say>,
}

impl Known {
    fn connections(&self, sandbox: &str) -> u32 {
        self.stayed.get(sandbox).map_or(0, |all| u32::try_from(all.len()).unwrap_or(u32::MAX))
    }
}

impl Kins {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Known>> {
        // Changes are single map operations.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who holds connections of a sandbox.
    pub(crate) fn of(&self, sandbox: &str) -> Vec<proto::Elsewhere> {
        let all = self.all();
        let held = all.iter().map(|(epoch, known)| (*epoch, known.connections(sandbox)));
        let held = held.filter(|(_, connections)| *connections > 0);
        held.map(|(epoch, connections)| proto::Elsewhere { epoch, connections }).collect()
    }

    /// All of them.
    pub(crate) fn relays(&self) -> Vec<proto::RelayProcess> {
        let process = |known: &Known| proto::RelayProcess {
            epoch: known.about.epoch,
            build: known.about.build.clone(),
            pid: known.about.pid,
            connections: known.stayed.keys().map(|sandbox| known.connections(sandbox)).sum(),
            serves: false,
        };
        self.all().values().map(process).collect()
    }

    /// Has them close what they hold of a sandbox; waits for it a little.
    pub(crate) async fn close(&self, request: &proto::CloseRequest) {
        let begin = Instant::now();
        let mut told = false;
        while !self.of(&request.sandbox).is_empty() && begin.elapsed() < CLOSE {
            if !told {
                told = true;
                let all = self.all();
                for known in all.values().filter(|k| k.connections(&request.sandbox) > 0) {
                    // One that has ended has closed it.
                    let _ = known.tell.send(Say::Close(request.clone()));
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Listens to an older relay until it ends or until somebody else listens to it. `over` ends it.
    pub(crate) fn follow(
        self: &Arc<Self>,
        desk: &Desk,
        about: About,
        wire: Wire,
        stayed: &[message::Stayed],
        over: CancellationToken,
    ) {
        let guards = |stayed: &message::Stayed| {
            let guard = || desk.hub.enter(&stayed.sandbox, Side::Agent);
            (stayed.sandbox.clone(), (0..stayed.connections).map(|_| guard()).collect())
        };
        let (tell, told) = mpsc::unbounded_channel();
        let epoch = about.epoch;
        let stayed = stayed.iter().map(guards).collect();
        self.all().insert(epoch, Known { about, stayed, tell: tell.clone() });
        let edits = CancellationToken::new();
        let kin = Kin { kins: self.clone(), desk: desk.clone(), epoch, wire, tell, told, edits };
        let member = desk.gate.member();
        desk.tracker.spawn("relay: an older relay", kin.run(member, over));
    }

    fn stayed(&self, epoch: u64) -> (Option<About>, Vec<message::Stayed>) {
        let all = self.all();
        let Some(known) = all.get(&epoch) else { return (None, Vec::new()) };
        let stayed = known.stayed.keys().map(|sandbox| message::Stayed {
            sandbox: sandbox.clone(),
            connections: known.connections(sandbox),
        });
        (Some(known.about.clone()), stayed.collect())
    }
}

struct Kin {
    kins: Arc<Kins>,
    desk: Desk,
    epoch: u64,
    wire: Wire,
    tell: mpsc::UnboundedSender<Say>,
    told: mpsc::UnboundedReceiver<Say>,
    /// Ends the edits it waits for.
    edits: CancellationToken,
}

/// What comes next.
enum Next {
    Heard(Box<Say>),
    Nothing,
    Frozen,
    Ended,
    Over,
}

impl Kin {
    async fn run(mut self, mut member: Member, over: CancellationToken) {
        let edits = self.edits.clone().drop_guard();
        loop {
            match self.next(&mut member, &over).await {
                Next::Heard(say) => self.heard(*say),
                Next::Nothing => {}
                Next::Ended => {
                    tracing::info!(epoch = self.epoch, "an older relay has ended");
                    break;
                }
                Next::Over => {
                    let Wire { stream, out, .. } = &mut self.wire;
                    put(out, Say::End(Empty {}), 0);
                    // One that does not take it finds out by our end.
                    let _ = tokio::time::timeout(LAST, flush(stream, out)).await;
                    break;
                }
                Next::Frozen => {
                    if member.park(self.part().map(Some)).await {
                        break;
                    }
                }
            }
        }
        drop(edits);
        let gone = self.kins.all().remove(&self.epoch);
        // Its guards take the hub's lock, so not under ours.
        drop(gone);
    }

    async fn next(&mut self, member: &mut Member, over: &CancellationToken) -> Next {
        let Wire { stream, inbox, out } = &mut self.wire;
        tokio::select! {
            biased;
            () = over.cancelled() => Next::Over,
            () = member.frozen() => Next::Frozen,
            got = inbox.recv(stream, LARGEST) => match got {
                Ok(Some((Some(say), _))) => Next::Heard(Box::new(say)),
                Ok(Some((None, _))) => Next::Nothing,
                Ok(None) => Next::Ended,
                Err(error) => {
                    tracing::warn!(epoch = self.epoch, %error, "an older relay is not understood");
                    Next::Ended
                }
            },
            // We have a sender ourselves.
            Some(say) = self.told.recv() => {
                put(out, say, 0);
                Next::Nothing
            }
            written = flush(stream, out), if !out.is_empty() => match written {
                Ok(()) => Next::Nothing,
                Err(_) => Next::Ended,
            },
        }
    }

    fn heard(&self, say: Say) {
        let hub = &self.desk.hub;
        match say {
            Say::Left(sandbox) => {
                let guard = {
                    let mut all = self.kins.all();
                    let stayed = all.get_mut(&self.epoch).map(|known| &mut known.stayed);
                    stayed.and_then(|stayed| {
                        let guard = stayed.get_mut(&sandbox)?.pop();
                        if stayed.get(&sandbox).is_some_and(Vec::is_empty) {
                            stayed.remove(&sandbox);
                        }
                        guard
                    })
                };
                drop(guard);
            }
            Say::LinkDown(down) => {
                if let Some(pod) = hub.pod(&down.sandbox) {
                    pod.tell_down(hub, &down.reason, down.given_up);
                }
            }
            Say::LinkUp(up) => {
                if let Some(pod) = hub.pod(&up.sandbox) {
                    pod.tell_up(hub);
                }
            }
            Say::Interruption(said) => {
                if let Some(pod) = hub.pod(&said.sandbox) {
                    pod.tell_interruption(hub, said);
                }
            }
            Say::Edit(edit) => self.ask(edit),
            other => tracing::debug!(?other, "an older relay says what is not known here"),
        }
    }

    /// Passes an edit on to the node process, and the answer back.
    fn ask(&self, edit: proto::Edit) {
        let (ticket, tell, edits) = (edit.ticket, self.tell.clone(), self.edits.clone());
        let asked = self.desk.hub.ask(edit);
        self.desk.tracker.spawn("relay: edit for an older relay", async move {
            let Some(answer) = edits.run_until_cancelled(asked.answered()).await else { return };
            let outcome = Some(match answer {
                Ok(payload) => Outcome::Payload(payload),
                Err(why) => Outcome::Refused(why),
            });
            // One that has ended waits for no answer.
            let _ = tell.send(Say::Edited(proto::EditReply { ticket, outcome }));
        });
    }

    fn part(&mut self) -> std::io::Result<Part> {
        while let Ok(say) = self.told.try_recv() {
            put(&mut self.wire.out, say, 0);
        }
        let (about, stayed) = self.kins.stayed(self.epoch);
        let told = message::Kin { about, wire: Some(self.wire.air()), stayed };
        let copy = std::os::fd::AsFd::as_fd(&self.wire.stream).try_clone_to_owned()?;
        Ok(Part { say: Say::Kin(told), descriptors: vec![copy] })
    }
}

/// The connection to an older relay that another one has had before us; it is asked to say again
/// what holds.
pub(crate) fn resume(stream: tokio::net::UnixStream, air: &message::Air) -> Wire {
    let mut wire = Wire::resume(stream, air);
    let out: &mut BytesMut = &mut wire.out;
    put(out, Say::Again(Empty {}), 0);
    wire
}
