//! The worker's side of a tunnel: attach, verify, detach. Attach undoes itself on failure; both are
//! idempotent; detach works when the pod's namespace has gone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use peerpod_netlink::nft::{Committed, Counter};
use peerpod_netlink::{Error, Handle, InfoKind, Link, Netns, Vxlan};

use super::guard::{self, Key};
use super::pin::{self, Around, Ends};
use super::policy::host_addresses;
use super::{Policy, Tunnel, mark};

/// A change of the kernel between its two crash points.
macro_rules! step {
    ($name:literal, $work:expr) => {{
        #[cfg(feature = "crash-points")]
        crate::crash::reach(concat!($name, ".before"));
        let done = $work;
        #[cfg(feature = "crash-points")]
        crate::crash::reach(concat!($name, ".after"));
        done
    }};
}

/// Name of the device in the pod's namespace, as upstream has it.
const DEVICE: &str = "vxlan1";
/// How names of devices begin that are not in their place: earlier versions made them in the host's
/// namespace, and some kernels want another name before the device gets its own.
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
    /// The pod's namespace could not be entered.
    #[error(transparent)]
    Enter(#[from] Error),
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// From the pod's interface to the VM.
    pub to_vm: Counter,
    /// From the VM to the pod's interface.
    pub to_pod: Counter,
    /// From the VM and dropped, by reason; see [`REASONS`](super::REASONS).
    pub dropped: Vec<(&'static str, Counter)>,
    /// From a wrong sender, all VNIs of this worker together.
    pub guarded: Counter,
}

impl Counters {
    /// What was dropped for that reason.
    pub fn dropped_for(&self, reason: &str) -> Counter {
        let found = self.dropped.iter().find(|(r, _)| *r == reason);
        found.map(|(_, c)| *c).unwrap_or_default()
    }
}

/// What a look at a tunnel has found.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// What is not as it is to be, in words; nothing is well. [`attach`] repairs it.
    pub wrong: Vec<String>,
    /// What has passed and what was dropped, if that could be read.
    pub counters: Option<Counters>,
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

    fn transit(&self) -> String {
        format!("{TRANSIT}{}", self.vni)
    }

    fn netns_error(&self, reason: impl ToString) -> TunnelError {
        TunnelError::Netns {
            sandbox: self.sandbox.clone(),
            path: self.netns.display().to_string(),
            reason: reason.to_string(),
        }
    }

    /// The pod's namespace, if it is still the one that was inspected.
    pub(super) fn open(&self) -> Result<Netns, TunnelError> {
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
pub fn attach(tunnel: &Tunnel, policy: &Policy) -> Result<(), TunnelError> {
    let done = try_attach(tunnel, policy);
    if done.is_err() {
        // The first error is the one to tell; what this leaves, the caller's detach takes away.
        let _ = detach(tunnel);
    }
    done
}

fn try_attach(tunnel: &Tunnel, policy: &Policy) -> Result<(), TunnelError> {
    let netns = tunnel.open()?;
    step!("guard-allow", guard::allow(tunnel.key(), tunnel.vm, &tunnel.sandbox))
        .map_err(tunnel.step("let the VM's address in"))?;
    let host = Handle::here().map_err(tunnel.step("open netlink"))?;
    let around = around(policy).map_err(tunnel.step("read the worker's addresses"))?;
    let (netns, around) = (&netns, &around);
    netns.run(move || {
        let pod = Handle::here().map_err(tunnel.step("open netlink in the namespace"))?;
        if !keep_or_remove(tunnel, &pod).map_err(tunnel.step("look for vxlan1"))? {
            make_device(tunnel, &host, netns, &pod)?;
        }
        wire(tunnel, around, &pod).map_err(tunnel.step("forward between the interfaces"))
    })
}

fn around(policy: &Policy) -> Result<Around<'_>, Error> {
    Ok(Around { policy, host: host_addresses()? })
}

/// Whether the device stands as it should; one that does not is removed.
fn keep_or_remove(tunnel: &Tunnel, pod: &Handle) -> Result<bool, Error> {
    match pod.link(DEVICE) {
        Err(e) if e.is_absent() => Ok(false),
        Err(e) => Err(e),
        Ok(link) if device_wrong(tunnel, pod, &link)?.is_empty() => Ok(true),
        Ok(_) => pod.delete_link(DEVICE).map(|()| false),
    }
}

/// Makes the device in the pod's namespace with its socket in the host's.
fn make_device(
    tunnel: &Tunnel,
    host: &Handle,
    netns: &Netns,
    pod: &Handle,
) -> Result<(), TunnelError> {
    for handle in [host, pod] {
        // A device of that name can only be what a killed attach of this very VNI has left.
        let gone = handle.delete_link(&tunnel.transit());
        gone.map_err(tunnel.step("remove an earlier device"))?;
    }
    match step!("device-make", host.add_vxlan_in((netns, pod), DEVICE, tunnel.vxlan())) {
        // No device of that name is in the namespace, so it is the VNI that is taken.
        Err(e) if e.is_exists() => {
            return Err(TunnelError::VniTaken {
                sandbox: tunnel.sandbox.clone(),
                vni: tunnel.vni,
                port: tunnel.port,
            });
        }
        other => other.map_err(tunnel.step("make the VXLAN device"))?,
    }
    step!("device-mark", pod.set_alias(DEVICE, &mark(&tunnel.sandbox)))
        .map_err(tunnel.step("mark the VXLAN device"))?;
    step!("device-mtu", pod.set_mtu(DEVICE, tunnel.mtu)).map_err(tunnel.step("set the MTU"))
}

/// What a device has that cannot be put right without making it anew.
fn device_wrong(tunnel: &Tunnel, pod: &Handle, link: &Link) -> Result<Vec<String>, Error> {
    if link.vxlan != Some(tunnel.vxlan()) || !tunnel.is_ours(link) {
        return Ok(vec![format!("{DEVICE} is another device")]);
    }
    let mut wrong = Vec::new();
    if link.lax {
        wrong.push(format!("{DEVICE} learns, or sends without checksum"));
    }
    if pod.forwards(link.index)?.iter().any(|(_, to)| *to != tunnel.vm) {
        wrong.push(format!("{DEVICE} sends to others than {}", tunnel.vm));
    }
    Ok(wrong)
}

fn wire(tunnel: &Tunnel, around: &Around<'_>, pod: &Handle) -> Result<(), Error> {
    let (interface, vm) = (pod.link(&tunnel.interface)?, pod.link(DEVICE)?);
    let ends = Ends { device: DEVICE, pod: interface.index, vm: vm.index };
    if vm.mtu != tunnel.mtu {
        pod.set_mtu(DEVICE, tunnel.mtu)?;
    }
    if !pin::look(tunnel, around, ends)?.wrong.is_empty() {
        step!("pin-set", pin::set(tunnel, around, ends))?;
    }
    if !vm.up {
        step!("device-up", pod.set_up(DEVICE, true))?;
    }
    Ok(())
}

/// Takes the tunnel away. Every step is tried; what is absent is done; a namespace that has gone,
/// or has been replaced, took its part along.
///
/// # Errors
/// [`TunnelError::Remains`] with everything that could not be taken away.
pub fn detach(tunnel: &Tunnel) -> Result<(), TunnelError> {
    let mut failed = Failed::default();
    let netns = tunnel.open().ok();
    // Nothing arrives any more before the filters go. The device, which takes the kernel longest,
    // goes last: what the filters have left is freed meanwhile.
    let stopped = netns.and_then(|n| failed.note(n.run(stop)));
    let _shut_out =
        failed.note(step!("guard-revoke", guard::revoke(tunnel.key(), Some(tunnel.vm))));
    if let Some((pod, cleared)) = &stopped {
        failed.note(cleared.as_ref());
        failed.note(step!("device-delete", pod.delete_link(DEVICE)));
        failed.note(pod.delete_link(&tunnel.transit()));
    }
    failed.note(remove_transit(tunnel));
    if failed.0.is_empty() {
        return Ok(());
    }
    Err(TunnelError::Remains { sandbox: tunnel.sandbox.clone(), reasons: failed.0 })
}

/// Why steps of taking a tunnel down failed.
#[derive(Debug, Default)]
struct Failed(Vec<String>);

impl Failed {
    fn note<T>(&mut self, result: Result<T, impl ToString>) -> Option<T> {
        result.map_err(|e| self.0.push(e.to_string())).ok()
    }
}

/// Sets the device down and takes the forwarding away, in the pod's namespace. Whether the latter
/// worked is told beside the handle with which the device can be removed all the same.
fn stop() -> Result<(Handle, Result<Option<Committed>, Error>), Error> {
    let pod = Handle::here()?;
    let down = match step!("device-down", pod.set_up(DEVICE, false)) {
        Err(e) if !e.is_absent() => Err(e),
        _ => Ok(()),
    };
    let cleared = step!("pin-clear", pin::clear());
    Ok((pod, down.and(cleared)))
}

/// Of the host's namespace only what carries the sandbox's mark.
fn remove_transit(tunnel: &Tunnel) -> Result<(), Error> {
    let (handle, name) = (Handle::here()?, tunnel.transit());
    match handle.link(&name) {
        Ok(link) if tunnel.is_ours(&link) => handle.delete_link(&name),
        Err(e) if !e.is_absent() => Err(e),
        _ => Ok(()),
    }
}

/// Looks whether all of the tunnel stands, every rule as it was made.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn verify(tunnel: &Tunnel, policy: &Policy) -> Result<Look, TunnelError> {
    let netns = match tunnel.open() {
        Ok(netns) => netns,
        Err(e) => return Ok(Look { wrong: vec![e.to_string()], counters: None }),
    };
    let mut wrong =
        guard::look(tunnel.key(), tunnel.vm).map_err(tunnel.step("read the source filter"))?;
    let guarded = guard::dropped().map_err(tunnel.step("read the source filter"))?;
    let around = around(policy).map_err(tunnel.step("read the worker's addresses"))?;
    let inside = netns.run(|| look_inside(tunnel, &around));
    let (more, counters) = inside.map_err(tunnel.step("look into the namespace"))?;
    wrong.extend(more);
    Ok(Look { wrong, counters: counters.map(|c| Counters { guarded, ..c }) })
}

fn look_inside(
    tunnel: &Tunnel,
    around: &Around<'_>,
) -> Result<(Vec<String>, Option<Counters>), Error> {
    let pod = Handle::here()?;
    let find = |name: &str| match pod.link(name) {
        Err(e) if e.is_absent() => Ok(None),
        other => other.map(Some),
    };
    let missing = |name: &str| Ok((vec![format!("{name} is missing")], None));
    let Some(interface) = find(&tunnel.interface)? else { return missing(&tunnel.interface) };
    let Some(vm) = find(DEVICE)? else { return missing(DEVICE) };
    let mut wrong = device_wrong(tunnel, &pod, &vm)?;
    if !vm.up {
        wrong.push(format!("{DEVICE} is down"));
    }
    if vm.mtu != tunnel.mtu {
        wrong.push(format!("{DEVICE} has an MTU of {}, should have {}", vm.mtu, tunnel.mtu));
    }
    let ends = Ends { device: DEVICE, pod: interface.index, vm: vm.index };
    let found = pin::look(tunnel, around, ends)?;
    let (to_vm, to_pod, dropped) = pin::counters_of(&found);
    wrong.extend(found.wrong.into_iter().map(|w| format!("in the pod's namespace: {w}")));
    Ok((wrong, Some(Counters { to_vm, to_pod, dropped, guarded: Counter::default() })))
}

/// What has passed and what was dropped since attach.
///
/// # Errors
/// When the namespace has gone or the kernel refuses to tell.
pub fn counters(tunnel: &Tunnel) -> Result<Counters, TunnelError> {
    let netns = tunnel.open()?;
    let inside = netns.run(pin::counters).map_err(tunnel.step("read the counters"))?;
    let (to_vm, to_pod, dropped) = inside;
    let guarded = guard::dropped().map_err(tunnel.step("read the source filter"))?;
    Ok(Counters { to_vm, to_pod, dropped, guarded })
}

/// Something of ours in the host's namespace that no sandbox owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// A VXLAN device that never reached its pod, of an earlier version.
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
    for link in Handle::here()?.links_of(InfoKind::Vxlan)? {
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
    let remove = || match leftover {
        Leftover::Device { name, .. } => Handle::here()?.delete_link(name),
        Leftover::Guard { port, vni, .. } => {
            guard::revoke(Key { port: *port, vni: *vni }, None).map(drop)
        }
    };
    step!("left-over", remove())
}

/// The source filter for the other end, where the worker is the only one to be let in.
pub(super) fn allow_worker(key: (u16, u32), worker: IpAddr) -> Result<(), Error> {
    guard::allow(Key { port: key.0, vni: key.1 }, worker, "worker")
}

/// Takes back what [`allow_worker`] gave.
pub(super) fn revoke_worker(key: (u16, u32)) -> Result<(), Error> {
    guard::revoke(Key { port: key.0, vni: key.1 }, None).map(drop)
}
