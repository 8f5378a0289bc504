//! Addresses of links.

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use std::net::IpAddr;

use crate::{Error, Handle};

impl Handle {
    /// Gives the link an address; there already is success. IPv6 addresses are usable at once
    /// (no duplicate detection: the address was assigned by somebody who knows).
    ///
    /// # Errors
    /// When there is no such link or the kernel refuses.
    pub fn add_address(&self, name: &str, address: IpNetwork) -> Result<(), Error> {
        self.give_address(name, address, AddressFlags::empty())
    }

    /// As [`Handle::add_address`], but the kernel adds no route to the network of the address.
    ///
    /// # Errors
    /// As [`Handle::add_address`].
    pub fn add_lone_address(&self, name: &str, address: IpNetwork) -> Result<(), Error> {
        self.give_address(name, address, AddressFlags::Noprefixroute)
    }

    fn give_address(
        &self,
        name: &str,
        address: IpNetwork,
        flags: AddressFlags,
    ) -> Result<(), Error> {
        let mut message = self.address_message(name, address)?;
        message.header.flags = AddressHeaderFlags::Nodad;
        let flags = flags | AddressFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(flags));
        let what = format!("add address {address} to {name}");
        self.request(&what, Message::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Takes an address away. Absent is success.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_address(&self, name: &str, address: IpNetwork) -> Result<(), Error> {
        let message = match self.address_message(name, address) {
            Err(e) if e.is_absent() => return Ok(()),
            other => other?,
        };
        let what = format!("delete address {address} of {name}");
        match self.request(&what, Message::DelAddress(message), 0) {
            Err(e) if !e.is_absent() => Err(e),
            _ => Ok(()),
        }
    }

    /// Addresses of the link with index `index`, IPv6 link-local ones left out.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn addresses(&self, index: u32) -> Result<Vec<IpNetwork>, Error> {
        let all = self.all_addresses()?;
        Ok(all.into_iter().filter(|(i, _)| *i == index).map(|(_, a)| a).collect())
    }

    /// Every address of the namespace with the index of its link, IPv6 link-local ones left out.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn all_addresses(&self) -> Result<Vec<(u32, IpNetwork)>, Error> {
        let answer = self.dump("list addresses", Message::GetAddress(AddressMessage::default()))?;
        Ok(answer.into_iter().filter_map(read).collect())
    }

    fn address_message(&self, name: &str, address: IpNetwork) -> Result<AddressMessage, Error> {
        let mut message = AddressMessage::default();
        message.header.index = self.link(name)?.index;
        message.header.prefix_len = address.prefix();
        message.header.family = family(address.ip());
        message.header.scope = AddressScope::Universe;
        message.attributes.push(AddressAttribute::Address(address.ip()));
        message.attributes.push(AddressAttribute::Local(address.ip()));
        if let IpNetwork::V4(v4) = address
            && v4.prefix() < 31
        {
            message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        Ok(message)
    }
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(crate) fn read(message: Message) -> Option<(u32, IpNetwork)> {
    let Message::NewAddress(message) = message else {
        return None;
    };
    if message.header.scope == AddressScope::Link {
        return None;
    }
    let find = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(a) if local => Some(*a),
            AddressAttribute::Address(a) if !local => Some(*a),
            _ => None,
        })
    };
    let address = find(true).or_else(|| find(false))?;
    Some((message.header.index, IpNetwork::new(address, message.header.prefix_len).ok()?))
}
