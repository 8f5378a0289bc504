//! What each process keeps of the privileges it was started with. The same table, with reasons and for
//! people, stands in deploy/README.md.
//!
//! ```text
//!            acts with            gives to its programs        system calls
//!   run      nothing              what node and relay take     all but the worst
//!   node     NET_ADMIN SYS_ADMIN  nothing                      no program, no mount, not the worst
//!     local  the same             what a container has         all but the worst
//!   relay    nothing              nothing                      some hundred: sockets, files, memory, threads
//! ```
//! Taken before the runtime starts its threads, which inherit it. The relay has by then taken what
//! it takes once: its place in the queue for memory and processor.

use nix::sys::stat::{Mode, umask};
use peerpod_tunnel::privilege::{
    Calls, Capabilities, Held, Keep, PrivilegeError, calls, give_up, lacking, names,
};

use crate::cli::Role;

/// What `node` cannot do without, and what for.
const NODE: [(Capabilities, &str); 2] = [
    (Capabilities::NET_ADMIN, "to make tunnels and their filters"),
    (Capabilities::SYS_ADMIN, "to enter the pods' network namespaces"),
];
/// What the relay uses once, before it gives it up.
const SURVIVAL: Capabilities = Capabilities::SYS_RESOURCE.union(Capabilities::SYS_NICE);
/// What container runtimes leave a container by default: a VM of the local provider has no more.
const CONTAINER: Capabilities = Capabilities::CHOWN
    .union(Capabilities::DAC_OVERRIDE)
    .union(Capabilities::FOWNER)
    .union(Capabilities::FSETID)
    .union(Capabilities::KILL)
    .union(Capabilities::SETGID)
    .union(Capabilities::SETUID)
    .union(Capabilities::SETPCAP)
    .union(Capabilities::NET_BIND_SERVICE)
    .union(Capabilities::NET_RAW)
    .union(Capabilities::SYS_CHROOT)
    .union(Capabilities::MKNOD)
    .union(Capabilities::AUDIT_WRITE)
    .union(Capabilities::SETFCAP);

/// Why a process does not go on.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The container or unit gives too little.
    #[error("{role} lacks {lacking}; give them to it (capabilities of the container or unit)")]
    Lacking {
        /// Which process.
        role: &'static str,
        /// Capabilities, each with what it is for.
        lacking: String,
    },
    /// The kernel refuses to take something away.
    #[error(transparent)]
    Kernel(#[from] PrivilegeError),
}

/// Gives up all that this process does not need with this provider. The whole process, once, before
/// there are threads.
///
/// # Errors
/// When something needed is missing, or something unneeded cannot be given up.
pub fn take(role: Role, provider: &str) -> Result<Held, TakeError> {
    // Whatever is made without a mode of its own is not for others.
    umask(Mode::from_bits_truncate(0o077));
    if role == Role::Node {
        check(role)?;
    }
    Ok(give_up(&keep(role, provider == "local"))?)
}

fn check(role: Role) -> Result<(), TakeError> {
    let mut missing = Vec::new();
    for (capability, purpose) in NODE {
        if !lacking(capability)?.is_empty() {
            missing.push(format!("{} ({purpose})", names(capability)));
        }
    }
    match missing.is_empty() {
        true => Ok(()),
        false => Err(TakeError::Lacking { role: role.name(), lacking: missing.join(" and ") }),
    }
}

fn keep(role: Role, local: bool) -> Keep {
    let node = NODE.iter().fold(Capabilities::empty(), |all, (one, _)| all | *one);
    let machine = if local { CONTAINER } else { Capabilities::empty() };
    let none = Capabilities::empty();
    // A program inherits its parent's filter: where VMs are programs of ours, it must fit them, too.
    match (role, local) {
        (Role::Relay, _) => Keep { acts: none, passes: none, calls: Calls::Only(calls::BYTES) },
        (Role::Node, true) => {
            Keep { acts: node, passes: machine, calls: Calls::AllBut(&[calls::NEVER]) }
        }
        (Role::Node, false) => Keep {
            acts: node,
            passes: none,
            calls: Calls::AllBut(&[calls::NEVER, calls::RINGS, calls::MOUNTS, calls::PROGRAMS]),
        },
        (Role::Run, local) => Keep {
            acts: none,
            passes: node | machine | SURVIVAL,
            calls: match local {
                true => Calls::AllBut(&[calls::NEVER]),
                false => Calls::AllBut(&[calls::NEVER, calls::RINGS, calls::MOUNTS]),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_child_needs_more_than_its_parent_keeps() {
        for local in [true, false] {
            let run = keep(Role::Run, local);
            for role in [Role::Node, Role::Relay] {
                let child = keep(role, local);
                assert!(run.passes.contains(child.acts | child.passes), "{role:?} {local}");
            }
            assert!(run.acts.is_empty(), "a parent does nothing that needs privileges");
        }
    }

    #[test]
    fn the_relay_keeps_nothing_and_a_node_without_local_starts_nothing() {
        let relay = keep(Role::Relay, true);
        assert!((relay.acts | relay.passes).is_empty());
        assert!(matches!(relay.calls, Calls::Only(_)));
        let node = keep(Role::Node, false);
        assert_eq!(names(node.acts), "CAP_NET_ADMIN,CAP_SYS_ADMIN");
        assert!(node.passes.is_empty());
        assert!(matches!(node.calls, Calls::AllBut(l) if l.contains(&calls::PROGRAMS)));
    }

    #[test]
    fn what_is_lacking_is_named_with_what_it_is_for() {
        let lacking = "CAP_NET_ADMIN (to make tunnels and their filters)".to_owned();
        let text = TakeError::Lacking { role: "node", lacking }.to_string();
        assert!(text.starts_with("node lacks CAP_NET_ADMIN (to make"), "{text}");
    }
}
