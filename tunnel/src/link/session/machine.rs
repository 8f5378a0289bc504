//! The protocol of one session, one side, as a plain value: bytes and calls in, bytes and events out.
//!
//! ```text
//!            connect / join              WELCOME / at once
//!   apart ───────────────────▶ greeting ───────────────────▶ joined ──▶ over: refused, closed,
//!     ▲                           │                            │          disagreement, given up
//!     └───────── part ────────────┴────────────────────────────┘
//! ```
//!
//! Streams live on while the session is apart: users go on writing until the window is full. What a
//! side has forgotten it leaves out of its greeting; what the other does not name is over.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::BytesMut;

use super::clock::{Alarm, Clock};
use super::control::Message;
use super::flow::Flow;
use super::frame::{Head, Refusal, SessionId, Type, Violation};
use super::receive::Reading;

/// The stream of the control messages.
pub(super) const CONTROL: u32 = 0;
/// Which end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Dials, opens streams, asks for signs of life.
    Worker,
    /// Draws the session's id.
    Vm,
}

/// Why a session is over, for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Over {
    /// The VM does not take it up.
    #[error("{0}")]
    Refused(Refusal),
    /// The other side has ended it.
    #[error("the other side has closed the session: {0}")]
    Closed(String),
    /// This side has ended it.
    #[error("{0}")]
    Ended(String),
    /// The sides do not agree any more.
    #[error("the other side broke the protocol: {0}")]
    Violation(#[from] Violation),
}

/// What has happened, for the users of streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The worker has opened a stream.
    Opened(u32),
    /// Bytes or an end have come.
    Readable(u32),
    /// There is room again.
    Writable(u32),
    /// The stream is over, both ways.
    Reset(u32),
    /// A control message.
    Told(Message),
    /// The session is over.
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Apart,
    Greeting,
    Joined,
    Over(Over),
}

/// See the head of this file.
#[derive(Debug)]
pub struct Machine {
    pub(super) side: Side,
    pub(super) id: Option<SessionId>,
    phase: Phase,
    /// Grows with every connection; a smaller one is an old one that comes late.
    pub(super) attempt: u64,
    pub(super) keep: Duration,
    /// Highest stream opened.
    pub(super) last: u32,
    pub(super) streams: BTreeMap<u32, Flow>,
    /// Those that have something to say, in turn.
    pub(super) ready: VecDeque<u32>,
    /// Those with something to acknowledge when there is company.
    pub(super) lazy: Vec<u32>,
    /// Those whose users wait for room.
    pub(super) blocked: Vec<u32>,
    /// Frames that belong to no stream's bytes.
    pub(super) small: BytesMut,
    pub(super) pong: Option<u64>,
    /// Bytes kept for the other side.
    pub(super) kept: usize,
    /// Bytes that came and are not acknowledged.
    pub(super) held: u64,
    pub(super) reading: Reading,
    pub(super) clock: Clock,
    pub(super) closing: Option<String>,
    pub(super) events: VecDeque<Event>,
}

impl Machine {
    /// A new session. `keep` is how long the VM should keep it without a connection.
    pub fn new(side: Side, id: Option<SessionId>, keep: Duration) -> Self {
        let control = Flow { announced: true, ..Flow::default() };
        Self {
            side,
            id,
            phase: Phase::Apart,
            attempt: 0,
            keep,
            last: 0,
            streams: BTreeMap::from([(CONTROL, control)]),
            ready: VecDeque::new(),
            lazy: Vec::new(),
            blocked: Vec::new(),
            small: BytesMut::new(),
            pong: None,
            kept: 0,
            held: 0,
            reading: Reading::default(),
            clock: Clock::default(),
            closing: None,
            events: VecDeque::new(),
        }
    }

    /// Why the session is over, if it is.
    pub fn over(&self) -> Option<&Over> {
        match &self.phase {
            Phase::Over(over) => Some(over),
            _ => None,
        }
    }

    /// Whether a connection stands on which both have greeted.
    pub fn is_joined(&self) -> bool {
        self.phase == Phase::Joined
    }

    /// The next thing that has happened.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Streams, without the control stream.
    pub fn streams(&self) -> usize {
        self.streams.len() - 1
    }

    /// Bytes kept for the other side and for this side's users.
    pub fn memory(&self) -> usize {
        self.streams.values().map(|s| s.out.queue.len() + s.inn.queue.len()).sum()
    }

    /// Ends the session; every stream with it.
    pub fn end(&mut self, why: Over) {
        if self.over().is_some() {
            return;
        }
        self.phase = Phase::Over(why);
        self.streams.retain(|id, _| *id == CONTROL);
        (self.kept, self.held) = (0, 0);
        self.events.push_back(Event::Over);
    }

    pub(super) fn greet(&mut self, now: Duration, greeted: bool) {
        self.part();
        self.phase = if greeted { Phase::Joined } else { Phase::Greeting };
        self.clock = Clock::begin(now, greeted);
    }

    pub(super) fn joined(&mut self) {
        self.phase = Phase::Joined;
    }

    pub(super) fn is_greeting(&self) -> bool {
        self.phase == Phase::Greeting
    }

    /// The connection is gone.
    pub fn part(&mut self) {
        if self.over().is_none() {
            self.phase = Phase::Apart;
        }
        self.small = BytesMut::new();
        self.pong = None;
        self.ready.clear();
        self.lazy.clear();
        self.reading = Reading::default();
        for flow in self.streams.values_mut() {
            (flow.queued, flow.lazy) = (false, false);
        }
    }

    // --- time ---

    fn busy(&self) -> bool {
        self.kept > 0
    }

    /// When [`Machine::tick`] must be called at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        let stands = matches!(self.phase, Phase::Greeting | Phase::Joined);
        stands.then(|| self.clock.deadline(self.side, self.busy()))
    }

    /// Asks for a sign of life when it is time to; false when the connection is dead.
    pub fn tick(&mut self, now: Duration) -> bool {
        if self.deadline().is_none() {
            return true;
        }
        match self.clock.tick(self.side, self.busy(), now) {
            Some(Alarm::Dead) => return false,
            Some(Alarm::Ask) => Head::bare(Type::Ping, CONTROL, 0).put(&mut self.small),
            None => {}
        }
        true
    }
}
