//! Records as files: `<state dir>/pods/<sandbox>/record.json`, directories 0700, files 0600.
//!
//! ```text
//!   save    record.json.new ─ write ─ fsync ─ rename to record.json ─ fsync directory
//!   remove  unlink both ─ rmdir ─ fsync parent
//!   load    cannot be read, or is not what was written ─▶ <state dir>/broken/<sandbox>-<time>/, for people
//!           other version ─▶ stays where it is, for the daemon that wrote it
//! ```
//!
//! Nothing follows a symlink below the state directory.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

use super::check::check;
use super::files::{Files, Host, Node};
use super::version::{self, Rest};
use super::{Broken, Loaded, Record, RecordError, Records, VERSION, sum};
use crate::request::SandboxId;

const FILE: &str = "record.json";
const NEW: &str = "record.json.new";
/// Longest record that is read; a real one has some 10 KiB besides its user data.
const MAX_BYTES: u64 = 4 << 20;

/// The implementation on a file system.
#[derive(Clone, Debug)]
pub struct Disk<F = Host> {
    files: F,
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
        Self::open_on(Host, state_dir)
    }
}

impl<F: Files> Disk<F> {
    /// The same on that file system.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn open_on(files: F, state_dir: &Path) -> Result<Self, RecordError> {
        let (pods, broken) = (state_dir.join("pods"), state_dir.join("broken"));
        let disk = Self { files, pods, broken, rest: Arc::default() };
        for directory in [&disk.pods, &disk.broken] {
            disk.files
                .make_directory(directory)
                .map_err(|e| failed("make directory", directory, e))?;
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
        let made = self.files.make_directory(&directory);
        let made = made.map_err(|e| failed("make directory", &directory, e))?;
        let done = self.write_file(&directory, bytes);
        if done.is_err() && made {
            // Nothing is left of a pod that could not be written down; what this cannot take away,
            // the next start sees as an empty directory.
            let _ = self.remove_now(sandbox);
        } else if made {
            self.sync(&self.pods)?;
        }
        done
    }

    fn remove_now(&self, sandbox: &str) -> Result<(), RecordError> {
        let directory = self.directory(sandbox)?;
        for name in [FILE, NEW] {
            let path = directory.join(name);
            absent_is_fine(self.files.remove_file(&path))
                .map_err(|e| failed("remove", &path, e))?;
        }
        let gone = absent_is_fine(self.files.remove_directory(&directory));
        gone.map_err(|e| failed("remove", &directory, e))?;
        self.sync(&self.pods)
    }

    fn load_now(&self) -> Result<Loaded, RecordError> {
        let (mut loaded, mut late) = (Loaded::default(), Vec::new());
        let names = self.files.names(&self.pods).map_err(|e| failed("read", &self.pods, e))?;
        for sandbox in names {
            let path = self.pods.join(&sandbox);
            match self.read_record(&path, &sandbox) {
                Ok(Some((record, rest))) => {
                    late.push(path);
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
                    loaded.broken.push(Broken { sandbox, path, reason, newer: true });
                }
                Err(Unusable::Unreadable(reason)) => {
                    let path = self.set_aside(&path, &sandbox)?;
                    loaded.broken.push(Broken { sandbox, path, reason, newer: false });
                }
            }
        }
        // What a process wrote that died before its last sync can be read, and lasts only from now on;
        // pods must be served even if it does not.
        late.push(self.pods.clone());
        for (path, error) in self.files.sync_directories(&late) {
            let error = failed("sync", &path, error);
            tracing::warn!(%error, "what was read may not last");
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
        let bytes = match rest {
            None => serde_json::to_vec(record),
            Some(rest) => {
                let mut value = serde_json::to_value(record)?;
                rest.put_back(&mut value);
                let bytes = serde_json::to_vec(&value);
                scrub(&mut value);
                bytes
            }
        };
        Ok(sum::seal(&Zeroizing::new(bytes?)))
    }

    fn set_aside(&self, from: &Path, sandbox: &str) -> Result<PathBuf, RecordError> {
        let to = self.broken.join(format!("{sandbox}-{}", self.files.now_ms()));
        self.files.rename(from, &to).map_err(|e| failed("set aside", from, e))?;
        self.sync(&self.broken)?;
        self.sync(&self.pods)?;
        Ok(to)
    }

    /// `None` for a directory in which no record was ever finished.
    fn read_record(
        &self,
        directory: &Path,
        sandbox: &str,
    ) -> Result<Option<(Record, Rest)>, Unusable> {
        let unreadable = |e: io::Error| Unusable::Unreadable(e.to_string());
        if self.files.node(directory).map_err(unreadable)? != Node::Directory {
            return Err(Unusable::Unreadable("not a directory".to_owned()));
        }
        let bytes = match self.files.read(&directory.join(FILE), MAX_BYTES) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(unreadable(e)),
        };
        if !sum::holds(&bytes) {
            return Err(Unusable::Unreadable("damaged: its checksum does not fit".to_owned()));
        }
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

    fn write_file(&self, directory: &Path, bytes: &[u8]) -> Result<(), RecordError> {
        let (path, new) = (directory.join(FILE), directory.join(NEW));
        if self.files.node(&path).is_ok_and(|found| found != Node::File) {
            return Err(failed("write", &path, io::Error::other("not a file")));
        }
        let write = || -> io::Result<()> {
            absent_is_fine(self.files.remove_file(&new))?;
            let mut file = self.files.create(&new)?;
            self.files.write(&mut file, bytes)?;
            self.files.sync(&file)?;
            self.files.rename(&new, &path)
        };
        write().map_err(|e| {
            // A half-written file takes room that others may need; the next save removes it
            // otherwise.
            let _ = self.files.remove_file(&new);
            failed("write", &path, e)
        })?;
        self.sync(directory)
    }

    fn sync(&self, directory: &Path) -> Result<(), RecordError> {
        self.files.sync_directory(directory).map_err(|e| failed("sync", directory, e))
    }

    /// Does what blocks; it is not cut off when the caller goes.
    async fn apart<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce() -> Result<T, RecordError> + Send + 'static,
    ) -> Result<T, RecordError> {
        match self.files.apart(work).await {
            Ok(done) => done,
            Err(e) => Err(failed(action, &self.pods, e)),
        }
    }
}

#[async_trait]
impl<F: Files> Records for Disk<F> {
    async fn load(&self) -> Result<Loaded, RecordError> {
        let disk = self.clone();
        self.apart("read", move || disk.load_now()).await
    }

    async fn save(&self, record: &Record) -> Result<(), RecordError> {
        let disk = self.clone();
        let sandbox = record.sandbox.clone();
        let bytes =
            self.bytes(record).map_err(|e| failed("write", &self.pods.join(&sandbox), e.into()))?;
        self.apart("write", move || disk.save_now(&sandbox, &bytes)).await
    }

    async fn remove(&self, sandbox: &str) -> Result<(), RecordError> {
        let disk = self.clone();
        let sandbox = sandbox.to_owned();
        self.apart("remove", move || {
            disk.remove_now(&sandbox)?;
            disk.rest().remove(&sandbox);
            Ok(())
        })
        .await
    }
}

enum Unusable {
    /// Of a version that is not read: it, its VM and its files are not touched.
    Foreign(String),
    Unreadable(String),
}

/// A record of this version, made one if it is of the version before.
fn read_value(value: &mut Value) -> Result<(Record, Rest), Unusable> {
    let unreadable = |text: &str| Unusable::Unreadable(text.to_owned());
    let Value::Object(fields) = &mut *value else { return Err(unreadable("not a record")) };
    fields.remove(sum::FIELD);
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

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> RecordError {
    RecordError { action, path: path.to_owned(), source }
}
