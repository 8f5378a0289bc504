//! How a socket file comes to be and goes again.
//!
//! ```text
//!   lock the directory ─▶ what is at the path?
//!        nothing ──────────────┐
//!        socket nobody serves ─┴▶ bind ".new", mode 0600 ─▶ rename over the path ─▶ serve
//!        socket that is served, symlink, anything else ─▶ error that names it
//!   drop: remove the file if it is still ours
//!
//!   handed over: another process holds the same listener ─▶ own: it is ours now, and only then
//!                                                      ◀── disown: the file is somebody else's
//! ```

use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{Backlog, getsockopt, listen, sockopt};
use peerpod_tunnel::link::notice::Notices;
use tokio::net::{UnixListener, UnixStream};

use crate::crash::here;

/// What fits in `sockaddr_un` with its closing zero.
pub const MAX_PATH: usize = 107;
/// How long a look at who serves a path may take.
const LOOK: Duration = Duration::from_secs(1);
/// How long another process may hold the directory's lock.
const LOCK: Duration = Duration::from_secs(3);

/// Of those who are turned away, at all sockets.
static TURNED_AWAY: Notices = Notices::new();
static ACCEPTING: Notices = Notices::new();

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel's limit.
    #[error("{0}: a socket path has at most {MAX_PATH} bytes")]
    TooLong(PathBuf),
    /// Not absolute, or without a name in a directory.
    #[error("{0}: not an absolute path of a file")]
    NotAFile(PathBuf),
    /// Somebody could redirect us.
    #[error("{0}: a symbolic link stands where the socket should be")]
    Symlink(PathBuf),
    /// Somebody's data, perhaps.
    #[error("{0}: something that is no socket stands where the socket should be")]
    NotASocket(PathBuf),
    /// The directory is none, or a link to one.
    #[error("{0}: not a directory")]
    NotADirectory(PathBuf),
    /// The directory belongs to somebody else.
    #[error("{path}: the directory belongs to uid {uid}")]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Another live process serves it.
    #[error("{path}: served by process {}", pid.map_or("of unknown id".to_owned(), |p| p.to_string()))]
    Taken {
        /// The path asked for.
        path: PathBuf,
        /// Who, as far as the kernel says.
        pid: Option<i32>,
    },
    /// The system refuses.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

fn io(doing: &'static str, path: &Path) -> impl Fn(std::io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io { doing, path: path.clone(), source }
}

/// Whom a socket listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowed(pub(super) u32);

impl Allowed {
    pub(super) fn admits(self, uid: u32) -> bool {
        uid == self.0 || uid == 0
    }
}

/// A served socket; its file goes with it.
#[derive(Debug)]
pub(super) struct Bound {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
    ours: AtomicBool,
}

impl Bound {
    /// Serves `path`, whose directory must be there.
    pub(super) async fn bind(path: &Path) -> Result<Self, SocketError> {
        let directory = check_path(path)?;
        check_directory(directory, None)?;
        let _lock = lock(directory).await?;
        check_free(path).await?;
        let temporary = directory.join(".new");
        match std::fs::remove_file(&temporary) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(io("removing", &temporary)(e)),
            _ => {}
        }
        here!(SocketBindBefore);
        let listener = UnixListener::bind(&temporary).map_err(io("binding", &temporary))?;
        here!(SocketBindAfter);
        // Whoever slips in before the mode is set still meets the check of credentials.
        std::fs::set_permissions(&temporary, Permissions::from_mode(0o600))
            .map_err(io("setting the mode of", &temporary))?;
        let identity = std::fs::symlink_metadata(&temporary).map(identity);
        let identity = identity.map_err(io("looking at", &temporary))?;
        std::fs::rename(&temporary, path).map_err(io("putting in place", path))?;
        here!(SocketRenameAfter);
        Ok(Self { listener, path: path.to_owned(), identity, ours: AtomicBool::new(true) })
    }

    /// A listener that another process has bound to `path` and still holds; not ours before
    /// [`Bound::own`].
    pub(super) fn adopt(
        listener: OwnedFd,
        path: &Path,
        identity: (u64, u64),
    ) -> std::io::Result<Self> {
        if !getsockopt(&listener, sockopt::AcceptConn)? {
            return Err(std::io::Error::new(ErrorKind::InvalidInput, "it does not listen"));
        }
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (listener, path) = (UnixListener::from_std(listener)?, path.to_owned());
        Ok(Self { listener, path, identity, ours: AtomicBool::new(false) })
    }

    /// From now on this process serves it.
    pub(super) fn own(&self) {
        self.ours.store(true, Ordering::Relaxed);
        // Whoever connects is told the process that has listened last.
        if let Err(e) = listen(&self.listener, Backlog::MAXALLOWABLE) {
            tracing::warn!(socket = %self.path.display(), error = %e, "listening again");
        }
    }

    /// From now on the file is another process's.
    pub(super) fn disown(&self) {
        self.ours.store(false, Ordering::Relaxed);
    }

    /// The listener, for another process.
    pub(super) fn copy(&self) -> std::io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Device and inode of its file.
    pub(super) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// The path asked for.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection of somebody who is allowed; others are counted by `refused` and dropped.
    pub(super) async fn accept(&self, allowed: Allowed, refused: impl Fn()) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if allowed.admits(peer.uid()) => return stream,
                    peer => {
                        refused();
                        let who = peer.ok().map(|p| (p.uid(), p.pid()));
                        let socket = self.path.display();
                        TURNED_AWAY.say(|| tracing::warn!(%socket, ?who, "peer turned away"));
                    }
                },
                Err(e) => {
                    // Out of descriptors or memory: waiting is all that helps.
                    let socket = self.path.display();
                    ACCEPTING.say(|| tracing::warn!(%socket, error = %e, "accept"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if !self.ours.load(Ordering::Relaxed) {
            return;
        }
        let ours = std::fs::symlink_metadata(&self.path).map(identity);
        if ours.is_ok_and(|found| found == self.identity) {
            here!(SocketRemoveBefore);
            // A file that stays is replaced by the next one who serves here.
            let _ = std::fs::remove_file(&self.path);
            here!(SocketRemoveAfter);
        }
    }
}

fn identity(metadata: Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// The directory of a usable socket path.
pub(super) fn check_path(path: &Path) -> Result<&Path, SocketError> {
    if path.as_os_str().len() > MAX_PATH {
        return Err(SocketError::TooLong(path.to_owned()));
    }
    match (path.is_absolute(), path.parent(), path.file_name()) {
        (true, Some(directory), Some(_)) => Ok(directory),
        _ => Err(SocketError::NotAFile(path.to_owned())),
    }
}

/// Makes a directory if it is not there; it must be ours or root's, and a real one.
pub(super) fn ensure_directory(path: &Path, mode: u32) -> Result<(), SocketError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    match made {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(io("making", path)(e)),
        _ => check_directory(path, Some(mode)),
    }
}

/// With `mode`, takes away what is allowed beyond it.
fn check_directory(path: &Path, mode: Option<u32>) -> Result<(), SocketError> {
    let found = std::fs::symlink_metadata(path).map_err(io("looking at", path))?;
    if !found.is_dir() {
        return Err(SocketError::NotADirectory(path.to_owned()));
    }
    if found.uid() != nix::unistd::geteuid().as_raw() && found.uid() != 0 {
        return Err(SocketError::Owner { path: path.to_owned(), uid: found.uid() });
    }
    let have = found.mode() & 0o777;
    match mode {
        Some(mode) if have & !mode != 0 => {
            std::fs::set_permissions(path, Permissions::from_mode(have & mode))
                .map_err(io("setting the mode of", path))
        }
        _ => Ok(()),
    }
}

/// Two processes that find the same dead socket must not both replace it.
async fn lock(directory: &Path) -> Result<Flock<File>, SocketError> {
    let mut file = File::open(directory).map_err(io("opening", directory))?;
    let until = tokio::time::Instant::now() + LOCK;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(held),
            Err((back, nix::Error::EAGAIN)) if tokio::time::Instant::now() < until => file = back,
            Err((_, e)) => return Err(io("locking", directory)(e.into())),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Takes away what a relay that was killed has left in a sandbox's directory: sockets that nobody serves,
/// and the directory if nothing else is in it. What cannot be taken away does no harm.
pub(super) async fn clear_dead(directory: &Path) {
    if check_directory(directory, None).is_err() {
        return;
    }
    let Ok(_lock) = lock(directory).await else { return };
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if is_socket && check_free(&entry.path()).await.is_ok() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    let _ = std::fs::remove_dir(directory);
}

async fn check_free(path: &Path) -> Result<(), SocketError> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io("looking at", path)(e)),
        Ok(found) if found.is_symlink() => return Err(SocketError::Symlink(path.to_owned())),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let taken = |pid| Err(SocketError::Taken { path: path.to_owned(), pid });
    match tokio::time::timeout(LOOK, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => taken(stream.peer_cred().ok().and_then(|peer| peer.pid())),
        Ok(Err(e)) => match e.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => Ok(()),
            // A full queue has somebody behind it.
            ErrorKind::WouldBlock => taken(None),
            _ => Err(io("looking who serves", path)(e)),
        },
        Err(_) => taken(None),
    }
}
