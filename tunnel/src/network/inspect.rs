//! Reads a pod's namespace and the worker's own interface; changes nothing.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use peerpod_netlink::{Handle, Link, NeighbourState, Netns, Route as KernelRoute};

use super::{MacText, Neighbor, PodNetwork, Route, protocol_text, scope_text};

/// What an inspection is told.
#[derive(Clone, Debug, Default)]
pub struct InspectSettings {
    /// Interface of the worker that carries the tunnel; `None` takes the primary one.
    pub host_interface: Option<String>,
    /// Networks the pod reaches by its own gateway besides the routes it has.
    pub pod_subnet_cidrs: Vec<IpNetwork>,
}

/// What is wrong with a namespace or the worker.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// No path was given.
    #[error("network namespace: no path was given (a host-network pod cannot be a peer pod)")]
    NoPath,
    /// The namespace cannot be opened.
    #[error("network namespace: {0}")]
    Open(#[source] peerpod_netlink::Error),
    /// The namespace is the worker's own.
    #[error(
        "network namespace {0}: it is the host's own (a host-network pod cannot be a peer pod)"
    )]
    HostNetwork(PathBuf),
    /// The pod has no default route.
    #[error("network namespace {0}: no default route")]
    NoDefaultRoute(PathBuf),
    /// The pod's interface has no address.
    #[error("network namespace {netns}: interface {interface} has no address")]
    NoAddress {
        /// The pod's namespace.
        netns: PathBuf,
        /// The interface of its default route.
        interface: String,
    },
    /// More than one address of a family.
    #[error(
        "network namespace {netns}: interface {interface} has {count} {family} addresses, one is possible"
    )]
    ManyAddresses {
        /// The pod's namespace.
        netns: PathBuf,
        /// The pod's interface.
        interface: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// How many there are.
        count: usize,
    },
    /// The interface is no Ethernet.
    #[error("network namespace {netns}: interface {interface} has no Ethernet address")]
    NoMac {
        /// The pod's namespace.
        netns: PathBuf,
        /// The pod's interface.
        interface: String,
    },
    /// The worker has no default route, and no interface was named.
    #[error("worker: no default route; name the tunnel's interface with host-interface")]
    NoPrimary,
    /// The worker's interface has no address.
    #[error("worker: interface {0} has no address (host-interface)")]
    NoWorkerAddress(String),
    /// The kernel refused to tell.
    #[error("{0}")]
    Kernel(#[from] peerpod_netlink::Error),
}

/// Looks at the namespace at `netns` and at the calling thread's own, which is the worker's.
/// Returns what was found and the identity (device, inode) of the namespace.
///
/// # Errors
/// By [`InspectError`], each naming the namespace and what was found wrong.
pub fn inspect(
    netns: &Path,
    settings: &InspectSettings,
) -> Result<(PodNetwork, (u64, u64)), InspectError> {
    if netns.as_os_str().is_empty() {
        return Err(InspectError::NoPath);
    }
    let pod = Netns::open(netns).map_err(InspectError::Open)?;
    if pod.id()? == Netns::current()?.id()? {
        return Err(InspectError::HostNetwork(netns.to_owned()));
    }
    let id = pod.id()?;
    let seen = pod.run(|| look(netns))?;
    let worker = worker(settings)?;
    let mut routes = seen.routes;
    for cidr in &settings.pod_subnet_cidrs {
        let gateway = seen.gateways.iter().find(|g| g.is_ipv4() == cidr.is_ipv4());
        routes.push(Route {
            destination: *cidr,
            gateway: gateway.copied(),
            protocol: "static".to_owned(),
            scope: if gateway.is_some() { "universe" } else { "link" }.to_owned(),
        });
    }
    routes.sort_by_key(|r| r.gateway.is_some());
    let network = PodNetwork {
        interface: seen.link.name,
        mac: seen.mac,
        mtu: seen.link.mtu,
        addresses: seen.addresses,
        routes,
        neighbors: seen.neighbors,
        worker: worker.addresses,
        underlay_mtu: worker.mtu,
        dedicated: worker.dedicated,
    };
    Ok((network, id))
}

struct Seen {
    link: Link,
    mac: MacText,
    addresses: Vec<IpNetwork>,
    routes: Vec<Route>,
    gateways: Vec<IpAddr>,
    neighbors: Vec<Neighbor>,
}

fn look(netns: &Path) -> Result<Seen, InspectError> {
    let handle = Handle::here()?;
    let all = handle.routes()?;
    let primary = primary(&all).ok_or_else(|| InspectError::NoDefaultRoute(netns.to_owned()))?;
    let link = handle.link(&primary.device)?;
    let Some(mac) = link.mac.map(MacText) else {
        return Err(InspectError::NoMac { netns: netns.to_owned(), interface: link.name });
    };
    let addresses = one_per_family(netns, &link, handle.addresses(link.index)?)?;
    let mine = |r: &&KernelRoute| r.device == link.name && !is_link_local(r.destination.ip());
    let mut kept: Vec<&KernelRoute> = all.iter().filter(mine).collect();
    kept.sort_by_key(|r| (r.destination, r.metric));
    let gateways = kept.iter().filter(|r| r.is_default()).filter_map(|r| r.gateway).collect();
    let routes = kept.into_iter().filter_map(carried).collect();
    let neighbors = handle.neighbours()?.into_iter();
    let neighbors = neighbors
        .filter(|n| n.index == link.index && n.state == NeighbourState::Permanent)
        .filter(|n| !n.ip.is_multicast())
        .filter_map(|n| Some(Neighbor { ip: n.ip, mac: MacText(n.mac?) }))
        .collect();
    Ok(Seen { link, mac, addresses, routes, gateways, neighbors })
}

/// The default route that wins: IPv4 before IPv6, then the lowest metric.
fn primary(routes: &[KernelRoute]) -> Option<&KernelRoute> {
    let defaults = routes.iter().filter(|r| r.is_default());
    defaults.min_by_key(|r| (r.destination.is_ipv6(), r.metric))
}

fn carried(route: &KernelRoute) -> Option<Route> {
    Some(Route {
        destination: route.destination,
        gateway: route.gateway,
        protocol: protocol_text(route.protocol)?.to_owned(),
        scope: scope_text(route.scope).to_owned(),
    })
}

fn one_per_family(
    netns: &Path,
    link: &Link,
    found: Vec<IpNetwork>,
) -> Result<Vec<IpNetwork>, InspectError> {
    let (v4, v6): (Vec<_>, Vec<_>) = found.into_iter().partition(IpNetwork::is_ipv4);
    for (family, addresses) in [("IPv4", &v4), ("IPv6", &v6)] {
        if addresses.len() > 1 {
            return Err(InspectError::ManyAddresses {
                netns: netns.to_owned(),
                interface: link.name.clone(),
                family,
                count: addresses.len(),
            });
        }
    }
    if v4.is_empty() && v6.is_empty() {
        let interface = link.name.clone();
        return Err(InspectError::NoAddress { netns: netns.to_owned(), interface });
    }
    Ok(v4.into_iter().chain(v6).collect())
}

struct Worker {
    addresses: Vec<IpNetwork>,
    mtu: u32,
    dedicated: bool,
}

fn worker(settings: &InspectSettings) -> Result<Worker, InspectError> {
    let handle = Handle::here()?;
    let routes = handle.routes()?;
    let primary = primary(&routes).map(|r| r.device.clone());
    let name = settings.host_interface.clone().filter(|n| !n.is_empty());
    let name = name.or_else(|| primary.clone()).ok_or(InspectError::NoPrimary)?;
    let link = handle.link(&name)?;
    let mut addresses = handle.addresses(link.index)?;
    addresses.sort_by_key(IpNetwork::is_ipv6);
    if addresses.is_empty() {
        return Err(InspectError::NoWorkerAddress(name));
    }
    let dedicated = primary.is_some_and(|p| p != name);
    Ok(Worker { addresses, mtu: link.mtu, dedicated })
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(a) => a.is_unicast_link_local() || a.is_multicast(),
    }
}
