//! The protocols of the daemon's sockets, as code generated from the `.proto` files beside this one.
//!
//! The generated files are committed, so a build needs no generator; the test below makes them anew
//! and compares. `PEERPODD_WRITE_PROTO=1 cargo test -p peerpodd proto` writes them.

/// What a kata shim calls: `hypervisor.Hypervisor`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod hypervisor {
    include!("generated/hypervisor.rs");

    /// The ttrpc service string.
    pub const SERVICE: &str = "hypervisor.Hypervisor";
}

/// Which VM a pod runs in: `podvminfo.PodVMInfo`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod podvminfo {
    include!("generated/podvminfo.rs");

    /// The ttrpc service string.
    pub const SERVICE: &str = "podvminfo.PodVMInfo";
}

/// What the node process tells the relay.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
pub mod relay {
    include!("generated/peerpodd.relay.v1.rs");

    /// Version of this API; both sides say theirs first, another one is refused.
    pub const API: u32 = 1;

    impl std::fmt::Debug for Tls {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
        }
    }
}

#[cfg(test)]
mod tests;
