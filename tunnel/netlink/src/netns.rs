//! Network namespaces.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};

use crate::{Error, Handle};

/// An open network namespace; it lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

/// Tells two namespaces apart: device and inode of the namespace file.
pub type NetnsId = (u64, u64);

impl Netns {
    /// Opens the namespace bound at `path`.
    ///
    /// # Errors
    /// When there is nothing, or something that is not a network namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let fail = |source| Error::Netns { path: path.clone(), action: "open", source };
        let file = File::open(&path).map_err(fail)?;
        if !is_netns(&file) {
            return Err(fail(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a network namespace",
            )));
        }
        Ok(Self { file, path })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The namespace of a process.
    ///
    /// # Errors
    /// When the process is gone or not ours to look at.
    pub fn of_process(pid: i32) -> Result<Self, Error> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// A new namespace without a name and without any link but a `lo` that is down. It goes when
    /// this value and the last process in it have gone.
    ///
    /// # Errors
    /// When the caller may not make one.
    pub fn create() -> Result<Self, Error> {
        let path = PathBuf::from("(new)");
        on_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::Netns {
                path,
                action: "create",
                source: e.into(),
            })?;
            Self::current()
        })
    }

    /// Binds the namespace to `path`, so that others can open it there. The file is made.
    ///
    /// # Errors
    /// When the path is taken by something else or mounting is not allowed.
    pub fn persist(&self, path: &Path) -> Result<(), Error> {
        let fail = |source| Error::Netns { path: path.to_owned(), action: "bind", source };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(fail)?;
        }
        File::create(path).map_err(fail)?;
        let from = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        mount(Some(from.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| fail(e.into()))
    }

    /// Takes a name given by [`Netns::persist`] away. Absent is success.
    ///
    /// # Errors
    /// When the path is busy or not ours.
    pub fn unpersist(path: &Path) -> Result<(), Error> {
        let fail = |source| Error::Netns { path: path.to_owned(), action: "unbind", source };
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(e) => return Err(fail(e.into())),
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fail(e)),
            _ => Ok(()),
        }
    }

    /// What tells this namespace from every other that lives now.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub fn id(&self) -> Result<NetnsId, Error> {
        let meta = self.file.metadata().map_err(|source| Error::Netns {
            path: self.path.clone(),
            action: "stat",
            source,
        })?;
        Ok((meta.dev(), meta.ino()))
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it. Sockets made there
    /// stay in the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered; else what `work` says.
    pub fn run<T: Send, E: From<Error> + Send>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E> {
        on_thread(|| {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| Error::Netns {
                path: self.path.clone(),
                action: "enter",
                source: e.into(),
            })?;
            work()
        })
    }

    /// Moves the calling thread into the namespace for good. For single-threaded children only.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter(&self) -> Result<(), Error> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| Error::Netns {
            path: self.path.clone(),
            action: "enter",
            source: e.into(),
        })
    }

    /// A netlink handle on this namespace.
    ///
    /// # Errors
    /// When it cannot be entered or no socket can be had.
    pub fn handle(&self) -> Result<Handle, Error> {
        self.run(Handle::here)
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Namespace switches belong to a thread, so they get one that nobody else will use.
fn on_thread<T: Send, E: From<Error> + Send>(
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work);
        match thread {
            Ok(thread) => match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            },
            Err(e) => Err(Error::Socket(e).into()),
        }
    })
}

fn is_netns(file: &File) -> bool {
    const NSFS: FsType = FsType(0x6e73_6673);
    let fs = fstatfs(file);
    // NS_GET_NSTYPE, _IO(0xb7, 0x3)
    // SAFETY: the request takes no argument and only reads.
    let kind = unsafe { nix::libc::ioctl(file.as_raw_fd(), 0xb703) };
    fs.is_ok_and(|s| s.filesystem_type() == NSFS) && kind == nix::libc::CLONE_NEWNET
}
