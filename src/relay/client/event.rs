//! What the relay tells, in the node process's words.

use crate::proto::relay as proto;
use crate::relay::api::{Event, Interruption, Payload};
use proto::to_node;

pub(super) fn read(epoch: u64, message: to_node::Message) -> Event {
    match message {
        to_node::Message::Pending(pending) => {
            let pending = pending.calls.into_iter().map(|c| (c.sandbox, c.method)).collect();
            Event::Attached { epoch, pending }
        }
        to_node::Message::ShimGone(gone) => Event::ShimGone { sandbox: gone.sandbox },
        to_node::Message::LinkUp(up) => Event::LinkUp { sandbox: up.sandbox },
        to_node::Message::LinkDown(proto::LinkDown { sandbox, reason, given_up }) => {
            Event::LinkDown { sandbox, reason, given_up }
        }
        to_node::Message::Interruption(said) => {
            let proto::Interruption { sandbox, kind, deadline_ms, source } = said;
            Event::Interruption { sandbox, said: Interruption { kind, deadline_ms, source } }
        }
        to_node::Message::Edit(proto::Edit { ticket, sandbox, method, payload }) => {
            Event::Edit { ticket, sandbox, method, payload: Payload(payload) }
        }
    }
}
