//! The installation id: the tag by which this daemon's VMs are known to be its own. Made once, kept
//! in the state directory, never changed.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

use super::parse::is_installation_id;
use super::state_dir::no_link;
use crate::crash::here;

const FILE: &str = "installation-id";
/// Bytes that are read of it; a real one has 64 at most.
const READ: u64 = 1024;

/// Why there is no installation id.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// The kept one cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kept one is not one. It is not replaced: VMs may carry it.
    #[error(
        "{0} does not hold an installation id (1 to 63 characters of a-z, 0-9 and -); put the right \
         one there, or remove the file if no VM of this node is left"
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

/// The given id, or the kept one, or a new one, which then is kept.
///
/// # Errors
/// When it cannot be read or kept.
pub fn installation_id(state: &Path, given: Option<&str>) -> Result<String, InstallationError> {
    let path = state.join(FILE);
    let kept = read(&path)?;
    match (given, kept) {
        (Some(given), kept) => {
            if let Some(kept) = kept.filter(|kept| kept != given) {
                tracing::warn!(
                    kept,
                    given,
                    "VMs tagged with the kept installation id are not ours"
                );
            }
            Ok(given.to_owned())
        }
        (None, Some(kept)) => Ok(kept),
        (None, None) => {
            let id = format!("{:032x}", rand::random::<u128>());
            here!(InstallationBefore);
            write(state, &path, &id).map_err(|source| InstallationError::Write { path, source })?;
            here!(InstallationAfter);
            Ok(id)
        }
    }
}

/// The given id or the kept one; `None` if there is neither. Nothing is made.
///
/// # Errors
/// When the kept one cannot be read.
pub fn known_installation_id(
    state: &Path,
    given: Option<&str>,
) -> Result<Option<String>, InstallationError> {
    match given {
        Some(given) => Ok(Some(given.to_owned())),
        None => read(&state.join(FILE)),
    }
}

fn read(path: &Path) -> Result<Option<String>, InstallationError> {
    // Non-blocking: a FIFO in its place must not hold us.
    let opened = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path);
    let mut text = String::new();
    let read = opened.map_err(no_link).and_then(|file| file.take(READ).read_to_string(&mut text));
    match read {
        Ok(_) if is_installation_id(text.trim()) => Ok(Some(text.trim().to_owned())),
        Ok(_) => Err(InstallationError::Damaged(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            Err(InstallationError::Damaged(path.to_owned()))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(InstallationError::Read { path: path.to_owned(), source }),
    }
}

/// Whole or not at all, also across a power cut; what stands under the temporary name goes first.
fn write(state: &Path, path: &Path, id: &str) -> io::Result<()> {
    let temporary = state.join(format!("{FILE}.new"));
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    here!(InstallationRename);
    std::fs::rename(&temporary, path)?;
    File::open(state)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_stays() {
        let state = tempfile::tempdir().expect("directory");
        let id = installation_id(state.path(), None).expect("made");
        assert!(is_installation_id(&id) && id.len() == 32, "{id}");
        assert_eq!(installation_id(state.path(), None).expect("kept"), id);
        let mode = state.path().join(FILE).metadata().expect("file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_given_one_counts_and_is_not_kept() {
        let state = tempfile::tempdir().expect("directory");
        assert_eq!(installation_id(state.path(), Some("mine")).expect("given"), "mine");
        assert!(!state.path().join(FILE).exists());
    }

    #[test]
    fn a_damaged_one_is_named_and_left_alone() {
        let state = tempfile::tempdir().expect("directory");
        for text in ["", "Not An Id", &"x".repeat(64)] {
            std::fs::write(state.path().join(FILE), text).expect("written");
            let error = installation_id(state.path(), None).expect_err("damaged").to_string();
            assert!(error.contains(FILE), "{error}");
            assert_eq!(std::fs::read_to_string(state.path().join(FILE)).expect("kept"), text);
        }
    }

    #[test]
    fn a_link_in_its_place_is_named_and_nothing_is_written_through_one() {
        let state = tempfile::tempdir().expect("directory");
        let precious = state.path().join("precious");
        std::fs::write(&precious, "precious").expect("written");
        let link = |name: &str| {
            std::os::unix::fs::symlink(&precious, state.path().join(name)).expect("linked");
        };
        link("installation-id.new");
        installation_id(state.path(), None).expect("made beside it");
        std::fs::remove_file(state.path().join(FILE)).expect("there");
        link(FILE);
        let error = installation_id(state.path(), None).expect_err("a link");
        let source = std::error::Error::source(&error).expect("why").to_string();
        assert!(error.to_string().contains(FILE) && source.contains("symbolic link"), "{source}");
        assert_eq!(std::fs::read_to_string(&precious).expect("there"), "precious");
    }
}
