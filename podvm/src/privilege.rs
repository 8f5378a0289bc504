//! What this program keeps of what the VM's root may do: enough to make the pod's network and to mount its
//! volumes. It starts no program and looks into no other process. What takes programs, making file
//! systems, is done by a process of its own with which nobody outside the VM ever speaks.

use peerpod_tunnel::privilege::{Calls, Capabilities, Keep, calls, give_up, lacking, names};

const NETWORK: Capabilities = Capabilities::NET_ADMIN.union(Capabilities::SYS_ADMIN);
/// To give the root of a volume to a group.
const OWN: Capabilities =
    Capabilities::CHOWN.union(Capabilities::FOWNER).union(Capabilities::FSETID);

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

/// The same for the process that makes file systems and closes mappings.
pub(crate) fn take_for_volumes() -> anyhow::Result<()> {
    let held = give_up(&Keep {
        acts: OWN,
        // cryptsetup speaks with the device mapper.
        passes: Capabilities::SYS_ADMIN,
        calls: Calls::AllBut(&[calls::NEVER, calls::RINGS, calls::MOUNTS]),
    })?;
    tracing::debug!(%held, "privileges of the process for volumes");
    Ok(())
}
