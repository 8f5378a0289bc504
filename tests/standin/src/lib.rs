//! Stand-ins for what is not ours: a kata-agent, the two kata shims, and a laboratory of network
//! namespaces in which the real daemon runs between them.
//!
//! ```text
//!   shim (library) ──▶ peerpodd, the real one ──▶ podvm, the real one ──▶ agent (binary)
//!        └──────────────── lab: worker, cluster and pod namespaces ─────────┘
//! ```

pub mod agent;
pub mod lab;
pub mod messages;
pub mod shim;
pub mod tool;
