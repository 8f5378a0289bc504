//! Forwarding and pinning in the pod's namespace: one netdev table, made in one batch.
//!
//! ```text
//!   from_pod   ingress of eth0     everything → vxlan1
//!   from_vm    ingress of vxlan1   the pod's MAC and one of its addresses → eth0;  else drop, counted
//! ```

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use peerpod_netlink::nft::expression::{Base, Compare, Meta, Rule, Verdict};
use peerpod_netlink::nft::{Batch, Chain, Committed, Counter, Family, Hook, Nft, Table};
use peerpod_netlink::{Error, Mac};

use super::Tunnel;

const TABLE: Table<'static> = Table { family: Family::Netdev, name: "peerpod" };
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];

/// Replaces the table of the calling thread's namespace by the tunnel's own. `pod` and `vm` are the
/// indexes of the pod's interface and of the VXLAN device, `device` the latter's name.
pub(super) fn set(tunnel: &Tunnel, device: &str, pod: u32, vm: u32) -> Result<(), Error> {
    let ingress = |name, device| Chain {
        name,
        hook: Some((Hook::Ingress(device), 0)),
        drop_by_default: false,
    };
    let mut batch = Batch::new();
    // Only where there is something: a deletion is waited for, some 10 ms.
    if exists()? {
        batch = batch.delete_table(TABLE);
    }
    batch = batch
        .new_table(TABLE)
        .chain(TABLE, ingress("from_pod", &tunnel.interface))
        .chain(TABLE, ingress("from_vm", device))
        .rule(TABLE, "from_pod", &Rule::new().counter().forward_to(vm));
    for rule in allowed(tunnel) {
        batch = batch.rule(TABLE, "from_vm", &rule.counter().forward_to(pod));
    }
    if !has_ipv6(tunnel) {
        batch = batch.rule(TABLE, "from_vm", &chatter(tunnel.mac.0).verdict(Verdict::Drop));
    }
    batch = batch.rule(TABLE, "from_vm", &Rule::new().counter().verdict(Verdict::Drop));
    batch.send("forward and pin")
}

/// Takes the table away; absent is success. What is returned is better dropped last.
pub(super) fn clear() -> Result<Option<Committed>, Error> {
    if !exists()? {
        return Ok(None);
    }
    Batch::new().delete_table(TABLE).commit("stop forwarding").map(Some)
}

fn exists() -> Result<bool, Error> {
    Ok(Nft::tables(Family::Netdev)?.iter().any(|t| t == TABLE.name))
}

/// Whether the table has every rule of the tunnel.
pub(super) fn stands(tunnel: &Tunnel) -> Result<bool, Error> {
    if !exists()? {
        return Ok(false);
    }
    let from_vm = Nft::counters(TABLE, "from_vm")?.len();
    let wanted = allowed(tunnel).len() + usize::from(!has_ipv6(tunnel)) + 1;
    Ok(Nft::counters(TABLE, "from_pod")?.len() == 1 && from_vm == wanted)
}

/// Packets to the VM, packets to the pod's interface, packets dropped.
pub(super) fn counters() -> Result<(Counter, Counter, Counter), Error> {
    let to_vm = Nft::counters(TABLE, "from_pod")?.first().copied().unwrap_or_default();
    let from_vm = Nft::counters(TABLE, "from_vm")?;
    let (dropped, passed) = from_vm.split_last().map_or_else(Default::default, |(d, p)| (*d, p));
    let mut to_pod = Counter::default();
    for counter in passed {
        to_pod.packets += counter.packets;
        to_pod.bytes += counter.bytes;
    }
    Ok((to_vm, to_pod, dropped))
}

/// One rule for each kind of frame the VM may send: from the pod's MAC, and speaking of one of the
/// pod's addresses.
fn allowed(tunnel: &Tunnel) -> Vec<Rule> {
    let mac = tunnel.mac.0;
    let mut rules = Vec::new();
    for address in &tunnel.addresses {
        match address.ip() {
            IpAddr::V4(a) => {
                rules.push(frame(mac, IPV4).payload(0, Base::Network, 12, 4).is(&a.octets()));
                rules.push(
                    frame(mac, ARP)
                        .payload(0, Base::Network, 8, 6)
                        .is(&mac.0)
                        .payload(0, Base::Network, 14, 4)
                        .is(&a.octets()),
                );
            }
            IpAddr::V6(a) => {
                // Neighbour discovery also speaks from the link-local address that the kernel
                // derives from the MAC, and from no address at all.
                for source in [a, link_local(mac), Ipv6Addr::UNSPECIFIED] {
                    let rule = frame(mac, IPV6).payload(0, Base::Network, 8, 16);
                    rules.push(rule.is(&source.octets()));
                }
            }
        }
    }
    rules
}

fn has_ipv6(tunnel: &Tunnel) -> bool {
    tunnel.addresses.iter().any(IpNetwork::is_ipv6)
}

/// What every Linux interface sends to IPv6 groups when it comes up; where the pod has no IPv6 it is
/// dropped like the rest, but does not count as an attempt.
fn chatter(mac: Mac) -> Rule {
    frame(mac, IPV6).payload(0, Base::Network, 24, 1).is(&[0xff])
}

trait Is {
    fn is(self, value: &[u8]) -> Self;
}

impl Is for Rule {
    fn is(self, value: &[u8]) -> Self {
        self.compare(0, Compare::Equal, value)
    }
}

fn frame(mac: Mac, ether_type: [u8; 2]) -> Rule {
    Rule::new().payload(0, Base::Link, 6, 6).is(&mac.0).meta(0, Meta::Protocol).is(&ether_type)
}

/// The modified EUI-64 address of RFC 4291, appendix A.
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let mut bytes = [0u8; 16];
    bytes[..2].copy_from_slice(&[0xfe, 0x80]);
    bytes[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(bytes)
}
