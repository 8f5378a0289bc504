//! Routes of the main table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};

use crate::address::family;
use crate::{Error, Handle};

/// Who made a route; the numbers and names are the kernel's and iproute2's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// The kernel itself, with an address.
    Kernel,
    /// `ip route add`.
    #[default]
    Boot,
    /// An administrator or a CNI.
    Static,
    /// A DHCP client.
    Dhcp,
    /// Something else.
    Other(u8),
}

/// How far a destination is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Anywhere.
    #[default]
    Universe,
    /// This site.
    Site,
    /// On the link.
    Link,
    /// This host.
    Host,
    /// Nowhere.
    Nowhere,
}

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `0.0.0.0/0` or `::/0` for the default route.
    pub destination: IpNetwork,
    /// Next hop, if not on the link.
    pub gateway: Option<IpAddr>,
    /// The link, by name.
    pub device: String,
    /// Who made it.
    pub protocol: Protocol,
    /// How far.
    pub scope: Scope,
    /// Lower wins.
    pub metric: u32,
    /// The gateway is reachable on the link although no route says so.
    pub onlink: bool,
    /// Source address to prefer.
    pub source: Option<IpAddr>,
}

impl Route {
    /// A route by `device`, as a CNI would make it.
    pub fn via(destination: IpNetwork, gateway: Option<IpAddr>, device: &str) -> Self {
        Self {
            destination,
            gateway,
            device: device.to_owned(),
            protocol: Protocol::Boot,
            scope: if gateway.is_some() { Scope::Universe } else { Scope::Link },
            metric: 0,
            onlink: false,
            source: None,
        }
    }

    /// Whether this is a default route.
    pub fn is_default(&self) -> bool {
        self.destination.prefix() == 0
    }
}

impl Handle {
    /// Adds or replaces a route.
    ///
    /// # Errors
    /// When the device is not there or the kernel refuses.
    pub fn add_route(&self, route: &Route) -> Result<(), Error> {
        let what = format!("add route {} by {}", route.destination, route.device);
        let message = self.route_message(route)?;
        self.request(&what, Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Deletes a route. Absent is success.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_route(&self, route: &Route) -> Result<(), Error> {
        let message = match self.route_message(route) {
            Err(e) if e.is_absent() => return Ok(()),
            other => other?,
        };
        let what = format!("delete route {} by {}", route.destination, route.device);
        match self.request(&what, Message::DelRoute(message), 0) {
            Err(e) if !e.is_absent() => Err(e),
            _ => Ok(()),
        }
    }

    /// Unicast routes of the main table, both families, in the order of the kernel.
    ///
    /// # Errors
    /// When the kernel refuses a dump.
    pub fn routes(&self) -> Result<Vec<Route>, Error> {
        let mut told = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            told.extend(self.dump("list routes", Message::GetRoute(message))?);
        }
        let links = self.links_at(&told.iter().filter_map(output).collect())?;
        let name = |index: u32| links.iter().find(|l| l.index == index).map(|l| l.name.clone());
        Ok(told.into_iter().filter_map(|m| read(m, &name)).collect())
    }

    fn route_message(&self, route: &Route) -> Result<RouteMessage, Error> {
        let index = self.link(&route.device)?.index;
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.destination.ip());
        message.header.destination_prefix_length = route.destination.prefix();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = route.protocol.into();
        message.header.scope = route.scope.into();
        message.header.kind = RouteType::Unicast;
        if route.onlink {
            message.header.flags = RouteFlags::Onlink;
        }
        if !route.is_default() {
            let network: RouteAddress = route.destination.network().into();
            message.attributes.push(RouteAttribute::Destination(network));
        }
        if let Some(gateway) = route.gateway {
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        if let Some(source) = route.source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        if route.metric != 0 {
            message.attributes.push(RouteAttribute::Priority(route.metric));
        }
        message.attributes.push(RouteAttribute::Oif(index));
        Ok(message)
    }
}

/// Number of the link that a route leaves by.
fn output(message: &Message) -> Option<u32> {
    let Message::NewRoute(message) = message else {
        return None;
    };
    message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

pub(crate) fn read(message: Message, name: &impl Fn(u32) -> Option<String>) -> Option<Route> {
    let Message::NewRoute(message) = message else {
        return None;
    };
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let default = match header.address_family {
        AddressFamily::Inet => IpNetwork::V4(Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).ok()?),
        AddressFamily::Inet6 => IpNetwork::V6(Ipv6Network::new(Ipv6Addr::UNSPECIFIED, 0).ok()?),
        _ => return None,
    };
    let mut route = Route {
        destination: default,
        gateway: None,
        device: String::new(),
        protocol: header.protocol.into(),
        scope: header.scope.into(),
        metric: 0,
        onlink: header.flags.contains(RouteFlags::Onlink),
        source: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(a) => {
                route.destination =
                    IpNetwork::new(plain(a)?, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Gateway(a) => route.gateway = plain(a),
            RouteAttribute::PrefSource(a) => route.source = plain(a),
            RouteAttribute::Oif(index) => route.device = name(*index)?,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            _ => {}
        }
    }
    (!route.device.is_empty()).then_some(route)
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

impl From<RouteProtocol> for Protocol {
    fn from(value: RouteProtocol) -> Self {
        match value {
            RouteProtocol::Kernel => Self::Kernel,
            RouteProtocol::Boot => Self::Boot,
            RouteProtocol::Static => Self::Static,
            RouteProtocol::Dhcp => Self::Dhcp,
            other => Self::Other(other.into()),
        }
    }
}

impl From<Protocol> for RouteProtocol {
    fn from(value: Protocol) -> Self {
        match value {
            Protocol::Kernel => Self::Kernel,
            Protocol::Boot => Self::Boot,
            Protocol::Static => Self::Static,
            Protocol::Dhcp => Self::Dhcp,
            Protocol::Other(other) => other.into(),
        }
    }
}

impl From<RouteScope> for Scope {
    fn from(value: RouteScope) -> Self {
        match value {
            RouteScope::Site => Self::Site,
            RouteScope::Link => Self::Link,
            RouteScope::Host => Self::Host,
            RouteScope::NoWhere => Self::Nowhere,
            _ => Self::Universe,
        }
    }
}

impl From<Scope> for RouteScope {
    fn from(value: Scope) -> Self {
        match value {
            Scope::Universe => Self::Universe,
            Scope::Site => Self::Site,
            Scope::Link => Self::Link,
            Scope::Host => Self::Host,
            Scope::Nowhere => Self::NoWhere,
        }
    }
}
