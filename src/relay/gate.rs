//! Brings everything that can move to another relay to a standstill, and lets it go on or go.
//!
//! ```text
//!            freeze            every member is parked
//!   open ────────────▶ frozen ────────────────────────▶ still ──moved──▶ gone: members end
//!     ▲                   │ too slow                       │
//!     └───────────────────┴───────────── thaw ◀────────────┘  members go on where they stopped
//! ```
//!
//! A member is a task whose state can be handed over, or a call that changes such state. A task parks
//! with its part of the state; a call just ends, and no new one begins meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::handover::Part;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The how manieth time.
    Frozen(u64),
    Gone,
}

#[derive(Debug, Default)]
struct State {
    members: usize,
    parked: usize,
    freezes: u64,
    parts: Vec<Part>,
    failed: Option<String>,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Gate {
    phase: watch::Sender<Phase>,
    state: Mutex<State>,
    progress: Notify,
}

impl Gate {
    /// An open one without members.
    pub(super) fn new() -> Arc<Self> {
        let (phase, state) = (watch::Sender::new(Phase::Open), Mutex::default());
        Arc::new(Self { phase, state, progress: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new member, whatever the phase: it finds out by [`Member::frozen`].
    pub(super) fn member(self: &Arc<Self>) -> Member {
        self.state().members += 1;
        Member { gate: Arc::clone(self), phase: self.phase.subscribe(), parked: None }
    }

    /// A member that only ends; waits while frozen. `None` once everything has moved.
    pub(super) async fn pass(self: &Arc<Self>) -> Option<Member> {
        let mut phase = self.phase.subscribe();
        loop {
            // The sender is ours.
            let now = phase.wait_for(|p| !matches!(p, Phase::Frozen(_))).await.map(|p| *p);
            if !matches!(now, Ok(Phase::Open)) {
                return None;
            }
            let mut state = self.state();
            // Phases change under this lock.
            if *self.phase.borrow() == Phase::Open {
                state.members += 1;
                drop(state);
                let phase = self.phase.subscribe();
                return Some(Member { gate: Arc::clone(self), phase, parked: None });
            }
        }
    }

    /// Completes when everything has moved.
    pub(super) async fn gone(&self) {
        // The sender is ours.
        let _ = self.phase.subscribe().wait_for(|p| *p == Phase::Gone).await;
    }

    /// Waits until every member stands still, at most `limit`.
    ///
    /// # Errors
    /// Why they cannot; everything goes on then.
    pub(super) async fn freeze(self: &Arc<Self>, limit: Duration) -> Result<Frozen, String> {
        {
            let mut state = self.state();
            state.freezes += 1;
            self.phase.send_replace(Phase::Frozen(state.freezes));
        }
        let frozen = Frozen { gate: Arc::clone(self), moved: false };
        let still = async {
            loop {
                let progress = self.progress.notified();
                {
                    let state = self.state();
                    if let Some(why) = &state.failed {
                        return Err(why.clone());
                    }
                    if state.parked == state.members {
                        return Ok(());
                    }
                }
                progress.await;
            }
        };
        let done = tokio::time::timeout(limit, still).await;
        done.unwrap_or_else(|_| Err(format!("calls under way do not end within {limit:?}")))?;
        Ok(frozen)
    }
}

/// Everything stands still. Dropping this lets it go on.
#[derive(Debug)]
pub(super) struct Frozen {
    gate: Arc<Gate>,
    moved: bool,
}

impl Frozen {
    /// What the members have parked with.
    pub(super) fn parts(&self) -> Vec<Part> {
        std::mem::take(&mut self.gate.state().parts)
    }

    /// It is all somebody else's now.
    pub(super) fn moved(mut self) {
        self.moved = true;
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        (state.parked, state.failed) = (0, None);
        let parts = std::mem::take(&mut state.parts);
        self.gate.phase.send_replace(if self.moved { Phase::Gone } else { Phase::Open });
        drop(state);
        // Closes descriptors, so not under the lock.
        drop(parts);
    }
}

/// One that must stand still before anything moves.
#[derive(Debug)]
pub(super) struct Member {
    gate: Arc<Gate>,
    phase: watch::Receiver<Phase>,
    /// In which freeze it is parked.
    parked: Option<u64>,
}

impl Member {
    /// Completes when this member is to park.
    pub(super) async fn frozen(&mut self) {
        // The sender lives in the gate, which we hold.
        let _ = self.phase.wait_for(|p| *p != Phase::Open).await;
    }

    /// Stands still with its part of the state. True when that has moved: the member ends then.
    pub(super) async fn park(&mut self, part: std::io::Result<Option<Part>>) -> bool {
        let freeze = {
            let mut state = self.gate.state();
            let phase = *self.gate.phase.borrow();
            let Phase::Frozen(freeze) = phase else { return phase == Phase::Gone };
            match part {
                Ok(part) => state.parts.extend(part),
                Err(e) => state.failed = Some(format!("copying a descriptor: {e}")),
            }
            state.parked += 1;
            freeze
        };
        self.parked = Some(freeze);
        self.gate.progress.notify_one();
        let after = self.phase.wait_for(|p| *p != Phase::Frozen(freeze)).await.map(|p| *p);
        self.parked = None;
        !matches!(after, Ok(Phase::Open | Phase::Frozen(_)))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.members -= 1;
        let phase = *self.gate.phase.borrow();
        if self.parked.is_some_and(|freeze| phase == Phase::Frozen(freeze)) {
            state.parked -= 1;
        }
        drop(state);
        self.gate.progress.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn members_stand_still_and_go_on_or_go() {
        let gate = Gate::new();
        let mut member = gate.member();
        let task = tokio::spawn(async move {
            let mut freezes = 0;
            loop {
                member.frozen().await;
                freezes += 1;
                if member.park(Ok(None)).await {
                    return freezes;
                }
            }
        });
        drop(gate.freeze(LIMIT).await.expect("still"));
        drop(gate.freeze(LIMIT).await.expect("still again at once"));
        gate.freeze(LIMIT).await.expect("and again").moved();
        assert_eq!(task.await.expect("it ends"), 3);
        assert!(gate.pass().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_waited_for_and_a_new_one_waits() {
        let gate = Gate::new();
        let call = gate.pass().await.expect("open");
        let slow = gate.freeze(LIMIT).await.expect_err("the call is under way");
        assert!(slow.contains("do not end"), "{slow}");
        let freezing = gate.freeze(LIMIT);
        tokio::pin!(freezing);
        tokio::select! {
            biased;
            _ = &mut freezing => panic!("the call is under way"),
            () = tokio::task::yield_now() => drop(call),
        }
        let frozen = freezing.await.expect("it has ended");
        let early = tokio::time::timeout(LIMIT, gate.pass()).await;
        assert!(early.is_err(), "a call began in a frozen relay");
        drop(frozen);
        assert!(gate.pass().await.is_some());
    }

    #[tokio::test]
    async fn a_descriptor_that_cannot_be_copied_fails_the_freeze() {
        let gate = Gate::new();
        let mut member = gate.member();
        tokio::spawn(async move {
            member.frozen().await;
            member.park(Err(std::io::ErrorKind::OutOfMemory.into())).await
        });
        let why = gate.freeze(LIMIT).await.expect_err("no copy");
        assert!(why.contains("copying"), "{why}");
        assert!(gate.pass().await.is_some(), "it goes on");
    }
}
