//! What is on disk of a VM. The directory's name is the VM's, and whoever works on the VM holds the
//! directory locked, a starting guest included: it inherits the lock as its standard input, so
//! that a daemon that has been restarted meanwhile waits for it.
//!
//! ```text
//!   <state dir>/<name>/     0700
//!     vm.json               whose VM it is, its address, tags; no secrets
//!     boot.json             what the guest needs for a start
//!     init.json             which process is its init; there once it stands
//!     media/cidata/user-data   0600; gone once the guest has read it
//!     console.log, console.log.1
//! ```
//! `vm.json` comes first and the directory goes last, each file appears whole or not at all: so a
//! crash between any two steps leaves something that create completes and delete takes away.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::process::Identity;
use crate::{Candidate, Vm, VmName, VmSpec};

pub(super) const BOOT: &str = "boot.json";
pub(super) const INIT: &str = "init.json";
pub(super) const CONSOLE: &str = "console.log";
pub(super) const USER_DATA: &str = "media/cidata/user-data";
const VM: &str = "vm.json";
/// So much of a console is shown, as much as EC2 gives.
const CONSOLE_TAIL: u64 = 64 << 10;

/// `vm.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: VmName,
    pub(super) sandbox: String,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) address: IpAddr,
    pub(super) instance_type: String,
    pub(super) zone: Option<String>,
    pub(super) created: SystemTime,
    /// SHA-256 of the whole spec, user data included: the same again or something else?
    pub(super) digest: String,
}

impl Record {
    pub(super) fn new(spec: &VmSpec, candidate: &Candidate, address: IpAddr) -> io::Result<Self> {
        Ok(Self {
            name: spec.name.clone(),
            sandbox: spec.sandbox.clone(),
            tags: spec.tags.clone(),
            address,
            instance_type: candidate.instance_type.clone(),
            zone: candidate.zone.clone(),
            created: SystemTime::now(),
            digest: digest(spec)?,
        })
    }

    pub(super) fn as_vm(&self) -> Vm {
        Vm {
            native_id: self.name.as_str().to_owned(),
            name: self.name.clone(),
            addresses: vec![self.address],
            instance_type: self.instance_type.clone(),
            zone: self.zone.clone(),
            price_per_hour: None,
        }
    }
}

pub(super) fn digest(spec: &VmSpec) -> io::Result<String> {
    let hash = Sha256::digest(serde_json::to_vec(spec)?);
    Ok(hash.iter().map(|b| format!("{b:02x}")).collect())
}

/// The directory of one VM, locked for as long as this value (or a copy of its descriptor) lives.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Never unlocked but by closing the last copy of it: a starting guest may still have one.
    lock: File,
}

/// Another hand is on the VM for too long.
#[derive(Debug, thiserror::Error)]
pub(super) enum LockError {
    #[error("{0}: still locked by a guest that is starting")]
    Busy(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl Directory {
    /// Locks a VM's directory; makes it if `make`. `None` if it is not there.
    pub(super) async fn lock(
        path: PathBuf,
        make: bool,
        patience: Duration,
    ) -> Result<Option<Self>, LockError> {
        let fail = |source| LockError::Io { path: path.clone(), source };
        let end = Instant::now() + patience;
        loop {
            if make {
                private_dir(&path).map_err(fail)?;
            }
            match try_lock(&path).map_err(fail)? {
                Attempt::Locked(lock) => return Ok(Some(Self { path, lock })),
                Attempt::Absent if !make => return Ok(None),
                // It went between two looks: make it again.
                Attempt::Absent => {}
                Attempt::Busy if Instant::now() >= end => return Err(LockError::Busy(path)),
                Attempt::Busy => sleep(Duration::from_millis(2)).await,
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A descriptor of the same lock, for a process that shall hold it, too.
    pub(super) fn share(&self) -> io::Result<File> {
        self.lock.try_clone()
    }

    pub(super) fn record(&self) -> io::Result<Option<Record>> {
        read(&self.path.join(VM))
    }

    pub(super) fn set_record(&self, record: &Record) -> io::Result<()> {
        write(&self.path.join(VM), record)
    }

    pub(super) fn init(&self) -> io::Result<Option<Identity>> {
        read(&self.path.join(INIT))
    }

    /// Whether its init runs.
    pub(super) fn runs(&self) -> io::Result<bool> {
        runs(&self.path)
    }

    /// Everything a guest needs, and nothing left of an earlier start.
    pub(super) fn prepare_start(&self, user_data: &str, boot: &impl Serialize) -> io::Result<File> {
        remove(&self.path.join(INIT))?;
        private_dir(&self.path.join("media/cidata"))?;
        write_bytes(&self.path.join(USER_DATA), user_data.as_bytes())?;
        write(&self.path.join(BOOT), boot)?;
        let mut console = OpenOptions::new();
        console.create(true).append(true).mode(0o600).open(self.path.join(CONSOLE))
    }

    /// Takes it all away; last the record, by which a sweep finds what a daemon left that died here.
    pub(super) fn remove(self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else if entry.file_name() != VM {
                std::fs::remove_file(entry.path())?;
            }
        }
        remove(&self.path.join(VM))?;
        std::fs::remove_dir(&self.path)
    }
}

enum Attempt {
    Locked(File),
    Busy,
    Absent,
}

fn try_lock(path: &Path) -> io::Result<Attempt> {
    let lock = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Attempt::Absent),
        Err(e) => return Err(e),
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Attempt::Busy),
        Err(TryLockError::Error(e)) => return Err(e),
    }
    // The last holder may have removed the directory, and somebody made another.
    let (ours, there) = (lock.metadata()?, std::fs::metadata(path));
    match there {
        Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
            Ok(Attempt::Locked(lock))
        }
        _ => Ok(Attempt::Absent),
    }
}

/// The VMs' directories, complete or not.
pub(super) fn all(state_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(state_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Whether there are directories besides `own`. Those without a record that nobody holds are what a
/// delete left that died at its last step, and go.
pub(super) fn others(state_dir: &Path, own: Option<&Path>) -> io::Result<bool> {
    let mut others = false;
    for path in all(state_dir)?.into_iter().filter(|path| Some(path.as_path()) != own) {
        // One that is being made is locked, and so is one that is being removed.
        let nobodys = !path.join(VM).try_exists()?
            && matches!(try_lock(&path)?, Attempt::Locked(_lock) if std::fs::remove_dir_all(&path).is_ok());
        others |= !nobodys;
    }
    Ok(others)
}

/// All records; directories that have none yet, or none any more, are nobody's.
pub(super) fn records(state_dir: &Path) -> io::Result<Vec<(PathBuf, Record)>> {
    let mut found = Vec::new();
    for path in all(state_dir)? {
        if let Some(record) = read(&path.join(VM))? {
            found.push((path, record));
        }
    }
    Ok(found)
}

/// Whether the init of the VM in that directory runs.
pub(super) fn runs(path: &Path) -> io::Result<bool> {
    let init: Option<Identity> = read(&path.join(INIT))?;
    init.map_or(Ok(false), |init| init.runs())
}

/// The last line that a VM's own start has written to its console, for an error message.
pub(super) fn last_words(path: PathBuf) -> String {
    let text = std::fs::read(path.join(CONSOLE)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let own = text.lines().rev().find_map(|l| l.strip_prefix(super::guest::SAYS));
    own.unwrap_or("it said nothing").chars().take(300).collect()
}

/// The last [`CONSOLE_TAIL`] bytes of a VM's console; `None` if it has none.
pub(super) fn console(path: &Path) -> io::Result<Option<String>> {
    let mut file = match File::open(path.join(CONSOLE)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(CONSOLE_TAIL).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Makes a directory that only its owner may enter; there already is success.
pub(super) fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let named =
        |e: &dyn std::fmt::Display, kind| io::Error::new(kind, format!("{}: {e}", path.display()));
    match std::fs::read(path) {
        Ok(bytes) => {
            let value = serde_json::from_slice(&bytes);
            value.map(Some).map_err(|e| named(&e, io::ErrorKind::InvalidData))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(named(&e, e.kind())),
    }
}

/// Whole or not at all, a power cut included.
pub(super) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write_bytes(path, &serde_json::to_vec_pretty(value)?)
}

fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
