//! A VM that speaks `peerpod-link/1`, and what shims and the node notice when its link is cut.

use std::sync::Mutex;

use peerpod_tunnel::link::session::{ALPN, Owner, Sessions, Stream};

use super::agent::noise;
use super::*;
use crate::relay::Beat;

/// Echoes on every stream. Its connections can be cut, and it can lose its sessions.
pub(super) struct SessionVm {
    address: SocketAddr,
    tls: ClientTls,
    sessions: Arc<Mutex<Arc<Sessions>>>,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
    serving: JoinHandle<()>,
}

/// Answers whatever it is asked, as an agent does.
fn answering_stream(stream: Stream) {
    tokio::spawn(async move {
        let mut peer = Peer::new(stream);
        while let Some(frame) = peer.next().await {
            peer.send(&Response::default().frame(frame.stream)).await;
        }
        let _ = peer.writer.shutdown().await;
    });
}

/// Takes whatever it is asked.
fn mute_stream(stream: Stream) {
    tokio::spawn(async move {
        let mut peer = Peer::new(stream);
        while peer.next().await.is_some() {}
        std::future::pending::<()>().await;
    });
}

fn echo_stream(stream: Stream) {
    tokio::spawn(async move {
        let (mut from, mut to) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    });
}

impl SessionVm {
    pub(super) async fn start() -> Self {
        Self::with(echo_stream).await
    }

    async fn with(agent: fn(Stream)) -> Self {
        let Certificates { client, server } = certificates();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let config = server.config_offering(&[ALPN]).expect("TLS");
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let sessions = Arc::new(Mutex::new(Arc::new(Sessions::new("test VM"))));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (now, all) = (sessions.clone(), connections.clone());
        let serving = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.expect("accept");
                let (acceptor, sessions) = (acceptor.clone(), now.lock().expect("lock").clone());
                let connection = tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(ALPN));
                    sessions.serve(tls, &Owner::of(None), agent).await;
                });
                all.lock().expect("lock").push(connection);
            }
        });
        Self { address, tls: client, sessions, connections, serving }
    }

    pub(super) fn cut(&self) {
        let all = std::mem::take(&mut *self.connections.lock().expect("lock"));
        all.iter().for_each(JoinHandle::abort);
    }

    pub(super) fn sessions(&self) -> Arc<Sessions> {
        self.sessions.lock().expect("lock").clone()
    }

    pub(super) fn lose_sessions(&self) {
        *self.sessions.lock().expect("lock") = Arc::new(Sessions::new("test VM, anew"));
        self.cut();
    }

    pub(super) fn count(&self) -> usize {
        self.sessions.lock().expect("lock").count()
    }

    pub(super) async fn connect(&self, node: &Node, sandbox: &str, give_up: Duration) {
        let connect = node.client.connect(sandbox, self.address, Some(&self.tls), give_up);
        within(connect).await.expect("connect");
    }
}

pub(super) async fn bench(edit: &[&str]) -> (Bench, Node, SessionVm) {
    let (bench, vm) = (Bench::start().await, SessionVm::start().await);
    let node = bench.node().await;
    bench.open(&node, "s1", edit).await;
    vm.connect(&node, "s1", GIVE_UP).await;
    (bench, node, vm)
}

#[tokio::test]
async fn all_connections_of_a_pod_share_one_link() {
    let (bench, node, vm) = bench(&[]).await;
    let mut shims = Vec::new();
    for n in 0..40_u8 {
        let mut shim = bench.agent("s1").await;
        exchange(&mut shim, &[n; 300]).await;
        shims.push(shim);
    }
    let held = node.held("s1").await;
    assert_eq!((held.mode.as_str(), held.agent_connections), ("peerpod-link/1", 40));
    assert_eq!(node.client.totals().await.expect("totals").links_made, 1);
    for shim in &mut shims {
        exchange(shim, b"mine").await;
    }
    assert_eq!(vm.count(), 1);
}

#[tokio::test]
async fn a_vm_without_alpn_is_spoken_to_in_plain_bytes() {
    let (bench, mut vm) = (Bench::start().await, Vm::start().await);
    let node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1").await;
    let mut shim = bench.agent("s1").await;
    shim.write_all(b"x").await.expect("write");
    let mut tls = vm.accept().await;
    let mut byte = [0];
    within(tls.read_exact(&mut byte)).await.expect("read");
    assert_eq!((&byte, tls.get_ref().1.alpn_protocol()), (b"x", None));
    assert_eq!(node.held("s1").await.mode, "plain");
}

#[tokio::test(flavor = "multi_thread")]
async fn cuts_are_told_and_cost_no_byte() {
    let (bench, mut node, vm) = bench(&[]).await;
    let (mut read, mut write) = bench.agent("s1").await.into_split();
    let sent = noise(8 << 20);
    let writing = async {
        for (n, part) in sent.chunks(1 << 20).enumerate() {
            write.write_all(part).await.expect("write");
            if n % 2 == 1 {
                vm.cut();
            }
        }
        write.shutdown().await.expect("shutdown");
    };
    let mut back = Vec::new();
    let reading = read.read_to_end(&mut back);
    let ((), read) = within(async { tokio::join!(writing, reading) }).await;
    read.expect("read");
    assert!(back == sent, "{} bytes came back, of {}", back.len(), sent.len());
    let totals = node.client.totals().await.expect("totals");
    assert_eq!((totals.bytes_to_vm, totals.bytes_to_shim), (8 << 20, 8 << 20));
    let Event::LinkDown { sandbox, reason, given_up: false } = node.event().await else {
        panic!("LinkDown comes first");
    };
    assert_eq!(sandbox, "s1");
    assert!(reason.contains("the connection to the VM broke"), "{reason}");
    assert_eq!(node.event().await, Event::LinkUp { sandbox: "s1".to_owned() });
    assert_eq!(vm.count(), 1, "it is one session all the time");
}

#[tokio::test]
async fn a_vm_that_has_lost_the_session_is_told_gone_at_once() {
    let (bench, mut node, vm) = bench(&[]).await;
    let mut shim = bench.agent("s1").await;
    exchange(&mut shim, b"well").await;
    vm.lose_sessions();
    ends(&mut shim).await;
    let (mut gone, mut shim_gone) = (None, false);
    while gone.is_none() || !shim_gone {
        match node.event().await {
            Event::LinkDown { given_up: true, reason, .. } => gone = Some(reason),
            Event::LinkDown { .. } => {}
            Event::ShimGone { .. } => shim_gone = true,
            other => panic!("{other:?}"),
        }
    }
    let reason = gone.expect("reason");
    assert!(reason.contains("the VM has lost the session"), "{reason}");
    // Whoever comes now gets a new one.
    let mut next = bench.agent("s1").await;
    exchange(&mut next, b"anew").await;
}

#[tokio::test]
async fn a_session_whose_vm_stays_away_is_given_up() {
    let (bench, vm) = (Bench::start().await, SessionVm::start().await);
    let mut node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    vm.connect(&node, "s1", Duration::from_millis(400)).await;
    let mut shim = bench.agent("s1").await;
    exchange(&mut shim, b"well").await;
    vm.serving.abort();
    eventually(async || vm.serving.is_finished().then_some(())).await;
    vm.cut();
    ends(&mut shim).await;
    loop {
        match node.event().await {
            Event::LinkDown { given_up: true, .. } => break,
            Event::LinkDown { .. } | Event::ShimGone { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn close_ends_the_vms_session_too() {
    let (bench, node, vm) = bench(&[]).await;
    let mut shim = bench.agent("s1").await;
    exchange(&mut shim, b"well").await;
    assert_eq!(node.client.close("s1", "test").await, Ok(true));
    ends(&mut shim).await;
    eventually(async || (vm.count() == 0).then_some(())).await;
}

#[tokio::test]
async fn the_end_of_either_side_of_a_stream_is_the_others() {
    let (bench, node, vm) = bench(&[]).await;
    let mut shim = bench.agent("s1").await;
    exchange(&mut shim, b"well").await;
    drop(shim);
    node.held_until("s1", |held| held.agent_connections == 0).await;
    let streams = || vm.sessions.lock().expect("lock").streams();
    eventually(async || (streams() == 0).then_some(())).await;
    let mut shim = bench.agent("s1").await;
    exchange(&mut shim, b"again").await;
    shim.shutdown().await.expect("shutdown");
    ends(&mut shim).await;
    eventually(async || (streams() == 0).then_some(())).await;
}

#[tokio::test]
async fn edited_requests_go_through_a_session_and_over_a_cut() {
    let (bench, mut node, vm) = bench(&["CreateContainer"]).await;
    let mut shim = Peer::new(bench.agent("s1").await);
    shim.send(&call(1, "grpc.AgentService", "Ping", "as it is")).await;
    assert_eq!(Request::parse(&shim.frame().await.payload).expect("request").method, "Ping");
    vm.cut();
    shim.send(&call(3, "grpc.AgentService", "CreateContainer", "before")).await;
    let ticket = loop {
        match node.event().await {
            Event::Edit { ticket, payload: Payload(payload), .. } => {
                assert_eq!(payload, "before");
                break ticket;
            }
            Event::LinkDown { .. } | Event::LinkUp { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    node.client.edited(ticket, Ok("after".into())).await.expect("edited");
    let back = Request::parse(&shim.frame().await.payload).expect("request");
    assert_eq!(back.payload, "after");
}

#[tokio::test]
async fn vms_are_asked_whether_they_live_on_the_links_they_have() {
    let (bench, vm, mute) = (
        Bench::start().await,
        SessionVm::with(answering_stream).await,
        SessionVm::with(mute_stream).await,
    );
    let (node, plain) = (bench.node().await, Vm::start().await);
    for sandbox in ["lives", "mute", "plain", "young"] {
        bench.open(&node, sandbox, &[]).await;
    }
    vm.connect(&node, "lives", GIVE_UP).await;
    mute.connect(&node, "mute", GIVE_UP).await;
    plain.connect(&node, "plain").await;
    let links = async || node.client.totals().await.expect("totals").links_made;
    let before = links().await;
    for _ in 0..3 {
        let told = node.client.beat(Duration::from_millis(800)).await.expect("told");
        assert_eq!(told, Beat { alive: vec!["lives".to_owned()], silent: vec!["mute".to_owned()] });
    }
    assert_eq!(links().await, before, "no new connection");
    for vm in [&vm, &mute] {
        let streams = || vm.sessions.lock().expect("lock").streams();
        eventually(async || (streams() == 0).then_some(())).await;
    }
}
