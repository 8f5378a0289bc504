//! The VM's side: the pod's interface as a VXLAN device in a namespace of its own. Repeatable:
//! setting up again replaces what an earlier run has left.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use peerpod_netlink::{Error, Handle, Netns, Route as KernelRoute, Vxlan};

use super::worker::{allow_worker, revoke_worker};
use super::{MacText, MtuError, Neighbor, Route, inner_mtu, mark};

/// Owner mark of the device in the VM.
const OWNER: &str = "podvm";

/// What the VM is told about the pod's network.
#[derive(Clone, Debug)]
pub struct GuestNetwork {
    /// Name of the pod's interface.
    pub interface: String,
    /// Its Ethernet address.
    pub mac: MacText,
    /// Its MTU on the worker.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpNetwork>,
    /// Its routes.
    pub routes: Vec<Route>,
    /// Its neighbours.
    pub neighbors: Vec<Neighbor>,
    /// The worker's addresses; the first of a family the VM has is the tunnel's other end.
    pub worker: Vec<IpAddr>,
    /// VXLAN id.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Where the pod's namespace is; made if it is not there.
    pub podns: PathBuf,
    /// The VM's interface that carries the tunnel; `None` takes that of the default route.
    pub host_interface: Option<String>,
}

/// Why the pod's network does not stand.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The VM has no address yet that can reach the worker.
    #[error("no interface with a default route and an address of the worker's family yet")]
    NotYet,
    /// The underlay is too narrow.
    #[error(transparent)]
    Mtu(#[from] MtuError),
    /// An interface in the way that is not ours to remove.
    #[error("{podns}: an interface named {name} is there already and is not a tunnel of ours")]
    Taken {
        /// The pod's namespace.
        podns: String,
        /// The interface's name.
        name: String,
    },
    /// The kernel refused a step.
    #[error("{0}")]
    Kernel(#[from] Error),
}

/// The VM's own end of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The worker's address that will be used.
    pub worker: IpAddr,
    /// MTU of the interface that leads there.
    pub mtu: u32,
}

/// Looks once whether the VM's interface is up and has an address.
///
/// # Errors
/// [`GuestError::NotYet`] while it has none.
pub fn underlay(guest: &GuestNetwork) -> Result<Underlay, GuestError> {
    let handle = Handle::here()?;
    let routes = handle.routes()?;
    let name = guest.host_interface.clone().or_else(|| {
        let defaults = routes.iter().filter(|r| r.is_default());
        defaults.min_by_key(|r| (r.destination.is_ipv6(), r.metric)).map(|r| r.device.clone())
    });
    let link = match handle.link(&name.ok_or(GuestError::NotYet)?) {
        Ok(link) if link.up => link,
        Err(e) if !e.is_absent() => return Err(e.into()),
        _ => return Err(GuestError::NotYet),
    };
    let own = handle.addresses(link.index)?;
    let worker = guest.worker.iter().find(|w| own.iter().any(|o| o.is_ipv4() == w.is_ipv4()));
    let worker = *worker.ok_or(GuestError::NotYet)?;
    Ok(Underlay { worker, mtu: link.mtu })
}

/// Sets the pod's interface up. The calling thread's namespace is the VM's own.
///
/// # Errors
/// By [`GuestError`]; the half-made device is removed.
pub fn setup(guest: &GuestNetwork) -> Result<Underlay, GuestError> {
    let underlay = underlay(guest)?;
    let mtu = inner_mtu(guest.mtu, underlay.mtu, underlay.worker)?;
    let podns = open_podns(guest)?;
    let inside = podns.handle()?;
    clear_interface(guest, &inside)?;
    let done = build(guest, underlay, (&podns, &inside), mtu);
    if done.is_err() {
        let _ = teardown(guest);
    }
    done.map(|()| underlay)
}

fn open_podns(guest: &GuestNetwork) -> Result<Netns, GuestError> {
    if let Ok(netns) = Netns::open(&guest.podns) {
        return Ok(netns);
    }
    let netns = Netns::create()?;
    netns.run(|| Handle::here()?.set_up("lo", true))?;
    netns.persist(&guest.podns)?;
    Ok(netns)
}

fn clear_interface(guest: &GuestNetwork, handle: &Handle) -> Result<(), GuestError> {
    match handle.link(&guest.interface) {
        Err(e) if e.is_absent() => Ok(()),
        Err(e) => Err(e.into()),
        Ok(link) if link.kind.as_deref() == Some("vxlan") => {
            Ok(handle.delete_link(&guest.interface)?)
        }
        Ok(link) => {
            Err(GuestError::Taken { podns: guest.podns.display().to_string(), name: link.name })
        }
    }
}

fn build(
    guest: &GuestNetwork,
    underlay: Underlay,
    podns: (&Netns, &Handle),
    mtu: u32,
) -> Result<(), GuestError> {
    allow_worker((guest.port, guest.vni), underlay.worker)?;
    let handle = Handle::here()?;
    let vxlan = Vxlan { vni: guest.vni, remote: underlay.worker, port: guest.port };
    handle.add_vxlan_in(podns, &guest.interface, vxlan)?;
    podns.1.set_alias(&guest.interface, &mark(OWNER))?;
    configure(guest, podns.1, mtu)
}

fn configure(guest: &GuestNetwork, handle: &Handle, mtu: u32) -> Result<(), GuestError> {
    let name = &guest.interface;
    handle.set_mac(name, guest.mac.0)?;
    handle.set_mtu(name, mtu)?;
    for address in &guest.addresses {
        // The routes that the worker has sent are all the pod has; the kernel adds none.
        handle.add_lone_address(name, *address)?;
    }
    handle.set_up(name, true)?;
    let mut routes: Vec<&Route> = guest.routes.iter().collect();
    routes.sort_by_key(|r| r.gateway.is_some());
    for route in routes {
        handle.add_route(&KernelRoute::via(route.destination, route.gateway, name))?;
    }
    for neighbor in &guest.neighbors {
        handle.add_neighbour(name, neighbor.ip, neighbor.mac.0)?;
    }
    Ok(())
}

/// Takes the pod's interface and the filter away; absent is success.
///
/// # Errors
/// When the kernel refuses.
pub fn teardown(guest: &GuestNetwork) -> Result<(), GuestError> {
    let inside = match Netns::open(&guest.podns) {
        Ok(podns) => podns.handle().map_err(Into::into).and_then(|h| clear_interface(guest, &h)),
        Err(_) => Ok(()),
    };
    revoke_worker((guest.port, guest.vni))?;
    inside
}
