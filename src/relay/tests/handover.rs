//! One relay takes another's place, or fails to at any step.

use super::*;
use crate::proto::relay as proto;
use crate::relay::handover::Stranger;
use crate::relay::handover::message::{Empty, Hello, Say, VERSION};

/// Another relay on the same directory.
pub(super) struct Second {
    tracker: Tracker,
    shutdown: CancellationToken,
    pub(super) serving: JoinHandle<Result<(), RelayError>>,
}

impl Second {
    async fn start(dir: &Path) -> Self {
        let (tracker, shutdown) = (Tracker::new(), CancellationToken::new());
        let relay = within(crate::relay::Relay::bind(options(dir))).await.expect("take over");
        let serving = tokio::spawn(relay.run(tracker.clone(), shutdown.clone()));
        Self { tracker, shutdown, serving }
    }

    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        within(self.serving).await.expect("join").expect("serve");
        within(self.tracker.finished()).await;
    }
}

impl Bench {
    pub(super) async fn successor(&self) -> Second {
        Second::start(self.dir.path()).await
    }

    /// Waits until the first relay has ended by itself; its directory stays.
    pub(super) async fn ended(self) -> TempDir {
        within(self.serving).await.expect("join").expect("serve");
        within(self.tracker.finished()).await;
        self.dir
    }
}

impl Node {
    /// Waits until it is attached to another relay than before; what that one has pending.
    pub(super) async fn attached_again(&mut self) -> Vec<(String, String)> {
        loop {
            match self.event().await {
                Event::Attached { pending, .. } => return pending,
                Event::Lost => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn relays(&self, dir: &Path) -> Vec<proto::RelayProcess> {
        let mut api = control::raw(dir).await;
        let list = within(api.list(proto::ListRequest {})).await.expect("list");
        list.into_inner().relays
    }
}

fn of(method: &str) -> (String, String) {
    ("s1".to_owned(), method.to_owned())
}

#[tokio::test]
async fn an_idle_relay_gives_its_place_and_ends() {
    let bench = Bench::start().await;
    let mut node = bench.node().await;
    let path = bench.dir.path().join("control.sock");
    let file = |path: &Path| std::os::unix::fs::MetadataExt::ino(&path.metadata().expect("file"));
    let before = file(&path);
    let second = bench.successor().await;
    assert_eq!(node.attached_again().await, []);
    let _dir = bench.ended().await;
    assert_eq!(file(&path), before, "the socket was never away");
    let opened = node.client.open("s1", &_dir.path().join("pods/s1/agent.ttrpc"), &[]).await;
    opened.expect("the new one serves");
    second.stop().await;
    assert!(!path.exists(), "the new one has the file, and removes it");
}

#[tokio::test]
async fn unanswered_calls_half_frames_and_half_answers_go_along() {
    let bench = Bench::start().await;
    let mut node = bench.node().await;
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(1, "StartVM", "s1")).await;
    let mut there = node.accept().await;
    there.frame().await;
    // The first half of a request, and an answer that the shim does not take in one piece.
    let mut half = bytes::BytesMut::new();
    hypervisor_call(3, "StopVM", "s1").put(&mut half);
    within(shim.writer.write_all(&half[..7])).await.expect("half a request");
    let big = answer(1, vec![7; 3 << 20]);
    there.send(&big).await;
    let mut kept = bench.hypervisor().await;
    kept.send(&hypervisor_call(9, "StopVM", "s1")).await;
    let mut for_kept = node.accept().await;
    assert_eq!(for_kept.frame().await.stream, 9);
    drop(kept);

    let second = bench.successor().await;
    let pending = node.attached_again().await;
    assert!(pending.contains(&of("StopVM")), "{pending:?}");
    let dir = bench.ended().await;
    within(shim.writer.write_all(&half[7..])).await.expect("the other half");
    assert_eq!(shim.frame().await, big, "whole, once");
    assert_eq!(there.frame().await, hypervisor_call(3, "StopVM", "s1"), "on the same connection");
    there.send(&answer(3, "")).await;
    assert_eq!(shim.frame().await, answer(3, ""));
    for_kept.send(&answer(9, "")).await;
    assert_eq!(for_kept.next().await, None, "a kept StopVM is answered");
    let totals = node.client.totals().await.expect("totals");
    assert_eq!((totals.requests_held, totals.requests_replayed), (0, 0));
    drop((shim, dir));
    second.stop().await;
}

#[tokio::test]
async fn what_is_joined_stays_and_everything_else_moves() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    bench.open(&node, "s2", &[]).await;
    vm.connect(&node, "s1").await;
    let silent = bench.agent("s1").await;
    let mut joined = bench.agent("s1").await;
    let echo_joined = echo(vm.accept().await);
    exchange(&mut joined, b"before").await;
    // Held: its sandbox has no VM yet.
    let mut held = bench.agent("s2").await;
    held.write_all(b"early").await.expect("write");
    let second = bench.successor().await;
    node.attached_again().await;
    exchange(&mut joined, b"after").await;
    let now = node.held("s1").await;
    assert_eq!((now.agent_connections, now.elsewhere.len()), (1, 1), "{now:?}");
    let relays = node.relays(bench.dir.path()).await;
    assert_eq!(
        relays.iter().map(|r| (r.connections, r.serves)).collect::<Vec<_>>(),
        [(1, false), (0, true)]
    );
    assert!(relays[0].epoch < relays[1].epoch);

    // What had moved goes on: the silent one, the held one, and a new one.
    let mut woken = silent;
    within(woken.write_all(b"x")).await.expect("write");
    let echo_woken = echo(vm.accept().await);
    let mut byte = [0];
    within(woken.read_exact(&mut byte)).await.expect("read");
    vm.connect(&node, "s2").await;
    let echo_held = echo(vm.accept().await);
    let mut early = [0; 5];
    within(held.read_exact(&mut early)).await.expect("read");
    assert_eq!(&early, b"early");
    assert_eq!(node.held_until("s1", |h| h.agent_connections == 2).await.mode, "plain");

    // The old one ends with its last connection, and no shim is missed before all have gone.
    drop(joined);
    let _dir = bench.ended().await;
    node.held_until("s1", |h| h.agent_connections == 1 && h.elsewhere.is_empty()).await;
    drop(woken);
    assert_eq!(node.event().await, Event::ShimGone { sandbox: "s1".to_owned() });
    drop((held, echo_joined, echo_woken, echo_held));
    second.stop().await;
}

#[tokio::test]
async fn a_close_reaches_what_stayed_and_so_does_an_edit() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    bench.open(&node, "s1", &["CreateContainer"]).await;
    vm.connect(&node, "s1").await;
    let mut shim = Peer::new(bench.agent("s1").await);
    shim.send(&call(1, "grpc.AgentService", "Check", "")).await;
    let mut agent = Peer::new(vm.accept().await);
    agent.frame().await;
    let second = bench.successor().await;
    node.attached_again().await;
    shim.send(&call(3, "grpc.AgentService", "CreateContainer", "before")).await;
    let Event::Edit { ticket, payload: Payload(payload), .. } = node.event().await else {
        panic!("Edit")
    };
    assert_eq!(&payload[..], b"before");
    node.client.edited(ticket, Ok(Bytes::from_static(b"after"))).await.expect("edited");
    let edited = Request::parse(&agent.frame().await.payload).expect("request");
    assert_eq!(&edited.payload[..], b"after");
    assert_eq!(node.client.close("s1", "StopVM").await, Ok(true));
    assert_eq!(shim.next().await, None);
    let _dir = bench.ended().await;
    second.stop().await;
}

#[tokio::test]
async fn a_third_one_speaks_for_both_before_it() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    let mut shims = Vec::new();
    let mut relays = Vec::new();
    for sandbox in ["s1", "s2", "s3"] {
        if !shims.is_empty() {
            relays.push(bench.successor().await);
            node.attached_again().await;
        }
        bench.open(&node, sandbox, &[]).await;
        vm.connect(&node, sandbox).await;
        let mut shim = bench.agent(sandbox).await;
        let echo = echo(vm.accept().await);
        exchange(&mut shim, b"x").await;
        shims.push((shim, echo));
    }
    for (shim, _) in &mut shims {
        exchange(shim, b"still").await;
    }
    let held = node.relays(bench.dir.path()).await;
    assert_eq!(held.iter().map(|r| r.connections).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!(node.client.close("s1", "StopVM").await, Ok(true));
    ends(&mut shims[0].0).await;
    let dir = bench.ended().await;
    exchange(&mut shims[1].0, b"still").await;
    assert_eq!(node.client.close("s2", "StopVM").await, Ok(true));
    within(relays.remove(0).serving).await.expect("join").expect("the second one ends");
    relays.remove(0).stop().await;
    drop(dir);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_hurried_closes_what_stayed_in_time() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut shim = bench.agent("s1").await;
    let _echo = echo(vm.accept().await);
    exchange(&mut shim, b"x").await;
    let second = bench.successor().await;
    node.attached_again().await;
    bench.shutdown.cancel();
    exchange(&mut shim, b"not at once").await;
    let begin = tokio::time::Instant::now();
    ends(&mut shim).await;
    assert!(begin.elapsed() <= Duration::from_secs(11), "{:?}", begin.elapsed());
    assert_eq!(node.event().await, Event::ShimGone { sandbox: "s1".to_owned() });
    let _dir = bench.ended().await;
    second.stop().await;
}

/// As far as a stranger gets in the new relay's part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Until {
    Connected,
    Hello,
    Welcome,
    Parts,
    All,
    Done,
    /// Something else in place of Done.
    Other,
}

/// Plays a new relay up to that step and is gone then, as by kill -9.
pub(super) async fn die_at(dir: &Path, until: Until) {
    drop(come_to(dir, until).await);
}

/// Plays a new relay up to that step.
pub(super) async fn come_to(dir: &Path, until: Until) -> Stranger {
    let mut stranger = Stranger::connect(&dir.join("relay.sock")).await;
    if until == Until::Connected {
        return stranger;
    }
    stranger.say(hello(dir, VERSION)).await;
    if until == Until::Hello {
        return stranger;
    }
    let Some(Say::Welcome(_)) = within(stranger.hear()).await else { panic!("Welcome") };
    if until == Until::Welcome {
        return stranger;
    }
    loop {
        match within(stranger.hear()).await {
            Some(Say::All(_)) => break,
            Some(_) if until == Until::Parts => return stranger,
            Some(_) => {}
            None => panic!("it breaks off"),
        }
    }
    match until {
        Until::Done => stranger.say(Say::Done(Empty {})).await,
        Until::Other => stranger.say(Say::Again(Empty {})).await,
        _ => {}
    }
    stranger
}

pub(super) fn hello(dir: &Path, version: u32) -> Say {
    let text = |name: &str| dir.join(name).display().to_string();
    Say::Hello(Hello {
        version,
        oldest: version,
        build: "stranger".to_owned(),
        hypervisor: text("hypervisor.sock"),
        control: text("control.sock"),
        pods_dir: text("pods"),
    })
}

#[tokio::test]
async fn a_new_one_that_dies_at_any_step_before_done_is_not_noticed() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut joined = bench.agent("s1").await;
    let _echo = echo(vm.accept().await);
    let silent = bench.agent("s1").await;
    let mut shim = bench.hypervisor().await;
    shim.send(&hypervisor_call(1, "StartVM", "s1")).await;
    let mut there = node.accept().await;
    there.frame().await;
    let steps = [Until::Connected, Until::Hello, Until::Welcome, Until::Parts, Until::All];
    for (n, until) in (1_u32..).zip(steps.into_iter().chain([Until::Other])) {
        die_at(bench.dir.path(), until).await;
        exchange(&mut joined, b"x").await;
        shim.send(&hypervisor_call(2 * n + 1, "CreateVM", "s2")).await;
        assert_eq!(there.frame().await.stream, 2 * n + 1, "after {until:?}");
        there.send(&answer(2 * n + 1, "")).await;
        assert_eq!(shim.frame().await.stream, 2 * n + 1);
        bench.open(&node, &format!("new-{n}"), &[]).await;
        bench.agent(&format!("new-{n}")).await;
    }
    assert_eq!(node.held("s1").await.agent_connections, 1);
    there.send(&answer(1, "started")).await;
    assert_eq!(shim.frame().await, answer(1, "started"));
    drop((silent, joined));
    let dir = bench.stop().await;
    assert!(!dir.path().join("control.sock").exists(), "its files are its own all the time");
}

#[tokio::test(start_paused = true)]
async fn an_old_one_ends_soon_after_its_successor_that_was_told_to_end() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut joined = bench.agent("s1").await;
    let _echo = echo(vm.accept().await);
    exchange(&mut joined, b"x").await;
    let second = bench.successor().await;
    node.attached_again().await;
    second.stop().await;
    exchange(&mut joined, b"not at once").await;
    ends(&mut joined).await;
    let dir = bench.ended().await;
    assert!(!dir.path().join("control.sock").exists(), "nobody serves");
}

#[tokio::test]
async fn when_the_successor_dies_later_the_old_one_serves_again() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let mut node = bench.node().await;
    for sandbox in ["stays", "moves"] {
        bench.open(&node, sandbox, &[]).await;
    }
    vm.connect(&node, "stays").await;
    let mut joined = bench.agent("stays").await;
    let _echo = echo(vm.accept().await);
    exchange(&mut joined, b"before").await;
    let mut held = bench.agent("moves").await;
    die_at(bench.dir.path(), Until::Done).await;
    // Whoever connects meanwhile waits; nobody is turned away.
    bench.hypervisor().await;
    node.attached_again().await;
    exchange(&mut joined, b"after").await;
    ends(&mut held).await;
    let held: Vec<_> = node.client.list().await.expect("list");
    assert_eq!(held.iter().map(|h| h.sandbox.as_str()).collect::<Vec<_>>(), ["stays"]);
    let mut again = bench.agent("stays").await;
    within(again.write_all(b"served again")).await.expect("write");
    let _echo = echo(vm.accept().await);
    within(again.read_exact(&mut [0; 12])).await.expect("read");
    bench.open(&node, "moves", &[]).await;
    // And a new one can still take over.
    let second = bench.successor().await;
    node.attached_again().await;
    exchange(&mut again, b"and again").await;
    drop((joined, again));
    let _dir = bench.ended().await;
    second.stop().await;
}

#[tokio::test]
async fn two_that_start_at_once_are_one_in_the_end() {
    let dir = tempfile::tempdir().expect("tempdir");
    let both = [0, 1].map(|_| {
        let options = options(dir.path());
        tokio::spawn(crate::relay::serve(options, Tracker::new(), CancellationToken::new()))
    });
    let [one, other] = both;
    let ended = within(async {
        tokio::select! {
            one = one => one,
            other = other => other,
        }
    });
    ended.await.expect("join").expect("the one gives its place to the other");
    let (mut node, attaching) = Node::start(dir.path()).await;
    assert_eq!(node.pending(attaching).await, []);
}

#[tokio::test]
async fn versions_are_agreed_on_or_refused_in_words() {
    use crate::proto::relay::{API, oldest_api, spoken};
    use crate::relay::handover::message::{agreed, oldest};
    assert_eq!(agreed(VERSION + 1, VERSION), Some(VERSION));
    assert_eq!(agreed(oldest(), 0), Some(oldest()));
    assert_eq!((agreed(VERSION + 1, VERSION + 1), agreed(oldest() - 1, 0)), (None, None));
    assert_eq!(spoken(API, 0), Some(API));
    assert_eq!(spoken(API + 1, API), Some(API), "a newer one that still knows ours");
    assert_eq!(spoken(API + 1, 0), None);
    assert_eq!(spoken(oldest_api() - 1, 0), None);
    let bench = Bench::start().await;
    let mut api = control::raw(bench.dir.path()).await;
    let hello = |api, oldest| proto::HelloRequest { api, build: "a node".to_owned(), oldest };
    let newer = within(api.hello(hello(API + 3, API + 2))).await.expect_err("too new");
    let both = format!("{} to {}", API + 2, API + 3);
    assert!(newer.message().contains(&both) && newer.message().contains("a node"), "{newer:?}");
    within(api.hello(hello(API + 1, API))).await.expect("understood");
}
