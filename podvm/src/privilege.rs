//! What this program keeps of what the VM's root may do: enough to make the pod's network and to take it
//! away again. It starts no program and looks into no other process.

use peerpod_tunnel::privilege::{Calls, Capabilities, Keep, calls, give_up, lacking, names};

const NETWORK: Capabilities = Capabilities::NET_ADMIN.union(Capabilities::SYS_ADMIN);

/// Gives the rest up, before there are threads, and says what is left.
pub(crate) fn take() -> anyhow::Result<()> {
    let missing = lacking(NETWORK)?;
    if !missing.is_empty() {
        // A VM without a tunnel does without.
        tracing::warn!("{} not there: the pod's network cannot be made", names(missing));
    }
    let held = give_up(&Keep {
        acts: NETWORK,
        passes: Capabilities::empty(),
        calls: Calls::AllBut(&[calls::NEVER, calls::RINGS, calls::PROGRAMS]),
    })?;
    tracing::info!(%held, "privileges");
    Ok(())
}
