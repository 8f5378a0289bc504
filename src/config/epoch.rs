//! The fencing epoch: each start of a node process on a state directory has a larger one, which its
//! VMs carry as a tag. Lock and installation id cannot tell a daemon from another one that works with
//! a copy of its state directory (a cloned worker, a restored backup); the epochs can:
//!
//! ```text
//!   VM's epoch:   older than all that are kept ─▶ ours (kept by an earlier build, or forgotten)
//!                 one that is kept             ─▶ ours
//!                 any other                    ─▶ made with another copy: left alone, and said
//! ```
//!
//! An epoch is the time of the start in milliseconds since 1970, or one more than the last one where
//! the clock was set back, so that two copies hardly ever count up to the same.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::kept;
use super::state_dir::is_full;
use crate::crash::here;

const FILE: &str = "epochs";
/// Starts that are remembered: a daemon that fails every five seconds fills that in more than a day.
const REMEMBERED: usize = 20_000;
/// Bytes of so many.
const READ: u64 = 20 * REMEMBERED as u64;

/// Why there is no epoch.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// The kept ones cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// They are not ascending numbers. They are not replaced: VMs may carry them.
    #[error(
        "{0} does not hold one ascending number a line; put the right file there, or remove it if no \
         VM of this node is left"
    )]
    Damaged(PathBuf),
    /// A new one cannot be kept.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The epoch of this process, and those of its forerunners on this state directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    kept: Arc<BTreeSet<u64>>,
    /// Where they are kept; empty when nowhere (a simulation).
    path: PathBuf,
}

impl Epochs {
    /// Begins a new one at `now_ms` (since 1970). Blocks for a few file system calls. On a full disk,
    /// on which no VM can be made either, the last one goes on.
    ///
    /// # Errors
    /// When they cannot be read or kept.
    pub fn begin(state: &Path, now_ms: u64) -> Result<Self, EpochError> {
        Self::begin_by(state, now_ms, |path, text| {
            kept::write(path, text, || {
                here!(EpochRename);
            })
        })
    }

    fn begin_by(
        state: &Path,
        now_ms: u64,
        write: impl FnOnce(&Path, &str) -> io::Result<()>,
    ) -> Result<Self, EpochError> {
        let mut epochs = Self::known(state)?;
        let last = epochs.kept.last().copied();
        let own = last.map_or(now_ms, |last| now_ms.max(last + 1));
        let kept = Arc::make_mut(&mut epochs.kept);
        kept.insert(own);
        while kept.len() > REMEMBERED {
            kept.pop_first();
        }
        let text: String = kept.iter().map(|epoch| format!("{epoch}\n")).collect();
        here!(EpochBefore);
        match write(&epochs.path, &text) {
            Err(e) if is_full(&e) && last.is_some() => {
                Arc::make_mut(&mut epochs.kept).remove(&own);
            }
            written => {
                written.map_err(|source| EpochError::Write { path: epochs.path.clone(), source })?
            }
        }
        here!(EpochAfter);
        Ok(epochs)
    }

    /// Those that are kept; nothing is made.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn known(state: &Path) -> Result<Self, EpochError> {
        let path = state.join(FILE);
        let text = match kept::read(&path, READ) {
            Ok(text) => text.unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(EpochError::Damaged(path));
            }
            Err(source) => return Err(EpochError::Read { path, source }),
        };
        match parse(&text) {
            Some(kept) => Ok(Self { kept: Arc::new(kept), path }),
            None => Err(EpochError::Damaged(path)),
        }
    }

    /// This process's, as its VMs' tag; empty if it has none.
    pub fn own(&self) -> String {
        self.kept.last().map(u64::to_string).unwrap_or_default()
    }

    /// Whether a VM with that tag was made with this state directory and not with a copy of it. One
    /// without a tag was made by an earlier build, or lies where the cloud takes none.
    pub fn made_here(&self, tag: Option<&str>) -> bool {
        let (Some(tag), Some(first)) = (tag, self.kept.first()) else { return true };
        tag.parse().is_ok_and(|epoch: u64| epoch < *first || self.kept.contains(&epoch))
    }

    /// Whether no later process has begun on this state directory, as one does that found the lock's
    /// file removed.
    ///
    /// # Errors
    /// When the kept ones cannot be read.
    pub async fn is_current(&self) -> Result<bool, EpochError> {
        let Some(state) = self.path.parent().map(Path::to_owned) else { return Ok(true) };
        let read = tokio::task::spawn_blocking(move || Self::known(&state)).await;
        let read = read.map_err(|e| EpochError::Read {
            path: self.path.clone(),
            source: io::Error::other(e),
        })?;
        Ok(read?.kept.last() == self.kept.last())
    }
}

fn parse(text: &str) -> Option<BTreeSet<u64>> {
    let mut kept = BTreeSet::new();
    for line in text.lines() {
        let epoch = line.parse().ok()?;
        if kept.last().is_some_and(|last| *last >= epoch) || epoch >= u64::MAX / 2 {
            return None;
        }
        kept.insert(epoch);
    }
    (text.is_empty() || text.ends_with('\n')).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_has_a_larger_one_also_when_the_clock_was_set_back() {
        let state = tempfile::tempdir().expect("directory");
        let first = Epochs::begin(state.path(), 1_000).expect("begun");
        assert_eq!(first.own(), "1000");
        let second = Epochs::begin(state.path(), 10).expect("begun");
        assert_eq!(second.own(), "1001");
        assert!(second.made_here(Some("1000")) && second.made_here(Some("1001")));
        assert!(second.made_here(Some("999")) && second.made_here(None), "older than all");
        assert!(!second.made_here(Some("1002")) && !second.made_here(Some("x")));
    }

    #[test]
    fn the_oldest_go_so_that_what_is_kept_can_always_be_read() {
        let state = tempfile::tempdir().expect("directory");
        // As long as they will be for centuries.
        let (first, next) = (1_000_000_000_000, 1_000_000_000_000 + REMEMBERED as u64);
        let many: String = (first..next).map(|epoch| format!("{epoch}\n")).collect();
        std::fs::write(state.path().join(FILE), many).expect("written");
        for now in next..next + 3 {
            let epochs = Epochs::begin(state.path(), now).expect("begun");
            assert_eq!(epochs.own(), now.to_string());
            assert_eq!(Epochs::known(state.path()).expect("read"), epochs);
            assert_eq!(epochs.kept.len(), REMEMBERED);
        }
    }

    #[tokio::test]
    async fn on_a_full_disk_the_last_one_goes_on_and_the_first_one_is_not_made_up() {
        let state = tempfile::tempdir().expect("directory");
        let full = |_: &Path, _: &str| Err(io::ErrorKind::StorageFull.into());
        let none = Epochs::begin_by(state.path(), 1_000, full);
        assert!(matches!(none, Err(EpochError::Write { .. })), "{none:?}");
        Epochs::begin(state.path(), 1_000).expect("begun");
        let goes_on = Epochs::begin_by(state.path(), 2_000, full).expect("goes on");
        assert_eq!(goes_on.own(), "1000", "its VMs' tags are kept");
        assert!(goes_on.is_current().await.expect("read"), "and it sweeps");
    }

    #[test]
    fn what_was_made_with_a_copy_is_not_made_here() {
        let (ours, copy) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
        Epochs::begin(ours.path(), 1_000).expect("begun");
        std::fs::copy(ours.path().join(FILE), copy.path().join(FILE)).expect("copied");
        let theirs = Epochs::begin(copy.path(), 2_000).expect("begun");
        let now = Epochs::begin(ours.path(), 3_000).expect("begun");
        assert!(!now.made_here(Some(&theirs.own())), "between two of ours");
        assert!(!theirs.made_here(Some(&now.own())), "later than all of theirs");
        assert!(now.made_here(Some("1000")) && theirs.made_here(Some("1000")), "both ran then");
    }

    #[tokio::test]
    async fn a_later_process_is_seen() {
        let state = tempfile::tempdir().expect("directory");
        let first = Epochs::begin(state.path(), 1_000).expect("begun");
        assert!(first.is_current().await.expect("read"));
        let second = Epochs::begin(state.path(), 2_000).expect("begun");
        assert!(!first.is_current().await.expect("read"));
        assert!(second.is_current().await.expect("read"));
        assert!(Epochs::default().is_current().await.expect("none"));
    }

    #[test]
    fn a_damaged_file_is_named_and_left_alone() {
        let state = tempfile::tempdir().expect("directory");
        let path = state.path().join(FILE);
        for text in ["x\n", "5\n4\n", "5\n5\n", "-1\n", "7", "18446744073709551615\n", "5\n\n6\n"] {
            std::fs::write(&path, text).expect("written");
            let error = Epochs::begin(state.path(), 1_000).expect_err(text).to_string();
            assert!(error.contains("epochs") && error.contains("ascending"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).expect("kept"), text);
        }
        std::fs::write(&path, b"\xff\n").expect("written");
        assert!(matches!(Epochs::known(state.path()), Err(EpochError::Damaged(_))));
    }
}
