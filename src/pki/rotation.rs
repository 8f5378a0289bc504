//! Another CA takes over, and no pod notices: new VMs are given certificates of the new one, those of the
//! older ones are believed as long as a pod's record names it.
//!
//! ```text
//!   ca.key  ca.pem  ca.key.next
//!     A      A          –
//!     A      A          B        1  the next key is kept; nobody has seen it yet
//!     A      B A        B        2  both are believed, B issues
//!     B      B A        –        3
//!     B      B          –        later, when no record names A any more
//! ```
//! Every write is whole or not at all, so a crash leaves one of these lines. The next start takes the
//! second back and completes the third.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::SystemTime;

use rcgen::KeyPair;

use super::PkiError;
use super::cert::{self, Root};
use super::store::{self, Store};

/// More than that are not believed at a time: somebody rotates in a loop.
pub(super) const MOST: usize = 16;
/// Its presence asks for a rotation.
const ASKED: &str = "rotate";

/// A rotation under way; its steps have to be taken in this order.
pub(super) struct Rotation<'a> {
    store: &'a Store,
    key: KeyPair,
    /// The new certificate and all that were believed before.
    certificates: String,
}

impl<'a> Rotation<'a> {
    /// Touches nothing yet.
    pub(super) fn new(store: &'a Store, now: SystemTime) -> Result<Self, PkiError> {
        let path = store.path("ca.pem");
        let before = store.read(&path)?.unwrap_or_default();
        let believed = cert::each(&before).map_err(|reason| damaged(&path, reason))?;
        if believed.len() >= MOST {
            return Err(PkiError::TooMany { path, most: MOST });
        }
        let key = KeyPair::generate().map_err(|source| PkiError::Make { what: "key", source })?;
        let certificates = Root::Ca.sign(&key, now)? + &before;
        Ok(Self { store, key, certificates })
    }

    pub(super) fn keep_key(&self) -> Result<(), PkiError> {
        store::write(&next(self.store), store::pem(&self.key).expose().as_bytes())
    }

    pub(super) fn believe(&self) -> Result<(), PkiError> {
        store::write(&self.store.path("ca.pem"), self.certificates.as_bytes())
    }

    pub(super) fn take_over(&self) -> Result<(), PkiError> {
        put_in_place(self.store)
    }
}

fn next(store: &Store) -> PathBuf {
    store.path("ca.key.next")
}

fn put_in_place(store: &Store) -> Result<(), PkiError> {
    let path = store.path("ca.key");
    fs::rename(next(store), &path).map_err(store::io("putting in place", &path))?;
    store.sync()
}

/// All steps.
pub(super) fn rotate(store: &Store, now: SystemTime) -> Result<(), PkiError> {
    let rotation = Rotation::new(store, now)?;
    rotation.keep_key()?;
    rotation.believe()?;
    rotation.take_over()
}

/// Completes or takes back what a crash has left.
pub(super) fn settle(store: &Store) -> Result<(), PkiError> {
    let path = next(store);
    let Some(pem) = store.read(&path)? else { return Ok(()) };
    let issuing = store.read(&store.path("ca.pem"))?;
    let key = store::parse_key(&path, &pem);
    let begun = match (&issuing, &key) {
        (Some(issuing), Ok(key)) => cert::belongs(issuing, key).unwrap_or(false),
        _ => false,
    };
    if begun {
        tracing::info!("a rotation of the CA that was cut short is completed");
        return put_in_place(store);
    }
    fs::remove_file(&path).map_err(store::io("removing", &path))?;
    store.sync()
}

/// Stops believing those that are not in use; the one that issues stays. Returns how many have gone.
pub(super) fn retire(store: &Store, in_use: &BTreeSet<String>) -> Result<usize, PkiError> {
    let path = store.path("ca.pem");
    let before = store.read(&path)?.unwrap_or_default();
    let all = cert::each(&before).map_err(|reason| damaged(&path, reason))?;
    let count = all.len();
    let kept: Vec<_> = all
        .into_iter()
        .enumerate()
        .filter(|(n, (fingerprint, _))| *n == 0 || in_use.contains(fingerprint))
        .map(|(_, (_, pem))| pem)
        .collect();
    let gone = count - kept.len();
    if gone > 0 {
        store::write(&path, kept.concat().as_bytes())?;
    }
    Ok(gone)
}

fn damaged(path: &std::path::Path, reason: String) -> PkiError {
    PkiError::Damaged { path: path.to_owned(), reason }
}

/// Whether somebody has asked for one.
pub(super) fn is_asked(store: &Store) -> bool {
    fs::symlink_metadata(store.path(ASKED)).is_ok()
}

/// The wish is fulfilled.
pub(super) fn granted(store: &Store) -> Result<(), PkiError> {
    let path = store.path(ASKED);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(store::io("removing", &path)(e)),
        _ => Ok(()),
    }
}

/// Asks the node process that uses this directory, or the next one, for a rotation. Returns the file
/// that is there until it is done.
///
/// # Errors
/// When there is no CA of ours, or nothing can be written there.
pub fn ask(dir: &std::path::Path) -> Result<PathBuf, PkiError> {
    let ca = dir.join("ca.pem");
    fs::symlink_metadata(&ca).map_err(store::io("looking for our CA:", &ca))?;
    let path = dir.join(ASKED);
    store::write(&path, b"")?;
    Ok(path)
}
