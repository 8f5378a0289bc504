//! The tags every VM and every part of it carries (providers.md 2.3). They are how a VM is found
//! again when everything else has been lost.

/// Whose VM it is: the installation id.
pub const INSTALLATION: &str = "peerpodd-installation";
/// The full sandbox id.
pub const SANDBOX: &str = "peerpodd-sandbox";
/// Node name, for people and for the collector when the node has gone.
pub const NODE: &str = "peerpodd-node";
/// Namespace of the pod, for people and cost reports.
pub const NAMESPACE: &str = "peerpodd-namespace";
/// Name of the pod, for people and cost reports.
pub const POD: &str = "peerpodd-pod";
/// Fencing epoch of the daemon that made it.
pub const EPOCH: &str = "peerpodd-epoch";

/// Whether a key is ours, so that a user's tag may not use it.
pub fn is_reserved(key: &str) -> bool {
    key.starts_with("peerpodd-")
}
