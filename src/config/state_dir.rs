//! The state directory: what must survive a restart. Checked before anything is put there, and held
//! by one node process at a time.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::libc::{EIO, ELOOP, O_NOFOLLOW};
use nix::sys::statfs::{FsType, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};

use crate::crash::here;

const LOCK: &str = "node.lock";
const PROBE: &str = ".probe";

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It is not there and cannot be made.
    #[error("--state-dir {path}: cannot be made")]
    Make {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else has that name.
    #[error("--state-dir {0}: is not a directory")]
    NotADirectory(PathBuf),
    /// Others could read keys in it.
    #[error("--state-dir {path}: cannot be closed to other users")]
    Close {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nothing can be kept there.
    #[error("--state-dir {path}: cannot be written")]
    Write {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What kind of file system it is cannot be found out.
    #[error("--state-dir {path}: file system")]
    FileSystem {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: nix::Error,
    },
    /// It would be gone with the container, and with it the knowledge which VMs are whose.
    #[error(
        "--state-dir {0}: lies on a container's own layer (overlay) and is lost with the container; \
         mount a directory of the host there, or accept the loss with --allow-volatile-state"
    )]
    Volatile(PathBuf),
    /// The lock file cannot be used.
    #[error("--state-dir: lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// One node process at a time.
    #[error("--state-dir {path}: another node process holds it (pid {pid})")]
    Held {
        /// The directory.
        path: PathBuf,
        /// What the holder wrote into the lock file.
        pid: String,
    },
    /// Two could hold it and not know of each other.
    #[error("--state-dir {0}: its file system does not keep locks; take another one")]
    NoLocks(PathBuf),
}

impl StateDirError {
    /// Whether another setting would help, so that trying again does not.
    pub fn is_setting(&self) -> bool {
        match self {
            Self::Held { .. } => false,
            Self::Write { source, .. } | Self::Lock { source, .. } => !may_pass(source),
            _ => true,
        }
    }
}

/// A disk that is full, fails, or was made read-only after a failure. Whoever gave up for that would
/// take the relay, and so all pods, along.
fn may_pass(error: &io::Error) -> bool {
    is_full(error)
        || error.kind() == io::ErrorKind::ReadOnlyFilesystem
        || error.raw_os_error() == Some(EIO)
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A state directory that can be used and is ours until this value is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    volatile: Option<&'static str>,
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes, checks and locks it. Blocks for a few file system calls.
    ///
    /// # Errors
    /// By what is wrong with it.
    pub fn open(path: &Path, allow_volatile: bool) -> Result<Self, StateDirError> {
        make(path)?;
        let volatile = volatile(path, allow_volatile)?;
        here!(StateLockBefore);
        let lock = lock(path)?;
        here!(StateLockAfter);
        // Under the lock: of two that start at once each would find the other's probe.
        match probe(path) {
            // What is there can be read, and pods can be stopped, which makes room.
            Err(e) if is_full(&e) => {
                tracing::warn!(path = %path.display(), "the state directory is full: no new pods");
            }
            probed => {
                probed.map_err(|source| StateDirError::Write { path: path.to_owned(), source })?
            }
        }
        Ok(Self { path: path.to_owned(), volatile, _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When it does not outlive a reboot or the container: the name of its file system.
    pub fn volatile(&self) -> Option<&'static str> {
        self.volatile
    }
}

fn make(path: &Path) -> Result<(), StateDirError> {
    let named = || path.to_owned();
    match path.metadata() {
        Ok(found) if !found.is_dir() => Err(StateDirError::NotADirectory(named())),
        Ok(found) if found.permissions().mode() & 0o077 == 0 => Ok(()),
        Ok(_) => std::fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(|source| StateDirError::Close { path: named(), source }),
        Err(_) => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| StateDirError::Make { path: named(), source }),
    }
}

fn volatile(path: &Path, allowed: bool) -> Result<Option<&'static str>, StateDirError> {
    let stat = statfs(path)
        .map_err(|source| StateDirError::FileSystem { path: path.to_owned(), source })?;
    judge(stat.filesystem_type(), allowed).map_err(|()| StateDirError::Volatile(path.to_owned()))
}

fn judge(kind: FsType, allowed: bool) -> Result<Option<&'static str>, ()> {
    match kind {
        OVERLAYFS_SUPER_MAGIC if !allowed => Err(()),
        OVERLAYFS_SUPER_MAGIC => Ok(Some("overlay")),
        TMPFS_MAGIC => Ok(Some("tmpfs")),
        _ => Ok(None),
    }
}

/// Read-only and full file systems show only when something is written and synced. What a probe that
/// was cut short has left, or somebody has put there, goes first: nothing is written through a link.
fn probe(path: &Path) -> io::Result<()> {
    let name = path.join(PROBE);
    match std::fs::remove_file(&name) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name)?;
    let written = file.write_all(b"peerpodd\n").and_then(|()| file.sync_all());
    std::fs::remove_file(&name)?;
    written
}

fn open_lock(path: &Path) -> Result<File, StateDirError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let opened = options.custom_flags(O_NOFOLLOW).open(path);
    opened.map_err(|source| StateDirError::Lock { path: path.to_owned(), source: no_link(source) })
}

fn lock(dir: &Path) -> Result<Flock<File>, StateDirError> {
    let path = dir.join(LOCK);
    let failed = |source: io::Error| StateDirError::Lock { path: path.clone(), source };
    let mut lock = match Flock::lock(open_lock(&path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((file, nix::Error::EWOULDBLOCK)) => {
            return Err(StateDirError::Held { path: dir.to_owned(), pid: holder(file) });
        }
        Err((_, e)) => return Err(failed(e.into())),
    };
    // A file system without working locks lets everybody in, so try to get in a second time.
    if Flock::lock(open_lock(&path)?, FlockArg::LockExclusiveNonblock).is_ok() {
        return Err(StateDirError::NoLocks(dir.to_owned()));
    }
    lock.set_len(0).and_then(|()| lock.rewind()).map_err(failed)?;
    match writeln!(lock, "{}", std::process::id()) {
        // Only people read it.
        Err(e) if !is_full(&e) => Err(failed(e)),
        _ => Ok(lock),
    }
}

/// "Too many levels of symbolic links" is how the kernel says that there is one.
pub(super) fn no_link(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(ELOOP) => io::Error::other("it is a symbolic link"),
        _ => error,
    }
}

fn holder(mut file: File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) if text.trim().parse::<u32>().is_ok() => text.trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_closed_to_others_and_held_once() {
        let top = tempfile::tempdir().expect("directory");
        let path = top.path().join("a/state");
        let held = StateDir::open(&path, true).expect("made");
        assert_eq!(held.path(), path);
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o777, 0o700);
        let error = StateDir::open(&path, true).expect_err("held").to_string();
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        drop(held);
        StateDir::open(&path, true).expect("free again");
    }

    #[test]
    fn one_that_others_could_read_is_closed() {
        let top = tempfile::tempdir().expect("directory");
        std::fs::set_permissions(top.path(), Permissions::from_mode(0o755)).expect("opened");
        StateDir::open(top.path(), true).expect("closed");
        assert_eq!(top.path().metadata().expect("there").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let top = tempfile::tempdir().expect("directory");
        let path = top.path().join("file");
        std::fs::write(&path, "").expect("written");
        let error = StateDir::open(&path, true).expect_err("a file").to_string();
        assert!(error.contains("is not a directory") && error.contains("file"), "{error}");
        let error = StateDir::open(&path.join("below"), true).expect_err("below a file");
        assert!(matches!(error, StateDirError::Make { .. }), "{error}");
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let top = tempfile::tempdir().expect("directory");
        let (state, precious) = (top.path().join("state"), top.path().join("precious"));
        std::fs::create_dir(&state).expect("made");
        std::fs::write(&precious, "precious").expect("written");
        std::os::unix::fs::symlink(&precious, state.join(PROBE)).expect("linked");
        drop(StateDir::open(&state, true).expect("the probe's name is nobody's"));
        std::fs::remove_file(state.join(LOCK)).expect("there");
        std::os::unix::fs::symlink(&precious, state.join(LOCK)).expect("linked");
        let error = StateDir::open(&state, true).expect_err("a link");
        let source = std::error::Error::source(&error).expect("why").to_string();
        assert!(error.to_string().contains(LOCK) && source.contains("symbolic link"), "{source}");
        assert_eq!(std::fs::read_to_string(&precious).expect("there"), "precious");
    }

    #[test]
    fn a_containers_own_layer_is_refused_unless_accepted() {
        assert_eq!(judge(OVERLAYFS_SUPER_MAGIC, false), Err(()));
        assert_eq!(judge(OVERLAYFS_SUPER_MAGIC, true), Ok(Some("overlay")));
        assert_eq!(judge(TMPFS_MAGIC, false), Ok(Some("tmpfs")));
        assert_eq!(judge(nix::sys::statfs::EXT4_SUPER_MAGIC, false), Ok(None));
    }

    #[test]
    fn a_disk_that_may_be_well_again_is_no_bad_setting() {
        let error = |code| StateDirError::Write {
            path: PathBuf::from("/var/lib/peerpod"),
            source: io::Error::from_raw_os_error(code),
        };
        for code in [EIO, nix::libc::ENOSPC, nix::libc::EDQUOT, nix::libc::EROFS] {
            assert!(!error(code).is_setting(), "{}", error(code));
        }
        assert!(error(nix::libc::EACCES).is_setting());
    }
}
