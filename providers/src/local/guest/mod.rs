//! How a local VM starts. A fresh process with a single thread makes the namespaces, because
//! neither may be done between fork and exec in a process with many threads.
//!
//! ```text
//!   daemon ── spawns ──▶ guest_main: new session, control group, namespaces, port and addresses
//!                           │ fork                    stdin = the VM's directory, locked
//!                           ├──▶ init (pid 1 of the VM): waits for "go"
//!                           │ writes init.json
//!                           │ "go" ──▶ mounts, host name, agent and podvm; ends with podvm
//!                           ▼
//!                         exit 0: the VM has its address
//! ```
//! Whoever dies when: before "go" the init ends by itself, and from `init.json` on it is found. It
//! shares no pipe and no terminal with the daemon and belongs to no session of it.

mod console;
mod init;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use ipnetwork::IpNetwork;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, fchdir, fork, pipe2, setsid};
use peerpod_netlink::{Handle, Netns, NewLink, Route};
use serde::{Deserialize, Serialize};

use super::process::Identity;
use super::{cgroup, directory, network};
use crate::VmName;

/// Beginning of the lines that the VM's own start writes to the console.
pub(super) const SAYS: &str = "local-guest: ";
/// The VM's interface.
const INTERFACE: &str = "eth0";

/// `boot.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Boot {
    pub(super) name: VmName,
    pub(super) address: IpNetwork,
    pub(super) gateway: IpAddr,
    pub(super) mtu: u32,
    pub(super) podvm: Vec<OsString>,
    pub(super) agent: Vec<OsString>,
    pub(super) boot_delay: Duration,
}

/// A step of the start that failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
struct Failed {
    doing: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn doing<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    doing: &'static str,
) -> impl FnOnce(E) -> Failed {
    move |e| Failed { doing, source: e.into() }
}

/// What the daemon's hidden subcommand `local-guest` runs, before it has any second thread. Takes
/// no arguments; its standard input is the VM's directory, its standard error the VM's console.
pub fn guest_main(args: Vec<OsString>) -> ExitCode {
    if !args.is_empty() {
        eprintln!("{SAYS}takes no arguments; the local provider starts it");
        return ExitCode::from(2);
    }
    match start() {
        Ok(code) => code,
        Err(e) => {
            eprintln!("{SAYS}{e}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<ExitCode, Failed> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(doing("count own threads"))?;
    if threads.count() != 1 {
        return Err(doing("start")("there are threads already"));
    }
    leave_the_daemon()?;
    let boot = std::fs::read(directory::BOOT).map_err(doing("read boot.json"))?;
    let boot: Boot = serde_json::from_slice(&boot).map_err(doing("read boot.json"))?;
    let worker = Handle::here().map_err(doing("open netlink"))?;
    enter_namespaces(&boot)?;
    let default = Route::via(anywhere(boot.gateway)?, Some(boot.gateway), INTERFACE);
    wire(&boot, &default, &worker).map_err(doing("set up the network"))?;
    drop(worker);
    let (wait, go) = pipe2(OFlag::O_CLOEXEC).map_err(doing("make a pipe"))?;
    // SAFETY: the process has one thread, so its copy is whole.
    match unsafe { fork() }.map_err(doing("fork"))? {
        ForkResult::Child => {
            drop(go);
            Ok(init::main(&boot, wait))
        }
        ForkResult::Parent { child } => {
            drop(wait);
            release(child.as_raw(), go)
        }
    }
}

/// Its own session, no descriptor but the standard ones, no share in the daemon's immunity.
fn leave_the_daemon() -> Result<(), Failed> {
    // SAFETY: nothing in this process knows of any descriptor above the standard ones yet.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    setsid().map_err(doing("begin a session"))?;
    fchdir(std::io::stdin()).map_err(doing("enter the VM's directory (standard input)"))?;
    // The daemon's own is for keys; a machine has this one.
    umask(Mode::from_bits_truncate(0o022));
    // The daemon may be the last to be killed for want of memory; its VMs are not.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    Ok(())
}

fn enter_namespaces(boot: &Boot) -> Result<(), Failed> {
    let mut flags = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    if cgroup::join(&boot.name) {
        flags |= CloneFlags::CLONE_NEWCGROUP;
    }
    unshare(flags).map_err(doing("make namespaces"))
}

/// The VM's interface and its port on the worker's bridge.
fn wire(boot: &Boot, default: &Route, worker: &Handle) -> Result<(), peerpod_netlink::Error> {
    let port = network::port(&boot.name);
    let here = Handle::here()?;
    let netns = Netns::current()?;
    worker.add_link(&NewLink::Veth { name: &port, peer: INTERFACE, peer_netns: Some(&netns) })?;
    worker.set_mtu(&port, boot.mtu)?;
    worker.set_master(&port, network::BRIDGE)?;
    worker.set_up(&port, true)?;
    here.set_up("lo", true)?;
    here.set_mac(INTERFACE, network::mac(boot.address.ip()))?;
    here.set_mtu(INTERFACE, boot.mtu)?;
    here.add_address(INTERFACE, boot.address)?;
    here.set_up(INTERFACE, true)?;
    here.add_route(default)
}

/// The destination of a default route.
fn anywhere(like: IpAddr) -> Result<IpNetwork, Failed> {
    let address: IpAddr =
        if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    IpNetwork::new(address, 0).map_err(doing("make a default route"))
}

/// Writes down who the init is, and only then lets it go on.
fn release(init: i32, go: OwnedFd) -> Result<ExitCode, Failed> {
    let identity = Identity::of(init).map_err(doing("look at the init"))?;
    directory::write(Path::new(directory::INIT), &identity).map_err(doing("write init.json"))?;
    File::from(go).write_all(b"g").map_err(doing("let the init go"))?;
    Ok(ExitCode::SUCCESS)
}
