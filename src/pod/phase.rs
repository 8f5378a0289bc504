//! What a pod may do next: a plain value without locks, clocks or awaits.
//!
//! ```text
//!                start            made(vm), answered
//!   Prepared ───────▶ Launching ─────────────────────▶ Running
//!      │               │  ▲ attempt(n), refused, lost     │
//!      │ end           │  └──┘                            │ end
//!      │               │ end                              │
//!      └──────────────▶└────────────▶ Deleting ◀──────────┘
//!                                     │  ▲ end (again: accepted, changes nothing)
//!                                gone │  └──┘
//!                                     ▼
//!                                  removed
//! ```
//!
//! `end` is always accepted. What has to be deleted is known from [`Made`] alone.

use peerpod_providers::Vm;
use serde::{Deserialize, Serialize};

/// Where a pod is in its life; this is what its record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Known, with its socket open; no VM was ever asked for.
    Prepared,
    /// A VM is being made and waited for.
    Launching {
        /// Number of the candidate that is, or will next be, tried.
        candidate: u32,
        /// What there may be of a VM.
        made: Made,
    },
    /// The VM has answered and the shim was told so.
    Running {
        /// The VM.
        vm: Vm,
    },
    /// The pod is over; what is left of it goes.
    Deleting {
        /// What may still have to be deleted.
        made: Made,
        /// Why the pod is over; the first reason stays.
        reason: String,
    },
}

/// What there may be of a pod's VM in the cloud.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Made {
    /// Nothing was ever asked for, or all of it is gone.
    Nothing,
    /// The cloud has refused; parts may have been left.
    Parts,
    /// A create was sent and its outcome is not known; the VM may even appear later.
    Perhaps,
    /// This VM.
    Known(Vm),
}

/// What happens to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// StartVM.
    Start,
    /// The create of this candidate is about to be sent.
    Attempt(u32),
    /// The cloud has refused that create.
    Refused,
    /// The VM has an address.
    Made(Vm),
    /// The VM has answered and is connected.
    Answered,
    /// StopVM, a failure, an expiry, a VM or a shim that is gone: the pod is over.
    End(String),
    /// The cloud says that nothing is left.
    Gone,
    /// All else is taken down, too; the record goes.
    Removed,
}

/// Why an event does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// StartVM while one is under way: wait for that one.
    #[error("it is being started already")]
    AlreadyStarting,
    /// StartVM when the VM runs: that is success.
    #[error("it runs already")]
    AlreadyRunning,
    /// The pod is over.
    #[error("it is being stopped")]
    Stopping,
    /// Running needs a VM with an address.
    #[error("it has no VM yet")]
    NoVm,
    /// Something of the VM may be left.
    #[error("its VM is not confirmed to be gone")]
    NotGone,
    /// The event belongs to another phase.
    #[error("that does not belong to its phase")]
    OutOfPlace,
}

impl Phase {
    /// The phase after `event`; `None` when the pod has left.
    ///
    /// # Errors
    /// The reason why the event does not fit; the phase stays what it is.
    pub fn after(&self, event: Event) -> Result<Option<Phase>, Refusal> {
        let next = match (self, event) {
            (_, Event::End(reason)) => self.ended(reason),
            (Phase::Prepared, Event::Start) => {
                Phase::Launching { candidate: 0, made: Made::Nothing }
            }
            (Phase::Launching { .. }, Event::Start) => return Err(Refusal::AlreadyStarting),
            (Phase::Running { .. }, Event::Start) => return Err(Refusal::AlreadyRunning),
            (Phase::Launching { candidate, made }, event) => launching(*candidate, made, event)?,
            (Phase::Deleting { reason, .. }, Event::Gone) => {
                Phase::Deleting { made: Made::Nothing, reason: reason.clone() }
            }
            (Phase::Deleting { made: Made::Nothing, .. }, Event::Removed) => return Ok(None),
            (Phase::Deleting { .. }, Event::Removed) => return Err(Refusal::NotGone),
            (Phase::Deleting { .. }, _) => return Err(Refusal::Stopping),
            (Phase::Prepared | Phase::Running { .. }, _) => return Err(Refusal::OutOfPlace),
        };
        Ok(Some(next))
    }

    fn ended(&self, reason: String) -> Phase {
        let made = match self {
            Phase::Deleting { .. } => return self.clone(),
            Phase::Prepared => Made::Nothing,
            Phase::Launching { made, .. } => made.clone(),
            Phase::Running { vm } => Made::Known(vm.clone()),
        };
        Phase::Deleting { made, reason }
    }

    /// The VM, as far as it is known.
    pub fn vm(&self) -> Option<&Vm> {
        match self {
            Phase::Running { vm } => Some(vm),
            Phase::Launching { made: Made::Known(vm), .. }
            | Phase::Deleting { made: Made::Known(vm), .. } => Some(vm),
            _ => None,
        }
    }

    /// Whether a create may still be sent, or sent again with the same bytes.
    pub fn may_ask_for_a_vm(&self) -> bool {
        match self {
            Phase::Prepared => true,
            Phase::Launching { made, .. } => !matches!(made, Made::Known(_)),
            Phase::Running { .. } | Phase::Deleting { .. } => false,
        }
    }

    /// One word for people and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Prepared => "prepared",
            Phase::Launching { .. } => "launching",
            Phase::Running { .. } => "running",
            Phase::Deleting { .. } => "deleting",
        }
    }

    /// Whether the pod is over.
    pub fn is_over(&self) -> bool {
        matches!(self, Phase::Deleting { .. })
    }

    /// Whether the pod has not got as far as running.
    pub fn is_young(&self) -> bool {
        matches!(self, Phase::Prepared | Phase::Launching { .. })
    }
}

fn launching(candidate: u32, made: &Made, event: Event) -> Result<Phase, Refusal> {
    match (event, made) {
        (Event::Made(vm), _) => Ok(Phase::Launching { candidate, made: Made::Known(vm) }),
        (Event::Answered, Made::Known(vm)) => Ok(Phase::Running { vm: vm.clone() }),
        (Event::Answered, _) => Err(Refusal::NoVm),
        // One VM at most: once there is one, no other attempt is made.
        (Event::Attempt(_) | Event::Refused, Made::Known(_)) => Err(Refusal::OutOfPlace),
        (Event::Attempt(n), _) if n < candidate => Err(Refusal::OutOfPlace),
        (Event::Attempt(n), _) => Ok(Phase::Launching { candidate: n, made: Made::Perhaps }),
        (Event::Refused, Made::Perhaps) => Ok(Phase::Launching { candidate, made: Made::Parts }),
        _ => Err(Refusal::OutOfPlace),
    }
}

#[cfg(test)]
mod tests;
