//! Who may speak on the agent link: certificates in the shapes that existing pod VM images know
//! (compat.md 11), and where their keys are kept.
//!
//! ```text
//!              worker (client)                          VM (server)
//!   automatic  verifies by our CA, name `podvm-…`       certificate issued for it, in its user data
//!   files      verifies by the user's CA,               brings its own certificate
//!              name `podvm-server`
//!   skip       verifies nothing                         certificate issued for it
//!   disabled   plain text                               plain text
//! ```
//! In every mode with TLS the VM is sent an anchor for the client, so it never serves strangers.
//!
//! Overlap: the first certificate of `ca.pem` issues, further ones in that file are still believed; see
//! [`rotation`]. A client certificate that nears its end is signed again with the key it has, so what
//! trusts it goes on.

mod cert;
mod rotation;
mod store;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::tls::{ClientTls, Profile, TlsError};

pub use crate::config::{ClientFiles, Tls as TlsSource};

use cert::{Authority, Pair, Root};
pub use rotation::ask as ask_for_rotation;
use store::Store;

/// What a certificate of an image's own carries as its name.
pub const MANUAL_SERVER_NAME: &str = "podvm-server";

/// Why there are no certificates. Names the file, never its content.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or directory that cannot be used as it is.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The disk refuses.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file that holds no certificate or key.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it, without its content.
        reason: String,
    },
    /// A file that TLS cannot work with.
    #[error("{} cannot be used", path.display())]
    Unusable {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: TlsError,
    },
    /// A certificate whose time is over.
    #[error("{} has expired", path.display())]
    Expired {
        /// Which one.
        path: PathBuf,
    },
    /// Somebody rotates in a loop, or pods of long ago still run.
    #[error("{}: {most} CAs are believed already; another one would be too many", path.display())]
    TooMany {
        /// Which file.
        path: PathBuf,
        /// How many there may be.
        most: usize,
    },
    /// A name that no certificate can carry.
    #[error("server name {0:?} is not a DNS name")]
    ServerName(String),
    /// The library refuses to make a certificate.
    #[error("making the {what}")]
    Make {
        /// Which one.
        what: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
}

/// What one VM is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Issued {
    /// The name by which the worker will know the VM.
    pub server_name: String,
    /// The VM's certificate, PEM; empty if the image brings its own or TLS is disabled.
    pub server_cert_pem: String,
    /// Its key, PKCS#8 PEM; empty likewise.
    pub server_key_pem: Secret,
    /// Anchors for the worker's certificate, PEM; empty only if TLS is disabled.
    pub client_ca_pem: String,
    /// Fingerprint of the CA that issued; `None` if none of ours did. The CA is believed as long as a
    /// record names it.
    pub authority: Option<String>,
}

/// Certificates and keys of the agent link. Copies of it are one.
#[derive(Clone)]
pub struct Pki {
    shared: Arc<Shared>,
    profile: Profile,
}

struct Shared {
    dir: PathBuf,
    source: TlsSource,
    /// Another one after each change on disk.
    link: Mutex<Option<Arc<Link>>>,
}

/// What there is when TLS is not disabled.
struct Link {
    /// Issues for the VMs; `None` if images bring their own.
    authority: Option<Authority>,
    /// What the worker believes, PEM; `None` believes everybody.
    anchors: Option<String>,
    /// What the worker presents.
    client: Pair,
    /// What the VM believes, PEM.
    client_ca_pem: String,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").field("tls", &self.link().is_some()).finish_non_exhaustive()
    }
}

impl Pki {
    /// Reads what is there, and makes what is not: `ca.pem`, `ca.key`, `client.pem`, `client.key` in
    /// `dir` (mode 0700, files 0600). Blocks for some disk writes. The caller holds the lock of the
    /// state directory.
    ///
    /// # Errors
    /// [`PkiError`], naming the file. Nothing damaged is ever replaced: running VMs trust it.
    pub fn open(dir: &Path, source: &TlsSource, now: SystemTime) -> Result<Self, PkiError> {
        let link = Mutex::new(Link::open(dir, source, now)?.map(Arc::new));
        let shared = Shared { dir: dir.to_owned(), source: source.clone(), link };
        Ok(Self { shared: Arc::new(shared), profile: Profile::default() })
    }

    fn link(&self) -> Option<Arc<Link>> {
        self.shared.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same with versions and suites other than the safe default.
    #[must_use]
    pub fn with_profile(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }

    /// The name by which the worker knows a VM: its own one, or that of the user's certificates.
    pub fn server_name<'a>(&self, vm: &'a str) -> &'a str {
        match self.link() {
            Some(link) if link.authority.is_none() => MANUAL_SERVER_NAME,
            _ => vm,
        }
    }

    /// What the VM of that name is sent.
    ///
    /// # Errors
    /// When the name is no DNS name, or our CA has expired.
    pub fn issue(&self, vm: &str, now: SystemTime) -> Result<Issued, PkiError> {
        let server_name = self.server_name(vm).to_owned();
        let Some(link) = self.link() else {
            return Ok(Issued { server_name, ..Issued::default() });
        };
        let client_ca_pem = link.client_ca_pem.clone();
        let Some(authority) = &link.authority else {
            return Ok(Issued { server_name, client_ca_pem, ..Issued::default() });
        };
        let pair = authority.issue(&server_name, now)?;
        let (server_cert_pem, server_key_pem) = (pair.cert_pem, pair.key_pem);
        let authority = Some(authority.fingerprint.clone());
        Ok(Issued { server_name, server_cert_pem, server_key_pem, client_ca_pem, authority })
    }

    /// Lets another CA issue from now on if somebody has asked for one or the end of this one nears. The
    /// older ones are still believed. Blocks for some disk writes.
    ///
    /// # Errors
    /// [`PkiError`]; then all is as before, and the wish stays.
    pub fn rotate_if_wanted(&self, now: SystemTime) -> Result<bool, PkiError> {
        let Some(link) = self.link() else { return Ok(false) };
        let Some(Authority { validity, .. }) = &link.authority else { return Ok(false) };
        let store = Store::open(&self.shared.dir)?;
        let asked = rotation::is_asked(&store);
        if !asked && !Root::Ca.is_due(validity, now) {
            return Ok(false);
        }
        rotation::rotate(&store, now)?;
        if asked {
            rotation::granted(&store)?;
        }
        self.take_up(now)?;
        Ok(true)
    }

    /// Stops believing CAs that are not among those `in_use`, but for the one that issues. Returns how
    /// many have gone. Blocks for some disk writes.
    ///
    /// # Errors
    /// [`PkiError`]; then all are still believed.
    pub fn retire(&self, in_use: &BTreeSet<String>, now: SystemTime) -> Result<usize, PkiError> {
        let gone = rotation::retire(&Store::open(&self.shared.dir)?, in_use)?;
        if gone > 0 {
            self.take_up(now)?;
        }
        Ok(gone)
    }

    /// Fingerprints of our CAs, the one that issues first; none where images bring certificates.
    pub fn authorities(&self) -> Vec<String> {
        let link = self.link();
        let ours = link.as_ref().and_then(|link| link.authority.as_ref());
        let all = ours.map(|a| cert::each(a.anchors_pem()).unwrap_or_default());
        all.unwrap_or_default().into_iter().map(|(fingerprint, _)| fingerprint).collect()
    }

    fn take_up(&self, now: SystemTime) -> Result<(), PkiError> {
        let link = Link::open(&self.shared.dir, &self.shared.source, now)?.map(Arc::new);
        *self.shared.link.lock().unwrap_or_else(PoisonError::into_inner) = link;
        Ok(())
    }

    /// What the worker needs to speak to the VM of that name; `None` if TLS is disabled.
    pub fn client(&self, vm: &str) -> Option<ClientTls> {
        let link = self.link()?;
        Some(ClientTls {
            server_name: self.server_name(vm).to_owned(),
            ca_pem: link.anchors.clone().unwrap_or_default(),
            client_cert_pem: link.client.cert_pem.clone(),
            client_key_pem: link.client.key_pem.clone(),
            profile: self.profile.clone(),
            skip_verify: link.anchors.is_none(),
            any_time: link.authority.is_some(),
        })
    }
}

impl Link {
    /// What the directory and the user's files hold; makes what is not there yet.
    fn open(dir: &Path, source: &TlsSource, now: SystemTime) -> Result<Option<Self>, PkiError> {
        Ok(match source {
            TlsSource::Disabled => None,
            TlsSource::Automatic { client } => {
                let store = Store::open(dir)?;
                let authority = store.authority(now)?;
                let anchors = Some(authority.anchors_pem().to_owned());
                Some(Self::new(&store, Some(authority), anchors, client.as_ref(), now)?)
            }
            TlsSource::SkipVerify { client } => {
                let store = Store::open(dir)?;
                Some(Self::new(&store, Some(store.authority(now)?), None, client.as_ref(), now)?)
            }
            TlsSource::Files { ca, client } => {
                let anchors = store::read_given(ca)?;
                cert::check_anchors(&anchors)
                    .map_err(|source| PkiError::Unusable { path: ca.clone(), source })?;
                let store = Store::open(dir)?;
                Some(Self::new(&store, None, Some(anchors), client.as_ref(), now)?)
            }
        })
    }

    fn new(
        store: &Store,
        authority: Option<Authority>,
        anchors: Option<String>,
        given: Option<&ClientFiles>,
        now: SystemTime,
    ) -> Result<Self, PkiError> {
        let (client, client_ca_pem) = match given {
            Some(files) => {
                let client = given_client(files, now)?;
                let user_ca = anchors.as_deref().filter(|_| authority.is_none());
                let accepted = cert::client_anchors(&client.cert_pem, user_ca);
                (client, accepted)
            }
            None => {
                let client = store.client(now)?;
                let accepted = client.cert_pem.clone();
                (client, accepted)
            }
        };
        Ok(Self { authority, anchors, client, client_ca_pem })
    }
}

fn given_client(files: &ClientFiles, now: SystemTime) -> Result<Pair, PkiError> {
    let cert_pem = store::read_given(&files.cert)?;
    let key_pem = Secret::new(store::read_given(&files.key)?);
    let pair = Pair { cert_pem, key_pem };
    let damaged = |path: &Path, reason| PkiError::Damaged { path: path.to_owned(), reason };
    let validity = cert::validity(&pair.cert_pem).map_err(|e| damaged(&files.cert, e))?;
    pair.check().map_err(|source| match &source {
        TlsError::Pem { what: "client key", .. } => {
            PkiError::Unusable { path: files.key.clone(), source }
        }
        _ => PkiError::Unusable { path: files.cert.clone(), source },
    })?;
    if validity.end <= now {
        return Err(PkiError::Expired { path: files.cert.clone() });
    }
    Ok(pair)
}

#[cfg(test)]
mod tests;
