//! Both ends with their tasks, over connections that the test cuts.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;

pub(super) const KEEP: Duration = Duration::from_secs(30);

pub(super) fn sessions() -> Arc<Sessions> {
    Arc::new(Sessions::new("vm of the test"))
}

pub(super) fn owner(name: &str) -> Owner {
    Owner::of(Some(name.as_bytes()))
}

/// A VM that sends everything back.
fn serve(sessions: &Arc<Sessions>, connection: DuplexStream, owner: Owner) -> JoinHandle<Served> {
    let sessions = sessions.clone();
    tokio::spawn(async move {
        let echo = |stream: Stream| {
            tokio::spawn(async move {
                let (mut from, mut to) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        };
        sessions.serve(connection, &owner, echo).await
    })
}

pub(super) struct Ends {
    worker: JoinHandle<Ended>,
    vm: JoinHandle<Served>,
}

/// A new connection for a link, owned by "us".
pub(super) fn connect(link: &Link, sessions: &Arc<Sessions>) -> Ends {
    connect_as(link, sessions, "us")
}

fn connect_as(link: &Link, sessions: &Arc<Sessions>, name: &str) -> Ends {
    connect_through(link, sessions, duplex(60_000), name)
}

/// The same through a pipe of the test's.
pub(super) fn connect_through(
    link: &Link,
    sessions: &Arc<Sessions>,
    (ours, theirs): (DuplexStream, DuplexStream),
    name: &str,
) -> Ends {
    let link = link.clone();
    let worker = tokio::spawn(async move { link.run(ours).await });
    Ends { worker, vm: serve(sessions, theirs, owner(name)) }
}

impl Ends {
    pub(super) async fn cut(self) {
        self.worker.abort();
        let _ = self.worker.await;
        let served = self.vm.await.expect("vm");
        // It may not have got as far as a greeting.
        let cut = matches!(served, Served::Ended(Ended::Broken(_)) | Served::NoGreeting(_));
        assert!(cut, "{served:?}");
    }
}

pub(super) async fn echo(stream: &mut Stream, words: &[u8]) {
    stream.write_all(words).await.expect("write");
    let mut back = vec![0; words.len()];
    stream.read_exact(&mut back).await.expect("read");
    assert_eq!(back, words);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_of_megabytes_goes_on_over_twenty_cuts() {
    let (link, sessions) = (Link::worker("test", KEEP), sessions());
    let mut ends = connect(&link, &sessions);
    link.joined().await.expect("joined");
    const ALL: u64 = 6 << 20;
    let stream = link.open().expect("open");
    let id = stream.id();
    let (mut from, mut to) = tokio::io::split(stream);
    let writing = tokio::spawn(async move {
        for at in (0..ALL).step_by(50_000) {
            let count = (ALL - at).min(50_000) as usize;
            to.write_all(&bytes(id, Side::Worker, at, count)).await.expect("write");
        }
        to.shutdown().await.expect("shutdown");
    });
    let (mut at, mut cuts) = (0, 0);
    let mut buffer = vec![0; 40_000];
    loop {
        let count = from.read(&mut buffer).await.expect("read");
        if count == 0 {
            break;
        }
        assert!(buffer[..count] == bytes(id, Side::Worker, at, count), "at {at}");
        at += count as u64;
        if at * 20 / ALL > cuts {
            cuts += 1;
            ends.cut().await;
            ends = connect(&link, &sessions);
        }
    }
    writing.await.expect("writer");
    assert_eq!((at, cuts, sessions.count()), (ALL, 20, 1));
    assert_eq!(link.peer().map(|about| about.build).as_deref(), Some("vm of the test"));
}

/// Bytes that came between the reader's look and its wait once read as an end of the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn bytes_that_come_while_a_reader_begins_to_wait_are_no_end() {
    let (link, sessions) = (Link::worker("test", KEEP), sessions());
    let _ends = connect(&link, &sessions);
    link.joined().await.expect("joined");
    let tasks = (0..3).map(|_| link.open().expect("open")).map(|mut stream| {
        tokio::spawn(async move {
            for n in 0..4000_u32 {
                echo(&mut stream, &n.to_be_bytes()).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("every word comes back");
    }
}

#[tokio::test]
async fn another_certificate_does_not_get_the_session_and_does_not_disturb_it() {
    let (link, sessions) = (Link::worker("test", KEEP), sessions());
    let ends = connect(&link, &sessions);
    link.joined().await.expect("joined");
    let mut stream = link.open().expect("open");
    echo(&mut stream, b"before").await;
    // Somebody who has seen everything but the key.
    let stolen = Machine::import(&link.0.lock().machine.export().expect("export"));
    let thief = Link::import(&stolen.expect("import").export().expect("export")).expect("import");
    let theft = connect_as(&thief, &sessions, "somebody else");
    let refused = Over::Refused(Refusal::Unknown);
    assert_eq!(theft.worker.await.expect("thief"), Ended::Over(refused));
    assert_eq!(theft.vm.await.expect("vm"), Served::Refused(Refusal::Unknown));
    echo(&mut stream, b"after").await;
    ends.cut().await;
    let _ends = connect(&link, &sessions);
    echo(&mut stream, b"and after a cut").await;
}

#[tokio::test]
async fn a_second_connection_takes_the_place_of_a_half_dead_first_and_a_late_one_does_not() {
    let (link, sessions) = (Link::worker("test", KEEP), sessions());
    let first = connect(&link, &sessions);
    link.joined().await.expect("joined");
    let mut stream = link.open().expect("open");
    echo(&mut stream, b"one").await;
    let early = link.0.lock().machine.export().expect("export");
    // Comes while the first is still open on both ends.
    let next = Link::import(&early).expect("import");
    let second = connect(&next, &sessions);
    assert_eq!(first.vm.await.expect("vm"), Served::Ended(Ended::Replaced));
    assert!(matches!(first.worker.await.expect("worker"), Ended::Broken(_)));
    let mut stream = next.stream(stream.id()).expect("stream");
    echo(&mut stream, b"two").await;
    // A greeting that was under way all the time.
    let late = connect(&Link::import(&early).expect("import"), &sessions);
    let stale = Refusal::Stale;
    assert_eq!(late.vm.await.expect("vm"), Served::Refused(stale));
    assert_eq!(late.worker.await.expect("worker"), Ended::Over(Over::Refused(stale)));
    echo(&mut stream, b"three").await;
    second.cut().await;
}

#[tokio::test]
async fn a_vm_that_has_lost_the_session_says_so_and_every_stream_hears_it() {
    let (link, before) = (Link::worker("test", KEEP), sessions());
    let ends = connect(&link, &before);
    let mut streams: Vec<_> = (0..3).map(|_| link.open().expect("open")).collect();
    echo(&mut streams[0], b"well").await;
    ends.cut().await;
    let ends = connect(&link, &sessions());
    let lost = Over::Refused(Refusal::Unknown);
    assert_eq!(ends.worker.await.expect("worker"), Ended::Over(lost.clone()));
    for stream in &mut streams {
        let error = stream.read(&mut [0]).await.expect_err("lost");
        assert_eq!(Stream::lost(&error), Some(&lost));
        assert!(error.to_string().contains("the VM has lost the session"), "{error}");
        assert!(stream.write(b"x").await.is_err());
    }
    assert!(link.open().is_none());
    assert_eq!(link.joined().await, Err(lost));
}

#[tokio::test]
async fn another_process_goes_on_with_every_stream() {
    let (link, sessions) = (Link::worker("test", KEEP), sessions());
    let _old = connect(&link, &sessions);
    let mut stream = link.open().expect("open");
    echo(&mut stream, b"before").await;
    let id = stream.id();
    // Written, and neither sent nor read back by the time of the hand-over.
    stream.write_all(b"during").await.expect("write");
    let export = Export::from_bytes(link.export().expect("export").as_bytes().to_vec());
    assert!(stream.read(&mut [0]).await.is_err(), "it is the other process's now");
    drop((stream, link));
    let link = Link::import(&export).expect("import");
    let mut stream = link.stream(id).expect("stream");
    let _new = connect(&link, &sessions);
    let mut back = [0; 6];
    stream.read_exact(&mut back).await.expect("read");
    assert_eq!(&back, b"during");
    echo(&mut stream, b"after").await;
    assert_eq!(sessions.count(), 1);
}

#[tokio::test]
async fn closing_is_told_and_a_half_closed_stream_still_hears_its_answer() {
    let (link, sessions) = (Link::worker("test", KEEP), sessions());
    let ends = connect(&link, &sessions);
    let mut stream = link.open().expect("open");
    stream.write_all(b"question").await.expect("write");
    stream.shutdown().await.expect("shutdown");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("read");
    assert_eq!(answer, b"question");
    sessions.close("the VM stops");
    let closed = Over::Closed("the VM stops".to_owned());
    assert_eq!(ends.worker.await.expect("worker"), Ended::Over(closed.clone()));
    assert_eq!(link.over(), Some(closed));
    assert_eq!(sessions.count(), 0);

    let link = Link::worker("test", KEEP);
    let ends = connect(&link, &sessions);
    link.joined().await.expect("joined");
    link.close("no more use");
    let ended = Over::Ended("no more use".to_owned());
    assert_eq!(ends.worker.await.expect("worker"), Ended::Over(ended));
    assert!(matches!(ends.vm.await.expect("vm"), Served::Ended(Ended::Over(Over::Closed(_)))));
    assert_eq!(sessions.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dead_path_is_noticed_and_a_session_nobody_comes_back_for_is_forgotten() {
    let (link, sessions) = (Link::worker("test", KEEP), sessions());
    let ends = connect(&link, &sessions);
    let mut stream = link.open().expect("open");
    echo(&mut stream, b"well").await;
    ends.cut().await;
    assert_eq!(sessions.expire(), 0);

    // Nobody answers on this one; the other end is kept open and silent.
    let (ours, _silent) = duplex(60_000);
    let begin = tokio::time::Instant::now();
    let Ended::Broken(why) = link.run(ours).await else { panic!("it is dead") };
    assert!(why.contains("no sign of life"), "{why}");
    assert_eq!(begin.elapsed().as_secs(), DEAD.as_secs());

    tokio::time::advance(KEEP).await;
    assert_eq!((sessions.expire(), sessions.count()), (1, 0));
    let ends = connect(&link, &sessions);
    let lost = Ended::Over(Over::Refused(Refusal::Unknown));
    assert_eq!(ends.worker.await.expect("worker"), lost);
}

#[tokio::test]
async fn sessions_are_bounded_and_those_without_a_connection_go_first() {
    let sessions = sessions();
    let mut all = Vec::new();
    for _ in 0..MAX_SESSIONS {
        let link = Link::worker("test", KEEP);
        let ends = connect(&link, &sessions);
        link.joined().await.expect("joined");
        all.push((link, ends));
    }
    let one_more = Link::worker("test", KEEP);
    let ends = connect(&one_more, &sessions);
    let busy = Over::Refused(Refusal::Busy);
    assert_eq!(ends.worker.await.expect("worker"), Ended::Over(busy));
    let (_, ends) = all.remove(3);
    ends.cut().await;
    let one_more = Link::worker("test", KEEP);
    let _ends = connect(&one_more, &sessions);
    one_more.joined().await.expect("joined");
    assert_eq!(sessions.count(), MAX_SESSIONS);
}

#[tokio::test]
async fn who_does_not_greet_or_greets_in_another_version_is_not_served() {
    let sessions = sessions();
    for (words, seen) in [
        (&b"GET / HTTP/1.1\r\nHost: vm\r\n\r\n"[..], "unknown type"),
        (&[0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "out of place"),
        (&[0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "announced"),
        (&[], "closed"),
    ] {
        let (mut ours, theirs) = duplex(60_000);
        let vm = serve(&sessions, theirs, owner("us"));
        ours.write_all(words).await.expect("write");
        drop(ours);
        let Served::NoGreeting(why) = vm.await.expect("vm") else { panic!("{words:?}") };
        assert!(why.contains(seen), "{why}");
    }
    let mut hello = BytesMut::new();
    let greeting = Greeting { session: None, keep_ms: 0, last: 0, next: vec![(0, 0)] };
    greeting.put(Type::Hello, 1, &mut hello);
    hello[HEAD + 1] = 9;
    let (mut ours, theirs) = duplex(60_000);
    let vm = serve(&sessions, theirs, owner("us"));
    ours.write_all(&hello).await.expect("write");
    assert_eq!(vm.await.expect("vm"), Served::Refused(Refusal::Version));
    assert_eq!(sessions.count(), 0);
}
