//! The relay must be the last process of the node to starve or to be killed: when it ends, so do the
//! pods. What the system does not allow is logged and done without. Taken before the process gives
//! its privileges up and before it has threads, which inherit it.

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The kernel kills this process only when nothing else is left.
const OOM_SCORE: &str = "-999";
/// Ahead of ordinary processes, behind the kernel's own.
const NICE: libc::c_int = -10;
/// Class "best effort", its highest level.
const IO_PRIORITY: libc::c_int = 2 << 13;
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// Takes the highest place this process may have, and as many descriptors as the hard limit allows.
pub fn take() {
    report("oom_score_adj", std::fs::write("/proc/self/oom_score_adj", OOM_SCORE));
    report("priority", raise_priority());
    report("RLIMIT_NOFILE", raise_files());
}

fn report(what: &'static str, done: std::io::Result<()>) {
    if let Err(error) = done {
        tracing::info!(what, %error, "not allowed; the relay does without");
    }
}

/// As many descriptors as the hard limit allows; the usual 1024 are too few for 1000 pods.
///
/// # Errors
/// When the system does not allow it.
pub fn raise_files() -> std::io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Both belong to the calling thread and to those it will start.
fn raise_priority() -> std::io::Result<()> {
    // SAFETY: takes three integers and touches no memory of ours.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: as above; the C library has no function for this call.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IO_PRIORITY) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
