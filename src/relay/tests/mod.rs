//! The relay between a stand-in shim, a stand-in node process and a stand-in VM, over real sockets.

mod agent;
mod control;
mod edit;
mod handover;
mod hypervisor;
mod interruption;
mod moving;
mod session;
mod sockets;
mod strangers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::frame::{Frame, FrameReader, Kind, Request, Response};
use peerpod_tunnel::link::tls::{ClientTls, ServerTls};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{Control, ControlError, Event, Held, Payload, RelayClient, RelayError, RelayOptions};
use crate::proto::hypervisor::StartVmRequest;
use crate::shutdown::Tracker;

const SERVER_NAME: &str = "podvm-web-12345678";
const GIVE_UP: Duration = Duration::from_secs(20);

/// Bounds what a broken relay would let hang.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it takes too long")
}

/// Polls until `found` finds something.
async fn eventually<T, F: Future<Output = Option<T>>>(mut found: impl FnMut() -> F) -> T {
    within(async {
        loop {
            if let Some(value) = found().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

struct Bench {
    dir: TempDir,
    tracker: Tracker,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<(), RelayError>>,
}

fn options(dir: &Path) -> RelayOptions {
    RelayOptions {
        hypervisor_socket: dir.join("hypervisor.sock"),
        pods_dir: dir.join("pods"),
        control_socket: dir.join("control.sock"),
        relay_socket: dir.join("relay.sock"),
        allowed_uid: nix::unistd::geteuid().as_raw(),
        build: "test".to_owned(),
        linger: Duration::from_secs(10),
        stand_by: false,
        own_process: false,
    }
}

impl Bench {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("tempdir")).await
    }

    async fn start_in(dir: TempDir) -> Self {
        let (tracker, shutdown) = (Tracker::new(), CancellationToken::new());
        let relay = super::Relay::bind(options(dir.path())).await.expect("bind");
        let serving = tokio::spawn(relay.run(tracker.clone(), shutdown.clone()));
        Self { dir, tracker, shutdown, serving }
    }

    /// Ends the relay; its directory stays.
    async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        within(self.serving).await.expect("join").expect("serve");
        within(self.tracker.finished()).await;
        self.dir
    }

    fn agent_path(&self, sandbox: &str) -> PathBuf {
        self.dir.path().join("pods").join(sandbox).join("agent.ttrpc")
    }

    /// A node process that is attached.
    async fn node(&self) -> Node {
        let (mut node, pending) = Node::start(self.dir.path()).await;
        assert_eq!(node.pending(pending).await, []);
        node
    }

    async fn open(&self, node: &Node, sandbox: &str, edit: &[&str]) {
        let edit: Vec<String> = edit.iter().map(|m| (*m).to_owned()).collect();
        let opened = node.client.open(sandbox, &self.agent_path(sandbox), &edit).await;
        opened.expect("open");
    }

    /// A connection of a shim's to the agent socket.
    async fn agent(&self, sandbox: &str) -> UnixStream {
        UnixStream::connect(self.agent_path(sandbox)).await.expect("agent socket")
    }

    /// A connection of a shim's to the hypervisor socket.
    async fn hypervisor(&self) -> Peer<UnixStream> {
        let path = self.dir.path().join("hypervisor.sock");
        Peer::new(UnixStream::connect(path).await.expect("hypervisor socket"))
    }
}

/// A stand-in node process.
struct Node {
    client: Arc<RelayClient>,
    events: mpsc::Receiver<Event>,
    socket: UnixListener,
    life: CancellationToken,
}

struct NotYet;

impl Node {
    async fn start(dir: &Path) -> (Self, NotYet) {
        let path = dir.join("node.sock");
        let _ = std::fs::remove_file(&path);
        let socket = UnixListener::bind(&path).expect("node.sock");
        let life = CancellationToken::new();
        let control = dir.join("control.sock");
        let build = "test node".to_owned();
        let (client, events) =
            RelayClient::start(control, path, build, &Tracker::new(), life.clone());
        (Self { client, events, socket, life }, NotYet)
    }

    async fn pending(&mut self, _: NotYet) -> Vec<(String, String)> {
        match self.event().await {
            Event::Attached { pending, .. } => pending,
            other => panic!("first comes Attached, not {other:?}"),
        }
    }

    async fn event(&mut self) -> Event {
        within(self.events.recv()).await.expect("events go on")
    }

    /// The next connection that the relay makes for a shim.
    async fn accept(&self) -> Peer<UnixStream> {
        Peer::new(within(self.socket.accept()).await.expect("accept").0)
    }

    async fn held(&self, sandbox: &str) -> Held {
        let list = self.client.list().await.expect("list");
        list.into_iter().find(|held| held.sandbox == sandbox).expect("it is held")
    }

    async fn held_until(&self, sandbox: &str, when: impl Fn(&Held) -> bool) -> Held {
        eventually(async || Some(self.held(sandbox).await).filter(|held| when(held))).await
    }

    /// As SIGKILL would: nothing is said to anybody.
    fn kill(self) {
        self.life.cancel();
    }
}

/// Somebody who speaks ttrpc frames.
struct Peer<S> {
    reader: FrameReader<tokio::io::ReadHalf<S>>,
    writer: tokio::io::WriteHalf<S>,
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite> Peer<S> {
    fn new(stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader: FrameReader::new(reader, None), writer }
    }

    async fn send(&mut self, frame: &Frame) {
        within(frame.write(&mut self.writer)).await.expect("send");
    }

    /// The next frame, or `None` at the end.
    async fn next(&mut self) -> Option<Frame> {
        within(self.reader.next()).await.expect("whole frames")
    }

    async fn frame(&mut self) -> Frame {
        self.next().await.expect("a frame")
    }
}

fn hypervisor_call(stream: u32, method: &str, id: &str) -> Frame {
    let payload = prost::Message::encode_to_vec(&StartVmRequest { id: id.to_owned() });
    call(stream, crate::proto::hypervisor::SERVICE, method, payload)
}

fn call(stream: u32, service: &str, method: &str, payload: impl Into<Bytes>) -> Frame {
    let request = Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: payload.into(),
        timeout_nano: 7,
        ..Request::default()
    };
    request.frame(stream, 0)
}

fn answer(stream: u32, payload: impl Into<Bytes>) -> Frame {
    Response { status: None, payload: payload.into() }.frame(stream)
}

fn parse_response(frame: &Frame) -> Response {
    assert_eq!(frame.kind, Kind::Response);
    prost::Message::decode(frame.payload.clone()).expect("response")
}

/// A stand-in VM: TLS in the shapes of real images; hands its connections to the test.
struct Vm {
    address: SocketAddr,
    tls: ClientTls,
    accepted: mpsc::Receiver<TlsStream<TcpStream>>,
    serving: JoinHandle<()>,
}

struct Certificates {
    client: ClientTls,
    server: ServerTls,
}

fn certificates() -> Certificates {
    let named = |names: Vec<String>, organisation: &str, usage| {
        let mut params = CertificateParams::new(names).expect("params");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, organisation);
        params.extended_key_usages = vec![usage];
        params
    };
    let server_auth = ExtendedKeyUsagePurpose::ServerAuth;
    let mut ca = named(vec![], "agent-protocol-forwarder", server_auth.clone());
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().expect("key");
    let ca_cert = ca.self_signed(&ca_key).expect("CA");
    let issuer = Issuer::new(ca, ca_key);
    let server_key = KeyPair::generate().expect("key");
    let server = named(vec![SERVER_NAME.to_owned()], "agent-protocol-forwarder", server_auth)
        .signed_by(&server_key, &issuer)
        .expect("server certificate");
    let client_key = KeyPair::generate().expect("key");
    let client = named(vec![], "cloud-api-adaptor", ExtendedKeyUsagePurpose::ClientAuth)
        .self_signed(&client_key)
        .expect("client certificate");
    Certificates {
        client: ClientTls {
            server_name: SERVER_NAME.to_owned(),
            ca_pem: ca_cert.pem(),
            client_cert_pem: client.pem(),
            client_key_pem: Secret::new(client_key.serialize_pem()),
            ..ClientTls::default()
        },
        server: ServerTls {
            cert_pem: server.pem(),
            key_pem: Secret::new(server_key.serialize_pem()),
            client_ca_pem: client.pem(),
            ..ServerTls::default()
        },
    }
}

impl Vm {
    async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("address"), certificates()).await
    }

    async fn start_at(address: SocketAddr, certificates: Certificates) -> Self {
        let listener = TcpListener::bind(address).await.expect("listen");
        let address = listener.local_addr().expect("address");
        let acceptor = tokio_rustls::TlsAcceptor::from(certificates.server.config().expect("TLS"));
        let (sender, accepted) = mpsc::channel(256);
        let serving = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.expect("accept");
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                tokio::spawn(async move {
                    if let Ok(tls) = acceptor.accept(tcp).await {
                        let _ = sender.send(tls).await;
                    }
                });
            }
        });
        Self { address, tls: certificates.client, accepted, serving }
    }

    async fn accept(&mut self) -> TlsStream<TcpStream> {
        within(self.accepted.recv()).await.expect("a connection")
    }

    async fn connect(&self, node: &Node, sandbox: &str) {
        self.try_connect(node, sandbox, GIVE_UP).await.expect("connect");
    }

    async fn try_connect(
        &self,
        node: &Node,
        sandbox: &str,
        give_up: Duration,
    ) -> Result<(), ControlError> {
        within(node.client.connect(sandbox, self.address, Some(&self.tls), give_up)).await
    }

    /// Nobody listens any more; connections that stand go on.
    async fn stop_listening(&mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await;
    }
}

/// Sends back what comes, until it ends.
fn echo(mut tls: TlsStream<TcpStream>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match tls.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    tls.write_all(&buffer[..n]).await.expect("echo");
                    tls.flush().await.expect("flush");
                }
            }
        }
    })
}

async fn exchange(stream: &mut UnixStream, words: &[u8]) {
    within(stream.write_all(words)).await.expect("write");
    let mut back = vec![0; words.len()];
    within(stream.read_exact(&mut back)).await.expect("read");
    assert_eq!(back, words);
}

/// Waits for the end of a connection that says nothing more.
async fn ends<R: tokio::io::AsyncRead + Unpin>(stream: &mut R) {
    let read = within(stream.read(&mut [0; 16])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "it ends, but {read:?} bytes came");
}
