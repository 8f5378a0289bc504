//! What the kernel lets this process do, taken away once: at start, before there is a second thread.
//!
//! ```text
//!   bounding set ─▶ ambient set ─▶ no new privileges ─▶ the three thread sets ─▶ no dumps ─▶ system calls
//!   (while CAP_SETPCAP is there)                                                 (memory holds keys)
//! ```
//! Threads and programs that are started later inherit all of it but the dumps, which each new program
//! may make again unless it says so itself; the limit of core files stays with it.

pub mod calls;
mod filter;

use std::fmt;
use std::io;

use nix::sys::resource::{Resource, setrlimit};
use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySets, capabilities, capability_is_in_ambient_set, capability_is_in_bounding_set,
    clear_ambient_capability_set, configure_capability_in_ambient_set, no_new_privs,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

pub use filter::Calls;
/// A set of `CAP_*`.
pub use rustix::thread::CapabilitySet as Capabilities;

/// What a process keeps.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// What it acts with itself.
    pub acts: Capabilities,
    /// What the programs it starts may have besides.
    pub passes: Capabilities,
    /// Which system calls it may make.
    pub calls: Calls,
}

/// What could not be taken away.
#[derive(Debug, thiserror::Error)]
#[error("giving privileges up: {step}: {source}")]
pub struct PrivilegeError {
    /// Which step.
    pub step: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> PrivilegeError {
    move |source| PrivilegeError { step, source: source.into() }
}

/// The capabilities of `wanted` that this process has not.
///
/// # Errors
/// When the kernel does not tell.
pub fn lacking(wanted: Capabilities) -> Result<Capabilities, PrivilegeError> {
    let held = capabilities(None).map_err(failed("look at capabilities"))?;
    Ok(wanted - held.permitted)
}

/// Gives up everything else. What a container has taken away before is fine.
///
/// # Errors
/// When there are threads that would keep what this one gives up, or the kernel refuses a step. Then
/// some of it may be gone already; the process must not go on.
pub fn give_up(keep: &Keep) -> Result<Held, PrivilegeError> {
    alone()?;
    let held = capabilities(None).map_err(failed("look at capabilities"))?;
    let permitted = held.permitted & (keep.acts | keep.passes);
    // Without CAP_SETPCAP the bounding set stays; with "no new privileges" nothing comes out of it.
    if held.permitted.contains(Capabilities::SETPCAP) {
        let all = CapabilitySets { effective: held.permitted, ..held };
        set_capabilities(None, all).map_err(failed("use CAP_SETPCAP"))?;
        narrow_bounding_set(permitted)?;
    }
    let handed_on: Vec<_> = single(permitted).filter(|c| is_ambient(*c)).collect();
    clear_ambient_capability_set().map_err(failed("clear the ambient set"))?;
    set_no_new_privs(true).map_err(failed("no new privileges"))?;
    let mut sets =
        CapabilitySets { effective: permitted & keep.acts, permitted, inheritable: permitted };
    // Root's programs get what is permitted by themselves, others only what is ambient.
    if handed_on.is_empty() {
        sets.inheritable = Capabilities::empty();
    }
    set_capabilities(None, sets).map_err(failed("set capabilities"))?;
    for capability in handed_on {
        configure_capability_in_ambient_set(capability, true)
            .map_err(failed("hand capabilities on"))?;
    }
    hide_memory()?;
    filter::install(keep.calls).map_err(failed("filter system calls"))?;
    held_now(keep.calls)
}

/// No core files, and nobody reads this process's memory: there are keys in it.
///
/// # Errors
/// When the kernel refuses.
pub fn hide_memory() -> Result<(), PrivilegeError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed("no core files"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("no dumps of memory"))
}

/// Capabilities and filters belong to threads.
fn alone() -> Result<(), PrivilegeError> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(failed("count threads"))?;
    match threads.count() {
        1 => Ok(()),
        n => Err(failed("count threads")(io::Error::other(format!("there are {n} already")))),
    }
}

fn narrow_bounding_set(to: Capabilities) -> Result<(), PrivilegeError> {
    for capability in single(Capabilities::from_bits_retain(u64::MAX)) {
        match capability_is_in_bounding_set(capability) {
            // Beyond the kernel's last one.
            Err(_) => break,
            Ok(true) if !to.contains(capability) => {
                let removed = remove_capability_from_bounding_set(capability);
                removed.map_err(failed("narrow the bounding set"))?;
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

fn is_ambient(capability: Capabilities) -> bool {
    capability_is_in_ambient_set(capability).unwrap_or(false)
}

/// One by one, those without a name included.
fn single(set: Capabilities) -> impl Iterator<Item = Capabilities> {
    (0..u64::BITS).map(|n| Capabilities::from_bits_retain(1 << n)).filter(move |c| set.contains(*c))
}

/// What a process still holds, as the kernel says; prints as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Acts with.
    pub acts: Capabilities,
    /// Could act with, and gives to programs it starts.
    pub permitted: Capabilities,
    /// The most it could ever get by starting a program.
    pub bounding: Capabilities,
    /// Whether a program can give it more.
    pub no_new_privs: bool,
    /// Whether others of its user may read its memory, or the kernel write it to a file.
    pub dumps: bool,
    /// Which system calls are left.
    pub calls: Calls,
}

fn held_now(calls: Calls) -> Result<Held, PrivilegeError> {
    let sets = capabilities(None).map_err(failed("look at capabilities"))?;
    let all = single(Capabilities::from_bits_retain(u64::MAX));
    let bounding = all.take_while(|c| capability_is_in_bounding_set(*c).is_ok());
    let bounding = bounding.filter(|c| capability_is_in_bounding_set(*c).unwrap_or(false));
    let dumps = dumpable_behavior().map_err(failed("look at dumps"))?;
    Ok(Held {
        acts: sets.effective,
        permitted: sets.permitted,
        bounding: bounding.fold(Capabilities::empty(), |all, c| all | c),
        no_new_privs: no_new_privs().map_err(failed("look at no_new_privs"))?,
        dumps: dumps != DumpableBehavior::NotDumpable,
        calls,
    })
}

/// Names as capabilities(7) has them; `none` if there are none.
pub fn names(set: Capabilities) -> String {
    let mut names: Vec<_> = set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    let unnamed = set.iter_names().fold(set.bits(), |left, (_, one)| left & !one.bits());
    if unnamed != 0 {
        names.push(format!("{unnamed:#x}"));
    }
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dumps = if self.dumps { "yes" } else { "no" };
        write!(f, "capabilities {}", names(self.acts))?;
        if self.permitted != self.acts {
            write!(f, "; for its programs {}", names(self.permitted - self.acts))?;
        }
        if self.bounding != self.permitted {
            write!(f, "; bounding set {}", names(self.bounding - self.permitted))?;
        }
        write!(f, "; new privileges {}", if self.no_new_privs { "never" } else { "possible" })?;
        write!(f, "; dumps {dumps}; system calls {}", self.calls)
    }
}

#[cfg(test)]
mod tests;
