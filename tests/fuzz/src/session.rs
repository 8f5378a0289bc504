//! `peerpod-link/1`: two real ends on a connection that is cut, cut into pieces, and spoken into by
//! somebody hostile.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use peerpod_tunnel::link::session::{
    Burst, Export, Front, Greeting, HEAD, Head, MAX_STREAMS, Machine, SessionId, Side, Type,
};

use crate::Parts;

/// What may be kept for each stream besides its bytes; no more events than frames are kept, either.
const STREAMS: usize = MAX_STREAMS + 1;

/// Everything an end has to say now.
fn said(machine: &mut Machine, most: usize) -> Vec<u8> {
    let mut burst = Burst::default();
    machine.transmit(&mut burst, most);
    burst.pieces().iter().flatten().copied().collect()
}

/// A frame as anybody might write it.
fn put(out: &mut BytesMut, kind: u8, stream: u32, number: u64, payload: &[u8]) {
    let length = (payload.len() as u32).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Byte `at` of a stream's direction.
fn pattern(stream: u32, vm: bool, at: u64) -> u8 {
    let mixed = (at ^ (at >> 7) ^ (at >> 15)).wrapping_mul(167);
    (mixed as u8) ^ (stream as u8).wrapping_mul(29) ^ if vm { 0x5a } else { 0 }
}

/// Two ends, and what is on its way to each.
struct World {
    ends: [Machine; 2],
    wire: [BytesMut; 2],
    /// By stream and writing end: written, read.
    counts: BTreeMap<(u32, bool), (u64, u64)>,
    hostile: bool,
    /// Bytes that were put into the ends, by anybody.
    given: usize,
}

const WORKER: usize = 0;
const VM: usize = 1;

impl World {
    fn new(hostile: bool) -> Self {
        let worker = Machine::new(Side::Worker, None, Duration::from_secs(9));
        let vm = Machine::new(Side::Vm, Some(SessionId::random()), Duration::ZERO);
        let mut world = Self {
            ends: [worker, vm],
            wire: [BytesMut::new(), BytesMut::new()],
            counts: BTreeMap::new(),
            hostile,
            given: 0,
        };
        world.meet();
        world
    }

    /// A new connection: what was on its way is lost.
    fn meet(&mut self) {
        let [worker, vm] = &mut self.ends;
        self.wire.iter_mut().for_each(BytesMut::clear);
        worker.connect(Duration::ZERO);
        let hello = said(worker, 1);
        let Some(head) = hello.first_chunk() else { return };
        let head = Head::parse(head).expect("ours parses");
        let payload = hello.get(HEAD..HEAD + head.length).expect("it is whole");
        let hello = Greeting::parse(payload).expect("ours parses");
        let joined = vm.join(&hello, head.number, Duration::ZERO);
        assert!(joined.is_ok() || self.hostile, "two honest ends agree: {joined:?}");
        let welcome = said(vm, usize::MAX);
        self.wire[WORKER].extend_from_slice(&welcome);
        self.deliver(WORKER, usize::MAX);
    }

    fn deliver(&mut self, to: usize, most: usize) {
        let from = 1 - to;
        let more = said(&mut self.ends[from], usize::MAX);
        self.wire[to].extend_from_slice(&more);
        let mut piece = self.wire[to].split_to(most.min(self.wire[to].len()));
        self.given += piece.len();
        let taken = self.ends[to].receive(&mut piece, Duration::ZERO);
        // What is left is the beginning of a frame.
        piece.extend_from_slice(&self.wire[to]);
        self.wire[to] = piece;
        assert!(taken.is_ok() || self.hostile, "two honest ends agree: {taken:?}");
    }

    fn write(&mut self, end: usize, stream: u32, most: usize) {
        let Some(room) = self.ends[end].room(stream) else { return };
        let (written, _) = self.counts.entry((stream, end == VM)).or_default();
        let count = most.min(room) as u64;
        let bytes: Vec<u8> =
            (*written..*written + count).map(|at| pattern(stream, end == VM, at)).collect();
        *written += count;
        self.given += bytes.len();
        self.ends[end].push_slice(stream, &bytes);
    }

    fn read(&mut self, end: usize, stream: u32) {
        while let Front::Bytes(bytes) = self.ends[end].front(stream) {
            let (written, read) = self.counts.entry((stream, end == WORKER)).or_default();
            for byte in bytes {
                let wanted = pattern(stream, end == WORKER, *read);
                assert!(self.hostile || *byte == wanted, "byte {read} of stream {stream}");
                *read += 1;
            }
            assert!(self.hostile || read <= written, "more comes out than went in");
            let count = bytes.len();
            self.ends[end].took(stream, count);
        }
        if self.ends[end].front(stream) == Front::End {
            self.ends[end].took_end(stream);
        }
    }

    fn step(&mut self, parts: &mut Parts<'_>) {
        let what = parts.byte();
        let end = usize::from(what >> 7);
        let stream = u32::from(parts.byte() % 5);
        match what & 15 {
            0 | 1 => drop(self.ends[WORKER].open()),
            2..=4 => {
                let most = parts.number();
                self.write(end, stream.max(1), most);
            }
            5..=7 => self.deliver(end, parts.number()),
            8 => self.deliver(end, usize::MAX),
            9 => self.read(end, stream.max(1)),
            10 => self.ends[end].finish(stream.max(1)),
            11 => self.ends[end].release(stream.max(1)),
            12 => {
                self.ends[WORKER].part();
                self.meet();
            }
            13 => self.move_worker(),
            _ if self.hostile => {
                let (kind, number) = (parts.byte() % 16, u64::from(parts.byte()));
                let payload = parts.bytes(usize::from(what >> 4 & 7) * 3);
                put(&mut self.wire[end], kind, stream, number, payload);
            }
            _ => {}
        }
        for machine in &mut self.ends {
            while machine.event().is_some() {}
            assert!(machine.streams() < STREAMS && machine.memory() <= self.given);
            assert!(!machine.may_read() || machine.over().is_some() || machine.streams() < STREAMS);
        }
    }

    /// Another process goes on with the worker's end.
    fn move_worker(&mut self) {
        if let Some(export) = self.ends[WORKER].export() {
            let moved = Machine::import(&Export::from_bytes(export.as_bytes().to_vec()));
            self.ends[WORKER] = moved.expect("ours is read");
            self.meet();
        }
    }
}

/// Two ends under cuts, moves to another process and, in half of the inputs, frames that neither has
/// sent: no panic, no more memory than bytes came; and without those frames no byte is lost,
/// repeated or changed.
pub fn session(data: &[u8]) {
    let mut parts = Parts(data);
    let mut world = World::new(parts.byte() & 1 == 1);
    while !parts.0.is_empty() {
        world.step(&mut parts);
    }
}

/// A session that another process has exported, by bytes from anybody: what is read can be exported
/// again, and is the same. It goes on with a VM that says whatever it likes.
pub fn session_export(data: &[u8]) {
    let mut parts = Parts(data);
    let length = parts.number();
    let export = parts.bytes(length);
    let Ok(mut machine) = Machine::import(&Export::from_bytes(export.to_vec())) else { return };
    assert!(machine.memory() <= export.len() && machine.streams() < STREAMS);
    let export = machine.export().expect("it is not over");
    let again = Machine::import(&export).expect("ours is read");
    assert_eq!(again.export().as_ref().map(Export::as_bytes), Some(export.as_bytes()));
    machine.connect(Duration::ZERO);
    let hello = said(&mut machine, 1);
    let hello = Greeting::parse(hello.get(HEAD..).unwrap_or_default()).expect("it greets");
    let mut wire = BytesMut::new();
    welcome(hello, &mut parts).put(Type::Welcome, 0, &mut wire);
    while !parts.0.is_empty() {
        let (kind, stream) = (parts.byte() % 12, u32::from(parts.byte() % 5));
        let (number, payload) = (long(&mut parts), parts.byte());
        put(&mut wire, kind, stream, number, parts.bytes(payload.into()));
    }
    let _ = machine.receive(&mut wire, Duration::ZERO);
    assert!(machine.memory() <= data.len() && machine.streams() < STREAMS);
    use_up(&mut machine);
}

/// The VM's answer: it has forgotten some streams, and of others another offset comes next.
fn welcome(hello: Greeting, parts: &mut Parts<'_>) -> Greeting {
    let session = hello.session.or_else(|| Some(SessionId::random()));
    let mut next = Vec::new();
    for (stream, ours) in hello.next {
        match parts.byte() % 4 {
            0 => {}
            1 => next.push((stream, ours)),
            2 => next.push((stream, u64::from(parts.byte()))),
            _ => next.push((stream, long(parts))),
        }
    }
    Greeting { session, next, ..hello }
}

fn long(parts: &mut Parts<'_>) -> u64 {
    parts.bytes(8).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Every stream is read, written, finished and left.
fn use_up(machine: &mut Machine) {
    for stream in 1..5 {
        while let Front::Bytes(bytes) = machine.front(stream) {
            let count = bytes.len();
            machine.took(stream, count);
        }
        if machine.front(stream) == Front::End {
            machine.took_end(stream);
        }
        let room = machine.room(stream).unwrap_or_default();
        machine.push_slice(stream, b"more".get(..room.min(4)).unwrap_or_default());
        said(machine, usize::MAX);
        machine.finish(stream);
        machine.release(stream);
    }
    machine.open();
    machine.close("done");
    said(machine, usize::MAX);
    while machine.event().is_some() {}
}
