//! The disk: what a file or a directory holds, and what of that would be there after a power loss.
//! The daemon's own code for records runs on it ([`Disk`]), call by call.
//!
//! ```text
//!   write, rename, remove ─▶ seen ──sync of the file, of the directory──▶ kept
//!   death of the daemon: what is seen stays         power loss: only what is kept, perhaps more
//! ```

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use peerpodd::pod::record::files::{Files, Node};
use peerpodd::pod::record::{Disk, Loaded, Record, RecordError, Records};

use crate::check;
use crate::cloud::Cloud;
use crate::core::{Core, lock, seconds};
use crate::dice::Fault;
use crate::process::Process;

/// Where the state directory is.
pub(crate) const STATE: &str = "/state";

type Inode = u64;

#[derive(Clone, Debug)]
enum Entry {
    Directory,
    File(Inode),
}

#[derive(Clone, Debug, Default)]
struct Content {
    seen: Vec<u8>,
    /// As of the last sync.
    kept: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct State {
    inodes: BTreeMap<Inode, Content>,
    seen: BTreeMap<PathBuf, Entry>,
    /// Names as of the last sync of their directory.
    kept: BTreeMap<PathBuf, Entry>,
    next: Inode,
    read_only: bool,
    /// A sync that fails would be told to nobody.
    loading: bool,
    /// Sandboxes whose record could not be written as it should.
    trouble: BTreeMap<String, String>,
}

/// The machine's file system; it outlives daemons.
#[derive(Debug)]
pub(crate) struct Store {
    core: Arc<Core>,
    state: Mutex<State>,
}

impl Store {
    pub(crate) fn new(core: &Arc<Core>) -> Arc<Self> {
        let state = State {
            seen: BTreeMap::from([(PathBuf::from(STATE), Entry::Directory)]),
            kept: BTreeMap::from([(PathBuf::from(STATE), Entry::Directory)]),
            ..State::default()
        };
        Arc::new(Self { core: Arc::clone(core), state: Mutex::new(state) })
    }

    /// Power is lost: a name or a content that was not synced is there or not, as chance has it.
    pub(crate) fn lose_power(&self) {
        let mut state = lock(&self.state);
        let State { seen, kept, inodes, .. } = &mut *state;
        let mut after = kept.clone();
        for (path, entry) in seen.iter() {
            if !kept.contains_key(path) && self.core.dice.amount("power-loss.name", 0, 1) == 0 {
                after.insert(path.clone(), entry.clone());
            }
        }
        // What lies in a directory that is lost is lost, too.
        let whole = after.clone();
        after.retain(|path, _| {
            path.ancestors().skip(1).all(|a| !a.starts_with(STATE) || whole.contains_key(a))
        });
        for content in inodes.values_mut() {
            let torn = self.core.dice.amount("power-loss.torn", 0, 2);
            content.seen = match (&content.kept, torn) {
                (Some(kept), _) => kept.clone(),
                (None, 0) => Vec::new(),
                (None, _) => content.seen.get(..content.seen.len() / 2).unwrap_or_default().into(),
            };
            content.kept = Some(content.seen.clone());
        }
        (*seen, *kept) = (after.clone(), after);
    }

    pub(crate) fn set_read_only(&self, read_only: bool) {
        lock(&self.state).read_only = read_only;
    }

    /// What a power loss would leave of a sandbox's record.
    pub(crate) fn kept(&self, sandbox: &str) -> Option<Record> {
        let state = lock(&self.state);
        let directory = Path::new(STATE).join("pods").join(sandbox);
        if !state.kept.contains_key(&directory) {
            return None;
        }
        let Some(Entry::File(inode)) = state.kept.get(&directory.join("record.json")) else {
            return None;
        };
        let kept = state.inodes.get(inode)?.kept.clone()?;
        drop(state);
        serde_json::from_slice(&kept).ok()
    }

    /// What a daemon that starts now would read.
    pub(crate) fn seen(&self, sandbox: &str) -> Option<(Record, String)> {
        let state = lock(&self.state);
        let path = Path::new(STATE).join("pods").join(sandbox).join("record.json");
        let Some(Entry::File(inode)) = state.seen.get(&path) else { return None };
        let bytes = state.inodes.get(inode)?.seen.clone();
        drop(state);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Some((serde_json::from_slice(&bytes).ok()?, text))
    }

    /// Sandboxes with a directory.
    pub(crate) fn sandboxes(&self) -> Vec<String> {
        let pods = Path::new(STATE).join("pods");
        let state = lock(&self.state);
        let paths = state.seen.keys().filter(|p| p.parent() == Some(&pods));
        paths.filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect()
    }

    /// Why a record may be behind, if it may.
    pub(crate) fn trouble(&self, sandbox: &str) -> Option<String> {
        let state = lock(&self.state);
        if state.read_only {
            return Some("read-only".to_owned());
        }
        state.trouble.get(sandbox).cloned()
    }

    fn note(&self, sandbox: &str, why: &str) {
        lock(&self.state).trouble.insert(sandbox.to_owned(), why.to_owned());
    }

    /// Between two daemons a record becomes unreadable, or one of a newer daemon; whose.
    pub(crate) fn damage(&self) -> (Vec<String>, Vec<String>) {
        let (mut unreadable, mut newer) = (Vec::new(), Vec::new());
        for sandbox in self.sandboxes() {
            let path = Path::new(STATE).join("pods").join(&sandbox).join("record.json");
            let corrupt = self.core.fires(Fault::DiskCorrupt, &sandbox);
            let upgrade = !corrupt && self.core.fires(Fault::DiskNewer, &sandbox);
            let mut state = lock(&self.state);
            let Some(&Entry::File(inode)) = state.seen.get(&path) else { continue };
            let Some(content) = state.inodes.get_mut(&inode) else { continue };
            if corrupt {
                content.seen.truncate(content.seen.len() / 3);
                unreadable.push(sandbox);
            } else if upgrade {
                content.seen = br#"{"version":99}"#.to_vec();
                newer.push(sandbox);
            } else {
                continue;
            }
            content.kept = Some(content.seen.clone());
            let entry = Entry::File(inode);
            state.kept.insert(path, entry);
        }
        (unreadable, newer)
    }
}

/// The file system as one daemon has it.
#[derive(Clone, Debug)]
pub(crate) struct Mount {
    store: Arc<Store>,
    process: Arc<Process>,
}

fn sandbox_of(path: &Path) -> String {
    let below = path.strip_prefix(Path::new(STATE).join("pods")).ok();
    let first = below.and_then(|b| b.iter().next()).and_then(|n| n.to_str());
    first.unwrap_or_default().to_owned()
}

impl Mount {
    /// Every call begins here: the daemon may die before it.
    fn begin(&self, call: &str, writes: bool) -> io::Result<()> {
        if self.process.dies_at(&format!("disk-{call}"), Fault::KillOnDisk) {
            return Err(io::Error::other("the process is dead"));
        }
        if writes && lock(&self.store.state).read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(())
    }

    fn fails(&self, fault: Fault, path: &Path) -> bool {
        let sandbox = sandbox_of(path);
        if lock(&self.store.state).loading {
            return false;
        }
        let fails = self.store.core.fires(fault, &sandbox);
        if fails {
            if sandbox.is_empty() {
                self.store.core.excuse_all(fault.name());
            }
            self.store.note(&sandbox, fault.name());
        }
        fails
    }
}

impl Files for Mount {
    type Open = (Inode, PathBuf);

    fn make_directory(&self, path: &Path) -> io::Result<bool> {
        self.begin("mkdir", true)?;
        let mut state = lock(&self.store.state);
        match state.seen.get(path) {
            Some(Entry::Directory) => Ok(false),
            Some(_) => Err(ErrorKind::NotADirectory.into()),
            None => {
                state.seen.insert(path.to_owned(), Entry::Directory);
                Ok(true)
            }
        }
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        match lock(&self.store.state).seen.get(path) {
            Some(Entry::Directory) => Ok(Node::Directory),
            Some(Entry::File(_)) => Ok(Node::File),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn read(&self, path: &Path, _: u64) -> io::Result<Vec<u8>> {
        let state = lock(&self.store.state);
        let Some(Entry::File(inode)) = state.seen.get(path) else {
            return Err(ErrorKind::NotFound.into());
        };
        let content = state.inodes.get(inode).ok_or(ErrorKind::NotFound)?;
        Ok(content.seen.clone())
    }

    fn create(&self, path: &Path) -> io::Result<Self::Open> {
        self.begin("create", true)?;
        let mut state = lock(&self.store.state);
        if state.seen.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        state.next += 1;
        let inode = state.next;
        state.inodes.insert(inode, Content::default());
        state.seen.insert(path.to_owned(), Entry::File(inode));
        Ok((inode, path.to_owned()))
    }

    fn write(&self, (inode, path): &mut Self::Open, bytes: &[u8]) -> io::Result<()> {
        self.begin("write", true)?;
        let full = self.fails(Fault::DiskFull, path);
        let mut state = lock(&self.store.state);
        let content = state.inodes.get_mut(inode).ok_or(ErrorKind::NotFound)?;
        let taken = if full { bytes.len() / 2 } else { bytes.len() };
        content.seen.extend(bytes.iter().take(taken));
        if full { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&self, (inode, path): &Self::Open) -> io::Result<()> {
        self.begin("sync", true)?;
        let lost = self.fails(Fault::DiskSync, path);
        let mut state = lock(&self.store.state);
        let content = state.inodes.get_mut(inode).ok_or(ErrorKind::NotFound)?;
        if lost {
            return Err(io::Error::other("I/O error"));
        }
        content.kept = Some(content.seen.clone());
        Ok(())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.begin("sync-directory", false)?;
        if self.fails(Fault::DiskSync, path) {
            return Err(io::Error::other("I/O error"));
        }
        let mut state = lock(&self.store.state);
        let State { seen, kept, .. } = &mut *state;
        kept.retain(|p, _| p.parent() != Some(path) || seen.contains_key(p));
        let inside = seen.iter().filter(|(p, _)| p.parent() == Some(path));
        kept.extend(inside.map(|(p, e)| (p.clone(), e.clone())));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.begin("rename", true)?;
        let mut state = lock(&self.store.state);
        let entry = state.seen.remove(from).ok_or(ErrorKind::NotFound)?;
        let inside: Vec<PathBuf> =
            state.seen.keys().filter(|p| p.starts_with(from)).cloned().collect();
        for path in inside {
            let Ok(rest) = path.strip_prefix(from) else { continue };
            let new = to.join(rest);
            if let Some(entry) = state.seen.remove(&path) {
                state.seen.insert(new, entry);
            }
        }
        state.seen.insert(to.to_owned(), entry);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        if !lock(&self.store.state).seen.contains_key(path) {
            return Err(ErrorKind::NotFound.into());
        }
        self.begin("unlink", true)?;
        lock(&self.store.state).seen.remove(path);
        Ok(())
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.begin("rmdir", true)?;
        let mut state = lock(&self.store.state);
        if state.seen.keys().any(|p| p.parent() == Some(path)) {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        state.seen.remove(path).map(drop).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = lock(&self.store.state);
        let inside = state.seen.keys().filter(|p| p.parent() == Some(path));
        Ok(inside.filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect())
    }

    fn now_ms(&self) -> u128 {
        self.store.core.wall_ms().into()
    }

    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        Ok(work())
    }
}

/// Records as one daemon keeps them: the real code, with time and death around it.
#[derive(Debug)]
pub(crate) struct Slow {
    disk: Disk<Mount>,
    store: Arc<Store>,
    cloud: Arc<Cloud>,
    process: Arc<Process>,
}

impl Slow {
    pub(crate) fn open(cloud: &Arc<Cloud>, process: &Arc<Process>) -> Result<Self, RecordError> {
        let (store, cloud) = (&cloud.store, Arc::clone(cloud));
        let mount = Mount { store: Arc::clone(store), process: Arc::clone(process) };
        let disk = Disk::open_on(mount, Path::new(STATE))?;
        Ok(Self { disk, store: Arc::clone(store), cloud, process: Arc::clone(process) })
    }

    async fn takes_time(&self, sandbox: &str) {
        let core = &self.store.core;
        if core.fires(Fault::DiskSlow, sandbox) {
            self.store.note(sandbox, "slow");
            core.pass_ms("disk-slow", 100, 6000).await;
        } else {
            core.pass_ms("disk", 1, 8).await;
        }
    }
}

#[async_trait]
impl Records for Slow {
    async fn load(&self) -> Result<Loaded, RecordError> {
        self.process.reach("load.before").await;
        lock(&self.store.state).loading = true;
        let loaded = self.disk.load().await;
        lock(&self.store.state).loading = false;
        self.process.reach("load.after").await;
        loaded
    }

    async fn save(&self, record: &Record) -> Result<(), RecordError> {
        self.process.reach("save.before").await;
        self.takes_time(&record.sandbox).await;
        self.process.reach("save.middle").await;
        let saved = self.disk.save(record).await;
        let phase = record.phase.name();
        let ok = saved.as_ref().map_or_else(|e| e.to_string(), |()| "ok".to_owned());
        self.store.core.trace(format!("{} save {} {phase}: {ok}", self.process.id, record.sandbox));
        if saved.is_ok() {
            lock(&self.store.state).trouble.remove(&record.sandbox);
        } else if !self.process.is_dead() {
            self.store.note(&record.sandbox, "failed");
        }
        self.process.reach("save.after").await;
        saved
    }

    async fn remove(&self, sandbox: &str) -> Result<(), RecordError> {
        self.process.reach("remove.before").await;
        check::forgotten(&self.cloud, sandbox);
        self.takes_time(sandbox).await;
        let removed = self.disk.remove(sandbox).await;
        self.store.core.trace(format!("{} remove {sandbox}: {}", self.process.id, removed.is_ok()));
        self.process.reach("remove.after").await;
        removed
    }
}

/// How long a read-only time lasts.
pub(crate) async fn read_only_time(core: &Core, store: &Store) {
    if core.fires_harmlessly(Fault::DiskReadOnly) {
        core.excuse_everybody("disk-read-only");
        store.set_read_only(true);
        tokio::time::sleep(seconds(core.dice.amount("read-only", 1, 40))).await;
        store.set_read_only(false);
        core.trace("disk writable again");
        core.excuse_nobody();
    }
}
