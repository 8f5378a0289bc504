//! A seed decides who writes, reads, ends, and when a connection is cut, half-cut, made again or
//! handed to another process. No byte may be lost, repeated or out of order.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// What a user of one end of a stream has done and seen.
#[derive(Default)]
struct User {
    written: u64,
    read: u64,
    shut: bool,
    ended: bool,
}

struct World {
    random: StdRng,
    worker: Machine,
    vm: Machine,
    /// Bytes on their way, if there is a connection.
    to_vm: Option<VecDeque<u8>>,
    to_worker: Option<VecDeque<u8>>,
    users: BTreeMap<(u32, bool), User>,
    cuts: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let (worker, vm) = pair();
        let (to_vm, to_worker) = (Some(VecDeque::new()), Some(VecDeque::new()));
        let random = StdRng::seed_from_u64(seed);
        Self { random, worker, vm, to_vm, to_worker, users: BTreeMap::new(), cuts: 0 }
    }

    fn machine(&mut self, vm: bool) -> &mut Machine {
        if vm { &mut self.vm } else { &mut self.worker }
    }

    fn some_user(&mut self) -> Option<(u32, bool)> {
        let all: Vec<_> = self.users.keys().copied().collect();
        (!all.is_empty()).then(|| all[self.random.random_range(0..all.len())])
    }

    fn write(&mut self, who: (u32, bool), most: usize) {
        let (id, vm) = who;
        let side = if vm { Side::Vm } else { Side::Worker };
        let Some(room) = self.machine(vm).room(id) else { return };
        let count = self.random.random_range(0..=most).min(room);
        let written = self.users.get(&who).map_or(0, |user| user.written);
        let piece = super::bytes(id, side, written, count);
        match self.random.random() {
            true => self.machine(vm).push(id, piece.into()),
            false => self.machine(vm).push_slice(id, &piece),
        }
        self.users.get_mut(&who).expect("user").written += count as u64;
    }

    fn read(&mut self, who: (u32, bool), most: usize) {
        let (id, vm) = who;
        let from = if vm { Side::Worker } else { Side::Vm };
        let want = self.random.random_range(1..=most);
        let machine = if vm { &mut self.vm } else { &mut self.worker };
        let user = self.users.get_mut(&who).expect("user");
        match machine.front(id) {
            Front::Bytes(bytes) => {
                assert!(!user.ended);
                let count = want.min(bytes.len());
                for (n, byte) in bytes[..count].iter().enumerate() {
                    let at = user.read + n as u64;
                    assert_eq!(*byte, pattern(id, from, at), "stream {id} byte {at}");
                }
                user.read += count as u64;
                machine.took(id, count);
            }
            Front::End => {
                user.ended = true;
                machine.took_end(id);
            }
            Front::Over => assert!(user.ended && user.shut, "stream {id} was reset"),
            Front::Nothing => {}
        }
    }

    fn shut(&mut self, who: (u32, bool)) {
        self.machine(who.1).finish(who.0);
        self.users.get_mut(&who).expect("user").shut = true;
    }

    /// Moves some of what one side has to say onto the wire, and some of the wire to the other.
    fn pump(&mut self, from_vm: bool) {
        let most = self.random.random_range(1..200_000);
        let count = self.random.random_range(1..200_000);
        let (from, to, wire) = match from_vm {
            true => (&mut self.vm, &mut self.worker, &mut self.to_worker),
            false => (&mut self.worker, &mut self.vm, &mut self.to_vm),
        };
        let Some(wire) = wire else { return };
        wire.extend(said(from, most));
        let arrived: Vec<u8> = wire.drain(..count.min(wire.len())).collect();
        let mut input = BytesMut::from(&arrived[..]);
        to.receive(&mut input, Duration::ZERO).expect("the protocol is kept");
        // A real reader keeps the beginning of a frame; here it goes back onto the wire.
        input.iter().rev().for_each(|byte| wire.push_front(*byte));
        while let Some(event) = to.event() {
            if let Event::Opened(id) = event {
                self.users.insert((id, true), User::default());
            }
        }
    }

    /// The connection is gone. The VM may not notice before the next one comes.
    fn cut(&mut self) {
        self.cuts += 1;
        (self.to_vm, self.to_worker) = (None, None);
        self.worker.part();
        if self.random.random() {
            self.vm.part();
        }
    }

    fn connect(&mut self) {
        (self.to_vm, self.to_worker) = (None, None);
        self.worker.connect(Duration::ZERO);
        let (head, hello) = greeting(&said(&mut self.worker, 1));
        match self.random.random_range(0..4) {
            // The greeting does not arrive, or the answer does not.
            0 => return self.worker.part(),
            1 => {
                self.vm.join(&hello, head.number, Duration::ZERO).expect("join");
                said(&mut self.vm, 10_000);
                return self.worker.part();
            }
            _ => self.vm.join(&hello, head.number, Duration::ZERO).expect("join"),
        }
        (self.to_vm, self.to_worker) = (Some(VecDeque::new()), Some(VecDeque::new()));
    }

    /// Another process goes on with the worker's side.
    fn hand_over(&mut self) {
        let export = self.worker.export().expect("export");
        let export = Export::from_bytes(export.as_bytes().to_vec());
        self.worker = Machine::import(&export).expect("import");
        (self.to_vm, self.to_worker) = (None, None);
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..4 if self.worker.streams() < 6 => {
                let id = self.worker.open().expect("open");
                self.users.insert((id, false), User::default());
            }
            0..25 => self.some_user().into_iter().for_each(|who| self.write(who, 3000)),
            25..30 => self.some_user().into_iter().for_each(|who| self.write(who, 150_000)),
            30..55 => self.some_user().into_iter().for_each(|who| self.read(who, 100_000)),
            55..57 => self.some_user().into_iter().for_each(|who| self.shut(who)),
            57..60 => self.cut(),
            60..61 => self.hand_over(),
            _ if self.to_vm.is_none() => self.connect(),
            _ => {
                let from_vm = self.random.random();
                self.pump(from_vm);
            }
        }
        let streams = self.users.len() / 2 + 1;
        assert!(self.worker.memory() <= 2 * (streams * WINDOW).min(POOL + streams * FLOOR));
        assert!(self.vm.memory() <= 2 * (streams * WINDOW).min(POOL + streams * FLOOR));
    }

    /// Everybody ends and reads to the end.
    fn finish(&mut self) {
        for _ in 0..20_000 {
            if self.to_vm.is_none() {
                self.connect();
            }
            self.pump(false);
            self.pump(true);
            let all: Vec<_> = self.users.keys().copied().collect();
            for who in &all {
                self.shut(*who);
                self.read(*who, 1 << 20);
            }
            let opened = self.users.keys().filter(|(_, vm)| *vm).count() * 2 == all.len();
            if opened && self.users.values().all(|user| user.ended) && self.worker.kept == 0 {
                return;
            }
        }
        panic!("it does not come to an end");
    }

    fn check(&self) {
        for ((id, vm), user) in &self.users {
            let other = &self.users[&(*id, !vm)];
            assert_eq!(user.read, other.written, "stream {id}, read by the VM: {vm}");
        }
    }
}

proptest! {
    // A quarter of what PROPTEST_CASES says: each is a whole life.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases / 4,
        ..ProptestConfig::default()
    })]
    #[test]
    fn no_cut_loses_repeats_or_reorders_a_byte(seed: u64) {
        let mut world = World::new(seed);
        for _ in 0..600 {
            world.step();
        }
        world.finish();
        world.check();
    }
}
