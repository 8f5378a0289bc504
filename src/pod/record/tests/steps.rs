//! In which order the disk is asked, and what is left where it refuses.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::super::files::{Files, Host, Node};
use super::*;

/// The machine's own file system, which remembers what changed it and refuses one step.
#[derive(Clone, Debug, Default)]
struct Steps {
    taken: Arc<Mutex<Vec<String>>>,
    refused: Arc<Mutex<Option<&'static str>>>,
}

impl Steps {
    fn step(&self, step: &'static str, path: &Path) -> io::Result<()> {
        if *self.refused.lock().expect("lock") == Some(step) {
            return Err(ErrorKind::StorageFull.into());
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.taken.lock().expect("lock").push(format!("{step} {name}").trim_end().to_owned());
        Ok(())
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.taken.lock().expect("lock"))
    }
}

impl Files for Steps {
    type Open = File;

    fn make_directory(&self, path: &Path) -> io::Result<bool> {
        self.step("make", path)?;
        Host.make_directory(path)
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        Host.node(path)
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        Host.read(path, max)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.step("create", path)?;
        Host.create(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let refused = self.step("write", Path::new(""));
        let written = if refused.is_err() { bytes.len() / 2 } else { bytes.len() };
        Host.write(file, &bytes[..written])?;
        refused
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.step("sync", Path::new(""))?;
        Host.sync(file)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step("sync", path)?;
        Host.sync_directory(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("rename", from)?;
        Host.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        Host.remove_file(path)?;
        self.step("remove", path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        Host.remove_directory(path)?;
        self.step("remove", path)
    }

    fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        Host.names(path)
    }

    fn now_ms(&self) -> u128 {
        1
    }

    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        Host.apart(work).await
    }
}

fn steps() -> (tempfile::TempDir, Steps, Disk<Steps>) {
    let (state, steps) = (tempfile::tempdir().expect("directory"), Steps::default());
    let disk = Disk::open_on(steps.clone(), state.path()).expect("opens");
    steps.taken();
    (state, steps, disk)
}

#[tokio::test]
async fn everything_lasts_before_it_is_relied_on() {
    let (state, steps, disk) = steps();
    let record = samples::record("s1");
    let written = ["create record.json.new", "write", "sync", "rename record.json.new", "sync s1"];
    disk.save(&record).await.expect("saved");
    assert_eq!(steps.taken(), [&["make s1"], &written[..], &["sync pods"]].concat());
    disk.save(&record).await.expect("saved again");
    assert_eq!(steps.taken(), [&["make s1"], &written[..]].concat());
    disk.load().await.expect("loads");
    assert_eq!(steps.taken(), ["sync s1", "sync pods"], "what its writer may not have synced");
    fs::write(state.path().join("pods/s1/record.json"), "{").expect("written");
    disk.load().await.expect("loads");
    assert_eq!(steps.taken(), ["rename s1", "sync broken", "sync pods", "sync pods"]);
    disk.save(&record).await.expect("saved");
    steps.taken();
    disk.remove("s1").await.expect("removed");
    assert_eq!(steps.taken(), ["remove record.json", "remove s1", "sync pods"]);
}

#[tokio::test]
async fn a_save_that_is_refused_at_any_step_leaves_what_was_there() {
    for refused in ["make", "create", "write", "sync", "rename"] {
        let (state, steps, disk) = steps();
        let refuse = |step| *steps.refused.lock().expect("lock") = step;
        let left = || fs::read_dir(state.path().join("pods")).expect("there").count();
        let record = samples::record("s1");
        refuse(Some(refused));
        let error = disk.save(&record).await.expect_err(refused);
        assert!(error.is_full() && error.to_string().contains("s1"), "{refused}: {error}");
        assert_eq!(left(), 0, "{refused}");
        refuse(None);
        disk.save(&record).await.expect("saved");
        let mut later = record.clone();
        later.note(5, "tried", None);
        refuse(Some(refused));
        disk.save(&later).await.expect_err(refused);
        refuse(None);
        assert_eq!(disk.load().await.expect("loads").records, [record], "{refused}");
        let files = fs::read_dir(state.path().join("pods/s1")).expect("there").count();
        assert_eq!(files, 1, "{refused}: what is half-written takes room");
    }
}
