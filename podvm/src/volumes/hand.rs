//! The one process of the VM's program that may start others: it makes file systems on empty disks, gives
//! volumes to groups and closes mappings, and does nothing else. The process that speaks with the worker
//! starts it before it gives up what that takes, and talks to it over a pair of sockets.
//!
//! ```text
//!   podvm ─ one request a line, JSON ─▶ podvm volume-hand: mkfs.<fs> DEVICE │ chown :GROUP, 2775 │ cryptsetup close
//!         ◀─ one answer a line ────────
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as Socket;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal};
use podvm::cloud_volumes::Fs;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::mounts;

/// Name of the subcommand.
pub(crate) const NAME: &str = "volume-hand";
/// What mappings of volumes are called, before the volume's name; upstream's.
pub(super) const MAPPER: &str = "caa-";
/// Where programs are.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest line of either side, in bytes.
const LINE: u64 = 16 << 10;
/// What is passed on of a program's words, in bytes.
const WORDS: u64 = 2 << 10;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Job {
    /// A file system on a disk that is empty.
    Make { device: PathBuf, fs: Fs },
    /// The root of a volume for a group.
    Own { point: PathBuf, group: u32 },
    /// The mapping of an encrypted volume.
    Close { mapper: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    id: u64,
    job: Job,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    id: u64,
    error: Option<String>,
}

/// The way to the process.
#[derive(Debug)]
pub(crate) struct Hand {
    socket: Socket,
}

impl Hand {
    /// Starts the process. Before any thread, and before privileges are given up. `base` is where
    /// volumes are mounted.
    #[allow(clippy::disallowed_methods, reason = "starts our own binary, once")]
    pub(crate) fn start(base: &Path) -> std::io::Result<Self> {
        let (socket, theirs) = Socket::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("podvm").arg(NAME).arg("--base").arg(base).env_clear();
        // It ends with the other end of the socket, and nobody waits for it.
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).spawn()?;
        Ok(Self { socket })
    }

    /// Inside a runtime.
    pub(super) fn open(self) -> std::io::Result<Open> {
        self.socket.set_nonblocking(true)?;
        let socket = tokio::io::BufReader::new(UnixStream::from_std(self.socket)?);
        Ok(Open(Mutex::new(Talk { socket, last: 0, line: Vec::new() })))
    }
}

/// The way to the process, one request at a time.
#[derive(Debug)]
pub(super) struct Open(Mutex<Talk>);

#[derive(Debug)]
struct Talk {
    socket: tokio::io::BufReader<UnixStream>,
    last: u64,
    /// Of the answer that is being read.
    line: Vec<u8>,
}

impl Open {
    /// Has something done. Whoever drops this leaves the answer to the next caller, who knows it for
    /// another's.
    pub(super) async fn ask(&self, job: Job) -> Result<(), String> {
        let mut talk = self.0.lock().await;
        talk.ask(job).await.map_err(|e| format!("podvm's {NAME}: {e}"))?
    }
}

impl Talk {
    async fn ask(&mut self, job: Job) -> std::io::Result<Result<(), String>> {
        self.last += 1;
        let id = self.last;
        let mut request = serde_json::to_vec(&Request { id, job })?;
        request.push(b'\n');
        self.socket.write_all(&request).await?;
        loop {
            // What an earlier caller has left of a line is still there.
            self.socket.read_until(b'\n', &mut self.line).await?;
            if self.line.last() != Some(&b'\n') {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let answer: Answer = serde_json::from_slice(&std::mem::take(&mut self.line))?;
            if answer.id == id {
                return Ok(answer.error.map_or(Ok(()), Err));
            }
        }
    }
}

/// The process itself: answers until nobody asks any more.
pub(crate) fn serve(base: &Path) -> anyhow::Result<()> {
    // What is left to do is done, whoever is told to stop.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let socket = Socket::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut writer = socket.try_clone()?;
    let mut reader = BufReader::new(socket);
    loop {
        let mut line = Vec::new();
        reader.by_ref().take(LINE).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        let Request { id, job } = serde_json::from_slice(&line)?;
        let error = work(base, job).err();
        let mut line = serde_json::to_vec(&Answer { id, error })?;
        line.push(b'\n');
        writer.write_all(&line)?;
    }
}

fn work(base: &Path, job: Job) -> Result<(), String> {
    match job {
        Job::Make { device, fs } => {
            // Looked at once more by the process that does it: nothing that is used is formatted.
            let mut disk = mounts::open_unused(&device).map_err(|e| e.to_string())?;
            match super::probe::probe(&mut disk).map_err(|e| e.to_string())? {
                super::probe::Content::Empty => {}
                found => return Err(format!("it is not empty: {found:?}")),
            }
            drop(disk);
            run(&format!("mkfs.{}", fs.as_str()), &["-q".as_ref(), device.as_os_str()])
        }
        Job::Own { point, group } if point.parent() == Some(base) => {
            own(&point, group).map_err(|e| format!("group {group}: {e}"))
        }
        Job::Own { point, .. } => Err(format!("{} is no volume", point.display())),
        Job::Close { mapper } => {
            let name = mapper.strip_prefix(MAPPER).unwrap_or_default();
            let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
            if name.is_empty() || !name.bytes().all(fine) {
                return Err(format!("{mapper:?} is no volume's mapping"));
            }
            run("cryptsetup", &["close".as_ref(), mapper.as_ref()])
        }
    }
}

/// Upstream's: the group, and what is made below has it, too.
fn own(point: &Path, group: u32) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
    let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    let dir = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(point)?;
    fchown(&dir, None, Some(group))?;
    dir.set_permissions(std::fs::Permissions::from_mode(0o2775))
}

#[allow(clippy::disallowed_methods, reason = "the programs that make and close volumes")]
fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", SEARCH).stdin(Stdio::null());
    let failed = |e: std::io::Error| format!("{program}: {e}");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let mut words = Vec::new();
    if let Some(mut said) = child.stderr.take() {
        said.by_ref().take(WORDS).read_to_end(&mut words).map_err(failed)?;
        // It must not wait for somebody who reads.
        std::io::copy(&mut said, &mut std::io::sink()).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {status}: {}", String::from_utf8_lossy(&words).trim())),
    }
}
