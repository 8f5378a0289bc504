//! A process with three pipes, and who waits for it.
//!
//! ```text
//!   spawn ─▶ standin-agent exec-in NETNS -- args   (a helper of its own enters the namespace)
//!   stdin ◀─ WriteStdin     stdout, stderr ─▶ Read…     exit ─▶ every waiter
//! ```

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::{Mutex, watch};

use crate::messages::oci;

/// How long after the exit the pipes may still bring something, as in the real agent.
const DRAIN: Duration = Duration::from_millis(500);
/// Most that one read brings, in bytes.
const READ_LIMIT: u32 = 1 << 20;

/// Which of the two.
#[derive(Clone, Copy, Debug)]
pub(super) enum Output {
    Stdout,
    Stderr,
}

/// A running or ended process.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    stdin: Mutex<Option<ChildStdin>>,
    stdout: Mutex<Option<ChildStdout>>,
    stderr: Mutex<Option<ChildStderr>>,
    exit: watch::Receiver<Option<i32>>,
}

impl Process {
    /// Starts `what` in the network namespace at `netns`, or in the agent's own.
    pub(super) fn spawn(
        executable: Option<&Path>,
        netns: Option<&str>,
        what: &oci::Process,
    ) -> std::io::Result<Arc<Self>> {
        let program = executable.map_or_else(|| PathBuf::from("/proc/self/exe"), Path::to_owned);
        #[allow(clippy::disallowed_methods, reason = "an agent's work is to start processes")]
        let mut command = tokio::process::Command::new(program);
        command.arg("exec-in").arg(netns.unwrap_or("-")).arg("--").args(&what.args);
        command.env_clear().envs(what.env.iter().filter_map(|pair| pair.split_once('=')));
        if Path::new(&what.cwd).is_dir() {
            command.current_dir(&what.cwd);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|p| i32::try_from(p).ok()).unwrap_or_default();
        let (ended, exit) = watch::channel(None);
        let process = Self {
            pid: Pid::from_raw(pid),
            stdin: Mutex::new(child.stdin.take()),
            stdout: Mutex::new(child.stdout.take()),
            stderr: Mutex::new(child.stderr.take()),
            exit,
        };
        tokio::spawn(async move {
            let status = child.wait().await.map_or(255, status_of);
            let _ = ended.send(Some(status));
        });
        Ok(Arc::new(process))
    }

    /// Waits for the exit; as many as like may.
    pub(super) async fn wait(&self) -> i32 {
        let mut exit = self.exit.clone();
        let seen = exit.wait_for(Option::is_some).await;
        seen.ok().and_then(|status| *status).unwrap_or(255)
    }

    /// Sends a signal to a process that has not ended.
    pub(super) fn signal(&self, number: u32) -> Result<(), String> {
        let number = i32::try_from(number).map_err(|e| e.to_string())?;
        let signal = Signal::try_from(number).map_err(|e| format!("signal {number}: {e}"))?;
        if self.exit.borrow().is_some() || self.pid.as_raw() == 0 {
            return Ok(());
        }
        kill(self.pid, signal).map_err(|e| e.to_string())
    }

    /// At most `length` bytes; none at the end of the stream.
    pub(super) async fn read(&self, which: Output, length: u32) -> std::io::Result<Vec<u8>> {
        match which {
            Output::Stdout => self.read_from(&self.stdout, length).await,
            Output::Stderr => self.read_from(&self.stderr, length).await,
        }
    }

    async fn read_from<R>(&self, pipe: &Mutex<Option<R>>, length: u32) -> std::io::Result<Vec<u8>>
    where
        R: AsyncRead + Unpin,
    {
        let mut slot = pipe.lock().await;
        let Some(open) = slot.as_mut() else {
            return Ok(Vec::new());
        };
        let mut buffer = vec![0; length.clamp(1, READ_LIMIT) as usize];
        // A grandchild may hold the pipe open; the exit then ends the stream all the same.
        let read = tokio::select! {
            biased;
            read = open.read(&mut buffer) => read?,
            () = self.drained() => 0,
        };
        buffer.truncate(read);
        if read == 0 {
            *slot = None;
        }
        Ok(buffer)
    }

    async fn drained(&self) {
        self.wait().await;
        tokio::time::sleep(DRAIN).await;
    }

    /// Writes all of it; nothing is the end of stdin.
    pub(super) async fn write(&self, data: &[u8]) -> std::io::Result<()> {
        let mut slot = self.stdin.lock().await;
        if data.is_empty() {
            *slot = None;
            return Ok(());
        }
        let closed = || std::io::Error::new(std::io::ErrorKind::BrokenPipe, "stdin is closed");
        let stdin = slot.as_mut().ok_or_else(closed)?;
        stdin.write_all(data).await?;
        stdin.flush().await
    }

    /// Ends stdin.
    pub(super) async fn close_stdin(&self) {
        *self.stdin.lock().await = None;
    }
}

/// As the real agent has it: the exit code, or the number of the signal.
fn status_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal()).unwrap_or(255)
}
