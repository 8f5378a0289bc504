//! Ways to kata-agent, also when its socket has lost its name: at CreateSandbox the agent deletes the
//! tree its socket lies in. The socket itself lives on as long as the agent, so it is kept twice:
//!
//! ```text
//!   /run/kata-containers/agent.sock ─┬─ O_PATH descriptor ─▶ connect by /proc/self/fd/<n>
//!          (gone at CreateSandbox)   └─ hard link in the run directory, for our next process
//! ```
//!
//! Every way in begins with a look at the first name, so a restarted agent is found. Any number of
//! connections can be made at any time: there is no pool that could run dry.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::linkat;
use tokio::net::UnixStream;
use tokio::time::Instant;

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Why the agent cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    #[error("no agent on {socket} within {limit:?}: {source}")]
    Absent { socket: PathBuf, limit: Duration, source: std::io::Error },
}

/// A socket held by its inode, whatever its names are.
#[derive(Debug)]
struct Held {
    fd: OwnedFd,
    inode: (u64, u64),
}

impl Held {
    fn open(path: &Path) -> std::io::Result<Self> {
        let fd = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let file = std::fs::metadata(by_descriptor(&fd))?;
        if !file.file_type().is_socket() {
            let text = format!("{} is no socket", path.display());
            return Err(std::io::Error::other(text));
        }
        Ok(Self { fd, inode: (file.dev(), file.ino()) })
    }
}

fn by_descriptor(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// The agent's socket.
#[derive(Debug)]
pub(super) struct Agent {
    socket: PathBuf,
    kept: PathBuf,
    wait: Duration,
    held: Mutex<Option<Arc<Held>>>,
}

impl Agent {
    /// The agent that listens on `socket`, or did: `kept` is the link an earlier run has made.
    pub(super) fn new(socket: PathBuf, kept: PathBuf, wait: Duration) -> Self {
        let held = Held::open(&kept).ok().map(Arc::new);
        Self { socket, kept, wait, held: Mutex::new(held) }
    }

    /// Connects, waiting for an agent that is not there yet.
    ///
    /// # Errors
    /// When it does not come in time.
    pub(super) async fn connect(&self) -> Result<UnixStream, AgentError> {
        let end = Instant::now() + self.wait;
        let mut pause = FIRST_PAUSE;
        loop {
            let source = match self.try_connect().await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            if Instant::now() + pause > end {
                let (socket, limit) = (self.socket.clone(), self.wait);
                return Err(AgentError::Absent { socket, limit, source });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn try_connect(&self) -> std::io::Result<UnixStream> {
        let by_name = match Held::open(&self.socket) {
            Ok(held) => match UnixStream::connect(by_descriptor(&held.fd)).await {
                Ok(stream) => {
                    self.keep(held);
                    return Ok(stream);
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        let Some(held) = self.held() else { return Err(by_name) };
        UnixStream::connect(by_descriptor(&held.fd)).await
    }

    fn held(&self) -> Option<Arc<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps a socket that has answered. This is done before anything is said on the connection, so
    /// before any CreateSandbox.
    fn keep(&self, new: Held) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(|h| h.inode == new.inode) {
            return;
        }
        if let Err(error) = self.link(&new) {
            tracing::warn!(
                "{}: cannot be linked to the agent's socket ({error}): if this process is started \
                 again after CreateSandbox, it will not find the agent",
                self.kept.display()
            );
        }
        *held = Some(Arc::new(new));
    }

    fn link(&self, held: &Held) -> std::io::Result<()> {
        let begun = self.kept.with_extension("new");
        let _ = std::fs::remove_file(&begun);
        let from = by_descriptor(&held.fd);
        linkat(AT_FDCWD, &from, AT_FDCWD, &begun, AtFlags::AT_SYMLINK_FOLLOW)?;
        std::fs::rename(&begun, &self.kept)?;
        // Renaming one name of a file to another of its names does nothing.
        let _ = std::fs::remove_file(&begun);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().expect("dir") }
        }

        fn socket(&self) -> PathBuf {
            self.dir.path().join("agent.sock")
        }

        fn agent(&self, wait: Duration) -> Agent {
            Agent::new(self.socket(), self.dir.path().join("agent.kept.sock"), wait)
        }
    }

    #[tokio::test]
    async fn a_socket_without_a_name_is_found_by_this_process_and_the_next() {
        let place = Place::new();
        let _listener = UnixListener::bind(place.socket()).expect("bind");
        let agent = place.agent(Duration::ZERO);
        agent.connect().await.expect("connect");
        std::fs::remove_file(place.socket()).expect("unlink");
        agent.connect().await.expect("by descriptor");
        drop(agent);
        place.agent(Duration::ZERO).connect().await.expect("by link");
    }

    #[tokio::test]
    async fn a_new_agent_under_the_old_name_is_preferred() {
        let place = Place::new();
        let first = UnixListener::bind(place.socket()).expect("bind");
        let agent = place.agent(Duration::ZERO);
        agent.connect().await.expect("connect");
        std::fs::remove_file(place.socket()).expect("unlink");
        let second = UnixListener::bind(place.socket()).expect("bind");
        agent.connect().await.expect("connect");
        first.set_nonblocking(true).expect("set");
        second.set_nonblocking(true).expect("set");
        first.accept().expect("the first connection");
        assert!(first.accept().is_err(), "the second one goes to the new agent");
        second.accept().expect("the second connection");
    }

    #[tokio::test]
    async fn an_agent_that_comes_late_is_waited_for() {
        let place = Place::new();
        let agent = Arc::new(place.agent(Duration::from_secs(60)));
        let waiting = tokio::spawn({
            let agent = agent.clone();
            async move { agent.connect().await.map(drop) }
        });
        tokio::task::yield_now().await;
        let _listener = UnixListener::bind(place.socket()).expect("bind");
        waiting.await.expect("join").expect("connect");
        let nobody = Place::new().agent(Duration::ZERO).connect().await;
        assert!(nobody.expect_err("absent").to_string().contains("agent.sock"));
    }
}
