//! The VMs' network on this machine: a bridge with the first address of the network, a port for
//! each VM.
//!
//! ```text
//!   worker's primary address ─▶ route to the network, by preference from that address
//!                                 peerpod0 (bridge, first address) ══ ppl… ══ eth0 in the VM
//! ```
//! A VM lets only the worker's primary address into its tunnel, so what this machine sends to the
//! VMs must leave with that address and not with the bridge's, which the kernel would pick.
//!
//! Works on the namespace of the calling thread.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use peerpod_netlink::{Error as Netlink, Handle, Mac, NewLink, Route};
use sha2::{Digest, Sha256};

use crate::VmName;

pub(super) const BRIDGE: &str = "peerpod0";
const ETHERNET: u32 = 1500;

/// Why the network does not stand.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetworkError {
    #[error("LOCAL_CIDR {cidr}: overlaps {what} of this machine; choose another network")]
    Overlap { cidr: IpNetwork, what: String },
    #[error("LOCAL_CIDR {0}: local VMs still live in another network; delete them first")]
    Changed(IpNetwork),
    #[error("an interface named {BRIDGE} is there already and is not a bridge")]
    Taken,
    #[error("LOCAL_CIDR {0}: every address is taken")]
    Full(IpNetwork),
    #[error("{0}")]
    Kernel(#[from] Netlink),
}

/// Finds what of this machine lies in the network, or the network in it. The bridge's own things
/// do not count, nor do default routes.
pub(super) fn overlap(cidr: IpNetwork) -> Result<(), NetworkError> {
    let handle = Handle::here()?;
    let bridge = handle.links()?.into_iter().find(|l| l.name == BRIDGE).map_or(0, |l| l.index);
    let refuse = |what: String| Err(NetworkError::Overlap { cidr, what });
    for (index, address) in handle.all_addresses()? {
        if index != bridge && both_ways(cidr, address) {
            return refuse(format!("the address {address}"));
        }
    }
    for route in handle.routes()? {
        if route.device != BRIDGE && !route.is_default() && both_ways(cidr, route.destination) {
            return refuse(format!("the route {} by {}", route.destination, route.device));
        }
    }
    Ok(())
}

fn both_ways(a: IpNetwork, b: IpNetwork) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a.contains(b.network()) || b.contains(a.network()))
}

/// The machine's interface with the default route, as the tunnel picks it.
struct Primary {
    address: Option<IpAddr>,
    mtu: u32,
}

fn primary(handle: &Handle, ipv4: bool) -> Result<Option<Primary>, Netlink> {
    let routes = handle.routes()?.into_iter().filter(Route::is_default);
    let Some(route) = routes.min_by_key(|r| (r.destination.is_ipv6(), r.metric)) else {
        return Ok(None);
    };
    let link = handle.link(&route.device)?;
    let addresses = handle.addresses(link.index)?.into_iter().map(|a| a.ip());
    let address = addresses.filter(|a| a.is_ipv4() == ipv4).min_by_key(IpAddr::is_ipv6);
    Ok(Some(Primary { address, mtu: link.mtu }))
}

/// Makes the bridge and the route to the VMs, or mends them: the primary address may have changed.
/// `used`: addresses of the VMs there are. Returns the MTU of the ports.
pub(super) fn ensure(
    cidr: IpNetwork,
    gateway: IpAddr,
    used: &BTreeSet<IpAddr>,
) -> Result<u32, NetworkError> {
    if used.iter().any(|address| !cidr.contains(*address)) {
        return Err(NetworkError::Changed(cidr));
    }
    let handle = Handle::here()?;
    let own = IpNetwork::new(gateway, cidr.prefix()).unwrap_or(cidr);
    let primary = primary(&handle, cidr.is_ipv4())?;
    let mtu = primary.as_ref().map_or(ETHERNET, |p| p.mtu.clamp(1280, 65_535));
    match handle.link(BRIDGE) {
        Ok(link) if link.kind.as_deref() != Some("bridge") => return Err(NetworkError::Taken),
        Ok(link) if handle.addresses(link.index)?.contains(&own) => {}
        Ok(_) if !used.is_empty() => return Err(NetworkError::Changed(cidr)),
        Ok(_) => {
            handle.delete_link(BRIDGE)?;
            make(&handle, cidr, own, mtu)?;
        }
        Err(e) if e.is_absent() => make(&handle, cidr, own, mtu)?,
        Err(e) => return Err(e.into()),
    }
    handle.set_up(BRIDGE, true)?;
    let source = primary.and_then(|p| p.address).unwrap_or(gateway);
    handle.add_route(&Route { source: Some(source), ..Route::via(cidr, None, BRIDGE) })?;
    Ok(mtu)
}

fn make(handle: &Handle, cidr: IpNetwork, own: IpNetwork, mtu: u32) -> Result<(), NetworkError> {
    overlap(cidr)?;
    handle.add_link(&NewLink::Bridge { name: BRIDGE })?;
    // Without one of its own a bridge takes the lowest of its ports', which come and go, and the
    // VMs would go on sending to one that has gone.
    handle.set_mac(BRIDGE, mac(own.ip()))?;
    handle.set_mtu(BRIDGE, mtu)?;
    // No route comes with the address: it would prefer the bridge's own address as source.
    handle.add_lone_address(BRIDGE, own)?;
    Ok(())
}

/// Takes the bridge away, and its route with it. One that still has ports stays, and what is no
/// bridge is not ours.
pub(super) fn remove_bridge() -> Result<(), NetworkError> {
    let handle = Handle::here()?;
    let links = handle.links()?;
    let Some(bridge) = links.iter().find(|l| l.name == BRIDGE) else {
        return Ok(());
    };
    let inhabited = links.iter().any(|l| l.master == Some(bridge.index));
    if inhabited || bridge.kind.as_deref() != Some("bridge") {
        return Ok(());
    }
    Ok(handle.delete_link(BRIDGE)?)
}

/// Takes a VM's port away, and the VM's interface with it.
pub(super) fn remove_port(name: &VmName) -> Result<(), NetworkError> {
    Ok(Handle::here()?.delete_link(&port(name))?)
}

/// Name of a VM's port; 15 characters are the most an interface may have.
pub(super) fn port(name: &VmName) -> String {
    let digest = Sha256::digest(name.as_str());
    let hex: String = digest.iter().take(5).map(|b| format!("{b:02x}")).collect();
    format!("ppl{hex}")
}

/// The Ethernet address that belongs to an address: a VM that gets the address of one that has
/// gone is reached at once, whatever the neighbours remember.
pub(super) fn mac(address: IpAddr) -> Mac {
    let low = match address {
        IpAddr::V4(a) => a.octets(),
        IpAddr::V6(a) => [a.octets()[12], a.octets()[13], a.octets()[14], a.octets()[15]],
    };
    Mac([0x02, 0x70, low[0], low[1], low[2], low[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_overlap_if_either_lies_in_the_other() {
        let net = |t: &str| t.parse::<IpNetwork>().expect("network");
        assert!(both_ways(net("172.31.0.0/24"), net("172.16.0.0/12")));
        assert!(both_ways(net("172.31.0.0/24"), net("172.31.0.77/32")));
        assert!(!both_ways(net("172.31.0.0/24"), net("172.31.1.1/24")));
        assert!(!both_ways(net("0.0.0.0/0"), net("fd00::/8")));
    }

    #[test]
    fn port_names_fit_and_differ() {
        let (a, b) = (VmName::from_existing("podvm-a-1"), VmName::from_existing("podvm-a-2"));
        assert!(port(&a).len() <= 15 && port(&a) != port(&b));
    }
}
