//! The wall clock of the daemon under test, set while it runs (the library of tests/clock).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use peerpod_standin::lab::Binaries;
use tempfile::NamedTempFile;

/// Seconds of a day.
pub const DAY: i64 = 24 * 3600;

/// A clock of its own for the programs that have its environment; this process's stays right.
#[derive(Debug)]
pub struct Clock {
    file: NamedTempFile,
    library: PathBuf,
    podvm: PathBuf,
}

impl Clock {
    /// A clock that is right.
    ///
    /// # Errors
    /// When the library is not built.
    pub fn new() -> anyhow::Result<Self> {
        let Binaries { peerpodd, podvm, .. } = Binaries::find()?;
        let library = peerpodd.with_file_name("libpeerpod_clock.so");
        let what = "is not built; run: cargo build -p peerpod-clock";
        ensure!(library.is_file(), "{} {what}", library.display());
        let clock =
            Self { file: NamedTempFile::new().context("the clock's file")?, library, podvm };
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it to so many seconds ahead of the right time; negative is behind.
    ///
    /// # Errors
    /// Of the file.
    pub fn set(&self, ahead: i64) -> anyhow::Result<()> {
        let file: &File = self.file.as_file();
        file.write_all_at(&ahead.to_ne_bytes(), 0).context("set the clock")
    }

    /// The environment of a program that goes by it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pair = |name: &str, path: String| (name.to_owned(), path);
        vec![
            pair("LD_PRELOAD", self.library.display().to_string()),
            pair("STANDIN_CLOCK", self.file.path().display().to_string()),
        ]
    }

    /// The setting by which local VMs go by it, too; of themselves they have the right time.
    pub fn podvm(&self, arguments: &str) -> (String, String) {
        let set: String = self.environment().iter().map(|(k, v)| format!(" '{k}={v}'")).collect();
        let command = format!("/usr/bin/env{set} '{}' run {arguments}", self.podvm.display());
        ("LOCAL_PODVM".to_owned(), command)
    }

    /// Whether that process goes by a clock of these.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn is_in(&self, pid: i32) -> anyhow::Result<bool> {
        let path = format!("/proc/{pid}/maps");
        let maps = std::fs::read_to_string(&path).context(path)?;
        Ok(maps.contains(&self.file.path().display().to_string()))
    }
}

/// Whether a moment, in milliseconds since 1970, is now by a clock that is so many seconds ahead; to half
/// a day, so that it does not matter how long anything takes.
pub fn is_now(ms: u64, ahead: i64) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let there = now.saturating_add(Duration::from_secs(u64::try_from(ahead).unwrap_or(0)));
    let there = there.saturating_sub(Duration::from_secs(u64::try_from(-ahead).unwrap_or(0)));
    Duration::from_millis(ms).abs_diff(there) < Duration::from_secs(12 * 3600)
}
