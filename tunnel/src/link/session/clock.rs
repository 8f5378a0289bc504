//! When to ask whether the other side is there, and when it is not.
//!
//! ```text
//!             silence ASK_BUSY / ASK_IDLE            DEAD, nothing heard
//!   worker  ─────────────────────────────▶ (asked) ──────────────────────▶ the connection is dead
//!                anything heard ◀──────────────┘
//!   VM      ── silence DEAD_FOR_VM ──▶ the connection is dead
//! ```

use std::time::Duration;

use super::machine::Side;
use super::{ASK_BUSY, ASK_IDLE, DEAD, DEAD_FOR_VM};

/// Of one connection. Times count from an origin of the user's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    heard: Duration,
    asked: Option<Duration>,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    Ask,
    Dead,
}

impl Clock {
    /// A new connection; until a greeting has come it is as if we had asked.
    pub(super) fn begin(now: Duration, greeted: bool) -> Self {
        Self { heard: now, asked: (!greeted).then_some(now) }
    }

    pub(super) fn heard(&mut self, now: Duration) {
        *self = Self { heard: now, asked: None };
    }

    /// When there is something to do.
    pub(super) fn deadline(&self, side: Side, busy: bool) -> Duration {
        match (side, self.asked) {
            (Side::Vm, _) => self.heard + DEAD_FOR_VM,
            (Side::Worker, Some(asked)) => asked + DEAD,
            (Side::Worker, None) => self.heard + if busy { ASK_BUSY } else { ASK_IDLE },
        }
    }

    pub(super) fn tick(&mut self, side: Side, busy: bool, now: Duration) -> Option<Alarm> {
        if now < self.deadline(side, busy) {
            return None;
        }
        if side == Side::Vm || self.asked.is_some() {
            return Some(Alarm::Dead);
        }
        self.asked = Some(now);
        Some(Alarm::Ask)
    }
}
