//! A VM's files in a directory of their own, and the program running on them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::frame::{Frame, FrameReader};
use peerpod_tunnel::link::tls::ClientTls;
use podvm::apf::Apf;
use podvm::cloud_config::{self, File};
use podvm::contract;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certs::Certs;

/// Long enough for a machine under load; nothing is measured by it.
/// IBM Z is emulated where these tests run.
pub(crate) const PATIENCE: Duration =
    Duration::from_secs(if cfg!(target_arch = "s390x") { 120 } else { 30 });

pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) certs: Certs,
}

impl Lab {
    /// With user data whose apf.json has certificates and no network.
    pub(crate) fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap(), certs: Certs::new() };
        lab.user_data(&[lab.apf(None)]);
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.path("kata-containers/agent.sock")
    }

    pub(crate) fn apf(&self, network: Option<podvm::apf::ApfNetwork>) -> File {
        let apf = Apf {
            pod_network: network,
            pod_name: "nginx".to_owned(),
            tls_server_key: Secret::new(self.certs.server_key.clone()),
            tls_server_cert: self.certs.server_cert.clone(),
            tls_client_ca: self.certs.client_cert.clone(),
            ..Apf::default()
        };
        File { path: contract::APF.to_owned(), content: apf.render().unwrap() }
    }

    pub(crate) fn user_data(&self, files: &[File]) {
        std::fs::write(self.path("user-data"), cloud_config::render(files).unwrap()).unwrap();
    }

    /// Where it finds and puts its files.
    pub(crate) fn places(&self) -> Vec<String> {
        let place = |flag: &str, name: &str| format!("--{flag}={}", self.path(name).display());
        vec![place("user-data", "user-data"), place("run-dir", "run")]
    }

    pub(crate) fn serving(&self) -> Vec<String> {
        vec![
            "--listen=127.0.0.1:0".to_owned(),
            format!("--kata-agent-socket={}", self.agent_socket().display()),
            format!("--pod-namespace={}", self.path("podns").display()),
        ]
    }

    /// `podvm run`, until it serves.
    pub(crate) async fn run(&self, more: &[&str]) -> Podvm {
        let mut args = vec!["run".to_owned()];
        args.extend(self.places());
        args.extend(self.serving());
        args.extend(more.iter().map(|&a| a.to_owned()));
        let podvm = Podvm::spawn(&args);
        podvm.line("forwarder serves").await;
        podvm
    }

    /// A TLS connection of the right worker.
    pub(crate) async fn connect(&self, podvm: &Podvm) -> Connection {
        connect(podvm.address(), &self.certs.client()).await.unwrap()
    }
}

/// The program, killed when dropped.
pub(crate) struct Podvm {
    child: Child,
    reading: tokio::task::JoinHandle<()>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Podvm {
    pub(crate) fn spawn(args: &[String]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podvm"));
        command.args(args);
        Self::start(command)
    }

    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self::start_reading(command)
    }

    /// With the stdin that the command has.
    pub(crate) fn start_reading(mut command: Command) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = lines.clone();
        let reading = tokio::spawn(async move {
            let mut reader = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                kept.lock().unwrap().push(line);
            }
        });
        Self { child, reading, lines }
    }

    pub(crate) fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// The first line with `text`, once it is there.
    pub(crate) async fn line(&self, text: &str) -> String {
        let what = format!("a line with {text:?}");
        until(&what, || self.log().lines().find(|l| l.contains(text)).map(str::to_owned))
            .await
            .unwrap_or_else(|| panic!("no line with {text:?} in:\n{}", self.log()))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        let log = self.log();
        let line = log.lines().find(|l| l.contains("forwarder serves")).unwrap();
        line.split("address=").nth(1).unwrap().trim().parse().unwrap()
    }

    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends");
        // All it has said.
        (&mut self.reading).await.unwrap();
        ended.unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("running")
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.id().expect("running")).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Looks until something is there; `None` when patience ends.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if tokio::time::Instant::now() > end {
            println!("gave up waiting for {what}");
            return None;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) struct Connection {
    pub(crate) reader: FrameReader<ReadHalf<TlsStream<TcpStream>>>,
    pub(crate) writer: WriteHalf<TlsStream<TcpStream>>,
}

pub(crate) async fn connect(at: SocketAddr, tls: &ClientTls) -> std::io::Result<Connection> {
    let tcp = TcpStream::connect(at).await?;
    let connector = TlsConnector::from(tls.config().unwrap());
    let stream = connector.connect(tls.name().unwrap(), tcp).await?;
    let (reader, writer) = tokio::io::split(stream);
    Ok(Connection { reader: FrameReader::new(reader, None), writer })
}

impl Connection {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.unwrap();
        self.writer.flush().await.unwrap();
    }

    /// The next frame; `None` at a proper end, which with TLS is a close_notify.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        self.try_next().await.unwrap()
    }

    pub(crate) async fn try_next(
        &mut self,
    ) -> Result<Option<Frame>, peerpod_tunnel::link::frame::FrameError> {
        tokio::time::timeout(PATIENCE, self.reader.next()).await.expect("an answer or an end")
    }

    /// Sends a frame and gives the answer.
    pub(crate) async fn call(&mut self, frame: &Frame) -> Frame {
        let mut bytes = bytes::BytesMut::new();
        frame.put(&mut bytes);
        self.send(&bytes).await;
        self.next().await.expect("an answer")
    }
}
