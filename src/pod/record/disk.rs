//! Records as files: `<state dir>/pods/<sandbox>/record.json`, directories 0700, files 0600.
//!
//! ```text
//!   save    record.json.new ─ write ─ fsync ─ rename to record.json ─ fsync directory
//!   remove  unlink both ─ rmdir ─ fsync parent
//!   load    cannot be read ─▶ <state dir>/broken/<sandbox>-<time>/    (kept for people)
//!           newer version  ─▶ stays where it is, for the newer daemon that wrote it
//! ```
//!
//! Nothing follows a symlink below the state directory.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use nix::libc;
use serde::Deserialize;

use super::{Broken, Loaded, Record, RecordError, Records, VERSION};
use crate::request::SandboxId;

const FILE: &str = "record.json";
const NEW: &str = "record.json.new";
/// Longest record that is read; a real one has some 10 KiB besides its user data.
const MAX_BYTES: u64 = 4 << 20;

/// The implementation on a real file system.
#[derive(Clone, Debug)]
pub struct Disk {
    pods: PathBuf,
    broken: PathBuf,
}

impl Disk {
    /// Uses `state_dir`, which must be there; makes its subdirectories.
    ///
    /// # Errors
    /// When a directory cannot be made or is something else.
    pub fn open(state_dir: &Path) -> Result<Self, RecordError> {
        let disk = Self { pods: state_dir.join("pods"), broken: state_dir.join("broken") };
        for directory in [&disk.pods, &disk.broken] {
            make_directory(directory).map_err(|e| failed("make directory", directory, e))?;
        }
        Ok(disk)
    }

    fn directory(&self, sandbox: &str) -> Result<PathBuf, RecordError> {
        // Ids were checked at the edge; a record's own id was not.
        SandboxId::parse(sandbox).map_err(|e| {
            failed("use directory", &self.pods, io::Error::new(ErrorKind::InvalidInput, e))
        })?;
        Ok(self.pods.join(sandbox))
    }

    fn save_now(&self, sandbox: &str, bytes: &[u8]) -> Result<(), RecordError> {
        let directory = self.directory(sandbox)?;
        let made = make_directory(&directory);
        let made = made.map_err(|e| failed("make directory", &directory, e))?;
        let done = write_file(&directory, bytes);
        if done.is_err() && made {
            // Nothing is left of a pod that could not be written down; what this cannot take away,
            // the next start sees as an empty directory.
            let _ = self.remove_now(sandbox);
        } else if made {
            sync(&self.pods)?;
        }
        done
    }

    fn remove_now(&self, sandbox: &str) -> Result<(), RecordError> {
        let directory = self.directory(sandbox)?;
        for name in [FILE, NEW] {
            let path = directory.join(name);
            absent_is_fine(fs::remove_file(&path)).map_err(|e| failed("remove", &path, e))?;
        }
        absent_is_fine(fs::remove_dir(&directory)).map_err(|e| failed("remove", &directory, e))?;
        sync(&self.pods)
    }

    fn load_now(&self) -> Result<Loaded, RecordError> {
        let mut loaded = Loaded::default();
        let entries = fs::read_dir(&self.pods).map_err(|e| failed("read", &self.pods, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| failed("read", &self.pods, e))?;
            let sandbox = entry.file_name().to_string_lossy().into_owned();
            match read_record(&entry.path(), &sandbox) {
                Ok(Some(record)) => loaded.records.push(record),
                Ok(None) => {
                    // Made, never written to: the pod's CreateVM was never answered.
                    let _ = self.remove_now(&sandbox);
                }
                Err(Unusable::Newer(reason)) => {
                    loaded.broken.push(Broken { sandbox, path: entry.path(), reason, newer: true });
                }
                Err(Unusable::Unreadable(reason)) => {
                    let path = self.set_aside(&entry.path(), &sandbox)?;
                    loaded.broken.push(Broken { sandbox, path, reason, newer: false });
                }
            }
        }
        loaded.records.sort_by(|a, b| a.sandbox.cmp(&b.sandbox));
        Ok(loaded)
    }

    fn set_aside(&self, from: &Path, sandbox: &str) -> Result<PathBuf, RecordError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        let to = self.broken.join(format!("{sandbox}-{now}"));
        fs::rename(from, &to).map_err(|e| failed("set aside", from, e))?;
        sync(&self.broken)?;
        sync(&self.pods)?;
        Ok(to)
    }
}

#[async_trait]
impl Records for Disk {
    async fn load(&self) -> Result<Loaded, RecordError> {
        let disk = self.clone();
        apart("read", &self.pods, move || disk.load_now()).await
    }

    async fn save(&self, record: &Record) -> Result<(), RecordError> {
        let disk = self.clone();
        let sandbox = record.sandbox.clone();
        let bytes = serde_json::to_vec(record)
            .map_err(|e| failed("write", &self.pods.join(&sandbox), e.into()))?;
        let bytes = zeroize::Zeroizing::new(bytes);
        apart("write", &self.pods, move || disk.save_now(&sandbox, &bytes)).await
    }

    async fn remove(&self, sandbox: &str) -> Result<(), RecordError> {
        let disk = self.clone();
        let sandbox = sandbox.to_owned();
        apart("remove", &self.pods, move || disk.remove_now(&sandbox)).await
    }
}

/// Runs what blocks on a thread of its own; it is not cut off when the caller goes.
async fn apart<T: Send + 'static>(
    action: &'static str,
    path: &Path,
    work: impl FnOnce() -> Result<T, RecordError> + Send + 'static,
) -> Result<T, RecordError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(failed(action, path, io::Error::other(e))),
    }
}

enum Unusable {
    Newer(String),
    Unreadable(String),
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// `None` for a directory in which no record was ever finished.
fn read_record(directory: &Path, sandbox: &str) -> Result<Option<Record>, Unusable> {
    let unreadable = |e: io::Error| Unusable::Unreadable(e.to_string());
    if !fs::symlink_metadata(directory).map_err(unreadable)?.is_dir() {
        return Err(Unusable::Unreadable("not a directory".to_owned()));
    }
    let bytes = match read_file(&directory.join(FILE)) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    let version: Version = serde_json::from_slice(&bytes).map_err(not_a_record)?;
    if version.version > VERSION {
        let text = format!("version {} is newer than {VERSION}", version.version);
        return Err(Unusable::Newer(text));
    }
    let record: Record = serde_json::from_slice(&bytes).map_err(not_a_record)?;
    if record.sandbox != sandbox {
        return Err(Unusable::Unreadable("it is another sandbox's record".to_owned()));
    }
    Ok(Some(record))
}

/// The position of the fault only: serde's text may quote the content, which holds a key.
fn not_a_record(error: serde_json::Error) -> Unusable {
    let kind = error.classify();
    let (line, column) = (error.line(), error.column());
    Unusable::Unreadable(format!("not a record ({kind:?} at line {line} column {column})"))
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if read as u64 > MAX_BYTES {
        return Err(io::Error::other("too long"));
    }
    Ok(bytes)
}

fn write_file(directory: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let (path, new) = (directory.join(FILE), directory.join(NEW));
    if let Ok(found) = fs::symlink_metadata(&path)
        && !found.is_file()
    {
        return Err(failed("write", &path, io::Error::other("not a file")));
    }
    let write = || -> io::Result<()> {
        absent_is_fine(fs::remove_file(&new))?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(|e| {
        // A half-written file takes room that others may need; the next save removes it otherwise.
        let _ = fs::remove_file(&new);
        failed("write", &path, e)
    })?;
    sync(directory)
}

/// Returns whether it was made now.
fn make_directory(path: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(0o700).create(path) {
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

fn sync(directory: &Path) -> Result<(), RecordError> {
    let done = File::open(directory).and_then(|d| d.sync_all());
    done.map_err(|e| failed("sync", directory, e))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> RecordError {
    RecordError { action, path: path.to_owned(), source }
}
