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

    impl std::fmt::Debug for CreateVmRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let annotations: Vec<_> = self.annotations.keys().collect();
            f.debug_struct("CreateVmRequest")
                .field("id", &self.id)
                .field("annotations", &annotations)
                .field("network_namespace_path", &self.network_namespace_path)
                .finish()
        }
    }
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

    /// Newest version of this API that this build speaks.
    pub const API: u32 = 1 + crate::next::STEP;
    /// And the oldest: a build speaks its own version and the one before.
    const OLDEST_API: u32 = 1;

    /// The oldest version that this build speaks.
    pub fn oldest_api() -> u32 {
        crate::next::oldest(OLDEST_API, API)
    }

    /// What is spoken with somebody who speaks `oldest` to `api`; 0 for `oldest` is `api` itself.
    pub fn spoken(api: u32, oldest: u32) -> Option<u32> {
        let oldest = if oldest == 0 { api } else { oldest };
        let common = api.min(API);
        (common >= oldest.max(oldest_api())).then_some(common)
    }

    /// In words.
    pub fn range(api: u32, oldest: u32) -> String {
        if oldest == 0 || oldest == api { api.to_string() } else { format!("{oldest} to {api}") }
    }

    impl std::fmt::Debug for Edit {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Edit")
                .field("ticket", &self.ticket)
                .field("sandbox", &self.sandbox)
                .field("method", &self.method)
                .field("bytes", &self.payload.len())
                .finish()
        }
    }

    impl std::fmt::Debug for EditReply {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_tuple("EditReply").field(&self.ticket).field(&self.outcome).finish()
        }
    }

    impl std::fmt::Debug for edit_reply::Outcome {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            match self {
                Self::Payload(payload) => write!(f, "Payload({} bytes)", payload.len()),
                Self::Refused(why) => f.debug_tuple("Refused").field(why).finish(),
            }
        }
    }

    impl std::fmt::Debug for Tls {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
        }
    }
}

#[cfg(test)]
mod tests;
