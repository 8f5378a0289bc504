//! Our own keys on disk.
//!
//! ```text
//!   key  cert   what is done
//!    –    –     make both: the key first, so that a crash leaves a key without a certificate
//!    x    –     sign a certificate with the key: nobody has seen one yet
//!    x    x     use them; near their end, the CA is rotated and the client signed again
//!    –    x     error: running VMs trust a key that is lost
//! ```

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use peerpod_tunnel::link::Secret;
use rcgen::KeyPair;
use zeroize::Zeroizing;

use super::cert::{self, Authority, Pair, Root};
use super::{PkiError, rotation};
use crate::crash::here;

/// Longest PEM file that is read, in bytes: a bundle of some hundred certificates.
const FILE_MAX: u64 = 256 << 10;
const END: &str = "-----END CERTIFICATE-----\n";

/// The directory with our keys.
pub(super) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Takes a directory, makes it if it is not there, and closes it to others.
    pub(super) fn open(dir: &Path) -> Result<Self, PkiError> {
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(io("making", dir)(e)),
            _ => {}
        }
        let found = fs::symlink_metadata(dir).map_err(io("looking at", dir))?;
        if !found.is_dir() {
            return Err(file(dir, "it is not a directory"));
        }
        owned(dir, found.uid())?;
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(io("closing", dir))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The CA, made if it is not there.
    pub(super) fn authority(&self, now: SystemTime) -> Result<Authority, PkiError> {
        rotation::settle(self)?;
        let (cert_pem, key) = self.root("ca", Root::Ca, now)?;
        let authority = Authority::new(cert_pem, key)?;
        if !Root::Ca.is_due(&authority.validity, now) {
            return Ok(authority);
        }
        rotation::rotate(self, now)?;
        tracing::info!("the CA nears its end: another one issues from now on");
        let (cert_pem, key) = self.root("ca", Root::Ca, now)?;
        Authority::new(cert_pem, key)
    }

    /// The client's pair, made if it is not there.
    pub(super) fn client(&self, now: SystemTime) -> Result<Pair, PkiError> {
        let (cert_pem, key) = self.root("client", Root::Client, now)?;
        let pair = Pair { cert_pem, key_pem: pem(&key) };
        let path = self.dir.join("client.pem");
        pair.check().map_err(|source| PkiError::Unusable { path, source })?;
        Ok(pair)
    }

    fn root(&self, name: &str, root: Root, now: SystemTime) -> Result<(String, KeyPair), PkiError> {
        let cert_path = self.dir.join(format!("{name}.pem"));
        let key_path = self.dir.join(format!("{name}.key"));
        let key = match (self.read(&key_path)?, self.read(&cert_path)?) {
            (Some(key), Some(cert)) => {
                return kept(root, (&key_path, &key), (&cert_path, cert), now);
            }
            (None, Some(_)) => {
                return Err(file(&key_path, "the key of the certificate beside it is not there"));
            }
            (Some(key), None) => parse_key(&key_path, &key)?,
            (None, None) => {
                let key =
                    KeyPair::generate().map_err(|source| PkiError::Make { what: "key", source })?;
                here!(KeyBefore);
                write(&key_path, pem(&key).expose().as_bytes())?;
                here!(KeyAfter);
                key
            }
        };
        let cert = root.sign(&key, now)?;
        here!(CertificateBefore);
        write(&cert_path, cert.as_bytes())?;
        here!(CertificateAfter);
        Ok((cert, key))
    }

    /// Of a file in it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes what happened to names in it last.
    pub(super) fn sync(&self) -> Result<(), PkiError> {
        sync(&self.dir)
    }

    /// A file of ours, or `None` if it is not there.
    pub(super) fn read(&self, path: &Path) -> Result<Option<Zeroizing<String>>, PkiError> {
        // Non-blocking: a FIFO in its place must not hold us.
        let opened = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path);
        let opened = match opened {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) if e.raw_os_error() == Some(nix::libc::ELOOP) => {
                return Err(file(path, "it is a symbolic link"));
            }
            other => other.map_err(io("opening", path))?,
        };
        let found = opened.metadata().map_err(io("looking at", path))?;
        if !found.is_file() {
            return Err(file(path, "it is not a regular file"));
        }
        owned(path, found.uid())?;
        if found.mode() & 0o077 != 0 {
            return Err(file(path, "others may read or write it; its mode must be 0600"));
        }
        read(opened, path).map(Some)
    }
}

/// Key and certificate that were there before, the client's renewed if its time is nearly over, or, the
/// clock having been set back, has not begun.
fn kept(
    root: Root,
    (key_path, key): (&Path, &str),
    (cert_path, cert): (&Path, Zeroizing<String>),
    now: SystemTime,
) -> Result<(String, KeyPair), PkiError> {
    let key = parse_key(key_path, key)?;
    let damaged = |reason| PkiError::Damaged { path: cert_path.to_owned(), reason };
    let validity = cert::validity(&cert).map_err(damaged)?;
    if !cert::belongs(&cert, &key).map_err(damaged)? {
        return Err(file(cert_path, "it does not belong to the key beside it"));
    }
    if root == Root::Ca || !root.is_due(&validity, now) {
        return Ok((cert.to_string(), key));
    }
    let older = cert.split_once(END).map_or("", |(_, rest)| rest);
    let renewed = root.sign(&key, now)? + older;
    write(cert_path, renewed.as_bytes())?;
    tracing::info!(file = %cert_path.display(), "certificate renewed with the key it had");
    Ok((renewed, key))
}

pub(super) fn parse_key(path: &Path, pem: &str) -> Result<KeyPair, PkiError> {
    // The library's words say nothing that helps, and might say something of the content.
    KeyPair::from_pem(pem).map_err(|_| PkiError::Damaged {
        path: path.to_owned(),
        reason: "it holds no PKCS#8 key".to_owned(),
    })
}

/// A file that the settings name. Links are fine: Kubernetes mounts secrets as such.
pub(super) fn read_given(path: &Path) -> Result<String, PkiError> {
    let opened = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path);
    let opened = opened.map_err(io("opening", path))?;
    if !opened.metadata().map_err(io("looking at", path))?.is_file() {
        return Err(file(path, "it is not a regular file"));
    }
    read(opened, path).map(|mut text| std::mem::take(&mut *text))
}

fn read(opened: File, path: &Path) -> Result<Zeroizing<String>, PkiError> {
    // Of that size from the beginning: a text that grows leaves copies behind.
    let size = opened.metadata().map_or(0, |m| m.len()).min(FILE_MAX);
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(size).unwrap_or(0) + 64));
    match opened.take(FILE_MAX + 1).read_to_string(&mut text) {
        Err(e) if e.kind() == ErrorKind::InvalidData => Err(file(path, "it is not a text")),
        Err(e) => Err(io("reading", path)(e)),
        Ok(_) if text.len() as u64 > FILE_MAX => Err(file(path, "it is longer than 256 KiB")),
        Ok(_) => Ok(text),
    }
}

/// Writes a new file with mode 0600, all of it or nothing.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let new = path.with_added_extension("new");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(io("removing", &new)(e)),
        _ => {}
    }
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    let mut made = made.map_err(io("making", &new))?;
    made.write_all(content).map_err(io("writing", &new))?;
    made.sync_all().map_err(io("syncing", &new))?;
    here!(PemRename);
    fs::rename(&new, path).map_err(io("putting in place", path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    sync(dir)
}

fn sync(dir: &Path) -> Result<(), PkiError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io("syncing", dir))
}

/// A key as text; the library's own buffer is overwritten as well.
pub(super) fn pem(key: &KeyPair) -> Secret {
    Secret::new(key.serialize_pem())
}

fn owned(path: &Path, uid: u32) -> Result<(), PkiError> {
    if uid == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(file(path, "it belongs to another user"))
}

fn file(path: &Path, reason: &'static str) -> PkiError {
    PkiError::File { path: path.to_owned(), reason }
}

pub(super) fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::Io { action, path: path.clone(), source }
}
