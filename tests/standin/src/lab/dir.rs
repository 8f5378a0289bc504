//! A lab's directory. It is locked as long as the lab lives; one that nobody holds belongs to a lab
//! that was killed, and the next lab of the same user takes it away.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};

use super::{isolate, processes};

/// Ids of all sandboxes a lab has had, one a line.
pub(super) const SANDBOXES: &str = "sandboxes";
const PREFIX: &str = "pplab.";
/// Between making a directory and locking it a lab must not look dead.
const YOUNG: Duration = Duration::from_secs(10);

/// The directory and its lock.
#[derive(Debug)]
pub struct LabDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl LabDir {
    /// Makes one. Its path is short: agent sockets below it must fit 107 bytes.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let name: [u8; 4] = rand::random();
        let name: String = name.iter().map(|b| format!("{b:02x}")).collect();
        let path = base().join(format!("{PREFIX}{name}"));
        let make = |path: &Path| {
            let made = DirBuilder::new().mode(0o700).create(path);
            made.with_context(|| format!("make {}", path.display()))
        };
        make(&path)?;
        let file = File::create(path.join("lock")).context("make the lab's lock")?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, e)| e).context("lock the lab's directory")?;
        for name in ["net", "pods", "run", "state", "local", "logs"] {
            make(&path.join(name))?;
        }
        Ok(Self { path, _lock: lock })
    }

    /// Takes away what killed labs of this user have left: processes, mounts, files. What cannot be
    /// taken away does no harm.
    pub fn clean_stale() {
        let Ok(entries) = std::fs::read_dir(base()) else { return };
        let own = nix::unistd::geteuid().as_raw();
        for entry in entries.flatten() {
            let old =
                |m: &Metadata| m.modified().is_ok_and(|t| t.elapsed().is_ok_and(|age| age > YOUNG));
            let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
                && entry.metadata().is_ok_and(|m| m.is_dir() && m.uid() == own && old(&m));
            if !ours {
                continue;
            }
            // Without a lock file it is what a removal that was cut short has left.
            let lock = File::open(entry.path().join("lock")).ok();
            let held = lock
                .is_some_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err());
            if !held {
                remove(&entry.path());
            }
        }
    }

    /// Writes down that a sandbox was here, for the survey.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note_sandbox(&self, id: &str) -> anyhow::Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(self.path.join(SANDBOXES));
        let mut file = file.context("open the list of sandboxes")?;
        writeln!(file, "{id}").context("write down a sandbox")
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where namespaces are bound.
    pub fn net(&self) -> PathBuf {
        self.path.join("net")
    }

    /// The shims' socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("hypervisor.sock")
    }

    /// Agent sockets.
    pub fn pods(&self) -> PathBuf {
        self.path.join("pods")
    }

    /// Sockets between the daemon's processes.
    pub fn run(&self) -> PathBuf {
        self.path.join("run")
    }

    /// Records and keys.
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// Local VMs.
    pub fn local(&self) -> PathBuf {
        self.path.join("local")
    }

    /// Records of direct volumes.
    pub fn direct_volumes(&self) -> PathBuf {
        self.path.join("direct-volumes")
    }

    /// Bundles of sandboxes.
    pub fn bundles(&self) -> PathBuf {
        self.path.join("bundles")
    }

    /// Logs of the daemon's processes.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }
}

impl Drop for LabDir {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Inside an isolated mount namespace /run is ours and goes by itself.
fn base() -> PathBuf {
    PathBuf::from(if isolate::is_inside() { "/run" } else { "/tmp" })
}

fn remove(path: &Path) {
    // A process may start another one while it is being killed.
    for _ in 0..50 {
        let users = processes::using(path);
        if users.is_empty() {
            break;
        }
        processes::kill_all(&users);
    }
    for mount in mounts_below(path).iter().rev() {
        let _ = umount2(mount, MntFlags::MNT_DETACH);
    }
    let _ = std::fs::remove_dir_all(path);
}

/// Bound namespaces, and whatever a test has mounted; later ones may lie on earlier ones.
fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = all.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(path)).collect()
}
