//! Runs the program again inside namespaces of its own, so that root is not needed, nothing of the
//! machine is touched and nothing outlives the program, whatever ends it.
//!
//! ```text
//!   outer ─ unshare(user if need be, mount, network, pid, ipc) ─▶ init (pid 1: /proc, /run, reaps)
//!                                                                   └▶ inside: the program itself
//!   outer dies ─▶ the kernel kills init ─▶ and all that is in its pid namespace
//! ```

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitStatus, wait};
use peerpod_netlink::Handle;

const STAGE: &str = "PEERPOD_LAB_STAGE";
/// Process id of init as the outside has it.
const INIT: &str = "PEERPOD_LAB_INIT";
/// Set if there is a user namespace, too.
const USER: &str = "PEERPOD_LAB_USER";

/// What [`enter`] says to its caller.
#[derive(Debug)]
pub enum Stage {
    /// Go on: this process is inside.
    Inside,
    /// The program has run inside and ended so.
    Ended(ExitCode),
}

/// Whether this process is inside.
pub fn is_inside() -> bool {
    std::env::var_os(STAGE).is_some_and(|s| s == "inside")
}

/// Whether this process was started by somebody else, not by [`enter`].
pub fn is_outer() -> bool {
    std::env::var_os(STAGE).is_none()
}

/// The command by which another shell of the same user gets inside.
pub fn enter_command() -> String {
    let pid = std::env::var_os(INIT).unwrap_or_default();
    let user = if std::env::var_os(USER).is_some() { " -U --preserve-credentials" } else { "" };
    format!("nsenter -t {}{user} -m -p -n -i --", pid.to_string_lossy())
}

/// Must come before any thread is started.
///
/// # Errors
/// When the machine does not allow namespaces; the message says what is missing.
pub fn enter() -> anyhow::Result<Stage> {
    let stage = std::env::var_os(STAGE);
    match stage.as_ref().and_then(|s| s.to_str()) {
        Some("inside") => {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("tie to init's life")?;
            Ok(Stage::Inside)
        }
        Some("init") => init().map(Stage::Ended),
        _ => outer().map(Stage::Ended),
    }
}

fn outer() -> anyhow::Result<ExitCode> {
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC;
    let mut command = again("init")?;
    match unshare(flags) {
        Ok(()) => {}
        Err(Errno::EPERM) => {
            as_user(flags)?;
            command.env(USER, "1");
        }
        Err(e) => return Err(e).context("make namespaces (mount, network, pid, ipc)"),
    }
    // Ctrl-C goes to all; the program inside cleans up and this process tells how it ended.
    // SAFETY: no handler is installed, only the disposition "ignore".
    unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) }.context("leave Ctrl-C to the program")?;
    let status = command.status().context("start again inside the namespaces")?;
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn as_user(flags: CloneFlags) -> anyhow::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(flags | CloneFlags::CLONE_NEWUSER).context(
        "make namespaces as an ordinary user (does the machine forbid it? see \
         user.max_user_namespaces, kernel.unprivileged_userns_clone and \
         kernel.apparmor_restrict_unprivileged_userns)",
    )?;
    let write = |path: &str, text: String| {
        std::fs::write(path, text).with_context(|| format!("write {path}"))
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn again(stage: &str) -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("where the program lies")?;
    #[allow(clippy::disallowed_methods, reason = "starts its own executable again")]
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(STAGE, stage);
    Ok(command)
}

/// Pid 1 of the new namespace: mounts, starts the program and buries whoever dies.
fn init() -> anyhow::Result<ExitCode> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("tie to the caller's life")?;
    let none = None::<&str>;
    // The /proc that is still there is the outside's, and so are its numbers.
    let own = std::fs::read_link("/proc/self").context("own number outside")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("keep mounts to ourselves")?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), safe, none).context("mount /proc")?;
    mount(
        Some("run"),
        "/run",
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=755"),
    )
    .context("mount a tmpfs on /run")?;
    Handle::here().and_then(|h| h.set_up("lo", true)).context("set lo up")?;
    let child = again("inside")?.env(INIT, own).spawn().context("start the program")?;
    let child = i32::try_from(child.id()).context("process id")?;
    loop {
        let (pid, code) = match wait() {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(e) => bail!("wait for the program: {e}"),
        };
        if pid.as_raw() == child {
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
    }
}
