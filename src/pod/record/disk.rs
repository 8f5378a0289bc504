//! Records as files: `<state dir>/pods/<sandbox>/record.json`, directories 0700, files 0600.
//!
//! ```text
//!   save    record.json.new ─ write ─ fsync ─ rename to record.json ─ fsync directory
//!   remove  unlink both ─ rmdir ─ fsync parent
//!   load    cannot be read ─▶ <state dir>/broken/<sandbox>-<time>/    (kept for people)
//!           other version  ─▶ stays where it is, for the daemon that wrote it
//! ```
//!
//! Nothing follows a symlink below the state directory.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use nix::libc;
use serde::Deserialize;
use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

use super::check::check;
use super::version::{self, Rest};
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
    /// By sandbox, what its record had that this build does not know.
    rest: Arc<Mutex<BTreeMap<String, Rest>>>,
}

impl Disk {
    /// Uses `state_dir`, which must be there; makes its subdirectories.
    ///
    /// # Errors
    /// When a directory cannot be made or is something else.
    pub fn open(state_dir: &Path) -> Result<Self, RecordError> {
        let (pods, broken) = (state_dir.join("pods"), state_dir.join("broken"));
        let disk = Self { pods, broken, rest: Arc::default() };
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
                Ok(Some((record, rest))) => {
                    if !rest.is_empty() {
                        self.rest().insert(sandbox, rest);
                    }
                    loaded.records.push(record);
                }
                Ok(None) => {
                    // Made, never written to: the pod's CreateVM was never answered.
                    let _ = self.remove_now(&sandbox);
                }
                Err(Unusable::Foreign(reason)) => {
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

    fn rest(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Rest>> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of a record, with what an earlier reading found that this build does not know.
    fn bytes(&self, record: &Record) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        let rest = self.rest().get(&record.sandbox).cloned();
        let Some(rest) = rest else { return serde_json::to_vec(record).map(Zeroizing::new) };
        let mut value = serde_json::to_value(record)?;
        rest.put_back(&mut value);
        let bytes = serde_json::to_vec(&value).map(Zeroizing::new);
        scrub(&mut value);
        bytes
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
        let bytes =
            self.bytes(record).map_err(|e| failed("write", &self.pods.join(&sandbox), e.into()))?;
        apart("write", &self.pods, move || disk.save_now(&sandbox, &bytes)).await
    }

    async fn remove(&self, sandbox: &str) -> Result<(), RecordError> {
        let disk = self.clone();
        let sandbox = sandbox.to_owned();
        apart("remove", &self.pods, move || {
            disk.remove_now(&sandbox)?;
            disk.rest().remove(&sandbox);
            Ok(())
        })
        .await
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
    /// Of a version that is not read: it, its VM and its files are not touched.
    Foreign(String),
    Unreadable(String),
}

/// `None` for a directory in which no record was ever finished.
fn read_record(directory: &Path, sandbox: &str) -> Result<Option<(Record, Rest)>, Unusable> {
    let unreadable = |e: io::Error| Unusable::Unreadable(e.to_string());
    if !fs::symlink_metadata(directory).map_err(unreadable)?.is_dir() {
        return Err(Unusable::Unreadable("not a directory".to_owned()));
    }
    let bytes = match read_file(&directory.join(FILE)) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    let mut value: Value = serde_json::from_slice(&bytes).map_err(not_a_record)?;
    let read = read_value(&mut value);
    scrub(&mut value);
    let (record, rest) = read?;
    if record.sandbox != sandbox {
        return Err(Unusable::Unreadable("it is another sandbox's record".to_owned()));
    }
    check(&record).map_err(Unusable::Unreadable)?;
    Ok(Some((record, rest)))
}

/// A record of this version, made one if it is of the version before.
fn read_value(value: &mut Value) -> Result<(Record, Rest), Unusable> {
    let unreadable = |text: &str| Unusable::Unreadable(text.to_owned());
    let Value::Object(fields) = &mut *value else { return Err(unreadable("not a record")) };
    let version = fields.get("version").and_then(Value::as_u64);
    let version = version.ok_or_else(|| unreadable("not a record (it has no version)"))?;
    if let Some(reason) = version::foreign(version) {
        return Err(Unusable::Foreign(reason));
    }
    if version != u64::from(VERSION) {
        version::migrate(fields);
    }
    let record = Record::deserialize(&*value).map_err(not_a_record)?;
    let mut known = serde_json::to_value(&record).map_err(not_a_record)?;
    let rest = Rest::between(value, &known);
    scrub(&mut known);
    Ok((record, rest))
}

/// A value that held a whole record held its VM's key.
fn scrub(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(all) => all.iter_mut().for_each(scrub),
        Value::Object(all) => all.values_mut().for_each(scrub),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
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
