//! A pod's VM says that its cloud takes it back. The relay believes nothing: it passes the words on to the
//! node process, not too often, and keeps the last ones for the next node process and the next relay.

use std::time::Duration;

use tokio::time::Instant;

use super::{Pod, lock};
use crate::proto::relay as proto;
use crate::relay::hub::Hub;
use crate::relay::session;
use proto::to_node::Message;

/// At most one event in this time; a VM has one thing to say.
const EVERY: Duration = Duration::from_secs(1);

/// What a VM has said last, and when that was passed on.
#[derive(Debug, Default)]
pub(super) struct Told {
    said: Option<proto::Interruption>,
    when: Option<Instant>,
}

impl Pod {
    /// The VM's last words, those included that nobody was told yet.
    pub(in crate::relay) fn interruption(&self) -> Option<proto::Interruption> {
        let told = lock(&self.interruption).said.clone();
        told.or_else(|| {
            let said = self.session.session()?.interruption()?;
            Some(session::interruption(&self.sandbox, said))
        })
    }

    /// Keeps it, and tells the node process unless it was told something a moment ago.
    pub(in crate::relay) fn tell_interruption(&self, hub: &Hub, said: proto::Interruption) {
        {
            let mut told = lock(&self.interruption);
            if told.said.as_ref() == Some(&said) {
                return;
            }
            told.said = Some(said.clone());
            if told.when.is_some_and(|when| when.elapsed() < EVERY) {
                return;
            }
            told.when = Some(Instant::now());
        }
        let proto::Interruption { kind, source, .. } = &said;
        self.notices.say(|| {
            tracing::warn!(sandbox = self.sandbox, kind, source, "the VM says it is taken back");
        });
        hub.emit(Message::Interruption(said));
    }

    /// What another relay has asked the VM, and heard.
    pub(in crate::relay) fn restore_watch(&self, watched: bool, said: Option<proto::Interruption>) {
        self.session.restore_watch(watched);
        lock(&self.interruption).said = said;
    }
}
