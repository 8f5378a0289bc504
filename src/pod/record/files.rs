//! The file system as far as records need it, so that a simulation can own it: what was written and
//! not synced may be lost there, and every call may fail.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::future::Future;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::libc;

use crate::crash::{here, on_disk};

/// What stands under a path; links are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// An ordinary file.
    File,
    /// Anything else.
    Other,
}

/// The calls, each as the kernel has it. They block; [`Files::apart`] is where they are made.
pub trait Files: Clone + Debug + Send + Sync + 'static {
    /// A file that is being written.
    type Open;

    /// Makes a directory, 0700; one that is there gets that mode. Returns whether it was made now.
    ///
    /// # Errors
    /// The kernel's, and when something else is there.
    fn make_directory(&self, path: &Path) -> io::Result<bool>;

    /// What is there.
    ///
    /// # Errors
    /// The kernel's; `NotFound` for nothing.
    fn node(&self, path: &Path) -> io::Result<Node>;

    /// Reads an ordinary file of at most `max` bytes.
    ///
    /// # Errors
    /// The kernel's, and for anything that is no such file.
    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>>;

    /// Makes a new file, 0600, to write to.
    ///
    /// # Errors
    /// The kernel's; `AlreadyExists` when there is something.
    fn create(&self, path: &Path) -> io::Result<Self::Open>;

    /// Writes all of it.
    ///
    /// # Errors
    /// The kernel's; a part may have been written.
    fn write(&self, file: &mut Self::Open, bytes: &[u8]) -> io::Result<()>;

    /// Returns when what was written lasts.
    ///
    /// # Errors
    /// The kernel's; what was written may be lost.
    fn sync(&self, file: &Self::Open) -> io::Result<()>;

    /// Returns when what was made, renamed and removed in it lasts.
    ///
    /// # Errors
    /// The kernel's.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// The same of many, which the kernel may do together; those that fail, with why.
    fn sync_directories(&self, paths: &[PathBuf]) -> Vec<(PathBuf, io::Error)> {
        let failed = |path: &PathBuf| Some((path.clone(), self.sync_directory(path).err()?));
        paths.iter().filter_map(failed).collect()
    }

    /// Puts one name in the place of another.
    ///
    /// # Errors
    /// The kernel's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes a file away.
    ///
    /// # Errors
    /// The kernel's.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Takes an empty directory away.
    ///
    /// # Errors
    /// The kernel's.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;

    /// Names in a directory, in no order.
    ///
    /// # Errors
    /// The kernel's.
    fn names(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Milliseconds since 1970, to tell things apart that are set aside.
    fn now_ms(&self) -> u128;

    /// Does what blocks where it may; it is not cut off when the caller goes.
    fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + Send;
}

/// So many directories are made to last at a time.
const SYNC_THREADS: usize = 32;

/// The machine's own.
#[derive(Clone, Copy, Debug)]
pub struct Host;

impl Files for Host {
    type Open = File;

    fn make_directory(&self, path: &Path) -> io::Result<bool> {
        let make = || DirBuilder::new().mode(0o700).create(path);
        match on_disk!(RecordDirectoryBefore, RecordDirectoryAfter, make()) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                let found = fs::symlink_metadata(path)?;
                if !found.is_dir() {
                    return Err(io::Error::new(ErrorKind::NotADirectory, "not a directory"));
                }
                if found.permissions().mode() & 0o077 != 0 {
                    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
                }
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        let found = fs::symlink_metadata(path)?;
        Ok(match () {
            () if found.is_dir() => Node::Directory,
            () if found.is_file() => Node::File,
            () => Node::Other,
        })
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a file"));
        }
        let mut bytes = Vec::new();
        let read = file.take(max + 1).read_to_end(&mut bytes)?;
        if read as u64 > max {
            return Err(io::Error::other("too long"));
        }
        Ok(bytes)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        on_disk!(RecordWriteBefore, RecordWriteAfter, write_all(file, bytes))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        on_disk!(RecordFsyncBefore, RecordFsyncAfter, file.sync_all())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let sync = || File::open(path)?.sync_all();
        on_disk!(RecordSyncBefore, RecordSyncAfter, sync())
    }

    /// Each waits for the disk to empty its cache, and those that wait at a time wait for the same.
    fn sync_directories(&self, paths: &[PathBuf]) -> Vec<(PathBuf, io::Error)> {
        let some = |paths: &[PathBuf]| -> Vec<(PathBuf, io::Error)> {
            let failed = |path: &PathBuf| Some((path.clone(), self.sync_directory(path).err()?));
            paths.iter().filter_map(failed).collect()
        };
        std::thread::scope(|scope| {
            let each = paths.len().div_ceil(SYNC_THREADS).max(1);
            let work = |paths| {
                (std::thread::Builder::new().spawn_scoped(scope, move || some(paths)), paths)
            };
            let threads: Vec<_> = paths.chunks(each).map(work).collect();
            threads
                .into_iter()
                .flat_map(|(thread, paths)| match thread.map(|thread| thread.join()) {
                    Ok(Ok(failed)) => failed,
                    // No thread, or one that died: in turn, then.
                    _ => some(paths),
                })
                .collect()
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if from.parent() == to.parent() {
            return on_disk!(RecordRenameBefore, RecordRenameAfter, fs::rename(from, to));
        }
        here!(SetAsideBefore);
        let renamed = fs::rename(from, to);
        here!(SetAsideAfter);
        renamed
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        on_disk!(RecordUnlinkBefore, RecordUnlinkAfter, fs::remove_file(path))
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        on_disk!(RecordRmdirBefore, RecordRmdirAfter, fs::remove_dir(path))
    }

    fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(path)?;
        entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn now_ms(&self) -> u128 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis())
    }

    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
    }
}

/// A disk that becomes full in the middle of a write takes a part of it.
fn write_all(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    #[cfg(feature = "crash-points")]
    if crate::crash::is_short() {
        file.write_all(&bytes[..bytes.len() / 2])?;
        return Err(ErrorKind::StorageFull.into());
    }
    file.write_all(bytes)
}
