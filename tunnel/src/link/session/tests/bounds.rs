//! What a side must not let the other do.

use bytes::BufMut;

use super::*;

fn frame(kind: u8, stream: u32, number: u64, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_uint(payload.len() as u64, 3);
    out.put_u8(kind);
    out.put_u32(stream);
    out.put_u64(number);
    out.put_slice(payload);
    out
}

fn refused(to: &mut Machine, mut bytes: BytesMut) -> Violation {
    let violation = to.receive(&mut bytes, Duration::ZERO).expect_err("a violation");
    assert_eq!(to.over(), Some(&Over::Violation(violation.clone())), "it ends the session");
    violation
}

#[test]
fn a_user_that_does_not_read_fills_a_window_and_no_more() {
    let (mut worker, mut vm) = pair();
    let id = worker.open().expect("open");
    let mut given = 0;
    while let Some(room) = worker.room(id).filter(|room| *room > 0) {
        worker.push(id, bytes(id, Side::Worker, given, room.min(70_000)).into());
        given += room.min(70_000) as u64;
        tell(&mut worker, &mut vm).expect("in order");
        tell(&mut vm, &mut worker).expect("in order");
    }
    assert_eq!((given, worker.memory(), vm.memory()), (WINDOW as u64, WINDOW, WINDOW));
    // Taking a part makes room for a part.
    vm.took(id, ACK_EVERY);
    tell(&mut vm, &mut worker).expect("in order");
    assert_eq!(worker.room(id), Some(ACK_EVERY));
}

#[test]
fn what_was_taken_is_said_without_company_once_room_is_short() {
    let (mut worker, mut vm) = pair();
    let id = worker.open().expect("open");
    worker.push(id, vec![1; FLOOR].into());
    tell(&mut worker, &mut vm).expect("in order");
    vm.took(id, FLOOR);
    assert!(!vm.wants_to_say(), "so little goes with the next frame");
    // Others that nobody reads, until half of the pool is used up.
    for _ in 0..POOL / 2 / WINDOW {
        let other = worker.open().expect("open");
        worker.push(other, vec![2; WINDOW].into());
    }
    tell(&mut worker, &mut vm).expect("in order");
    assert!(vm.wants_to_say(), "it was put off all the same");
    tell(&mut vm, &mut worker).expect("in order");
    assert_eq!(worker.memory(), POOL / 2, "and now it is said");
    assert!(!vm.wants_to_say(), "once");
}

#[test]
fn streams_that_are_not_read_leave_every_other_stream_its_floor() {
    let (mut worker, mut vm) = pair();
    for _ in 0..POOL / WINDOW + 3 {
        let id = worker.open().expect("open");
        while let Some(room) = worker.room(id).filter(|room| *room > 0) {
            worker.push(id, vec![1; room].into());
        }
        tell(&mut worker, &mut vm).expect("in order");
    }
    assert!(worker.memory() <= POOL + 4 * FLOOR, "{}", worker.memory());
    let id = worker.open().expect("open");
    let mut given = 0;
    while given < 3 * WINDOW as u64 {
        let room = worker.room(id).expect("room");
        assert!(room > 0, "it stands after {given}");
        worker.push(id, bytes(id, Side::Worker, given, room).into());
        given += room as u64;
        tell(&mut worker, &mut vm).expect("in order");
        while let Front::Bytes(bytes) = vm.front(id) {
            let count = bytes.len();
            vm.took(id, count);
        }
        tell(&mut vm, &mut worker).expect("in order");
    }
}

#[test]
fn a_peer_that_overruns_a_window_a_stream_or_the_order_ends_its_session() {
    let fresh = || {
        let (mut worker, mut vm) = pair();
        worker.open();
        tell(&mut worker, &mut vm).expect("open");
        vm
    };
    let full = |length: usize| vec![7; length];
    let mut vm = fresh();
    for n in 0..WINDOW / MAX_DATA {
        let mut data = frame(5, 1, (n * MAX_DATA) as u64, &full(MAX_DATA));
        vm.receive(&mut data, Duration::ZERO).expect("within the window");
    }
    assert_eq!(refused(&mut vm, frame(5, 1, WINDOW as u64, b"x")), Violation::Window(1));

    let offset = Violation::Offset { stream: 1, got: 1, want: 0 };
    assert_eq!(refused(&mut fresh(), frame(5, 1, 1, b"x")), offset);
    assert_eq!(refused(&mut fresh(), frame(5, 2, 0, b"x")), Violation::NoStream(Type::Data, 2));
    assert_eq!(refused(&mut fresh(), frame(4, 1, 0, b"")), Violation::Order(1, 1));
    assert_eq!(refused(&mut fresh(), frame(7, 1, 1, b"")), Violation::Ack(1, 1));
    assert_eq!(refused(&mut fresh(), frame(1, 0, 9, b"")), Violation::OutOfPlace(Type::Hello));
    assert_eq!(refused(&mut fresh(), frame(10, 0, 0, b"")), Violation::OutOfPlace(Type::Pong));
    assert_eq!(refused(&mut fresh(), frame(77, 0, 0, b"")), Violation::UnknownType(77));
    assert_eq!(refused(&mut fresh(), frame(9, 0, 0, b"x")), Violation::TooLong(Type::Ping, 1));
    let long = frame(5, 1, 0, &full(MAX_DATA + 1));
    assert_eq!(refused(&mut fresh(), long), Violation::TooLong(Type::Data, MAX_DATA + 1));
}

/// A VM that has stream 1, with `words` and their end.
fn ended(words: &[u8]) -> Machine {
    let (_, mut vm) = pair();
    vm.receive(&mut frame(4, 1, 0, b""), Duration::ZERO).expect("open");
    vm.receive(&mut frame(5, 1, 0, words), Duration::ZERO).expect("data");
    vm.receive(&mut frame(6, 1, words.len() as u64, b""), Duration::ZERO).expect("end");
    vm
}

#[test]
fn a_peer_that_goes_on_after_an_end_or_ends_what_has_no_end_ends_its_session() {
    let offset = |stream, got, want| Violation::Offset { stream, got, want };
    assert_eq!(refused(&mut ended(b"abc"), frame(5, 1, 3, b"x")), offset(1, 3, 3));
    assert_eq!(refused(&mut ended(b"abc"), frame(6, 1, 3, b"")), offset(1, 3, 3));
    let (_, mut vm) = pair();
    vm.receive(&mut frame(4, 1, 0, b""), Duration::ZERO).expect("open");
    assert_eq!(refused(&mut vm, frame(6, 1, 2, b"")), offset(1, 2, 0));
    assert_eq!(refused(&mut pair().1, frame(6, 0, 0, b"")), offset(0, 0, 0));
    for stream in [0, 1] {
        let no_stream = Violation::NoStream(Type::Reset, stream);
        assert_eq!(refused(&mut pair().1, frame(8, stream, 0, b"")), no_stream);
    }
}

#[test]
fn room_is_had_when_the_other_side_says_so_and_not_when_its_user_has_taken() {
    let (mut worker, mut vm) = pair();
    let id = worker.open().expect("open");
    worker.push(id, vec![1; WINDOW].into());
    tell(&mut worker, &mut vm).expect("a window");
    vm.took(id, FLOOR);
    assert_eq!(refused(&mut vm, frame(5, id, WINDOW as u64, b"x")), Violation::Window(id));
}

#[test]
fn many_full_windows_end_the_session_of_whoever_fills_them() {
    let (_, mut vm) = pair();
    let most = (POOL + (MAX_STREAMS + 1) * FLOOR) / WINDOW;
    let piece = [7; MAX_DATA];
    for id in 1..=most as u32 {
        vm.receive(&mut frame(4, id, 0, b""), Duration::ZERO).expect("open");
        for n in 0..WINDOW / MAX_DATA {
            let mut data = frame(5, id, (n * MAX_DATA) as u64, &piece);
            vm.receive(&mut data, Duration::ZERO).expect("within the windows");
        }
    }
    let next = most as u32 + 1;
    vm.receive(&mut frame(4, next, 0, b""), Duration::ZERO).expect("open");
    assert_eq!(refused(&mut vm, frame(5, next, 0, &piece)), Violation::Window(next));
}

/// A worker of whose stream 3 of 5 bytes are sent, and one is acknowledged.
fn half_sent() -> (Machine, Machine, u32) {
    let (mut worker, mut vm) = pair();
    let id = worker.open().expect("open");
    worker.push_slice(id, b"abc");
    tell(&mut worker, &mut vm).expect("data");
    worker.push_slice(id, b"de");
    worker.receive(&mut frame(7, id, 1, b""), Duration::ZERO).expect("one is taken");
    (worker, vm, id)
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_or_is_forgotten_ends_the_session() {
    for number in [0, 4, 5, 6] {
        let (mut worker, _, id) = half_sent();
        assert_eq!(refused(&mut worker, frame(7, id, number, b"")), Violation::Ack(id, number));
    }
}

fn welcome(session: Option<SessionId>, last: u32, next: &[(u32, u64)]) -> BytesMut {
    let mut out = BytesMut::new();
    let greeting = Greeting { session, keep_ms: 0, last, next: next.to_vec() };
    greeting.put(Type::Welcome, 0, &mut out);
    out
}

/// Offsets that lie among what is kept and was not sent were once believed: the bytes were lost.
#[test]
fn a_greeting_that_counts_what_was_never_sent_or_is_forgotten_ends_the_session() {
    for (next, agreed) in [(0, false), (1, true), (3, true), (4, false), (5, false), (6, false)] {
        let (mut worker, vm, id) = half_sent();
        let mut greet = |next| {
            worker.connect(Duration::ZERO);
            let mut welcome = welcome(vm.id, id, &[(0, 0), (id, next)]);
            worker.receive(&mut welcome, Duration::ZERO).is_ok() && worker.over().is_none()
        };
        // Of what was sent the first time, all may have come in spite of an earlier greeting.
        assert!(greet(1));
        assert_eq!(greet(next), agreed, "{next}");
    }
    // An end that was acknowledged does not come back.
    let (mut worker, vm, id) = half_sent();
    worker.finish(id);
    said(&mut worker, usize::MAX);
    worker.receive(&mut frame(7, id, 6, b""), Duration::ZERO).expect("all is taken");
    worker.connect(Duration::ZERO);
    let back = welcome(vm.id, id, &[(0, 0), (id, 5)]);
    assert_eq!(refused(&mut worker, back), Violation::Ack(id, 5));
}

#[test]
fn a_greeting_of_another_session_without_control_or_once_more_ends_the_session() {
    let control = &[(0, 0)][..];
    let (mut worker, vm) = pair();
    let twice = Violation::OutOfPlace(Type::Welcome);
    assert_eq!(refused(&mut worker, welcome(vm.id, 0, control)), twice);
    let ours: fn(Option<SessionId>) -> Option<SessionId> = |id| id;
    for (session, next) in
        [(ours, &[][..]), (|_| None, control), (|_| Some(SessionId::random()), control)]
    {
        let (mut worker, vm) = pair();
        worker.connect(Duration::ZERO);
        assert_eq!(refused(&mut worker, welcome(session(vm.id), 0, next)), Violation::Greeting);
    }
}

#[test]
fn a_worker_opens_no_more_streams_and_tells_no_more_than_it_may() {
    let (mut worker, _) = pair();
    assert_eq!(std::iter::from_fn(|| worker.open()).take(9999).count(), MAX_STREAMS);
    let about = Message::About(About { build: "x".repeat(60_000), pid: 1, takes_files: false });
    let told = (0..9999).take_while(|_| worker.tell(&about)).count();
    assert!(told > 1 && worker.memory() <= WINDOW, "{told}");
}

#[test]
fn more_streams_than_allowed_end_the_session_and_unknown_types_above_127_are_skipped() {
    let (_, mut vm) = pair();
    for id in 1..=MAX_STREAMS as u32 {
        vm.receive(&mut frame(4, id, 0, b""), Duration::ZERO).expect("open");
    }
    vm.receive(&mut frame(200, 5, 7, b"of tomorrow"), Duration::ZERO).expect("skipped");
    let next = MAX_STREAMS as u32 + 1;
    assert_eq!(refused(&mut vm, frame(4, next, 0, b"")), Violation::Streams);
}

#[test]
fn a_flood_of_questions_is_answered_once_and_one_of_resets_is_read_no_further() {
    let (mut worker, mut vm) = pair();
    for _ in 0..10_000 {
        vm.receive(&mut frame(9, 0, 3, b""), Duration::ZERO).expect("ping");
    }
    assert_eq!(said(&mut vm, usize::MAX), frame(10, 0, 3, b""));
    tell(&mut vm, &mut worker).expect("nothing");
    let mut id = 0;
    while vm.may_read() {
        id += 1;
        vm.receive(&mut frame(4, id, 0, b""), Duration::ZERO).expect("open");
        vm.release(id);
        assert!(id < 10_000, "it goes on reading");
    }
    assert!(vm.small.len() < 70_000);
}

#[test]
fn tiny_pieces_cost_little_more_than_their_bytes() {
    let (mut worker, mut vm) = pair();
    let id = worker.open().expect("open");
    tell(&mut worker, &mut vm).expect("open");
    for n in 0..100_000 {
        vm.receive(&mut frame(5, id, n, b"x"), Duration::ZERO).expect("data");
    }
    let flow = &vm.streams[&id];
    assert!(flow.inn.queue.chunks() <= 3, "{} pieces", flow.inn.queue.chunks());
}

#[test]
fn silence_is_asked_about_and_then_the_connection_is_dead() {
    let (mut worker, mut vm) = pair();
    let at = |ms| Duration::from_millis(ms);
    assert_eq!(worker.deadline(), Some(ASK_IDLE));
    worker.open().map(|id| worker.push_slice(id, b"x")).expect("open");
    assert_eq!(worker.deadline(), Some(ASK_BUSY), "it waits for an acknowledgement");
    assert!(worker.tick(at(999)));
    said(&mut worker, usize::MAX);
    assert!(worker.tick(at(1000)));
    assert_eq!(said(&mut worker, usize::MAX), frame(9, 0, 0, b""));
    assert!(worker.tick(at(3999)) && !worker.tick(at(4000)), "after DEAD nobody is there");
    worker.receive(&mut frame(10, 0, 0, b""), at(4100)).expect("pong");
    assert!(worker.tick(at(4100)), "a word in time");
    assert!(vm.tick(at(11_999)) && !vm.tick(at(12_000)));
    vm.receive(&mut frame(9, 0, 0, b""), at(12_001)).expect("ping");
    assert!(vm.tick(at(24_000)) && !vm.tick(at(24_001)), "from the last word on");
}

#[test]
fn what_another_process_gave_is_checked() {
    let (mut worker, mut vm) = pair();
    let id = worker.open().expect("open");
    worker.push_slice(id, b"abc");
    tell(&mut worker, &mut vm).expect("data");
    let export = worker.export().expect("export");
    let whole = export.as_bytes().to_vec();
    assert!(!format!("{export:?}").contains("PPLS"));
    for cut in 0..whole.len() {
        let part = Export::from_bytes(whole[..cut].to_vec());
        assert!(matches!(Machine::import(&part), Err(ExportError::Broken(_))), "cut at {cut}");
    }
    let mut other = whole.clone();
    other[5] = 9;
    let version = Machine::import(&Export::from_bytes(other)).err();
    assert_eq!(version, Some(ExportError::Version(9)));
    let long = Export::from_bytes([&whole[..], b"x"].concat());
    assert!(matches!(Machine::import(&long), Err(ExportError::Broken(_))));
}

#[test]
fn what_another_process_gave_counts_no_further_than_can_be_counted_on() {
    let export = pair().0.export().expect("export").as_bytes().to_vec();
    // The attempt; and of the first stream, the offsets of what goes out and what comes in.
    for at in [22, 47, 59] {
        for (number, taken) in [(u64::MAX, false), ((1 << 62) + 1, false), (1 << 62, true)] {
            let mut other = export.clone();
            other[at..at + 8].copy_from_slice(&number.to_be_bytes());
            let mut machine = Machine::import(&Export::from_bytes(other));
            assert_eq!(machine.is_ok(), taken, "{number} at {at}");
            machine.iter_mut().for_each(|machine| machine.connect(Duration::ZERO));
        }
    }
}

#[test]
fn what_another_process_gave_has_a_control_stream_that_lives() {
    let export = pair().0.export().expect("export").as_bytes().to_vec();
    assert_eq!(export[46], 1, "its flags: announced");
    for flags in [0, 3, 7, 9, 25, 31, 33] {
        let mut other = export.clone();
        other[46] = flags;
        let taken = Machine::import(&Export::from_bytes(other));
        assert!(matches!(taken, Err(ExportError::Broken(_))), "flags {flags}");
    }
}

proptest::proptest! {
    #[test]
    fn hostile_bytes_never_panic_and_never_cost_more_than_they_are(
        bytes: Vec<u8>, frames: Vec<(u8, u8, u8, Vec<u8>)>, vm_side: bool,
    ) {
        let (mut worker, mut vm) = pair();
        worker.open();
        tell(&mut worker, &mut vm).expect("open");
        let machine = if vm_side { &mut vm } else { &mut worker };
        let mut input = BytesMut::new();
        for (kind, stream, number, payload) in frames {
            let kind = kind % 16;
            input.extend_from_slice(&frame(kind, (stream % 4).into(), (number % 8).into(), &payload));
        }
        input.extend_from_slice(&bytes);
        let length = input.len();
        let _ = machine.receive(&mut input, Duration::ZERO);
        proptest::prop_assert!(machine.memory() <= length);
        let _ = Machine::import(&Export::from_bytes(bytes));
    }
}
