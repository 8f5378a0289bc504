//! What one side knows of one stream.
//!
//! ```text
//!   outgoing   acked ──── kept, sent ────▶ sent ── kept, to be sent ──▶ end [fin]     fin counts as one
//!   incoming   acked ── taken, unsaid ──▶ taken ── held for the user ──▶ received [fin]
//! ```

use super::frame::Violation;
use super::queue::Queue;

/// The direction away from this side.
#[derive(Clone, Debug, Default)]
pub(super) struct Outgoing {
    /// From what is acknowledged to what the user has given.
    pub(super) queue: Queue,
    pub(super) sent: u64,
    /// What the other side may have of earlier connections, the end included.
    pub(super) seen: u64,
    /// The user gives no more.
    pub(super) fin: bool,
    pub(super) fin_sent: bool,
    pub(super) fin_acked: bool,
}

impl Outgoing {
    /// Everything is acknowledged, the end included.
    pub(super) fn done(&self) -> bool {
        self.fin_acked
    }

    pub(super) fn unsent(&self) -> bool {
        self.sent < self.queue.end() || (self.fin && !self.fin_sent)
    }

    /// What the other side may have seen on this connection, the end included.
    fn reach(&self) -> u64 {
        self.sent + u64::from(self.fin_sent)
    }

    /// The other side has taken everything before `number`. Gives how much memory that frees.
    pub(super) fn acked(&mut self, stream: u32, number: u64) -> Result<usize, Violation> {
        let base = self.queue.base() + u64::from(self.fin_acked);
        if number < base || number > self.reach() {
            return Err(Violation::Ack(stream, number));
        }
        self.fin_acked = self.fin_acked || (self.fin_sent && number > self.queue.end());
        let taken = number.min(self.queue.end()) - self.queue.base();
        let taken = usize::try_from(taken).unwrap_or(usize::MAX);
        self.queue.advance(taken);
        Ok(taken)
    }

    /// A new connection, on which the other side expects `next`.
    pub(super) fn resume(&mut self, stream: u32, next: u64) -> Result<(), Violation> {
        let end = self.queue.end();
        self.seen = self.seen.max(self.reach());
        if next < self.queue.base() + u64::from(self.fin_acked) || next > self.seen {
            return Err(Violation::Ack(stream, next));
        }
        self.fin_sent = next > end;
        self.sent = next.min(end);
        Ok(())
    }
}

/// The direction toward this side.
#[derive(Clone, Debug, Default)]
pub(super) struct Incoming {
    /// From what the user has taken to what has come.
    pub(super) queue: Queue,
    /// The other side sends no more than what has come.
    pub(super) fin: bool,
    /// The user has seen the end.
    pub(super) fin_taken: bool,
    /// Last said to the other side.
    pub(super) acked: u64,
}

impl Incoming {
    /// The number that comes next, the end counted.
    pub(super) fn next(&self) -> u64 {
        self.queue.end() + u64::from(self.fin)
    }

    /// What may be said to be taken.
    pub(super) fn taken(&self) -> u64 {
        self.queue.base() + u64::from(self.fin_taken)
    }

    /// Sent and not yet said to be taken.
    pub(super) fn open(&self) -> u64 {
        self.queue.end().saturating_sub(self.acked)
    }

    /// Everything is taken and that has been said.
    pub(super) fn done(&self) -> bool {
        self.fin_taken && self.acked == self.taken()
    }
}

/// Both directions.
#[derive(Clone, Debug, Default)]
pub(super) struct Flow {
    pub(super) out: Outgoing,
    pub(super) inn: Incoming,
    /// The VM knows of it, or is told on this connection.
    pub(super) announced: bool,
    /// Stands in the machine's line of those that have something to say.
    pub(super) queued: bool,
    /// Something was taken that has not been said; it goes with the next frames.
    pub(super) lazy: bool,
    /// It is to be said now.
    pub(super) ack_due: bool,
    /// The user was told that there is no room.
    pub(super) blocked: bool,
    /// The user has gone; what it gave still goes out.
    pub(super) released: bool,
}
