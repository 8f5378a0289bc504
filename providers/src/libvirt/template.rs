//! What of the settings is part of a request (see [`crate::Report::template`]).

use serde::{Deserialize, Serialize};

use super::NAME;
use crate::{Error, Kind};

/// Settings of a create, as they were when it was planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Template {
    pub(super) pool: String,
    pub(super) network: String,
    pub(super) image: String,
    pub(super) firmware: String,
    pub(super) cpuset: String,
    /// `kvm` or `qemu`.
    pub(super) domain_type: String,
    pub(super) arch: String,
    pub(super) machine: String,
}

impl Template {
    pub(super) fn read(text: &str) -> Result<Self, Error> {
        serde_json::from_str(text).map_err(|e| {
            let text = format!("the plan's template is not this provider's: {e}");
            Error::new(NAME, "create", Kind::Invalid, text)
        })
    }
}
