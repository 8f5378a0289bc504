//! What a side says it has taken, when it says so, and what is counted until then.

use super::*;

/// A call and its answer, as most are at most.
const CALL: usize = 32 << 10;
/// From here on what was taken is said without company; and once room is short.
const MUCH: usize = 64 << 10;
const MUCH_WHEN_TIGHT: usize = 16 << 10;

/// Everything `from` has to say goes to `to`; gives what it was, with the numbers.
fn heads(from: &mut Machine, to: &mut Machine) -> Vec<(Type, u32, u64)> {
    let all = said(from, usize::MAX);
    let (mut at, mut heads) = (0, Vec::new());
    while let Some(head) = all.get(at..).and_then(|rest| rest.first_chunk()) {
        let head = Head::parse(head).expect("a head");
        heads.push((head.kind, head.stream, head.number));
        at += HEAD + head.length;
    }
    to.receive(&mut BytesMut::from(&all[..]), Duration::ZERO).expect("in order");
    heads
}

fn kinds(from: &mut Machine, to: &mut Machine) -> Vec<Type> {
    heads(from, to).into_iter().map(|(kind, ..)| kind).collect()
}

/// A new stream that both know.
fn open(worker: &mut Machine, vm: &mut Machine) -> u32 {
    let id = worker.open().expect("open");
    tell(worker, vm).expect("open");
    id
}

fn events(machine: &mut Machine) -> Vec<Event> {
    std::iter::from_fn(|| machine.event()).collect()
}

#[test]
fn calls_cost_one_packet_each_way_and_leave_nothing_behind_however_many_they_are() {
    let (mut worker, mut vm) = pair();
    let id = open(&mut worker, &mut vm);
    worker.tell(&Message::About(About::default()));
    tell(&mut worker, &mut vm).expect("about");
    // More than all streams may have unacknowledged at a time.
    for n in 0..2 * POOL / CALL {
        worker.push(id, vec![1; CALL].into());
        let question = kinds(&mut worker, &mut vm);
        vm.took(id, CALL);
        assert!(!vm.wants_to_say(), "call {n}: so little goes with the answer");
        vm.push(id, vec![2; CALL].into());
        let answer = kinds(&mut vm, &mut worker);
        worker.took(id, CALL);
        assert!(!worker.wants_to_say(), "call {n}: so little goes with the next question");
        // The first question has no answer before it, the first answer takes the greeting along.
        if n > 0 {
            assert_eq!(
                (question, answer),
                (vec![Type::Data, Type::Ack], vec![Type::Data, Type::Ack])
            );
        }
    }
    assert_eq!((worker.memory(), worker.room(id)), (0, Some(WINDOW)), "idle, nothing is kept");
    assert_eq!(worker.deadline(), Some(ASK_IDLE), "nor waited for");
}

#[test]
fn much_that_was_taken_is_said_at_once_and_once() {
    let (mut worker, mut vm) = pair();
    let id = open(&mut worker, &mut vm);
    worker.push(id, vec![1; 2 * MUCH].into());
    tell(&mut worker, &mut vm).expect("data");
    vm.took(id, MUCH - 1);
    assert!(!vm.wants_to_say());
    vm.took(id, 1);
    assert_eq!(heads(&mut vm, &mut worker), [(Type::Ack, id, MUCH as u64)]);
    vm.push_slice(id, b"x");
    assert_eq!(kinds(&mut vm, &mut worker), [Type::Data]);
}

/// A receiver with half of the pool unread, and a stream beside it of which `MUCH` has come.
fn tight() -> (Machine, Machine, u32, u32) {
    let (mut worker, mut vm) = pair();
    let id = open(&mut worker, &mut vm);
    let others: Vec<u32> = (0..POOL / 2 / WINDOW).map(|_| open(&mut worker, &mut vm)).collect();
    for other in &others {
        vm.push(*other, vec![2; WINDOW].into());
    }
    vm.push(id, vec![1; MUCH].into());
    tell(&mut vm, &mut worker).expect("data");
    (worker, vm, id, others[0])
}

#[test]
fn where_room_is_short_less_is_said_without_company_and_no_longer_than_it_is_short() {
    let (mut worker, mut vm, id, other) = tight();
    worker.took(id, MUCH_WHEN_TIGHT - 1);
    vm.push_slice(id, b"more");
    tell(&mut vm, &mut worker).expect("data");
    assert!(!worker.wants_to_say(), "so little has time");
    worker.took(id, 1);
    assert_eq!(heads(&mut worker, &mut vm), [(Type::Ack, id, MUCH_WHEN_TIGHT as u64)]);
    // A stream that is given up is not waited for any more, with all that came on it.
    worker.release(other);
    tell(&mut worker, &mut vm).expect("reset");
    worker.took(id, MUCH_WHEN_TIGHT);
    assert!(!worker.wants_to_say(), "there is room again");
}

#[test]
fn another_process_knows_that_room_is_short() {
    let (worker, mut vm, id, _) = tight();
    let mut next = Machine::import(&worker.export().expect("export")).expect("import");
    meet(&mut next, &mut vm);
    tell(&mut next, &mut vm).expect("in order");
    next.took(id, MUCH_WHEN_TIGHT);
    assert!(next.wants_to_say());
}

#[test]
fn streams_that_are_given_up_half_way_count_no_more_and_make_room() {
    let (mut worker, mut vm) = pair();
    for given_up in 0..2 * POOL / WINDOW {
        let id = open(&mut worker, &mut vm);
        assert_eq!(worker.room(id), Some(WINDOW), "after {given_up}");
        worker.push(id, vec![1; WINDOW].into());
        tell(&mut worker, &mut vm).expect("data");
        worker.release(id);
        tell(&mut worker, &mut vm).expect("reset");
    }
    let all: Vec<u32> = (0..=POOL / WINDOW).map(|_| open(&mut worker, &mut vm)).collect();
    for id in &all {
        let room = worker.room(*id).expect("room");
        worker.push(*id, vec![1; room].into());
    }
    let last = all[all.len() - 1];
    assert_eq!(worker.room(last), Some(0), "the pool is used up");
    events(&mut worker);
    worker.release(all[0]);
    assert_eq!(events(&mut worker), [Event::Writable(last)]);
    assert_ne!(worker.room(last), Some(0));
}

#[test]
fn the_end_is_acknowledged_by_itself_and_counts_one() {
    let (mut worker, mut vm) = pair();
    let id = open(&mut worker, &mut vm);
    worker.push_slice(id, b"question");
    worker.finish(id);
    tell(&mut worker, &mut vm).expect("in order");
    vm.took(id, 8);
    assert!(!vm.wants_to_say());
    vm.finish(id);
    tell(&mut vm, &mut worker).expect("in order");
    worker.took_end(id);
    vm.took_end(id);
    assert_eq!(heads(&mut vm, &mut worker), [(Type::Ack, id, 9)]);
    assert_eq!((worker.streams(), vm.streams()), (1, 1), "one end has not been said to be taken");
    assert_eq!(heads(&mut worker, &mut vm), [(Type::Ack, id, 1)]);
    assert_eq!((worker.streams(), vm.streams()), (0, 0));
}

#[test]
fn a_user_that_goes_after_its_end_leaves_no_stream_and_no_bytes_behind() {
    // What the other side says: before the user goes, and after that.
    for (before, after) in
        [((MUCH, false), (0, true)), ((0, false), (MUCH, true)), ((9, true), (0, false))]
    {
        let (mut worker, mut vm) = pair();
        let id = open(&mut worker, &mut vm);
        let say = |worker: &mut Machine, vm: &mut Machine, (count, end)| {
            worker.push(id, vec![1; count].into());
            if end {
                worker.finish(id);
            }
            tell(worker, vm).expect("in order");
        };
        say(&mut worker, &mut vm, before);
        vm.finish(id);
        vm.release(id);
        say(&mut worker, &mut vm, after);
        tell(&mut vm, &mut worker).expect("in order");
        assert_eq!(worker.memory() + vm.memory(), 0, "{before:?} {after:?}: all is taken");
        worker.took_end(id);
        tell(&mut worker, &mut vm).expect("in order");
        assert_eq!((worker.streams(), vm.streams()), (0, 0), "{before:?} {after:?}");
    }
}

#[test]
fn whoever_still_writes_to_a_user_that_has_gone_is_told() {
    let (mut worker, mut vm) = pair();
    let id = open(&mut worker, &mut vm);
    vm.finish(id);
    vm.release(id);
    tell(&mut vm, &mut worker).expect("in order");
    worker.took_end(id);
    events(&mut worker);
    tell(&mut worker, &mut vm).expect("in order");
    tell(&mut vm, &mut worker).expect("in order");
    assert_eq!(events(&mut worker), [Event::Reset(id)]);
    assert_eq!((worker.streams(), vm.streams()), (0, 0));
}

#[test]
fn what_a_cut_has_swallowed_of_acknowledgements_and_resets_is_made_up_for() {
    let (mut worker, mut vm) = pair();
    let [lives, gone] = [(); 2].map(|()| open(&mut worker, &mut vm));
    worker.push(lives, vec![1; MUCH].into());
    tell(&mut worker, &mut vm).expect("data");
    vm.took(lives, MUCH);
    said(&mut vm, usize::MAX);
    // Both have a word for the connection that is no more; it must not be the first on the next.
    worker.release(gone);
    vm.release(gone);
    meet(&mut worker, &mut vm);
    tell(&mut vm, &mut worker).expect("in order");
    assert_eq!(worker.memory(), 0);

    let half = open(&mut worker, &mut vm);
    worker.part();
    worker.release(half);
    events(&mut vm);
    meet(&mut worker, &mut vm);
    assert_eq!(events(&mut vm), [Event::Reset(half)], "its user hears of it");
}

#[test]
fn a_burst_is_not_much_longer_than_asked_for_and_streams_take_turns_in_it() {
    let (mut worker, mut vm) = pair();
    let all = [(); 3].map(|()| open(&mut worker, &mut vm));
    for id in all {
        worker.push(id, vec![1; WINDOW].into());
    }
    const MOST: usize = 256 << 10;
    let burst = said(&mut worker, MOST);
    assert!(burst.len() <= MOST + MAX_DATA + HEAD, "{}", burst.len());
    vm.receive(&mut BytesMut::from(&burst[..]), Duration::ZERO).expect("in order");
    for id in all {
        assert!(matches!(vm.front(id), Front::Bytes(_)), "stream {id} is left waiting");
    }
}
