//! What every provider is told beside its own settings.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What every provider is told beside its own settings.
#[derive(Clone, Debug)]
pub struct Context {
    /// Installation id: the tag by which `list` knows what is ours.
    pub installation: String,
    /// The daemon's own executable.
    pub program: PathBuf,
    /// Value of PATH.
    pub search: String,
    /// The user's own tags for every VM and its parts.
    pub tags: BTreeMap<String, String>,
    /// TCP port of the agent link, which the cloud's firewall must let through to the VMs.
    pub forwarder_port: u16,
    /// UDP port of the tunnel, likewise.
    pub vxlan_port: u16,
}
