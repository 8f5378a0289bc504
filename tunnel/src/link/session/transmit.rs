//! What goes out on a connection: the streams take turns, short frames stand together.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::MAX_DATA;
use super::frame::{Head, Type};
use super::machine::{CONTROL, Machine};

/// Data up to this length is copied behind its head, so that a burst of small frames is one piece.
const SMALL: usize = 4 << 10;

/// What is to be written, in order; short pieces stand together.
#[derive(Debug, Default)]
pub struct Burst {
    pieces: VecDeque<Bytes>,
    small: BytesMut,
    length: usize,
}

impl Burst {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.length + self.small.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces, ready to be written.
    pub fn pieces(&mut self) -> &mut VecDeque<Bytes> {
        self.close();
        &mut self.pieces
    }

    /// `count` bytes are written.
    pub fn advance(&mut self, mut count: usize) {
        self.length -= count;
        while let Some(front) = self.pieces.front_mut().filter(|_| count > 0) {
            if front.len() > count {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.pieces.pop_front();
        }
    }

    fn close(&mut self) {
        if !self.small.is_empty() {
            self.length += self.small.len();
            self.pieces.push_back(self.small.split().freeze());
        }
    }

    fn data(&mut self, piece: Bytes) {
        if piece.len() <= SMALL {
            self.small.extend_from_slice(&piece);
        } else {
            self.close();
            self.length += piece.len();
            self.pieces.push_back(piece);
        }
    }
}

impl Machine {
    /// Puts into `burst` what there is to say, until it holds about `most` bytes.
    pub fn transmit(&mut self, burst: &mut Burst, most: usize) {
        burst.small.extend_from_slice(&self.small);
        self.small.clear();
        if let Some(number) = self.pong.take() {
            Head::bare(Type::Pong, CONTROL, number).put(&mut burst.small);
        }
        if !self.is_joined() {
            return;
        }
        while burst.len() < most
            && let Some(id) = self.ready.pop_front()
        {
            self.say(id, burst);
        }
        if !burst.is_empty() {
            for id in std::mem::take(&mut self.lazy) {
                // It may have been said meanwhile, with the stream's turn.
                if self.streams.get(&id).is_some_and(|flow| flow.lazy) {
                    self.say_taken(id, burst);
                }
            }
        }
    }

    /// One stream's turn.
    fn say(&mut self, id: u32, burst: &mut Burst) {
        let Some(flow) = self.streams.get_mut(&id) else { return };
        flow.queued = false;
        if !flow.announced {
            flow.announced = true;
            Head::bare(Type::Open, id, 0).put(&mut burst.small);
        }
        let out = &mut flow.out;
        let piece = out.queue.piece(out.sent, MAX_DATA);
        if !piece.is_empty() {
            let length = piece.len();
            Head { length, kind: Type::Data, stream: id, number: out.sent }.put(&mut burst.small);
            burst.data(piece);
            out.sent += length as u64;
        }
        if out.fin && !out.fin_sent && out.sent == out.queue.end() {
            out.fin_sent = true;
            Head::bare(Type::Fin, id, out.sent).put(&mut burst.small);
        }
        let unsent = out.unsent();
        if flow.ack_due {
            self.say_taken(id, burst);
        }
        if unsent {
            self.queue(id);
        }
    }

    fn say_taken(&mut self, id: u32, burst: &mut Burst) {
        let Some(flow) = self.streams.get_mut(&id) else { return };
        (flow.lazy, flow.ack_due) = (false, false);
        let taken = flow.inn.taken();
        // The end's number is no byte.
        let before = flow.inn.acked.min(flow.inn.queue.base());
        self.held -= (flow.inn.queue.base() - before).min(self.held);
        flow.inn.acked = taken;
        Head::bare(Type::Ack, id, taken).put(&mut burst.small);
        self.settle(id);
    }

    pub(super) fn queue(&mut self, id: u32) {
        if !self.is_joined() {
            return;
        }
        if let Some(flow) = self.streams.get_mut(&id).filter(|flow| !flow.queued) {
            flow.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Whether there is something to say that does not wait for company.
    pub fn wants_to_say(&self) -> bool {
        !self.small.is_empty() || self.pong.is_some() || !self.ready.is_empty()
    }
}
