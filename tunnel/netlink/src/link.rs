//! Links: make, here or in another namespace, find, change, delete.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::str::FromStr;

pub(crate) use message::{describe, read};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};

pub use netlink_packet_route::link::InfoKind;

use crate::{Error, Handle, Netns};

mod message;

/// So many links are asked for by their numbers.
const FEW: usize = 8;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || format!("{text:?} is not a MAC address such as 02:00:00:00:00:01");
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(mac)) }
    }
}

/// A link as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Number in its namespace.
    pub index: u32,
    /// Name in its namespace.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// Bytes of an IP packet it carries.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Free text; our owner mark.
    pub alias: Option<String>,
    /// `vxlan`, `veth`, `bridge`, …
    pub kind: Option<String>,
    /// Tunnel values, for a VXLAN link.
    pub vxlan: Option<Vxlan>,
    /// A VXLAN link whose senders can redirect it, or that leaves the outer checksum out.
    pub lax: bool,
    /// The bridge it belongs to.
    pub master: Option<u32>,
    /// Packets received and sent.
    pub packets: (u64, u64),
    /// Bytes received and sent.
    pub bytes: (u64, u64),
}

/// What a VXLAN link is made of. Learning is always off and the UDP checksum on: a zero checksum
/// defeats receive aggregation, and learning lets any sender redirect the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Network id, 24 bits.
    pub vni: u32,
    /// The other end.
    pub remote: IpAddr,
    /// UDP port.
    pub port: u16,
}

/// A link to be made.
#[derive(Clone, Debug)]
pub enum NewLink<'a> {
    /// A pair; the peer may start in another namespace.
    Veth {
        /// Name here.
        name: &'a str,
        /// Name of the other end.
        peer: &'a str,
        /// Where the other end starts, if not here.
        peer_netns: Option<&'a Netns>,
    },
    /// A bridge without spanning tree.
    Bridge {
        /// Name here.
        name: &'a str,
    },
    /// A VXLAN tunnel end.
    Vxlan {
        /// Name here.
        name: &'a str,
        /// Its values.
        vxlan: Vxlan,
        /// Owner mark, written in the same request.
        alias: &'a str,
    },
}

impl Handle {
    /// Makes a link, down.
    ///
    /// # Errors
    /// `is_exists` when the name, or the (VNI, port) of a VXLAN link, is taken.
    pub fn add_link(&self, new: &NewLink<'_>) -> Result<(), Error> {
        let (name, attributes) = describe(new);
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.extend(attributes);
        let operation = format!("add link {name}");
        self.request(&operation, Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
        // The alias of a new link is ignored by the kernel, so it needs a request of its own.
        if let NewLink::Vxlan { name, alias, .. } = new {
            self.set_alias(name, alias)?;
        }
        Ok(())
    }

    /// Makes a VXLAN link in another namespace, which is given with a handle on it, down and without a
    /// mark; its packets leave and arrive here. It is never moved: a move waits for the kernel's
    /// readers, some 20 ms.
    ///
    /// # Errors
    /// `is_exists` when the name is taken there, or the (VNI, port) here.
    pub fn add_vxlan_in(
        &self,
        (netns, there): (&Netns, &Handle),
        name: &str,
        vxlan: Vxlan,
    ) -> Result<(), Error> {
        match self.add_in(netns, name, vxlan) {
            // Kernels before 6.15 refuse a name that is taken here, although it is free there.
            Err(e) if e.is_exists() && self.link(name).is_ok() => {
                self.add_in_by_another_name((netns, there), name, vxlan)
            }
            other => other,
        }
    }

    fn add_in(&self, netns: &Netns, name: &str, vxlan: Vxlan) -> Result<(), Error> {
        let (_, attributes) = describe(&NewLink::Vxlan { name, vxlan, alias: "" });
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        message.attributes.extend(attributes);
        let operation = format!("add link {name} in {}", netns.path().display());
        self.request(&operation, Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn add_in_by_another_name(
        &self,
        (netns, there): (&Netns, &Handle),
        name: &str,
        vxlan: Vxlan,
    ) -> Result<(), Error> {
        let other = format!("ppvx{}", vxlan.vni);
        // What an earlier attempt of this VNI has left.
        there.delete_link(&other)?;
        self.add_in(netns, &other, vxlan)?;
        let renamed = there.rename(&other, name);
        if renamed.is_err() {
            // The first error is the one to tell.
            let _ = there.delete_link(&other);
        }
        renamed
    }

    /// All links of the namespace, without what has passed through them: the kernel takes far longer
    /// to count that, for each, than for all the rest.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn links(&self) -> Result<Vec<Link>, Error> {
        self.some_links("list links", None)
    }

    /// The links of a kind, likewise: among thousands of pods' the kernel finds the few by itself.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn links_of(&self, kind: InfoKind) -> Result<Vec<Link>, Error> {
        let name = kind.to_string();
        let mut found = self.some_links(&format!("list {name} links"), Some(kind))?;
        // A kernel that does not know the kind, or old ones, do not choose.
        found.retain(|link| link.kind.as_deref() == Some(&name));
        Ok(found)
    }

    fn some_links(&self, operation: &str, kind: Option<InfoKind>) -> Result<Vec<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let info = kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        message.attributes.extend(info);
        let answer = self.dump(operation, Message::GetLink(message))?;
        Ok(answer.into_iter().filter_map(read).collect())
    }

    /// The links with those numbers, as far as they are there: one by one where they are few, which
    /// spares a worker with thousands of others a list of them all.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn links_at(&self, indexes: &BTreeSet<u32>) -> Result<Vec<Link>, Error> {
        if indexes.len() > FEW {
            let all = self.links()?.into_iter();
            return Ok(all.filter(|link| indexes.contains(&link.index)).collect());
        }
        let mut found = Vec::new();
        for index in indexes {
            let mut message = LinkMessage::default();
            message.header.index = *index;
            match self.get(&format!("get link {index}"), Message::GetLink(message)) {
                Err(e) if e.is_absent() => {}
                answer => found.extend(answer?.into_iter().filter_map(read)),
            }
        }
        Ok(found)
    }

    /// The link of that name.
    ///
    /// # Errors
    /// [`Error::NoLink`] when there is none.
    pub fn link(&self, name: &str) -> Result<Link, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.get(&format!("get link {name}"), Message::GetLink(message)) {
            Ok(answer) => {
                let found = answer.into_iter().find_map(read);
                found.ok_or_else(|| Error::NoLink(name.to_owned()))
            }
            Err(e) if e.is_absent() => Err(Error::NoLink(name.to_owned())),
            Err(e) => Err(e),
        }
    }

    /// Deletes the link. Absent is success.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_link(&self, name: &str) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.request(&format!("delete link {name}"), Message::DelLink(message), 0) {
            Err(e) if !e.is_absent() => Err(e),
            _ => Ok(()),
        }
    }

    /// Sets the link up or down.
    ///
    /// # Errors
    /// When there is no such link or the kernel refuses.
    pub fn set_up(&self, name: &str, up: bool) -> Result<(), Error> {
        let mut message = self.named(name)?;
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.set(&format!("set link {name} {}", if up { "up" } else { "down" }), message)
    }

    /// Sets the MTU, in bytes of IP packet.
    ///
    /// # Errors
    /// As [`Handle::set_up`].
    pub fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), Error> {
        self.change(name, &format!("set mtu of {name} to {mtu}"), LinkAttribute::Mtu(mtu))
    }

    /// Sets how many segments the link takes in one packet: with 1, the kernel cuts before the link, as
    /// for a network card that cannot.
    ///
    /// # Errors
    /// As [`Handle::set_up`].
    pub fn set_gso_max_segs(&self, name: &str, most: u32) -> Result<(), Error> {
        let what = format!("let {name} take {most} segments at a time");
        self.change(name, &what, LinkAttribute::GsoMaxSegs(most))
    }

    /// Sets the Ethernet address.
    ///
    /// # Errors
    /// As [`Handle::set_up`].
    pub fn set_mac(&self, name: &str, mac: Mac) -> Result<(), Error> {
        let what = format!("set address of {name} to {mac}");
        self.change(name, &what, LinkAttribute::Address(mac.0.to_vec()))
    }

    /// Sets the free text.
    ///
    /// # Errors
    /// As [`Handle::set_up`].
    pub fn set_alias(&self, name: &str, alias: &str) -> Result<(), Error> {
        self.change(name, &format!("mark {name}"), LinkAttribute::IfAlias(alias.to_owned()))
    }

    /// Puts the link under a bridge.
    ///
    /// # Errors
    /// As [`Handle::set_up`].
    pub fn set_master(&self, name: &str, bridge: &str) -> Result<(), Error> {
        let bridge = self.link(bridge)?;
        let what = format!("put {name} under {}", bridge.name);
        self.change(name, &what, LinkAttribute::Controller(bridge.index))
    }

    /// Gives the link another name; it must be down.
    ///
    /// # Errors
    /// As [`Handle::set_up`].
    pub fn rename(&self, name: &str, to: &str) -> Result<(), Error> {
        self.change(name, &format!("rename {name} to {to}"), LinkAttribute::IfName(to.to_owned()))
    }

    fn change(&self, name: &str, what: &str, attribute: LinkAttribute) -> Result<(), Error> {
        let mut message = self.named(name)?;
        message.attributes.push(attribute);
        self.set(what, message)
    }

    fn set(&self, what: &str, message: LinkMessage) -> Result<(), Error> {
        self.request(what, Message::SetLink(message), 0)
    }

    fn named(&self, name: &str) -> Result<LinkMessage, Error> {
        let mut message = LinkMessage::default();
        message.header.index = self.link(name)?.index;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vxlan_link_goes_by_another_name_into_a_namespace_and_gets_its_own_there() {
        if !nix::unistd::geteuid().is_root() {
            println!(
                "SKIP a_vxlan_link_goes_by_another_name_into_a_namespace_and_gets_its_own_there: \
                 needs root to make network namespaces"
            );
            return;
        }
        let (here, there) = (Netns::create().unwrap(), Netns::create().unwrap());
        let vxlan = |vni| Vxlan { vni, remote: IpAddr::from([192, 0, 2, 2]), port: 9000 };
        let (near, far) = (here.handle().unwrap(), there.handle().unwrap());
        let add = |vni| near.add_in_by_another_name((&there, &far), "eth0", vxlan(vni));
        near.add_in(&there, "ppvx7", vxlan(7)).expect("what a killed attempt has left");
        add(7).expect("made");
        assert_eq!(far.link("eth0").unwrap().vxlan, Some(vxlan(7)));
        assert!(add(7).unwrap_err().is_exists(), "the VNI is taken");
        assert!(add(8).unwrap_err().is_exists(), "the name is taken");
        let names: Vec<_> = far.links().unwrap().into_iter().map(|l| l.name).collect();
        assert_eq!(names, ["lo", "eth0"]);
        assert_eq!(near.links().unwrap().len(), 1);
    }
}
