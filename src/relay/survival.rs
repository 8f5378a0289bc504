//! The relay must be the last process of the node to starve or to be killed: when it ends, so do the
//! pods. What the system does not allow is logged and done without.

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The kernel kills this process only when nothing else is left.
const OOM_SCORE: &str = "-999";
/// Ahead of ordinary processes, behind the kernel's own.
const NICE: libc::c_int = -10;
/// Class "best effort", its highest level.
const IO_PRIORITY: libc::c_int = 2 << 13;
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// Takes the highest place this process may have. Threads that are started later inherit it.
pub(super) fn take() {
    report("oom_score_adj", std::fs::write("/proc/self/oom_score_adj", OOM_SCORE));
    report("priority of threads", every_thread());
    report("RLIMIT_NOFILE", raise_files());
}

fn report(what: &'static str, done: std::io::Result<()>) {
    if let Err(error) = done {
        tracing::info!(what, %error, "not allowed; the relay does without");
    }
}

fn raise_files() -> std::io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Both priorities belong to threads, not to the process.
fn every_thread() -> std::io::Result<()> {
    for thread in std::fs::read_dir("/proc/self/task")? {
        let name = thread?.file_name();
        let Some(id) = name.to_str().and_then(|id| id.parse::<libc::c_int>().ok()) else {
            continue;
        };
        let id_unsigned = libc::id_t::try_from(id).unwrap_or_default();
        // SAFETY: takes three integers and touches no memory of ours.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, id_unsigned, NICE) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: as above; the C library has no function for this call.
        let done =
            unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, id, IO_PRIORITY) };
        if done != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}
