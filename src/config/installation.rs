//! The installation id: the tag by which this daemon's VMs are known to be its own. Made once, kept
//! in the state directory, never changed.

use std::io;
use std::path::{Path, PathBuf};

use super::kept;
use super::parse::is_installation_id;
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
            kept::write(&path, &format!("{id}\n"), || {
                here!(InstallationRename);
            })
            .map_err(|source| InstallationError::Write { path, source })?;
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
    match kept::read(path, READ) {
        Ok(None) => Ok(None),
        Ok(Some(text)) if is_installation_id(text.trim()) => Ok(Some(text.trim().to_owned())),
        Ok(Some(_)) => Err(InstallationError::Damaged(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            Err(InstallationError::Damaged(path.to_owned()))
        }
        Err(source) => Err(InstallationError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

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
