//! Neighbour entries (ARP, ND).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
    NeighbourState as KernelState,
};

use crate::address::family;
use crate::{Error, Handle, Mac};

/// State of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// Never forgotten.
    Permanent,
    /// Anything else.
    Other(u16),
}

/// An entry of the neighbour table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Whom.
    pub ip: IpAddr,
    /// At which address; absent while unknown.
    pub mac: Option<Mac>,
    /// Index of the link.
    pub index: u32,
    /// How sure.
    pub state: NeighbourState,
}

impl Handle {
    /// Adds or replaces a permanent entry.
    ///
    /// # Errors
    /// When there is no such link or the kernel refuses.
    pub fn add_neighbour(&self, name: &str, ip: IpAddr, mac: Mac) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(ip);
        message.header.ifindex = self.link(name)?.index;
        message.header.state = KernelState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(match ip {
            IpAddr::V4(a) => NeighbourAddress::Inet(a),
            IpAddr::V6(a) => NeighbourAddress::Inet6(a),
        }));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let what = format!("add neighbour {ip} {mac} on {name}");
        self.request(&what, Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Where a VXLAN link sends frames: by Ethernet address (all zero: every other one), the address
    /// of the other end.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn forwards(&self, index: u32) -> Result<Vec<(Mac, IpAddr)>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let answer = self.dump("list forwarding entries", Message::GetNeighbour(message))?;
        Ok(answer.into_iter().filter_map(|m| read_forward(m, index)).collect())
    }

    /// Lets a VXLAN link send frames for that Ethernet address to that other end.
    ///
    /// # Errors
    /// When there is no such link or the kernel refuses.
    pub fn add_forward(&self, name: &str, mac: Mac, to: IpAddr) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.link(name)?.index;
        message.header.state = KernelState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        let to = NeighbourAddress::from(to);
        message.attributes.push(NeighbourAttribute::Destination(to));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let what = format!("add forwarding entry {mac} on {name}");
        self.request(&what, Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_APPEND)
    }

    /// All entries of the namespace.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn neighbours(&self) -> Result<Vec<Neighbour>, Error> {
        let answer =
            self.dump("list neighbours", Message::GetNeighbour(NeighbourMessage::default()))?;
        Ok(answer.into_iter().filter_map(read).collect())
    }
}

fn read_forward(message: Message, index: u32) -> Option<(Mac, IpAddr)> {
    let Message::NewNeighbour(message) = message else {
        return None;
    };
    let (mut mac, mut to) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                let v4 = <[u8; 4]>::try_from(&bytes[..]).ok().map(IpAddr::from);
                to = v4.or_else(|| <[u8; 16]>::try_from(&bytes[..]).ok().map(IpAddr::from));
            }
            _ => {}
        }
    }
    (message.header.ifindex == index).then_some((mac?, to?))
}

pub(crate) fn read(message: Message) -> Option<Neighbour> {
    let Message::NewNeighbour(message) = message else {
        return None;
    };
    let (mut ip, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => ip = Some(a.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => ip = Some(a.into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
            _ => {}
        }
    }
    let state = match message.header.state {
        KernelState::Permanent => NeighbourState::Permanent,
        other => NeighbourState::Other(other.into()),
    };
    Some(Neighbour { ip: ip?, mac, index: message.header.ifindex, state })
}
