//! Whoever is at the other end of a hand-over and is not what it should be.

use std::os::fd::AsFd;

use super::handover::{Until, come_to, hello};
use super::*;
use crate::relay::handover::message::{self, About, Empty, File, Hello, Say, VERSION, Welcome};
use crate::relay::handover::{Stranger, TakeError};

#[tokio::test]
async fn strangers_are_refused_and_told_why() {
    let bench = Bench::start().await;
    let dir = bench.dir.path();
    let refused = async |say: Say| {
        let mut stranger = Stranger::connect(&dir.join("relay.sock")).await;
        stranger.say(say).await;
        match within(stranger.hear()).await {
            Some(Say::Refused(why)) => why,
            other => panic!("{other:?}"),
        }
    };
    let newer = refused(hello(dir, VERSION + 1)).await;
    assert!(newer.contains("stranger") && newer.contains("test"), "{newer}");
    type Place = fn(&mut Hello) -> &mut String;
    let places: [(&str, Place); 3] = [
        ("--socket", |hello| &mut hello.hypervisor),
        ("--run-dir", |hello| &mut hello.control),
        ("--pods-dir", |hello| &mut hello.pods_dir),
    ];
    for (setting, place) in places {
        let Say::Hello(mut other) = hello(dir, VERSION) else { panic!("Hello") };
        *place(&mut other) = "/elsewhere".to_owned();
        let why = refused(Say::Hello(other)).await;
        assert!(why.starts_with(setting) && why.contains("/elsewhere"), "{why}");
    }
    let rude = refused(Say::Done(Empty {})).await;
    assert!(rude.contains("Hello"), "{rude}");
    // A giant length, one that no Hello has, and bytes that are no message, cost the connection only.
    let bytes = [&[0xff; 64][..], b"\0\0\x10\x01\0", b"\0\0\0\x02\0\xff\xff", b"\0\0\0\0\x03"];
    for bytes in bytes {
        let mut stream = UnixStream::connect(dir.join("relay.sock")).await.expect("connect");
        within(stream.write_all(bytes)).await.expect("write");
        ends(&mut stream).await;
    }
}

#[tokio::test]
async fn an_old_one_that_dies_at_any_step_leaves_a_new_one_that_serves() {
    for until in [Until::Connected, Until::Hello, Until::Welcome, Until::All] {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = UnixListener::bind(dir.path().join("relay.sock")).expect("bind");
        let old = async {
            let mut wire = Stranger::new(socket.accept().await.expect("accept").0);
            if until != Until::Connected {
                within(wire.hear()).await.expect("Hello");
            }
            if until == Until::Welcome {
                let about = Some(Default::default());
                wire.say(Say::Welcome(Welcome { version: VERSION, about })).await;
            }
            if until == Until::All {
                wire.say(Say::Refused("no".to_owned())).await;
            }
            drop(socket);
        };
        let (relay, ()) = tokio::join!(crate::relay::Relay::bind(options(dir.path())), old);
        if until == Until::All {
            let error = relay.expect_err("it was refused");
            assert!(matches!(error, RelayError::TakeOver(TakeError::Refused(_))), "{error}");
        } else {
            relay.unwrap_or_else(|e| panic!("{until:?}: {e}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_falls_silent_before_done_is_given_up_and_the_next_one_takes_over() {
    let bench = Bench::start().await;
    let mut node = bench.node().await;
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(1, "StartVM", "s1")).await;
    let mut there = node.accept().await;
    there.frame().await;
    let _silent = come_to(bench.dir.path(), Until::All).await;
    shim.send(&hypervisor_call(3, "StopVM", "s1")).await;
    assert_eq!(there.frame().await.stream, 3, "it goes on");
    let _dumb = come_to(bench.dir.path(), Until::Connected).await;
    let second = bench.successor().await;
    node.attached_again().await;
    let _dir = bench.ended().await;
    second.stop().await;
}

#[tokio::test]
async fn when_it_is_not_clear_who_serves_it_is_the_one_that_has_said_done() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    let mut other = come_to(bench.dir.path(), Until::All).await;
    // The old one gives up for the first word, and finds the second.
    other.say_at_once(&[Say::Again(Empty {}), Say::Done(Empty {})]).await;
    let agent = bench.agent_path("s1");
    let dir = bench.ended().await;
    for socket in ["hypervisor.sock", "control.sock", "relay.sock"] {
        assert!(dir.path().join(socket).exists(), "{socket} is the other one's");
    }
    assert!(agent.exists(), "and so is the pod's");
}

#[tokio::test(start_paused = true)]
async fn one_that_never_hands_over_is_an_error_in_the_end() {
    for hangs in [false, true] {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = UnixListener::bind(dir.path().join("relay.sock")).expect("bind");
        let old = async {
            loop {
                match hangs {
                    true => std::future::pending().await,
                    false => drop(socket.accept().await),
                }
            }
        };
        let bound = crate::relay::Relay::bind(options(dir.path()));
        let bound = tokio::time::timeout(Duration::from_secs(3600), bound);
        let bound = tokio::select! {
            bound = bound => bound.expect("in the end"),
            never = old => never,
        };
        let error = bound.expect_err("it never hands over");
        assert!(matches!(error, RelayError::TakeOver(TakeError::Broken(_))), "{error}");
    }
}

/// What a new relay makes of an old one that offers these parts, with so many listeners each, and
/// whether it has said Done.
async fn offered(parts: &[Say], listeners: usize) -> (RelayError, bool) {
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = UnixListener::bind(dir.path().join("relay.sock")).expect("bind");
    let old = async {
        let mut wire = Stranger::new(socket.accept().await.expect("accept").0);
        within(wire.hear()).await.expect("Hello");
        let about = Some(About::default());
        wire.say(Say::Welcome(Welcome { version: VERSION, about })).await;
        for part in parts {
            wire.give(part.clone(), &vec![socket.as_fd(); listeners]).await;
        }
        within(wire.hear()).await.is_some()
    };
    let (relay, done) = tokio::join!(crate::relay::Relay::bind(options(dir.path())), old);
    (relay.expect_err("nothing to serve with"), done)
}

#[tokio::test]
async fn an_offer_that_is_not_whole_or_reaches_beyond_its_pods_is_not_taken() {
    let pod = |sandbox: &str, path: &str| {
        let (sandbox, path) = (sandbox.to_owned(), path.to_owned());
        Say::Pod(message::Pod { sandbox, path, ..message::Pod::default() })
    };
    let session = message::Session { sandbox: "s1".to_owned(), export: Bytes::from_static(b"x") };
    let sockets = |files| Say::Sockets(message::Sockets { files: vec![File::default(); files] });
    let cases = [
        ("lacks", vec![Say::All(0)]),
        ("lacks 1 parts", vec![Say::All(1)]),
        ("listener", vec![sockets(3)]),
        ("file", vec![sockets(2)]),
        ("has the path", vec![pod("s1", "/etc/agent.ttrpc")]),
        ("has the path", vec![pod("..", "/etc/agent.ttrpc")]),
        ("s1", vec![Say::Session(session)]),
        ("connection", vec![Say::Agent("s1".to_owned())]),
        ("not now", vec![Say::Done(Empty {})]),
    ];
    let without = cases.map(|(words, parts)| (words, parts, 0));
    let short = ("lacks 2 parts, 1 came", vec![sockets(3), Say::All(2)], 3);
    for (words, parts, listeners) in without.into_iter().chain([short]) {
        let (error, done) = offered(&parts, listeners).await;
        let RelayError::TakeOver(TakeError::Refused(why)) = error else { panic!("{error}") };
        assert!(why.contains(words), "{parts:?}: {why}");
        assert!(!done, "{parts:?}: it has said that it serves");
    }
}

/// A relay that has taken over from one of that epoch, which holds a connection of `s1`; and the old
/// one's end of what they say to each other.
async fn taken_over(dir: &Path, epoch: u64) -> (crate::relay::Relay, Stranger) {
    let names = ["relay.sock", "control.sock", "hypervisor.sock", "pods/s1/agent.ttrpc"];
    std::fs::create_dir_all(dir.join("pods/s1")).expect("directory");
    let sockets = names.map(|name| UnixListener::bind(dir.join(name)).expect("bind"));
    let pod = message::Pod {
        sandbox: "s1".to_owned(),
        path: dir.join(names[3]).display().to_string(),
        file: Some(File::default()),
        stayed: 1,
        ..message::Pod::default()
    };
    let old = async {
        let mut wire = Stranger::new(sockets[0].accept().await.expect("accept").0);
        within(wire.hear()).await.expect("Hello");
        let about = Some(About { epoch, ..About::default() });
        wire.say(Say::Welcome(Welcome { version: VERSION, about })).await;
        let files = vec![File::default(); 3];
        let listeners = [sockets[0].as_fd(), sockets[1].as_fd(), sockets[2].as_fd()];
        wire.give(Say::Sockets(message::Sockets { files }), &listeners).await;
        wire.give(Say::Pod(pod), &[sockets[3].as_fd()]).await;
        wire.say(Say::All(2)).await;
        assert!(matches!(within(wire.hear()).await, Some(Say::Done(_))));
        wire
    };
    let (relay, wire) = tokio::join!(crate::relay::Relay::bind(options(dir)), old);
    (relay.expect("taken over"), wire)
}

#[tokio::test(start_paused = true)]
async fn an_old_one_whose_clock_was_ahead_is_the_older_one_and_one_that_hangs_holds_up_no_stop() {
    let dir = tempfile::tempdir().expect("tempdir");
    let ahead = u64::MAX / 2;
    let (relay, mut old) = taken_over(dir.path(), ahead).await;
    let over = CancellationToken::new();
    let serving = tokio::spawn(relay.run(Tracker::new(), over.clone()));
    let (mut node, _) = Node::start(dir.path()).await;
    let Event::Attached { epoch, .. } = node.event().await else { panic!("Attached") };
    assert!(epoch > ahead, "{epoch}");
    let elsewhere = node.held("s1").await.elsewhere;
    assert_eq!(
        elsewhere.iter().map(|e| (e.epoch, e.connections)).collect::<Vec<_>>(),
        [(ahead, 1)]
    );

    assert_eq!(within(node.client.close("s1", "StopVM")).await, Ok(true));
    let Some(Say::Close(told)) = within(old.hear()).await else { panic!("Close") };
    assert_eq!((told.sandbox.as_str(), told.reason.as_str()), ("s1", "StopVM"));
    over.cancel();
    within(serving).await.expect("join").expect("serve");
    assert!(matches!(within(old.hear()).await, Some(Say::End(_))), "the last word");
}
