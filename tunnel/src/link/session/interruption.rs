//! The cloud's word that it takes the VM back, on its way to the workers that want to hear it.
//!
//! ```text
//!   worker ─ Watch ─▶ Sessions::watched ─▶ the cloud is asked ─▶ Sessions::interrupt ─┬▶ who has asked
//!                                                                         └ kept ────┴▶ who asks later
//! ```
//!
//! Each session is told once; a session that breaks and goes on loses none of it.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use super::control::{Interruption, Message};
use super::link::{Inner, Link};
use super::vm::Sessions;

/// What the sessions of a VM share.
#[derive(Debug, Default)]
pub(super) struct Word {
    asked: Notify,
    said: Mutex<Option<Interruption>>,
}

impl Word {
    fn said(&self) -> Option<Interruption> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Inner {
    /// The worker wants to hear of it.
    pub(super) fn hear_watch(&mut self) {
        let Some(word) = self.word.clone() else { return };
        self.asked = true;
        word.asked.notify_one();
        self.pass_on(&word);
    }

    fn pass_on(&mut self, word: &Word) {
        if let Some(said) = word.said().filter(|_| self.asked && !self.told) {
            self.told = self.machine.tell(&Message::Interruption(said));
        }
    }
}

impl Link {
    fn pass_on(&self, word: &Word) {
        let mut inner = self.0.lock();
        inner.pass_on(word);
        inner.settle();
    }
}

impl Sessions {
    /// Waits until a worker wants to hear when the cloud takes the VM back. For one task.
    pub async fn watched(&self) {
        self.word.asked.notified().await;
    }

    /// Tells every worker that wants to hear it, now or later.
    pub fn interrupt(&self, said: Interruption) {
        *self.word.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
        self.links().iter().for_each(|link| link.pass_on(&self.word));
    }
}
