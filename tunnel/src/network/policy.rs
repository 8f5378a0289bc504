//! What a pod may do on the worker's network besides speaking from its own addresses, and which
//! addresses are the worker's own.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use peerpod_netlink::{Error, Handle};

/// Where clouds answer questions about a machine, its keys included: all of AWS, Azure, Google Cloud
/// and OpenStack; AWS' for tasks; Azure's WireServer; IPv6 of AWS and of Google Cloud.
pub const METADATA: [&str; 5] =
    ["169.254.169.254", "169.254.170.2", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"];

/// Something that pods do not get to do unless a setting says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liberty {
    /// Connect to the worker's own addresses.
    Node,
    /// Reach the addresses that are blocked.
    Metadata,
    /// Speak as a router, multicast querier or DHCP server.
    Router,
    /// Speak from addresses, and with tags, that are not the pod's.
    Foreign,
}

impl Liberty {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Node, Self::Metadata, Self::Router, Self::Foreign];

    /// One word, as in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Metadata => "metadata",
            Self::Router => "router",
            Self::Foreign => "foreign",
        }
    }
}

impl FromStr for Liberty {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|l| l.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not node, metadata, router or foreign"))
    }
}

/// What pods may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What is open.
    pub allow: BTreeSet<Liberty>,
    /// Addresses no pod reaches without [`Liberty::Metadata`].
    pub block: Vec<IpAddr>,
}

impl Default for Policy {
    fn default() -> Self {
        let block = METADATA.iter().filter_map(|a| a.parse().ok()).collect();
        Self { allow: BTreeSet::new(), block }
    }
}

impl Policy {
    pub(super) fn allows(&self, liberty: Liberty) -> bool {
        self.allow.contains(&liberty)
    }

    pub(super) fn blocked(&self) -> BTreeSet<IpAddr> {
        if self.allows(Liberty::Metadata) {
            return BTreeSet::new();
        }
        self.block.iter().copied().collect()
    }
}

/// The addresses of this host, broadcasts included; the calling thread's namespace is the host's.
/// Those of `dummy` links are services': kube-proxy and the node-local DNS cache keep theirs there.
pub(super) fn host_addresses() -> Result<BTreeSet<IpAddr>, Error> {
    let handle = Handle::here()?;
    let addresses = handle.all_addresses()?;
    let links = handle.links_at(&addresses.iter().map(|(index, _)| *index).collect())?;
    let services: BTreeSet<u32> =
        links.iter().filter(|l| l.kind.as_deref() == Some("dummy")).map(|l| l.index).collect();
    let mut found =
        BTreeSet::from([IpAddr::V4(Ipv4Addr::BROADCAST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    for (index, address) in addresses {
        if services.contains(&index) || address.ip().is_loopback() {
            continue;
        }
        found.insert(address.ip());
        if let IpNetwork::V4(v4) = address
            && v4.prefix() < 31
        {
            found.insert(v4.broadcast().into());
            found.insert(v4.network().into());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_that_is_blocked_by_default_parses() {
        assert_eq!(Policy::default().blocked().len(), METADATA.len());
    }

    #[test]
    fn words_of_settings_are_read_back() {
        for liberty in Liberty::ALL {
            assert_eq!(liberty.as_str().parse(), Ok(liberty));
        }
        assert!("all".parse::<Liberty>().unwrap_err().contains("metadata"));
    }
}
