//! What the users of streams ask of the [`Machine`].

use bytes::Bytes;

use super::control::{Closing, Message};
use super::flow::Flow;
use super::frame::{Head, Type};
use super::machine::{CONTROL, Event, Machine, Over, Side};
use super::{ACK_EVERY, ACK_TIGHT, FLOOR, MAX_STREAMS, POOL, WINDOW};

/// From so many unacknowledged bytes on, acknowledgements are not put off.
pub(super) const TIGHT: u64 = POOL as u64 / 2;

/// What a stream has for its user.
#[derive(Debug, PartialEq, Eq)]
pub enum Front<'a> {
    /// Bytes; there may be more behind them.
    Bytes(&'a [u8]),
    /// Nothing now.
    Nothing,
    /// The other side sends no more.
    End,
    /// The stream is over.
    Over,
}

impl Machine {
    /// Opens a stream. `None` if the session is over or has as many as it may, and on the VM's side.
    pub fn open(&mut self) -> Option<u32> {
        if self.side == Side::Vm || self.has_ended() || self.streams() >= MAX_STREAMS {
            return None;
        }
        self.last = self.last.checked_add(1)?;
        self.streams.insert(self.last, Flow::default());
        self.queue(self.last);
        Some(self.last)
    }

    /// How much may be pushed now. With 0, an event tells when there is more; `None` is no more ever.
    pub fn room(&mut self, id: u32) -> Option<usize> {
        let total = self.kept;
        let flow = self.streams.get_mut(&id).filter(|flow| !flow.out.fin)?;
        let kept = flow.out.queue.len();
        let shared = WINDOW.saturating_sub(kept).min(POOL.saturating_sub(total));
        let room = shared.max(FLOOR.saturating_sub(kept));
        if room == 0 && !flow.blocked {
            flow.blocked = true;
            self.blocked.push(id);
        }
        Some(room)
    }

    /// Sends bytes, not more than there is room for.
    pub fn push(&mut self, id: u32, piece: Bytes) {
        let length = piece.len();
        self.give(id, length, |flow| flow.out.queue.push(piece));
    }

    /// The same with bytes that are not kept as they are.
    pub fn push_slice(&mut self, id: u32, piece: &[u8]) {
        self.give(id, piece.len(), |flow| flow.out.queue.push_slice(piece));
    }

    fn give(&mut self, id: u32, length: usize, push: impl FnOnce(&mut Flow)) {
        if let Some(flow) = self.streams.get_mut(&id).filter(|flow| !flow.out.fin) {
            push(flow);
            self.kept += length;
            self.queue(id);
        }
    }

    /// Sends no more; the other side sees an end behind what was pushed.
    pub fn finish(&mut self, id: u32) {
        if let Some(flow) = self.streams.get_mut(&id).filter(|flow| !flow.out.fin) {
            flow.out.fin = true;
            self.queue(id);
        }
    }

    /// Whether [`Machine::finish`] was called for a stream.
    pub fn is_finished(&self, id: u32) -> bool {
        self.streams.get(&id).is_none_or(|flow| flow.out.fin)
    }

    /// What there is for the user.
    pub fn front(&self, id: u32) -> Front<'_> {
        let Some(flow) = self.streams.get(&id) else { return Front::Over };
        match flow.inn.queue.front() {
            [] if flow.inn.fin => Front::End,
            [] => Front::Nothing,
            bytes => Front::Bytes(bytes),
        }
    }

    /// The same bytes, to be used without the machine; none if there are none.
    pub fn piece(&mut self, id: u32) -> Bytes {
        let Some(flow) = self.streams.get_mut(&id) else { return Bytes::new() };
        flow.inn.queue.piece(flow.inn.queue.base(), WINDOW)
    }

    /// The user has taken `count` bytes of the front.
    pub fn took(&mut self, id: u32, count: usize) {
        if let Some(flow) = self.streams.get_mut(&id) {
            flow.inn.queue.advance(count);
            self.unsaid(id);
        }
    }

    /// The user has seen the end.
    pub fn took_end(&mut self, id: u32) {
        if let Some(flow) = self.streams.get_mut(&id).filter(|flow| !flow.inn.fin_taken) {
            flow.inn.fin_taken = true;
            self.unsaid(id);
        }
    }

    /// What was taken is to be acknowledged: much of it at once, little with the next frames.
    pub(super) fn unsaid(&mut self, id: u32) {
        let Some(flow) = self.streams.get_mut(&id) else { return };
        let unsaid = flow.inn.taken().saturating_sub(flow.inn.acked);
        let much = if self.held < TIGHT { ACK_EVERY } else { ACK_TIGHT };
        if unsaid >= much as u64 || flow.inn.fin_taken {
            flow.ack_due = true;
            self.queue(id);
        } else if !flow.lazy {
            flow.lazy = true;
            self.lazy.push(id);
        }
    }

    /// What was put off is said now: the other side may have no room left because of it.
    pub(super) fn hurry(&mut self) {
        // With the first one all go.
        if let Some(id) = self.lazy.first().copied() {
            if let Some(flow) = self.streams.get_mut(&id) {
                flow.ack_due = true;
            }
            self.queue(id);
        }
    }

    /// The user goes. After [`Machine::finish`] what it gave still goes out; otherwise the stream is
    /// over for both sides.
    pub fn release(&mut self, id: u32) {
        let Some(flow) = self.streams.get_mut(&id) else { return };
        flow.released = true;
        if flow.out.fin {
            let (unread, ended) = (flow.inn.queue.len(), flow.inn.fin);
            self.took(id, unread);
            if ended {
                self.took_end(id);
            }
            self.settle(id);
        } else {
            self.abandon(id);
        }
    }

    fn abandon(&mut self, id: u32) {
        let told = self.streams.get(&id).is_some_and(|flow| flow.announced);
        self.forget(id);
        if told && self.is_joined() {
            Head::bare(Type::Reset, id, 0).put(&mut self.small);
        }
    }

    /// Forgets a stream on which there is nothing more to say or to hear.
    pub(super) fn settle(&mut self, id: u32) {
        let Some(flow) = self.streams.get(&id) else { return };
        match (flow.out.done(), flow.inn.done()) {
            (true, true) => {
                self.forget(id);
            }
            // What the other side may still have to say is of no use to anybody.
            (true, false) if flow.released && !flow.inn.fin_taken => self.abandon(id),
            _ => {}
        }
    }

    /// Whether there was such a stream.
    pub(super) fn forget(&mut self, id: u32) -> bool {
        let Some(flow) = self.streams.remove(&id) else { return false };
        self.kept -= flow.out.queue.len();
        self.held = self.held.saturating_sub(flow.inn.open());
        self.unblock();
        true
    }

    /// Whoever was told that there is no room may look again.
    pub(super) fn unblock(&mut self) {
        for id in std::mem::take(&mut self.blocked) {
            if let Some(flow) = self.streams.get_mut(&id) {
                flow.blocked = false;
                self.events.push_back(Event::Writable(id));
            }
        }
    }

    /// Tells the other side something; false if it has left too much of that unread, or the session
    /// is over.
    pub fn tell(&mut self, message: &Message) -> bool {
        let bytes = message.encode();
        let fits = !self.has_ended() && self.room(CONTROL).is_some_and(|room| room >= bytes.len());
        if fits {
            self.push_slice(CONTROL, &bytes);
        }
        fits
    }

    /// Ends the session in order: every stream now, and the session once the other side was told.
    pub fn close(&mut self, reason: &str) {
        if self.has_ended() {
            return;
        }
        self.tell(&Message::Closing(Closing { reason: reason.to_owned() }));
        self.closing = Some(reason.to_owned());
        let all: Vec<u32> = self.streams.keys().copied().filter(|id| *id != CONTROL).collect();
        for id in all {
            self.forget(id);
        }
        self.events.push_back(Event::Over);
    }

    /// Ends a session whose other side has been told, once there is nothing more to write.
    pub(super) fn end_of_closing(&mut self) -> bool {
        if self.wants_to_say() {
            return false;
        }
        let Some(reason) = self.closing.take() else { return false };
        self.end(Over::Ended(reason));
        true
    }

    /// Over, or about to be.
    pub fn has_ended(&self) -> bool {
        self.closing.is_some() || self.over().is_some()
    }
}
