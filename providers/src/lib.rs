//! Virtual machines from somewhere.
//!
//! One trait, [`Provider`], stands before every cloud. A provider is handed a name, sizes, an image,
//! tags and opaque user data; it knows nothing of pods, TLS or Kubernetes. What all of them share
//! (names, error kinds, sizes, retry) lives beside the trait, once.
//!
//! ```text
//!   caller ── VmSpec + Candidate ──▶ create ──▶ Vm (with an address)
//!          ── VmRef ──────────────▶ delete ──▶ Gone | Accepted (asked again until Gone)
//!          ───────────────────────▶ list   ──▶ every Resource with our installation's tag
//! ```

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "azure")]
pub mod azure;
pub mod batch;
pub mod budget;
pub mod common;
pub mod conformance;
pub mod context;
pub mod error;
pub mod fake;
#[cfg(feature = "gcp")]
pub mod gcp;
#[cfg(any(feature = "azure", feature = "gcp"))]
mod http;
#[cfg(feature = "libvirt")]
pub mod libvirt;
#[cfg(feature = "local")]
pub mod local;
pub mod name;
pub mod placement;
pub mod prices;
pub mod registry;
pub mod report;
pub mod retry;
pub mod settings;
pub mod size;
pub mod spec;
pub mod tags;
pub mod token;

pub use error::{Error, Kind};
pub use name::VmName;
pub use report::{Finding, Report, UserDataLimit};
pub use spec::{
    Candidate, Deletion, InstanceType, Market, Resource, ResourceKind, UserData, Vm, VmRef, VmSpec,
    Volume,
};
pub use token::Token;

use std::fmt::{Debug, Display};

/// What every cloud must do. `Display` prints the provider's name as it stands in the settings
/// (`aws`, `local`, …).
///
/// All four calls are idempotent and may be dropped at any await: whatever a dropped call made is
/// found again by [`Provider::list`] and taken away by [`Provider::delete`].
#[async_trait::async_trait]
pub trait Provider: Debug + Display + Send + Sync {
    /// Looks at credentials, rights, image, network, firewall, quotas and types, and changes nothing.
    ///
    /// # Errors
    /// Only when nothing could be looked at; what is missing or wrong is a finding of the report.
    async fn check(&self) -> Result<Report, Error>;

    /// One attempt to make the VM `spec.name` at one place. Returns when the VM has an address.
    /// Repeating the call with the same spec and candidate returns the same VM.
    ///
    /// # Errors
    /// By [`Kind`]; after `Unavailable` the effect is unknown and the caller repeats or deletes.
    /// A VM of that name that belongs to another sandbox is never adopted: `Kind::Invalid`.
    async fn create(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Vm, Error>;

    /// Takes away the VM and everything made with it. Absent is [`Deletion::Gone`]; the native id
    /// is a help, never needed.
    ///
    /// # Errors
    /// By [`Kind`]; nothing is forgotten, the caller asks again.
    async fn delete(&self, vm: &VmRef) -> Result<Deletion, Error>;

    /// Everything that carries our installation's tag: VMs and left-over parts, complete.
    ///
    /// # Errors
    /// A list that could not be completed is an error, never a shorter list.
    async fn list(&self) -> Result<Vec<Resource>, Error>;

    /// The last of what the VM has written to its console, for people; hostile text. `None` where the
    /// cloud gives none, or has none yet.
    ///
    /// # Errors
    /// By [`Kind`].
    async fn console(&self, _vm: &VmRef) -> Result<Option<String>, Error> {
        Ok(None)
    }
}
