//! A process of ours: a child, or one that an earlier parent left behind. Both are found, watched and
//! ended here.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::Children;

const LOCK: &str = "run.lock";
/// How often a socket that is not there yet is tried; a relay is there within milliseconds.
const AGAIN: Duration = Duration::from_millis(2);
/// A killed process is gone at once, unless the kernel holds it.
const KILLED: Duration = Duration::from_secs(5);

/// What goes wrong with processes.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// One parent at a time.
    #[error("another `peerpodd run` uses {path} (pid {pid})")]
    Another {
        /// The lock.
        path: PathBuf,
        /// What its holder wrote there.
        pid: String,
    },
    /// The lock cannot be used.
    #[error("--run-dir: lock {path}")]
    Lock {
        /// The lock.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A child cannot be started.
    #[error("start {program} {role}")]
    Start {
        /// Our executable.
        program: PathBuf,
        /// The subcommand.
        role: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not ours to watch.
    #[error("{socket} is served by a process of user {uid} (pid {pid})")]
    Foreign {
        /// The socket.
        socket: PathBuf,
        /// Its user.
        uid: u32,
        /// Its id; 0 if the kernel does not tell, as across process namespaces.
        pid: i32,
    },
    /// It lives, but cannot be watched.
    #[error("watch process {pid}, which serves {socket}")]
    Watch {
        /// The socket.
        socket: PathBuf,
        /// Its id.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Holds the run directory as this parent's. Blocks for a few file system calls.
///
/// # Errors
/// When another parent holds it.
pub(super) fn only_one(run_dir: &Path) -> Result<Flock<File>, ProcessError> {
    let path = run_dir.join(LOCK);
    let failed = |source: io::Error| ProcessError::Lock { path: path.clone(), source };
    std::fs::create_dir_all(run_dir).map_err(failed)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&path);
    match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0).map_err(failed)?;
            writeln!(lock, "{}", std::process::id()).map_err(failed)?;
            Ok(lock)
        }
        Err((_, nix::Error::EWOULDBLOCK)) => {
            let pid = std::fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
            Err(ProcessError::Another { path, pid })
        }
        Err((_, e)) => Err(failed(e.into())),
    }
}

/// Waits until somebody serves `socket`, at most `bound`.
pub(super) async fn served(socket: &Path, bound: Duration) {
    let trying = async {
        while UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    };
    if tokio::time::timeout(bound, trying).await.is_err() {
        tracing::warn!(socket = %socket.display(), ?bound, "nobody serves it yet");
    }
}

/// A process of ours.
#[derive(Debug)]
pub(super) enum Process {
    /// Started here.
    Child(Child, u32),
    /// Started by an earlier parent.
    Found(AsyncFd<OwnedFd>, i32),
}

impl Process {
    /// Starts a child in a process group of its own.
    pub(super) fn start(children: &Children, role: &'static str) -> Result<Self, ProcessError> {
        #[allow(clippy::disallowed_methods, reason = "a parent that starts our own binary")]
        let mut command = Command::new(&children.program);
        command
            // The name decides what a program of ours is: ours may be called cloud-api-adaptor.
            .arg0("peerpodd")
            .arg(role)
            .args(&children.args)
            // Readiness is told to systemd by the parent alone.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .process_group(0);
        if role == "relay" {
            for name in &children.withheld {
                command.env_remove(name);
            }
        }
        let program = children.program.clone();
        let child =
            command.spawn().map_err(|source| ProcessError::Start { program, role, source })?;
        let pid = child.id().unwrap_or_default();
        Ok(Self::Child(child, pid))
    }

    /// The process of this user that serves `socket`, if there is one.
    pub(super) async fn find(socket: &Path) -> Result<Option<Self>, ProcessError> {
        let Ok(stream) = UnixStream::connect(socket).await else { return Ok(None) };
        let watch = |pid: i32, source: io::Error| ProcessError::Watch {
            socket: socket.to_owned(),
            pid,
            source,
        };
        let peer = stream.peer_cred().map_err(|e| watch(0, e))?;
        let (uid, pid) = (peer.uid(), peer.pid().unwrap_or(0));
        let Some(id) = Pid::from_raw(pid).filter(|_| uid == nix::unistd::geteuid().as_raw()) else {
            return Err(ProcessError::Foreign { socket: socket.to_owned(), uid, pid });
        };
        let fd = pidfd_open(id, PidfdFlags::empty()).map_err(|e| watch(pid, e.into()))?;
        // SAFETY: an OwnedFd has the same open descriptor from here until it is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            .map_err(|e| watch(pid, e.into()))?;
        Ok(Some(Self::Found(fd, pid)))
    }

    /// Its id.
    pub(super) fn pid(&self) -> u32 {
        match self {
            Self::Child(_, pid) => *pid,
            Self::Found(_, pid) => u32::try_from(*pid).unwrap_or(0),
        }
    }

    /// Waits for its end; the exit code, where there is one and we may know it.
    pub(super) async fn ended(&mut self) -> Option<i32> {
        match self {
            Self::Child(child, _) => child.wait().await.ok().and_then(|status| status.code()),
            Self::Found(fd, _) => {
                // Readable when the process has ended; an error would come from the runtime's end.
                let _ = fd.readable().await;
                None
            }
        }
    }

    /// Tells it to end, and kills it when it has not after `patience`.
    pub(super) async fn end(&mut self, patience: Duration) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(patience, self.ended()).await.is_ok() {
            return;
        }
        tracing::warn!(pid = self.pid(), ?patience, "did not end in time and is killed");
        self.signal(Signal::KILL);
        if tokio::time::timeout(KILLED, self.ended()).await.is_err() {
            tracing::error!(pid = self.pid(), "is killed, and yet not gone");
        }
    }

    /// One that has already ended needs none.
    fn signal(&self, signal: Signal) {
        let sent = match self {
            // A child that was not waited for keeps its id, so it cannot be another's.
            Self::Child(child, _) => child
                .id()
                .and_then(|pid| i32::try_from(pid).ok().and_then(Pid::from_raw))
                .map_or(Ok(()), |pid| rustix::process::kill_process(pid, signal)),
            Self::Found(fd, _) => pidfd_send_signal(fd.get_ref(), signal),
        };
        if let Err(e) = sent {
            tracing::debug!(pid = self.pid(), error = %e, "signal");
        }
    }
}
