//! A worker's session as bytes, so that another process can go on with it: it makes the session again
//! and dials. Whoever exports must not drive, read or write it any more.
//!
//! ```text
//!   "PPLS" ┬ version u16 ┬ session 16 B ┬ attempt u64 ┬ keep u32 ┬ last u32 ┬ count u32 ┬ count × stream
//!   stream = id u32 ┬ flags u8 ┬ acked u64 ┬ length u32 ┬ bytes ┬ taken u64 ┬ length u32 ┬ bytes
//!                              └ outgoing, kept                └ incoming, not taken
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, BufMut};

use super::flow::{Flow, Incoming, Outgoing};
use super::frame::SessionId;
use super::machine::{CONTROL, Machine, Side};
use super::queue::Queue;
use super::{ID, MAX_STREAMS, WINDOW};

const MAGIC: &[u8; 4] = b"PPLS";
/// Of these bytes, not of the link.
const VERSION: u16 = 1;

/// No honest session counts further, and from here on nothing that is added to a number overflows.
const MOST: u64 = 1 << 62;

const ANNOUNCED: u8 = 1;
const OUT_FIN: u8 = 2;
const OUT_FIN_ACKED: u8 = 4;
const IN_FIN: u8 = 8;
const IN_FIN_TAKEN: u8 = 16;
const RELEASED: u8 = 32;

/// Why bytes are no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Cut, or something else altogether.
    #[error("exported session: does not parse at byte {0}")]
    Broken(usize),
    /// Of another build.
    #[error("exported session: version {0}, this build reads {VERSION}")]
    Version(u16),
}

/// A session's bytes. They hold its id, so they do not print.
#[derive(Clone, PartialEq, Eq)]
pub struct Export(Vec<u8>);

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Export({} bytes)", self.0.len())
    }
}

impl Export {
    /// As they came from the other process; looked at by [`Machine::import`].
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// For the other process.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn put_queue(out: &mut Vec<u8>, queue: &Queue) {
    out.put_u64(queue.base());
    out.put_u32(u32::try_from(queue.len()).unwrap_or(u32::MAX));
    queue.pieces().for_each(|piece| out.put_slice(piece));
}

impl Machine {
    /// The session as bytes; `None` when it is over.
    pub fn export(&self) -> Option<Export> {
        if self.has_ended() {
            return None;
        }
        let mut out = Vec::with_capacity(64 + self.memory());
        out.put_slice(MAGIC);
        out.put_u16(VERSION);
        out.put_slice(&self.id.map_or([0; ID], |id| id.0));
        out.put_u64(self.attempt);
        out.put_u32(u32::try_from(self.keep.as_millis()).unwrap_or(u32::MAX));
        out.put_u32(self.last);
        out.put_u32(u32::try_from(self.streams.len()).unwrap_or(u32::MAX));
        for (id, flow) in &self.streams {
            out.put_u32(*id);
            out.put_u8(flags(flow));
            put_queue(&mut out, &flow.out.queue);
            put_queue(&mut out, &flow.inn.queue);
        }
        Some(Export(out))
    }

    /// The session that another process has exported, for the worker's side.
    ///
    /// # Errors
    /// When the bytes are no session, or one of another version.
    pub fn import(export: &Export) -> Result<Self, ExportError> {
        let all = &export.0[..];
        let mut left = all;
        let machine = read(&mut left);
        let machine = machine.map_err(|version| match version {
            Some(version) => ExportError::Version(version),
            None => ExportError::Broken(all.len() - left.len()),
        })?;
        if left.is_empty() { Ok(machine) } else { Err(ExportError::Broken(all.len() - left.len())) }
    }
}

fn flags(flow: &Flow) -> u8 {
    let flag = |is: bool, flag: u8| if is { flag } else { 0 };
    flag(flow.announced, ANNOUNCED)
        | flag(flow.out.fin, OUT_FIN)
        | flag(flow.out.fin_acked, OUT_FIN_ACKED)
        | flag(flow.inn.fin, IN_FIN)
        | flag(flow.inn.fin_taken, IN_FIN_TAKEN)
        | flag(flow.released, RELEASED)
}

/// `Err(Some)` is another version.
fn read(left: &mut &[u8]) -> Result<Machine, Option<u16>> {
    let mut magic = [0; 4];
    left.try_copy_to_slice(&mut magic).map_err(|_| None)?;
    let version = left.try_get_u16().map_err(|_| None)?;
    if &magic != MAGIC {
        return Err(None);
    }
    if version != VERSION {
        return Err(Some(version));
    }
    let mut id = [0; ID];
    left.try_copy_to_slice(&mut id).map_err(|_| None)?;
    let attempt = left.try_get_u64().map_err(|_| None)?;
    let keep = Duration::from_millis(left.try_get_u32().map_err(|_| None)?.into());
    let last = left.try_get_u32().map_err(|_| None)?;
    let count = left.try_get_u32().map_err(|_| None)? as usize;
    if count > MAX_STREAMS + 1 || attempt > MOST {
        return Err(None);
    }
    let id = (id != [0; ID]).then_some(SessionId(id));
    let mut machine = Machine::new(Side::Worker, id, keep);
    let mut streams = BTreeMap::new();
    for _ in 0..count {
        let (id, flow) = stream(left).ok_or(None)?;
        if id > last || streams.insert(id, flow).is_some() {
            return Err(None);
        }
    }
    // It never ends, and everything else relies on its being there.
    let lives = |flow: &Flow| flow.announced && !flow.released && !flow.out.fin && !flow.inn.fin;
    if !streams.get(&CONTROL).is_some_and(lives) {
        return Err(None);
    }
    machine.attempt = attempt;
    machine.last = last;
    machine.kept = streams.values().map(|flow| flow.out.queue.len()).sum();
    machine.held = streams.values().map(|flow| flow.inn.open()).sum();
    machine.streams = streams;
    Ok(machine)
}

fn stream(left: &mut &[u8]) -> Option<(u32, Flow)> {
    let id = left.try_get_u32().ok()?;
    let flags = left.try_get_u8().ok()?;
    let is = |flag: u8| flags & flag != 0;
    let out = queue(left)?;
    let inn = queue(left)?;
    let out = Outgoing {
        sent: out.base(),
        // How far the other process had come is not told: it may have sent all of it.
        seen: out.end() + u64::from(is(OUT_FIN)),
        fin: is(OUT_FIN),
        fin_sent: is(OUT_FIN_ACKED),
        fin_acked: is(OUT_FIN_ACKED),
        queue: out,
    };
    // What had been said before may have been less; the greeting says it again.
    let acked = inn.base() + u64::from(is(IN_FIN_TAKEN));
    let inn = Incoming { fin: is(IN_FIN), fin_taken: is(IN_FIN_TAKEN), acked, queue: inn };
    let consistent = (!out.fin_acked || (out.fin && out.queue.is_empty()))
        && (!inn.fin_taken || (inn.fin && inn.queue.is_empty()));
    let flow =
        Flow { out, inn, announced: is(ANNOUNCED), released: is(RELEASED), ..Flow::default() };
    consistent.then_some((id, flow))
}

fn queue(left: &mut &[u8]) -> Option<Queue> {
    let base = left.try_get_u64().ok()?;
    let length = left.try_get_u32().ok()? as usize;
    let in_range = length <= WINDOW && base <= MOST;
    let (bytes, rest) = left.split_at_checked(length).filter(|_| in_range)?;
    let mut queue = Queue::at(base);
    bytes.chunks(super::READ).for_each(|piece| queue.push_slice(piece));
    *left = rest;
    Some(queue)
}
