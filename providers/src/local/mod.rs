//! A provider without a cloud: a "VM" is a set of namespaces on this machine with the real `podvm`
//! program in it. For development, the demo and tests; it isolates nothing.

mod settings;

pub use settings::{Settings, keys};

use std::process::ExitCode;

use crate::{Candidate, Deletion, Error, Provider, Report, Resource, Vm, VmRef, VmSpec};

/// The provider's name.
pub const NAME: &str = "local";

/// The provider on this machine.
#[derive(Debug)]
pub struct Local {
    settings: Settings,
    installation: String,
}

impl Local {
    /// Touches nothing yet. `installation` is the tag by which `list` knows what is ours.
    pub fn new(settings: Settings, installation: &str) -> Self {
        Self { settings, installation: installation.to_owned() }
    }
}

impl std::fmt::Display for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(NAME)
    }
}

/// What the hidden subcommand `local-guest` runs.
pub fn guest_main(_args: Vec<std::ffi::OsString>) -> ExitCode {
    ExitCode::FAILURE
}
#[async_trait::async_trait]
impl Provider for Local {
    async fn check(&self) -> Result<Report, Error> {
        Err(Error::new(
            NAME,
            "check",
            crate::Kind::Other,
            format!("{:?}{}", self.settings, self.installation),
        ))
    }
    async fn create(&self, _spec: &VmSpec, _candidate: &Candidate) -> Result<Vm, Error> {
        Err(Error::new(NAME, "create", crate::Kind::Other, "later"))
    }
    async fn delete(&self, _vm: &VmRef) -> Result<Deletion, Error> {
        Err(Error::new(NAME, "delete", crate::Kind::Other, "later"))
    }
    async fn list(&self) -> Result<Vec<Resource>, Error> {
        Err(Error::new(NAME, "list", crate::Kind::Other, "later"))
    }
}
