//! What comes in on a connection: every frame is checked before anything is kept of it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::control::{self, Message};
use super::flow::Flow;
use super::frame::{Head, Refusal, Type, Violation};
use super::machine::{CONTROL, Event, Machine, Over, Side};
use super::users::TIGHT;
use super::{FLOOR, HEAD, MAX_STREAMS, POOL, WINDOW};

/// Frames that wait to be written, beyond which nothing more is read.
const BACKLOG: usize = 64 << 10;

/// Where in the incoming bytes we are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    /// Bytes of the payload still to come.
    rest: usize,
    /// Whose; `None` skips them.
    stream: Option<u32>,
}

impl Machine {
    /// Whether more may be read: what must be answered is bounded.
    pub fn may_read(&self) -> bool {
        self.small.len() < BACKLOG
    }

    /// Takes bytes of the connection. What is left in `input` is the beginning of a frame.
    ///
    /// # Errors
    /// When the peer breaks the protocol; the session is over then.
    pub fn receive(&mut self, input: &mut BytesMut, now: Duration) -> Result<(), Violation> {
        let done = self.take(input, now);
        if let Err(violation) = &done {
            self.end(violation.clone().into());
        }
        done
    }

    fn take(&mut self, input: &mut BytesMut, now: Duration) -> Result<(), Violation> {
        if !input.is_empty() {
            self.clock.heard(now);
        }
        while self.over().is_none() && !input.is_empty() {
            if self.reading.rest > 0 {
                let piece = input.split_to(self.reading.rest.min(input.len()));
                self.reading.rest -= piece.len();
                if let Some(stream) = self.reading.stream {
                    self.bytes(stream, piece.freeze())?;
                }
                continue;
            }
            let Some(head) = input.first_chunk() else { break };
            let head = Head::parse(head)?;
            if head.kind == Type::Welcome {
                let length = HEAD + head.length;
                if input.len() < length {
                    break;
                }
                let whole = input.split_to(length);
                self.welcome(whole.get(HEAD..).unwrap_or_default())?;
                continue;
            }
            bytes::Buf::advance(input, HEAD);
            self.frame(&head)?;
        }
        Ok(())
    }

    fn frame(&mut self, head: &Head) -> Result<(), Violation> {
        let out_of_place = Err(Violation::OutOfPlace(head.kind));
        match (head.kind, self.side, self.is_joined()) {
            (Type::Gone, Side::Worker, _) => {
                self.end(Over::Refused(Refusal::from_number(head.number)));
                Ok(())
            }
            (_, _, false) => out_of_place,
            (Type::Skip, ..) => {
                self.reading = Reading { rest: head.length, stream: None };
                Ok(())
            }
            (Type::Open, Side::Vm, _) => self.opened(head.stream),
            (Type::Data, ..) => self.data(head),
            (Type::Fin, ..) => self.fin(head),
            (Type::Ack, ..) => self.acked(head),
            (Type::Reset, ..) => self.reset(head.stream),
            (Type::Ping, Side::Vm, _) => {
                self.pong = Some(head.number);
                Ok(())
            }
            (Type::Pong, Side::Worker, _) => Ok(()),
            _ => out_of_place,
        }
    }

    fn opened(&mut self, id: u32) -> Result<(), Violation> {
        if id <= self.last {
            return Err(Violation::Order(id, self.last));
        }
        if self.streams() >= MAX_STREAMS {
            return Err(Violation::Streams);
        }
        self.last = id;
        self.streams.insert(id, Flow { announced: true, ..Flow::default() });
        self.events.push_back(Event::Opened(id));
        Ok(())
    }

    /// A frame for a stream that is over here is of no interest; the other side will hear of it.
    fn known(&mut self, head: &Head) -> Result<Option<&mut Flow>, Violation> {
        match self.streams.get_mut(&head.stream) {
            None if head.stream > self.last => Err(Violation::NoStream(head.kind, head.stream)),
            other => Ok(other),
        }
    }

    fn data(&mut self, head: &Head) -> Result<(), Violation> {
        let most = (POOL + (MAX_STREAMS + 1) * FLOOR) as u64;
        let held = self.held;
        let Head { stream, number, length, .. } = *head;
        let flow = self.known(head)?;
        let wanted = flow.is_some();
        if let Some(flow) = flow {
            let want = flow.inn.queue.end();
            if flow.inn.fin || number != want {
                return Err(Violation::Offset { stream, got: number, want });
            }
            let open = flow.inn.open() + length as u64;
            if open > WINDOW as u64 || held + length as u64 > most {
                return Err(Violation::Window(stream));
            }
        }
        self.reading = Reading { rest: length, stream: wanted.then_some(stream) };
        Ok(())
    }

    fn bytes(&mut self, id: u32, piece: Bytes) -> Result<(), Violation> {
        let Some(flow) = self.streams.get_mut(&id) else { return Ok(()) };
        let length = piece.len();
        let before = self.held;
        self.held += length as u64;
        flow.inn.queue.push(piece);
        if flow.released {
            self.took(id, length);
        } else if id == CONTROL {
            self.messages()?;
        } else if self.events.back() != Some(&Event::Readable(id)) {
            self.events.push_back(Event::Readable(id));
        }
        if before < TIGHT && self.held >= TIGHT {
            self.hurry();
        }
        Ok(())
    }

    fn messages(&mut self) -> Result<(), Violation> {
        while let Some(flow) = self.streams.get_mut(&CONTROL) {
            let before = flow.inn.queue.base();
            let message = control::take(&mut flow.inn.queue)?;
            if flow.inn.queue.base() != before {
                self.unsaid(CONTROL);
            }
            match message {
                None => break,
                Some(Message::Closing(closing)) => self.end(Over::Closed(closing.reason)),
                Some(message) => self.events.push_back(Event::Told(message)),
            }
        }
        Ok(())
    }

    fn fin(&mut self, head: &Head) -> Result<(), Violation> {
        let Head { stream, number, .. } = *head;
        let Some(flow) = self.known(head)? else { return Ok(()) };
        let want = flow.inn.queue.end();
        if flow.inn.fin || number != want || stream == CONTROL {
            return Err(Violation::Offset { stream, got: number, want });
        }
        flow.inn.fin = true;
        if flow.released {
            self.took_end(stream);
        } else {
            self.events.push_back(Event::Readable(stream));
        }
        Ok(())
    }

    fn acked(&mut self, head: &Head) -> Result<(), Violation> {
        let Some(flow) = self.known(head)? else { return Ok(()) };
        let freed = flow.out.acked(head.stream, head.number)?;
        self.kept -= freed;
        self.settle(head.stream);
        if freed > 0 {
            self.unblock();
        }
        Ok(())
    }

    fn reset(&mut self, id: u32) -> Result<(), Violation> {
        if id == CONTROL || id > self.last {
            return Err(Violation::NoStream(Type::Reset, id));
        }
        if self.forget(id) {
            self.events.push_back(Event::Reset(id));
        }
        Ok(())
    }
}
