//! The init of a local VM: mounts what the VM sees, starts the agent and podvm, reaps, and powers
//! off when podvm ends. With pid 1 everything else in its pid namespace ends.
//!
//! The agent is a child and not pid 1: a real kata-agent would take itself for the init of a guest
//! and mount the world. Its socket's directory is new with each start, so no stale one is in its
//! way.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, dup2_stdin, pipe2, sethostname};
use zeroize::Zeroizing;

use super::console::Console;
use super::{Boot, Failed, doing};
use crate::local::directory;

/// Where a pod VM's agent listens; podvm looks for it there.
const AGENT_ADDRESS: &str = "unix:///run/kata-containers/agent.sock";
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs in the child of the fork, in the VM's directory.
pub(super) fn main(boot: &Boot, wait: OwnedFd) -> ExitCode {
    let mut go = [0; 1];
    if File::from(wait).read_exact(&mut go).is_err() {
        // Nobody knows of this VM, so there must be none.
        return ExitCode::FAILURE;
    }
    let mut console = match Console::open() {
        Ok(console) => console,
        Err(e) => {
            eprintln!("{}open the console: {e}", super::SAYS);
            return ExitCode::FAILURE;
        }
    };
    match run(boot, &mut console) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            console.say(&e);
            ExitCode::FAILURE
        }
    }
}

fn run(boot: &Boot, console: &mut Console) -> Result<(), Failed> {
    let null = File::open("/dev/null").map_err(doing("open /dev/null"))?;
    // Standard input was the directory with the starter's lock on it.
    dup2_stdin(null).map_err(doing("let the directory go"))?;
    let user_data = take_user_data().map_err(doing("take the user data"))?;
    sethostname(boot.name.as_str()).map_err(doing("set the host name"))?;
    mounts(&user_data, console)?;
    chdir("/").map_err(doing("leave the VM's directory"))?;
    #[allow(clippy::disallowed_methods, reason = "a process of one thread that plays a slow boot")]
    std::thread::sleep(boot.boot_delay);

    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(doing("make the console's pipe"))?;
    let (agent, arguments) =
        boot.agent.split_first().ok_or("there is none").map_err(doing("start the agent"))?;
    let agent = spawn(agent, arguments, &write).map_err(doing("start the agent"))?;
    let (podvm, arguments) =
        boot.podvm.split_first().ok_or("there is none").map_err(doing("start podvm"))?;
    let podvm = spawn(podvm, arguments, &write).map_err(doing("start podvm"))?;
    drop(write);
    Vm { agent, podvm, output: Some(read) }.live(console)
}

/// Reads the user data and takes them off the worker's disk: a key is in them. A start that fails from
/// here on is begun anew from the pod's record.
fn take_user_data() -> std::io::Result<Zeroizing<Vec<u8>>> {
    let user_data = std::fs::read(directory::USER_DATA).map(Zeroizing::new)?;
    std::fs::remove_file(directory::USER_DATA)?;
    Ok(user_data)
}

/// A private view of the file system: own /proc, /run and /media, all else as it is outside.
fn mounts(user_data: &[u8], console: &mut Console) -> Result<(), Failed> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(doing("make mounts private"))?;
    let careful = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let proc = mount(Some("proc"), "/proc", Some("proc"), careful | MsFlags::MS_NOEXEC, none);
    if let Err(e) = proc {
        // In a container that hides parts of /proc nobody may mount another; the outer one shows
        // foreign numbers, but podvm and the agent find themselves in it.
        console.say(&format!("mount /proc: {e}; going on with the outer one"));
    }
    for dir in ["/run", "/media"] {
        mount(Some("tmpfs"), dir, Some("tmpfs"), careful, Some("mode=755"))
            .map_err(doing("mount /run and /media"))?;
    }
    for dir in ["/run/netns", "/run/kata-containers", "/media/cidata"] {
        std::fs::create_dir(dir).map_err(doing("make directories"))?;
    }
    let path = Path::new("/media/cidata/user-data");
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(doing("write user data"))?;
    file.write_all(user_data).map_err(doing("write user data"))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(doing("write user data"))?;
    drop(file);
    let remount = careful | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, "/media", none, remount, none).map_err(doing("make /media read-only"))
}

#[allow(clippy::disallowed_methods, reason = "the VM's own two programs, started by its init")]
fn spawn(
    program: &OsStr,
    arguments: &[std::ffi::OsString],
    output: &OwnedFd,
) -> std::io::Result<Pid> {
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", SEARCH)
        .env("HOME", "/root")
        .env("KATA_AGENT_SERVER_ADDR", AGENT_ADDRESS)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .map_err(|e| std::io::Error::new(e.kind(), format!("{}: {e}", program.display())))?;
    i32::try_from(child.id()).map(Pid::from_raw).map_err(std::io::Error::other)
}

struct Vm {
    agent: Pid,
    podvm: Pid,
    /// What both print; `None` when both have closed it.
    output: Option<OwnedFd>,
}

impl Vm {
    /// Until podvm has ended or somebody says SIGTERM.
    fn live(mut self, console: &mut Console) -> Result<(), Failed> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.add(Signal::SIGTERM);
        // Blocked only now, because children inherit what is blocked.
        mask.thread_block().map_err(doing("block signals"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&mask, flags).map_err(doing("watch signals"))?;
        if let Some(output) = &self.output {
            let flags = FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
            fcntl(output, flags).map_err(doing("watch the output"))?;
        }
        loop {
            // A child that ended before the signal was watched is found here.
            let off = self.reap(console);
            self.pass_output(console);
            if off {
                console.say(&"power off");
                return Ok(());
            }
            self.wait(&signals)?;
            while let Ok(Some(signal)) = signals.read_signal() {
                if signal.ssi_signo == Signal::SIGTERM as u32 {
                    console.say(&"power off, as told by SIGTERM");
                    return Ok(());
                }
            }
        }
    }

    fn wait(&self, signals: &SignalFd) -> Result<(), Failed> {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.output.as_ref().map(|o| PollFd::new(o.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(doing("wait")(e)),
        }
    }

    /// Takes all ended children; true if podvm is one of them.
    fn reap(&self, console: &mut Console) -> bool {
        let mut off = false;
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else {
                break;
            };
            let name = match pid {
                pid if pid == self.podvm => "podvm",
                pid if pid == self.agent => "the agent",
                _ => continue,
            };
            off |= pid == self.podvm;
            console.say(&match status {
                WaitStatus::Exited(_, code) => format!("{name} has ended with {code}"),
                other => format!("{name} has ended: {other:?}"),
            });
        }
        off
    }

    fn pass_output(&mut self, console: &mut Console) {
        let mut buffer = [0; 8192];
        // Not without end: somebody who prints all the time must not keep us from reaping.
        for _ in 0..32 {
            let Some(output) = &self.output else {
                return;
            };
            match nix::unistd::read(output, &mut buffer) {
                Ok(0) => self.output = None,
                // A full disk must not stop the VM.
                Ok(n) => drop(console.write(buffer.get(..n).unwrap_or_default())),
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}
