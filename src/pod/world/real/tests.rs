//! Probing over real sockets; TLS and the agent as existing VMs have them.

use peerpod_tunnel::link::frame::{Frame, FrameReader, Kind};
use peerpod_tunnel::link::tls::ServerTls;
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::pki::TlsSource;

const BOUND: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(200);

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// Answers every request with an empty response, on one connection.
async fn serve_agent(stream: impl AsyncRead + AsyncWrite) {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = FrameReader::new(reader, None);
    while let Ok(Some(Frame { stream, .. })) = reader.next().await {
        let answer = Frame { stream, kind: Kind::Response, flags: 0, payload: Default::default() };
        answer.write(&mut writer).await.expect("written");
    }
}

async fn enter(to: SocketAddr, tls: Option<&ClientTls>) -> Result<Box<dyn Pulse>, Unready> {
    let door = Tcp.knock(to, BOUND).await.expect("accepted");
    door.enter(tls, BOUND).await
}

fn pki(directory: &Path) -> Pki {
    let source = TlsSource::Automatic { client: None };
    Pki::open(directory, &source, SystemTime::now()).expect("made")
}

fn server(pki: &Pki, vm: &str) -> TlsAcceptor {
    let issued = pki.issue(vm, SystemTime::now()).expect("issued");
    let server = ServerTls {
        cert_pem: issued.server_cert_pem,
        key_pem: issued.server_key_pem,
        client_ca_pem: issued.client_ca_pem,
        profile: Default::default(),
    };
    TlsAcceptor::from(server.config().expect("usable"))
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_refused() {
    let (listener, address) = listener().await;
    drop(listener);
    let unready = Tcp.knock(address, BOUND).await.expect_err("nobody");
    assert_eq!(unready.stage, Stage::Refused);
    assert!(unready.reason.contains(&address.to_string()), "{unready}");
}

#[tokio::test]
async fn an_address_that_is_silent_is_unreachable_within_the_bound() {
    // A full backlog drops SYNs, as a VM does that does not run yet.
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind("127.0.0.1:0".parse().expect("address")).expect("binds");
    let listener = socket.listen(0).expect("listens");
    let address = listener.local_addr().expect("bound");
    let mut held = Vec::new();
    let unready = loop {
        match Tcp.knock(address, SHORT).await {
            Ok(door) => held.push(door),
            Err(unready) => break unready,
        }
        assert!(held.len() < 10, "the backlog never fills");
    };
    assert_eq!(unready.stage, Stage::Unreachable, "{unready}");
}

#[tokio::test]
async fn an_agent_behind_tls_answers_again_and_again_on_one_connection() {
    let directory = tempfile::tempdir().expect("directory");
    let pki = pki(directory.path());
    let (listener, address) = listener().await;
    let acceptor = server(&pki, "podvm-web-1");
    let vm = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        serve_agent(acceptor.accept(stream).await.expect("handshake")).await;
    });
    let mut pulse = enter(address, pki.client("podvm-web-1").as_ref()).await.expect("answers");
    for _ in 0..3 {
        pulse.beat().await.expect("answers");
    }
    vm.abort();
    assert!(vm.await.is_err());
    pulse.beat().await.expect_err("the VM has gone");
}

#[tokio::test]
async fn a_vm_with_another_pods_certificate_comes_no_further_than_tls() {
    let directory = tempfile::tempdir().expect("directory");
    let pki = pki(directory.path());
    let (listener, address) = listener().await;
    let acceptor = server(&pki, "podvm-other");
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        acceptor.accept(stream).await.map(drop)
    });
    let unready = enter(address, pki.client("podvm-web-1").as_ref()).await.expect_err("refused");
    assert_eq!(unready.stage, Stage::Tls, "{unready}");
}

#[tokio::test]
async fn a_forwarder_that_closes_or_says_nothing_has_no_agent_yet() {
    let (listener, address) = listener().await;
    let vm = tokio::spawn(async move {
        drop(listener.accept().await.expect("accepts"));
        listener.accept().await.expect("accepts")
    });
    let unready = enter(address, None).await.expect_err("closed");
    assert_eq!(unready.stage, Stage::Agent, "{unready}");
    let door = Tcp.knock(address, BOUND).await.expect("accepted");
    let unready = door.enter(None, SHORT).await.expect_err("silent");
    assert_eq!(unready.stage, Stage::Agent, "{unready}");
    drop(vm.await.expect("accepted twice"));
}

/// A tunnel that was never made, into a namespace that is not there.
fn absent() -> Tunnel {
    Tunnel {
        sandbox: format!("absent-{}", std::process::id()),
        vni: 16_000_000,
        port: 9000,
        netns: "/nowhere/netns".into(),
        netns_id: (1, 2),
        interface: "eth0".to_owned(),
        mac: "02:00:00:00:00:01".to_owned().try_into().expect("a MAC"),
        addresses: vec!["10.244.1.5/24".parse().expect("an address")],
        vm: "192.0.2.1".parse().expect("an address"),
        mtu: 1450,
    }
}

#[tokio::test]
async fn a_hosts_refusals_name_the_namespace_and_keep_their_kind() {
    let host = Host::default();
    let missing = host.inspect(Path::new("/nowhere/netns")).await.expect_err("not there");
    assert!(matches!(missing, NetworkError::Inspect(_)), "{missing:?}");
    assert!(missing.to_string().contains("/nowhere/netns"), "{missing}");
    let own = host.inspect(Path::new("/proc/self/ns/net")).await.expect_err("our own");
    assert!(own.to_string().contains("host"), "{own}");
    let refused = host.attach(&absent()).await.expect_err("nowhere to attach to");
    assert!(matches!(refused, NetworkError::Tunnel(_)), "{refused:?}");
    assert!(refused.to_string().contains("/nowhere/netns"), "{refused}");
}

#[tokio::test]
async fn a_hosts_work_goes_on_when_its_caller_has_gone() {
    let (begun, done) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let caller = tokio::spawn(apart("test", move || {
        begun.0.send(()).expect("somebody listens");
        wait.recv().expect("told to go on");
        done.0.send(()).expect("somebody listens");
        Ok::<_, NetworkError>(())
    }));
    tokio::task::spawn_blocking(move || begun.1.recv()).await.expect("runs").expect("begun");
    caller.abort();
    assert!(caller.await.expect_err("aborted").is_cancelled());
    go.send(()).expect("it still waits");
    tokio::task::spawn_blocking(move || done.1.recv()).await.expect("runs").expect("to its end");
}

#[test]
fn the_clock_of_ages_runs_and_is_not_the_one_that_people_set() {
    let (first, wall) = (WallClock.boot_ms(), WallClock.now_ms());
    assert!(first > 0 && first < wall, "{first} ms since the start, {wall} since 1970");
    assert!(WallClock.boot_ms() >= first);
    let uptime = std::fs::read_to_string("/proc/uptime").expect("there");
    let uptime: f64 = uptime.split(' ').next().and_then(|s| s.parse().ok()).expect("a number");
    // A container may have a clock of its own there; the kernel's is the same but for that offset.
    assert!((uptime * 1000.0 - first as f64).abs() < 60_000.0, "{uptime} s, {first} ms");
}
