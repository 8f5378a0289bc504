//! A real relay, to which the test is node process, shims and VMs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use peerpod_standin::lab::{Binaries, wait_for};
use peerpod_tunnel::link::frame::{FrameReader, Request, Response};
use peerpod_tunnel::link::tls::ClientTls;
use peerpodd::relay::{Control, ControlError, Event, RelayClient};
use peerpodd::shutdown::Tracker;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{PATIENCE, connect, memory};

pub(crate) struct Relay {
    dir: TempDir,
    child: Child,
    pub(crate) client: Arc<RelayClient>,
    events: mpsc::Receiver<Event>,
    node: UnixListener,
    life: CancellationToken,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.life.cancel();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Relay {
    /// One that serves, and whose node process is attached.
    pub(crate) async fn start() -> Self {
        crate::many_files();
        let dir = TempDir::new().unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let path = |name: &str| dir.path().join(name);
        #[allow(clippy::disallowed_methods, reason = "starts the relay under test")]
        let child = Command::new(Binaries::find().unwrap().peerpodd)
            .arg("relay")
            .env_clear()
            .env("REMOTE_HYPERVISOR_ENDPOINT", path("hypervisor.sock"))
            .env("PODS_DIR", path("pods"))
            .env("PEERPODD_RUN_DIR", path("run"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let socket = path("node.sock");
        let node = UnixListener::bind(&socket).unwrap();
        let life = CancellationToken::new();
        let control = path("run/control.sock");
        let (client, events) =
            RelayClient::start(control, socket, "test".to_owned(), &Tracker::new(), life.clone());
        let mut relay = Self { dir, child, client, events, node, life };
        let attached = tokio::time::timeout(PATIENCE, relay.events.recv()).await;
        assert!(matches!(attached, Ok(Some(Event::Attached { .. }))), "{}", relay.log());
        relay
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn memory(&self) -> u64 {
        memory(self.pid())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// Below its directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn agent_socket(&self, sandbox: &str) -> PathBuf {
        self.path("pods").join(sandbox).join("agent.ttrpc")
    }

    pub(crate) async fn open(&self, sandbox: &str, edit: &[&str]) {
        let edit: Vec<String> = edit.iter().map(|m| (*m).to_owned()).collect();
        self.client.open(sandbox, &self.agent_socket(sandbox), &edit).await.unwrap();
    }

    pub(crate) async fn connect(
        &self,
        sandbox: &str,
        vm: SocketAddr,
        tls: Option<&ClientTls>,
    ) -> Result<(), ControlError> {
        self.client.connect(sandbox, vm, tls, PATIENCE).await
    }

    /// A shim that has asked something and had its answer.
    pub(crate) async fn shim(&self) -> UnixStream {
        let mut shim = connect(&self.path("hypervisor.sock")).await;
        self.answers(&mut shim, 1).await;
        shim
    }

    /// The shim's request goes through the relay to the node process and is answered.
    pub(crate) async fn answers(&self, shim: &mut UnixStream, stream: u32) {
        let whole = async {
            let request = Request { method: "Version".to_owned(), ..Request::default() };
            request.frame(stream, 0).write(shim).await.unwrap();
            loop {
                let (mut node, _) = self.node.accept().await.unwrap();
                // Requests of others may come first.
                let Ok(Some(frame)) = FrameReader::new(&mut node, None).next().await else {
                    continue;
                };
                let answer = Response { status: None, payload: "here".into() };
                answer.frame(frame.stream).write(&mut node).await.unwrap();
                let frame = FrameReader::new(&mut *shim, None).next().await.unwrap().unwrap();
                return assert_eq!(frame.stream, stream);
            }
        };
        tokio::time::timeout(PATIENCE, whole).await.unwrap_or_else(|_| panic!("{}", self.log()));
    }

    /// The node process is served; by then what came before it has been read, too.
    pub(crate) async fn is_served(&self) {
        self.client.list().await.unwrap_or_else(|e| panic!("{e}\n{}", self.log()));
    }

    pub(crate) async fn says(&self, words: &str) {
        let look = async || Ok(self.log().contains(words).then_some(()));
        wait_for(words, PATIENCE, look).await.unwrap_or_else(|e| panic!("{e}\n{}", self.log()));
    }
}
