//! The old relay, once another one serves: it holds what could not move until that has ended.

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::give::Successor;
use super::message::Say;
use super::wire::{LARGEST, Wire, WireError, flush, put};
use crate::proto::relay as proto;
use crate::relay::RelayOptions;
use crate::relay::hub::{Events, Hub};
use crate::relay::pod::Desk;
use proto::to_node::Message;

/// Why it does not stay any longer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stayed {
    /// It holds nothing more.
    Empty,
    /// It was told to end, and the time for that is over.
    Told,
    /// The successor has died without a word: nobody serves.
    Alone,
}

struct Staying<'a> {
    desk: &'a Desk,
    /// What the successor is told in place of a node process.
    events: Events,
    out_of_time: Option<Instant>,
    options: &'a RelayOptions,
    /// The successor has ended in order.
    last: bool,
}

/// Holds what is left; `shutdown` leaves it the time to linger.
pub(crate) async fn stay(
    desk: &Desk,
    mut successor: Successor,
    shutdown: &CancellationToken,
    options: &RelayOptions,
) -> Stayed {
    let events = desk.hub.succeeded();
    let mut this = Staying { desk, events, out_of_time: None, options, last: false };
    let why = this.run(&mut successor, shutdown).await;
    desk.hub.detach(this.events.session);
    why
}

impl Staying<'_> {
    async fn run(&mut self, successor: &mut Successor, shutdown: &CancellationToken) -> Stayed {
        let Successor { wire: Wire { stream, inbox, out }, left, .. } = successor;
        let mut said = false;
        loop {
            if self.desk.hub.joined().is_empty() && left.is_empty() && (out.is_empty() || self.last)
            {
                if !self.options.stand_by || self.out_of_time.is_some() {
                    return Stayed::Empty;
                }
                if !std::mem::replace(&mut said, true) {
                    tracing::info!("nothing is held any more: standing by until told to end");
                }
            }
            tokio::select! {
                biased;
                got = inbox.recv(stream, LARGEST), if !self.last => match got {
                    Ok(Some((say, _))) => self.heard(say).await,
                    Ok(None) | Err(WireError::Io(_)) => return Stayed::Alone,
                    // It lives, so it serves.
                    Err(error) => {
                        self.last = true;
                        self.hurry(&format!("the successor is not understood: {error}"));
                    }
                },
                Some(sandbox) = left.recv() => put(out, Say::Left(sandbox), 0),
                Some(event) = self.events.next() => pass_on(out, event),
                () = shutdown.cancelled(), if self.out_of_time.is_none() => self.hurry("told to end"),
                () = until(self.out_of_time) => return Stayed::Told,
                written = flush(stream, out), if !out.is_empty() && !self.last => {
                    if written.is_err() {
                        // It has gone; its last word is still to be read.
                        out.clear();
                    }
                }
            }
        }
    }

    fn hurry(&mut self, why: &str) {
        let connections = self.desk.hub.joined().values().sum::<u32>();
        tracing::info!(why, connections, within = ?self.options.linger, "connections that stayed are closed");
        self.out_of_time = Some(Instant::now() + self.options.linger);
    }

    async fn heard(&mut self, say: Option<Say>) {
        let hub = &self.desk.hub;
        match say {
            Some(Say::Again(_)) => self.events = hub.succeeded(),
            Some(Say::Close(request)) => {
                tracing::info!(sandbox = request.sandbox, reason = request.reason, "closed");
                close(hub, &request.sandbox).await;
            }
            Some(Say::Edited(proto::EditReply { ticket, outcome })) => {
                let answer = crate::relay::control::outcome(outcome);
                hub.answer(self.events.session, ticket, answer);
            }
            Some(Say::End(_)) => {
                self.last = true;
                if self.out_of_time.is_none() {
                    self.hurry("the successor ends");
                }
            }
            other => tracing::debug!(?other, "the successor says what is not known here"),
        }
    }
}

/// The successor has pods of its own; here only connections are closed.
async fn close(hub: &Hub, sandbox: &str) {
    if let Some(pod) = hub.pod(sandbox) {
        pod.close().await;
        hub.remove(sandbox);
    }
}

fn pass_on(out: &mut bytes::BytesMut, event: Result<Message, tonic::Status>) {
    let say = match event {
        Ok(Message::LinkDown(down)) => Say::LinkDown(down),
        Ok(Message::LinkUp(up)) => Say::LinkUp(up),
        Ok(Message::Edit(edit)) => Say::Edit(edit),
        Ok(Message::Interruption(said)) => Say::Interruption(said),
        // It counts connections itself, and has the requests.
        Ok(Message::Pending(_) | Message::ShimGone(_)) => return,
        Err(error) => return tracing::warn!(error = error.message(), "events for the successor"),
    };
    put(out, say, 0);
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
