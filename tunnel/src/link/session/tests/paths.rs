//! What a path may do to a session: fall silent, take nothing, bring bytes one by one.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, timeout};

use super::ends::{KEEP, connect, connect_through, echo, owner, sessions};
use super::*;

/// A link that has greeted, and the other end of its connection, of which nothing comes by itself.
async fn silent_vm() -> (Link, tokio::task::JoinHandle<Ended>, DuplexStream) {
    let link = Link::worker("test", KEEP);
    let (ours, mut theirs) = duplex(60_000);
    let running = link.clone();
    let worker = tokio::spawn(async move { running.run(ours).await });
    let (head, hello) = until(&mut theirs, Type::Hello).await;
    let hello = Greeting::parse(&hello).expect("hello");
    let mut vm = Machine::new(Side::Vm, Some(SessionId::random()), Duration::ZERO);
    vm.join(&hello, head.number, Duration::ZERO).expect("join");
    theirs.write_all(&said(&mut vm, usize::MAX)).await.expect("welcome");
    link.joined().await.expect("joined");
    // Its About, which nobody acknowledges yet.
    until(&mut theirs, Type::Data).await;
    (link, worker, theirs)
}

/// Reads whole frames until one is of this type; gives that.
async fn until(theirs: &mut DuplexStream, kind: Type) -> (Head, Vec<u8>) {
    loop {
        let mut head = [0; HEAD];
        theirs.read_exact(&mut head).await.expect("a frame");
        let head = Head::parse(&head).expect("a head");
        let mut payload = vec![0; head.length];
        theirs.read_exact(&mut payload).await.expect("its payload");
        if head.kind == kind {
            return (head, payload);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_asked_about_in_time_though_it_began_while_nothing_was_awaited() {
    let (link, worker, mut theirs) = silent_vm().await;
    let begin = Instant::now();
    let mut ack = BytesMut::new();
    let about = link.0.lock().machine.kept as u64;
    Head::bare(Type::Ack, 0, about).put(&mut ack);
    theirs.write_all(&ack).await.expect("acknowledged");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut stream = link.open().expect("open");
    stream.write_all(b"x").await.expect("write");
    until(&mut theirs, Type::Ping).await;
    assert_eq!(begin.elapsed().as_secs(), 1, "after a second without a sign");
    let Ended::Broken(why) = worker.await.expect("worker") else { panic!("it is dead") };
    assert!(why.contains("no sign of life"), "{why}");
    assert_eq!(begin.elapsed().as_secs(), 4);
}

/// Answers to a worker that reads none of them were once kept without end.
#[tokio::test(start_paused = true)]
async fn whoever_asks_and_does_not_read_is_read_no_further() {
    let (link, sessions) = (Link::worker("test", KEEP), sessions());
    let (mut ours, theirs) = duplex(60_000);
    // Each stream is given up as it comes, and that is to be told.
    let serving = sessions.clone();
    let vm = tokio::spawn(async move { serving.serve(theirs, &owner("us"), drop).await });
    let hello = {
        let mut inner = link.0.lock();
        inner.machine.connect(Duration::ZERO);
        said(&mut inner.machine, 1)
    };
    ours.write_all(&hello).await.expect("hello");
    let mut flood = BytesMut::new();
    (1..=100_000).for_each(|id| Head::bare(Type::Open, id, 0).put(&mut flood));
    // No more at a time than there may be streams.
    let mut pieces = flood.chunks(HEAD * MAX_STREAMS / 2).enumerate();
    let stuck = loop {
        let (n, piece) = pieces.next().expect("it goes on reading");
        match timeout(Duration::from_secs(1), ours.write_all(piece)).await {
            Ok(written) => written.expect("the session goes on"),
            Err(_) => break n,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert!(stuck > 10, "after {stuck} pieces already");
    drop(ours);
    let served = vm.await.expect("vm");
    assert!(matches!(served, Served::Ended(Ended::Broken(_))), "{served:?}");
}

#[tokio::test]
async fn frames_come_whole_in_whatever_pieces() {
    for piece in [1, 7, 33] {
        let (link, sessions) = (Link::worker("test", KEEP), sessions());
        let _ends = connect_through(&link, &sessions, duplex(piece), "us");
        let mut stream = link.open().expect("open");
        for n in 0..5 {
            echo(&mut stream, &bytes(1, Side::Worker, n, 50 + n as usize)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_worker_has_a_session_kept_for_longer_than_ten_minutes() {
    let (link, sessions) = (Link::worker("test", Duration::from_secs(24 * 3600)), sessions());
    let ends = connect(&link, &sessions);
    link.joined().await.expect("joined");
    ends.cut().await;
    tokio::time::advance(Duration::from_secs(599)).await;
    assert_eq!(sessions.expire(), 0);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!((sessions.expire(), sessions.count()), (1, 0));
}
