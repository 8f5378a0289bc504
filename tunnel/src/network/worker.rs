//! The worker's side of a tunnel: attach, verify, detach. Attach undoes itself on failure; both are
//! idempotent; detach works when the pod's namespace has gone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use peerpod_netlink::nft::Counter;
use peerpod_netlink::{Error, Handle, Link, Netns, NewLink, Vxlan};

use super::guard::{self, Key};
use super::{Tunnel, mark, pin};

/// Name of the device in the pod's namespace, as upstream has it.
const DEVICE: &str = "vxlan1";
/// Names of devices that are on their way into a pod's namespace.
const TRANSIT: &str = "ppvx";

/// A step of the tunnel that failed.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The pod's namespace is not the one that was inspected.
    #[error("network namespace {path} of sandbox {sandbox}: {reason}")]
    Netns {
        /// Whose.
        sandbox: String,
        /// Where.
        path: String,
        /// What was found.
        reason: String,
    },
    /// The VNI belongs to a device of somebody else.
    #[error("VXLAN id {vni} on port {port} is in use by a device that is not sandbox {sandbox}'s")]
    VniTaken {
        /// Who wanted it.
        sandbox: String,
        /// The id.
        vni: u32,
        /// The UDP port.
        port: u16,
    },
    /// A step failed.
    #[error("tunnel of sandbox {sandbox}: {step}: {source}")]
    Step {
        /// Whose.
        sandbox: String,
        /// What was being done.
        step: &'static str,
        /// The kernel's refusal.
        source: Error,
    },
    /// The host's namespace could not be entered.
    #[error("host namespace: {0}")]
    Host(#[from] Error),
    /// Some steps of taking it down failed; the others were done.
    #[error("tunnel of sandbox {sandbox} is not all gone: {}", .reasons.join("; "))]
    Remains {
        /// Whose.
        sandbox: String,
        /// What is left and why.
        reasons: Vec<String>,
    },
}

/// What has passed and what was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// From the pod's interface to the VM.
    pub to_vm: Counter,
    /// From the VM to the pod's interface.
    pub to_pod: Counter,
    /// From the VM, but not with the pod's MAC and addresses.
    pub pinned: Counter,
    /// From a wrong sender, all VNIs of this worker together.
    pub guarded: Counter,
}

impl Tunnel {
    fn key(&self) -> Key {
        Key { port: self.port, vni: self.vni }
    }

    fn step(&self, step: &'static str) -> impl FnOnce(Error) -> TunnelError {
        let sandbox = self.sandbox.clone();
        move |source| TunnelError::Step { sandbox, step, source }
    }

    fn vxlan(&self) -> Vxlan {
        Vxlan { vni: self.vni, remote: self.vm, port: self.port }
    }

    fn netns_error(&self, reason: impl ToString) -> TunnelError {
        TunnelError::Netns {
            sandbox: self.sandbox.clone(),
            path: self.netns.display().to_string(),
            reason: reason.to_string(),
        }
    }

    /// The pod's namespace, if it is still the one that was inspected.
    fn open(&self) -> Result<Netns, TunnelError> {
        let netns = Netns::open(&self.netns).map_err(|e| self.netns_error(e))?;
        match netns.id() {
            Ok(id) if id == self.netns_id => Ok(netns),
            Ok(_) => Err(self.netns_error("another namespace has taken its place")),
            Err(e) => Err(self.netns_error(e)),
        }
    }

    fn is_ours(&self, link: &Link) -> bool {
        link.alias.as_deref() == Some(&mark(&self.sandbox))
    }
}

/// Makes the tunnel, or puts right what has come apart of it. Nothing passes before filter and
/// forwarding stand.
///
/// # Errors
/// By [`TunnelError`]; nothing of the tunnel is left then.
pub fn attach(tunnel: &Tunnel) -> Result<(), TunnelError> {
    let done = try_attach(tunnel);
    if done.is_err() {
        // The first error is the one to tell; what this leaves, the caller's detach takes away.
        let _ = detach(tunnel);
    }
    done
}

fn try_attach(tunnel: &Tunnel) -> Result<(), TunnelError> {
    let netns = tunnel.open()?;
    guard::allow(tunnel.key(), tunnel.vm, &tunnel.sandbox)
        .map_err(tunnel.step("let the VM's address in"))?;
    let there = netns.run(|| keep_or_remove(tunnel)).map_err(tunnel.step("look for vxlan1"))?;
    if !there {
        make_device(tunnel, &netns)?;
    }
    netns.run(|| wire(tunnel)).map_err(tunnel.step("forward between the interfaces"))
}

/// Whether the device stands as it should; one of ours that does not is removed.
fn keep_or_remove(tunnel: &Tunnel) -> Result<bool, Error> {
    let handle = Handle::here()?;
    match handle.link(DEVICE) {
        Err(e) if e.is_absent() => Ok(false),
        Err(e) => Err(e),
        Ok(link) if tunnel.is_ours(&link) && link.vxlan == Some(tunnel.vxlan()) => Ok(true),
        Ok(_) => handle.delete_link(DEVICE).map(|()| false),
    }
}

fn make_device(tunnel: &Tunnel, netns: &Netns) -> Result<(), TunnelError> {
    let handle = Handle::here().map_err(tunnel.step("open netlink"))?;
    let name = format!("{TRANSIT}{}", tunnel.vni);
    // A device of that name can only be what a killed attach of this very VNI has left.
    handle.delete_link(&name).map_err(tunnel.step("remove an earlier device"))?;
    let alias = mark(&tunnel.sandbox);
    let new = NewLink::Vxlan { name: &name, vxlan: tunnel.vxlan(), alias: &alias };
    match handle.add_link(&new) {
        Err(e) if e.is_exists() => {
            return Err(TunnelError::VniTaken {
                sandbox: tunnel.sandbox.clone(),
                vni: tunnel.vni,
                port: tunnel.port,
            });
        }
        other => other.map_err(tunnel.step("make the VXLAN device"))?,
    }
    handle.set_mtu(&name, tunnel.mtu).map_err(tunnel.step("set the MTU"))?;
    handle.move_link(&name, netns, DEVICE).map_err(tunnel.step("move the VXLAN device"))
}

fn wire(tunnel: &Tunnel) -> Result<(), Error> {
    let handle = Handle::here()?;
    let (pod, vm) = (handle.link(&tunnel.interface)?, handle.link(DEVICE)?);
    if !(vm.up && pin::stands(tunnel)?) {
        pin::set(tunnel, DEVICE, pod.index, vm.index)?;
        handle.set_up(DEVICE, true)?;
    }
    Ok(())
}

/// Takes the tunnel away. Every step is tried; what is absent is done; a namespace that has gone,
/// or has been replaced, took its part along.
///
/// # Errors
/// [`TunnelError::Remains`] with everything that could not be taken away.
pub fn detach(tunnel: &Tunnel) -> Result<(), TunnelError> {
    let mut reasons = Vec::new();
    if let Ok(netns) = tunnel.open() {
        let mut note =
            |result: Result<(), Error>| reasons.extend(result.err().map(|e| e.to_string()));
        note(netns.run(pin::clear));
        note(netns.run(|| keep_or_remove(tunnel).and_then(|_| remove(tunnel, DEVICE))));
    }
    let transit = format!("{TRANSIT}{}", tunnel.vni);
    for result in [remove(tunnel, &transit), guard::revoke(tunnel.key())] {
        reasons.extend(result.err().map(|e| e.to_string()));
    }
    if reasons.is_empty() {
        return Ok(());
    }
    Err(TunnelError::Remains { sandbox: tunnel.sandbox.clone(), reasons })
}

fn remove(tunnel: &Tunnel, name: &str) -> Result<(), Error> {
    let handle = Handle::here()?;
    match handle.link(name) {
        Ok(link) if tunnel.is_ours(&link) => handle.delete_link(name),
        Err(e) if !e.is_absent() => Err(e),
        _ => Ok(()),
    }
}

/// Looks whether all of the tunnel stands. Returns what does not, in words; [`attach`] repairs it.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn verify(tunnel: &Tunnel) -> Result<Vec<String>, TunnelError> {
    let mut wrong = Vec::new();
    let netns = match tunnel.open() {
        Ok(netns) => netns,
        Err(e) => return Ok(vec![e.to_string()]),
    };
    if !guard::allows(tunnel.key(), tunnel.vm).map_err(tunnel.step("read the source filter"))? {
        wrong.push(format!("the source filter does not let {} in alone", tunnel.vm));
    }
    let inside = netns.run(|| {
        let mut wrong = Vec::new();
        match Handle::here()?.link(DEVICE) {
            Err(e) if e.is_absent() => wrong.push(format!("{DEVICE} is missing")),
            Err(e) => return Err(e),
            Ok(link) if link.vxlan != Some(tunnel.vxlan()) || !tunnel.is_ours(&link) => {
                wrong.push(format!("{DEVICE} is another device"));
            }
            Ok(link) if !link.up => wrong.push(format!("{DEVICE} is down")),
            Ok(_) => {}
        }
        if !pin::stands(tunnel)? {
            wrong.push("the forwarding rules are missing".to_owned());
        }
        Ok(wrong)
    });
    wrong.extend(inside.map_err(tunnel.step("look into the namespace"))?);
    Ok(wrong)
}

/// What has passed and what was dropped since attach.
///
/// # Errors
/// When the namespace has gone or the kernel refuses to tell.
pub fn counters(tunnel: &Tunnel) -> Result<Counters, TunnelError> {
    let netns = tunnel.open()?;
    let inside = netns.run(pin::counters).map_err(tunnel.step("read the counters"))?;
    let (to_vm, to_pod, pinned) = inside;
    let guarded = guard::dropped().map_err(tunnel.step("read the source filter"))?;
    Ok(Counters { to_vm, to_pod, pinned, guarded })
}

/// Something of ours in the host's namespace that no sandbox owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// A VXLAN device that never reached its pod.
    Device {
        /// Its name.
        name: String,
        /// Whose it was.
        sandbox: String,
    },
    /// An entry of the source filter.
    Guard {
        /// UDP port.
        port: u16,
        /// VXLAN id.
        vni: u32,
        /// Whose it was.
        sandbox: String,
    },
}

/// What carries our mark in the calling thread's namespace, but none of the `known` sandboxes'.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn leftovers(known: &BTreeSet<String>) -> Result<Vec<Leftover>, Error> {
    let mut found = Vec::new();
    for link in Handle::here()?.links()? {
        let owner = link.alias.as_deref().and_then(|a| a.strip_prefix("peerpod:"));
        let ours = owner.filter(|o| link.name.starts_with(TRANSIT) && !known.contains(*o));
        if let Some(owner) = ours {
            found.push(Leftover::Device { sandbox: owner.to_owned(), name: link.name.clone() });
        }
    }
    for (key, sandbox) in guard::marked()? {
        if !known.contains(&sandbox) {
            found.push(Leftover::Guard { port: key.port, vni: key.vni, sandbox });
        }
    }
    Ok(found)
}

/// Takes a left-over away.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_leftover(leftover: &Leftover) -> Result<(), Error> {
    match leftover {
        Leftover::Device { name, .. } => Handle::here()?.delete_link(name),
        Leftover::Guard { port, vni, .. } => guard::revoke(Key { port: *port, vni: *vni }),
    }
}

/// The source filter for the other end, where the worker is the only one to be let in.
pub(super) fn allow_worker(key: (u16, u32), worker: IpAddr) -> Result<(), Error> {
    guard::allow(Key { port: key.0, vni: key.1 }, worker, "worker")
}

/// Takes back what [`allow_worker`] gave.
pub(super) fn revoke_worker(key: (u16, u32)) -> Result<(), Error> {
    guard::revoke(Key { port: key.0, vni: key.1 })
}
