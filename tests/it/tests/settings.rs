//! The program from outside: what it says of its settings, how it ends, and how `peerpodd run` keeps
//! its two children. Needs no root: without it the local provider is not well, and all else is.
#![allow(
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test that starts programs and waits"
)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerpod_standin::lab::Binaries;
use tempfile::TempDir;

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> PathBuf {
    Binaries::find().expect("built programs").peerpodd
}

fn said(program: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program);
    command.env_clear().args(args).envs(env.iter().copied()).stdin(Stdio::null());
    command.output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A daemon with a directory and a port of its own.
struct Daemon {
    dir: TempDir,
    port: u16,
    first: Option<Child>,
}

impl Daemon {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = free.local_addr().expect("bound").port();
        Self { dir, port, first: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, role: &str) -> Command {
        let mut command = Command::new(program());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log"));
        command
            .env_clear()
            .arg(role)
            .arg("--run-dir")
            .arg(self.path("run"))
            .arg("--socket")
            .arg(self.path("run/hypervisor.sock"))
            .arg("--pods-dir")
            .arg(self.path("pods"))
            .arg("-state-dir")
            .arg(self.path("state"))
            .arg("--local-state-dir")
            .arg(self.path("local"))
            .arg("--allow-volatile-state")
            .arg(format!("--probe-port={}", self.port))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"));
        command
    }

    fn run(&self) -> Child {
        self.command("run").spawn().expect("started")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Processes of this daemon in that role, whoever is their parent.
    fn pids(&self, role: &str) -> Vec<i32> {
        let mark = self.path("run");
        let of_ours = |pid: &i32| {
            let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
            let words: Vec<_> = line.split(|b| *b == 0).map(text).collect();
            words.get(1).is_some_and(|w| w == role) && words.iter().any(|w| Path::new(w) == mark)
        };
        let all = std::fs::read_dir("/proc").expect("processes").flatten();
        let numbers = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        numbers.filter(of_ours).collect()
    }

    fn pid(&self, role: &str) -> Option<i32> {
        self.pids(role).first().copied()
    }

    fn get(&self, page: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        write!(stream, "GET {page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let code = answer.split(' ').nth(1)?.parse().ok()?;
        Some((code, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// Waits until a node process other than `before` serves; its id.
    fn serves(&self, before: Option<i32>) -> i32 {
        until("the node process serves", || {
            let (code, status) = self.get("/status")?;
            let status: serde_json::Value = serde_json::from_str(&status).ok()?;
            let pid = i32::try_from(status["process"]["pid"].as_i64()?).ok()?;
            let started = self.get("/startup")?.0 == 200;
            (code == 200 && started && Some(pid) != before).then_some(pid)
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for role in ["run", "node", "relay"] {
            for pid in self.pids(role) {
                send(pid, Signal::SIGKILL);
            }
        }
        if let Some(mut first) = self.first.take() {
            first.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).ok();
}

fn id(child: &Child) -> i32 {
    i32::try_from(child.id()).expect("a process id")
}

fn exit_code(child: &mut Child) -> Option<i32> {
    until("the process ends", || child.try_wait().expect("its state")).code()
}

#[test]
fn every_setting_that_cannot_be_used_is_named_and_nothing_starts() {
    let env = [("FORWARDER_PORT", "abc"), ("TLS_SKIP_VERIFY", "yes"), ("INITDATA", "hunter2")];
    for role in ["node", "run"] {
        let out = said(&program(), &[role, "--vxlan-prt=1", "-proxy-timeout=5"], &env);
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{error}");
        for part in [
            "--forwarder-port (FORWARDER_PORT) = \"abc\": is not a port",
            "--tls-skip-verify (TLS_SKIP_VERIFY) = \"yes\": is not true",
            "--proxy-timeout (PROXY_TIMEOUT) = \"5\": is not a duration",
            "--vxlan-prt: is no flag; --vxlan-port is the nearest",
            "--initdata (INITDATA) = \"(secret)\"",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn the_effective_settings_are_printed_without_secrets() {
    let env = [("VXLAN_PORT", "4789"), ("INITDATA", "hunter2")];
    let out = said(&program(), &["node", "--print-config", "-o", "json", "-tags=a=b"], &env);
    let printed = text(&out.stdout) + &text(&out.stderr);
    assert!(!printed.contains("hunter2"), "{printed}");
    let out = said(&program(), &["node", "-print-config", "-o=json"], &env[..1]);
    let rows: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let port = rows.as_array().expect("rows").iter().find(|r| r["flag"] == "vxlan-port");
    let port = port.expect("a row");
    assert_eq!((&port["value"], &port["source"]), (&"4789".into(), &"env VXLAN_PORT".into()));
    assert_eq!(out.status.code(), Some(0));
}

#[test]
fn under_the_go_programs_name_it_behaves_like_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let name = dir.path().join("cloud-api-adaptor");
    symlink(program(), &name).expect("a link");
    for args in [&[] as &[&str], &["-socket"], &["nosuchcloud"], &["aws"]] {
        let out = said(&name, args, &[]);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        assert!(text(&out.stderr).contains("usage: cloud-api-adaptor <provider>"), "{args:?}");
    }
    for args in [&["help"] as &[&str], &["version"], &["-help"], &["local", "-help"]] {
        let out = said(&name, args, &[]);
        assert_eq!(out.status.code(), Some(0), "{args:?}");
        assert!(!out.stdout.is_empty(), "{args:?}");
    }
    let out = said(&name, &["local", "-forwarder-port", "x"], &[]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("FORWARDER_PORT"), "{}", text(&out.stderr));
}

#[test]
fn run_starts_both_and_brings_back_the_node_alone() {
    let daemon = Daemon::new();
    let mut run = daemon.run();
    let node = daemon.serves(None);
    let relay = daemon.pid("relay").expect("a relay");
    send(node, Signal::SIGKILL);
    let next = daemon.serves(Some(node));
    assert_eq!(daemon.pids("node"), [next]);
    assert_eq!(daemon.pids("relay"), [relay], "the relay was touched");
    let port = daemon.port.to_string();
    let out = said(&program(), &["status", "--probe-port", &port], &[]);
    assert!(text(&out.stdout).contains("no pods"), "{}", text(&out.stdout));
    send(id(&run), Signal::SIGTERM);
    assert_eq!(exit_code(&mut run), Some(0), "{}", daemon.log());
    assert!(daemon.pid("node").is_none() && daemon.pid("relay").is_none());
    let out = said(&program(), &["status", "--probe-port", &port], &[]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("is it running?"), "{}", text(&out.stderr));
}

#[test]
fn systemd_hears_of_the_parent_alone_and_that_it_is_ready_once_the_node_serves() {
    let daemon = Daemon::new();
    let path = daemon.path("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let hear = || {
        let mut words = [0; 256];
        let length = socket.recv(&mut words).expect("a word");
        text(&words[..length]).trim().to_owned()
    };
    let mut run = daemon.command("run").env("NOTIFY_SOCKET", &path).spawn().expect("started");
    assert_eq!(hear(), "READY=1");
    assert_eq!(daemon.get("/startup").map(|(code, _)| code), Some(200));
    send(id(&run), Signal::SIGTERM);
    assert_eq!(hear(), "STOPPING=1");
    assert_eq!(exit_code(&mut run), Some(0));
    socket.set_nonblocking(true).expect("nonblocking");
    let more = socket.recv(&mut [0; 256]).map_err(|e| e.kind());
    assert_eq!(more, Err(std::io::ErrorKind::WouldBlock), "a child has spoken");
}

#[test]
fn a_relay_outlives_its_parent_and_is_adopted_by_the_next() {
    let mut daemon = Daemon::new();
    let first = daemon.run();
    let node = daemon.serves(None);
    let relay = daemon.pid("relay").expect("a relay");
    send(id(&first), Signal::SIGKILL);
    daemon.first = Some(first);
    let mut second = daemon.run();
    daemon.serves(Some(node));
    assert_eq!(daemon.pids("relay"), [relay], "{}", daemon.log());
    assert_eq!(daemon.pids("node").len(), 1);
    // Its death is noticed, though it is not a child.
    send(relay, Signal::SIGKILL);
    until("another relay", || daemon.pid("relay").filter(|pid| *pid != relay));
    // One that cannot say yet whether it has pods is left, as if it had.
    let serves = || (daemon.log().matches("relay serves").count() == 2).then_some(());
    until("it serves", serves);
    send(id(&second), Signal::SIGTERM);
    assert_eq!(exit_code(&mut second), Some(0), "{}", daemon.log());
    assert!(daemon.pid("relay").is_none(), "{}", daemon.log());
}

#[test]
fn two_parents_and_two_nodes_refuse_each_other_by_name() {
    let daemon = Daemon::new();
    let mut run = daemon.run();
    let node = daemon.serves(None);
    let mut second = daemon.run();
    assert_eq!(exit_code(&mut second), Some(1));
    let mut other = daemon.command("node").spawn().expect("started");
    assert_eq!(exit_code(&mut other), Some(1));
    let log = daemon.log();
    assert!(log.contains(&format!("run.lock (pid {})", run.id())), "{log}");
    assert!(log.contains(&format!("another node process holds it (pid {node})")), "{log}");
    let mut elsewhere = Daemon::new();
    elsewhere.port = daemon.port;
    let mut third = elsewhere.command("node").spawn().expect("started");
    assert_eq!(exit_code(&mut third), Some(1));
    assert!(elsewhere.log().contains("--probe-port (PROBE_PORT)"), "{}", elsewhere.log());
    send(id(&run), Signal::SIGTERM);
    assert_eq!(exit_code(&mut run), Some(0));
}

#[test]
fn a_second_signal_leaves_at_once() {
    let daemon = Daemon::new();
    let mut run = daemon.run();
    let node = daemon.serves(None);
    // It will not end in time.
    send(node, Signal::SIGSTOP);
    send(id(&run), Signal::SIGTERM);
    until("the first signal is heard", || daemon.log().contains("ending node").then_some(()));
    assert!(run.try_wait().expect("its state").is_none(), "it did not wait for the node");
    send(id(&run), Signal::SIGTERM);
    assert_eq!(exit_code(&mut run), Some(1));
}

#[test]
fn a_setting_that_only_the_node_finds_wrong_ends_run_with_the_same_code() {
    let daemon = Daemon::new();
    std::fs::write(daemon.path("state"), "a file").expect("written");
    let mut run = daemon.run();
    assert_eq!(exit_code(&mut run), Some(2), "{}", daemon.log());
    assert!(daemon.log().contains("is not a directory"), "{}", daemon.log());
    assert!(daemon.pid("relay").is_none(), "{}", daemon.log());
}
