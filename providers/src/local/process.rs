//! A process that is told apart from a later one with the same number: by its start time and the
//! boot, and held by a pidfd while something is done to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

/// Which process: enough to find it again after a restart of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Number in the daemon's pid namespace.
    pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks after boot.
    started: u64,
    /// The boot those ticks belong to.
    boot: String,
}

impl Identity {
    /// Of a process that is there now.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        let started = stat(pid)?.started;
        Ok(Self { pid, started, boot: boot()? })
    }

    /// The process, if it still runs.
    pub(super) fn open(&self) -> io::Result<Option<Process>> {
        if self.boot != boot()? {
            return Ok(None);
        }
        let Some(pidfd) = pidfd_open(self.pid)? else {
            return Ok(None);
        };
        // Looked at after it was opened: from here on the number cannot pass to another one.
        match stat(self.pid) {
            Ok(stat) if stat.started == self.started && !stat.dead => {
                Ok(Some(Process { pidfd, pid: self.pid }))
            }
            Ok(_) => Ok(None),
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether the process still runs.
    pub(super) fn runs(&self) -> io::Result<bool> {
        self.open().map(|process| process.is_some())
    }
}

/// An open process.
#[derive(Debug)]
pub(super) struct Process {
    pidfd: OwnedFd,
    pid: i32,
}

impl Process {
    /// Kills it and waits until it has ended; false if that takes longer than `patience`. Of a pid
    /// namespace's init that is when all others in it have ended, too.
    pub(super) fn kill(self, patience: Duration) -> io::Result<bool> {
        // SAFETY: a plain system call on a descriptor we own; no pointer but a null one.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if sent < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH) {
            return Err(io::Error::last_os_error());
        }
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let ended = loop {
            match poll(&mut fds, patience) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other? > 0,
            }
        };
        if ended {
            // It is our child only where we are pid 1 or a subreaper; then nobody else reaps it.
            let pid = nix::unistd::Pid::from_raw(self.pid);
            let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        }
        Ok(ended)
    }
}

struct Stat {
    started: u64,
    dead: bool,
}

fn stat(pid: i32) -> io::Result<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat"));
    // The name in brackets may contain anything, so count from its end: state is field 3.
    let (_, rest) = text.rsplit_once(')').ok_or_else(bad)?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let state = fields.first().ok_or_else(bad)?;
    let started = fields.get(19).and_then(|f| f.parse().ok()).ok_or_else(bad)?;
    Ok(Stat { started, dead: matches!(*state, "Z" | "X") })
}

fn boot() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn pidfd_open(pid: i32) -> io::Result<Option<OwnedFd>> {
    // SAFETY: a plain system call without pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        // EINVAL: the number is that of a thread now.
        let gone = matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL));
        return if gone { Ok(None) } else { Err(error) };
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test that needs a process")]
mod tests {
    use super::*;

    /// A process that ends with its test, however that ends.
    struct Sleeper(std::process::Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleeper() -> (Sleeper, Identity) {
        let child = std::process::Command::new("sleep").arg("600").spawn().expect("sleep starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        (Sleeper(child), Identity::of(pid).expect("it runs"))
    }

    #[test]
    fn a_process_is_found_again_and_killed_and_then_no_more() {
        let (mut child, identity) = sleeper();
        let saved = serde_json::to_string(&identity).expect("JSON");
        let identity: Identity = serde_json::from_str(&saved).expect("JSON");
        let process = identity.open().expect("proc").expect("it still runs");
        assert!(process.kill(Duration::from_secs(10)).expect("killed"));
        assert!(!identity.runs().expect("proc"), "whether or not it has been reaped");
        let _ = child.0.wait();
        assert!(!identity.runs().expect("proc"));
    }

    #[test]
    fn a_process_that_nobody_has_reaped_yet_runs_no_more() {
        let (mut child, identity) = sleeper();
        child.0.kill().expect("killed");
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while identity.runs().expect("proc") {
            assert!(std::time::Instant::now() < end, "a zombie is taken for a process");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_later_process_with_the_same_number_is_another() {
        let (_child, right) = sleeper();
        let earlier = Identity { started: right.started - 1, ..right.clone() };
        let other_boot = Identity { boot: "another".to_owned(), ..right.clone() };
        assert!(right.runs().expect("proc"));
        assert!(!earlier.runs().expect("proc") && !other_boot.runs().expect("proc"));
    }
}
