//! Two machines, and two ends with tasks, under cuts.

mod acks;
mod bounds;
mod cuts;
mod ends;
mod files;
mod interruption;
mod paths;

use std::sync::Arc;

use bytes::BytesMut;

use super::*;

/// Byte `at` of a stream's direction: no block of it repeats within a window.
fn pattern(stream: u32, side: Side, at: u64) -> u8 {
    let mixed = (at ^ (at >> 7) ^ (at >> 15)).wrapping_mul(167);
    (mixed as u8) ^ (stream as u8).wrapping_mul(29) ^ if side == Side::Vm { 0x5a } else { 0 }
}

fn bytes(stream: u32, side: Side, from: u64, count: usize) -> Vec<u8> {
    (from..from + count as u64).map(|at| pattern(stream, side, at)).collect()
}

/// Everything a machine has to say now.
fn said(machine: &mut Machine, most: usize) -> Vec<u8> {
    let mut burst = Burst::default();
    machine.transmit(&mut burst, most);
    let mut all = Vec::new();
    for piece in burst.pieces().iter() {
        all.extend_from_slice(piece);
    }
    all
}

/// A greeting as it goes over the wire, taken apart.
fn greeting(bytes: &[u8]) -> (Head, Greeting) {
    let head = Head::parse(bytes.first_chunk().expect("head")).expect("parse");
    (head, Greeting::parse(&bytes[HEAD..HEAD + head.length]).expect("greeting"))
}

/// Two machines that have greeted.
fn pair() -> (Machine, Machine) {
    let mut worker = Machine::new(Side::Worker, None, Duration::from_secs(9));
    let mut vm = Machine::new(Side::Vm, Some(SessionId::random()), Duration::ZERO);
    meet(&mut worker, &mut vm);
    (worker, vm)
}

/// Both greet on a new connection.
fn meet(worker: &mut Machine, vm: &mut Machine) {
    worker.connect(Duration::ZERO);
    let (head, hello) = greeting(&said(worker, 1));
    vm.join(&hello, head.number, Duration::ZERO).expect("join");
    tell(vm, worker).expect("welcome");
    assert!(worker.is_joined() && vm.is_joined());
}

fn tell(from: &mut Machine, to: &mut Machine) -> Result<(), Violation> {
    let mut input = BytesMut::from(&said(from, usize::MAX)[..]);
    to.receive(&mut input, Duration::ZERO)
}
