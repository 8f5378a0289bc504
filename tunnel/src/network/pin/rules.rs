//! The rules, chain by chain. What goes on is named, never what does not: an expression that cannot be
//! worked out, such as the port of a packet that is too short for one, ends its rule, and with no
//! other rule the packet is dropped.
//!
//! ```text
//!   ip4, ip6   the worker's or a blocked address → near4, near6; then by protocol
//!   near4, 6   whole packets only: TCP but not its first (SYN), UDP to who has asked, answers of ICMP
//!   nd         neighbour discovery: exactly the pod's own addresses, exactly the pod's own MAC
//! ```

use std::net::{IpAddr, Ipv6Addr};

use peerpod_netlink::Mac;
use peerpod_netlink::nft::expression::{Base, Compare, Meta, Rule, Verdict};
use peerpod_netlink::nft::{Chain, Hook, Set, Whole};

use super::{Around, Ends, TABLE};
use crate::network::Tunnel;
use crate::network::guard::STAMP;
use crate::network::policy::Liberty;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];
const ICMP: u8 = 1;
const IGMP: u8 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
/// The port of a server, 547.
const DHCPV6: [u8; 2] = [0x02, 0x23];
/// No protocol has that number; what compares unequal to it has been read.
const RESERVED: u8 = 255;
/// How long an answer by UDP may take.
const ASKED_MS: u64 = 180_000;
/// Questions remembered at a time.
const ASKED_MOST: u32 = 65_536;

const DELIVER: &str = "deliver";
const DROPS: [&str; 7] = [
    "drop_source",
    "drop_foreign",
    "drop_claim",
    "drop_router",
    "drop_node",
    "drop_metadata",
    "drop_odd",
];

/// The chains under way.
struct Building<'a> {
    tunnel: &'a Tunnel,
    around: &'a Around<'a>,
    rules: Vec<(&'static str, Rule)>,
}

pub(super) fn whole<'a>(tunnel: &'a Tunnel, around: &'a Around<'a>, ends: Ends<'a>) -> Whole<'a> {
    let mut building = Building { tunnel, around, rules: Vec::new() };
    building.pod_side(ends.vm);
    building.vm_side();
    building.ip4();
    building.near4();
    building.ip6();
    building.near6();
    building.nd();
    building.add(DELIVER, Rule::new().counter().prioritise(0).forward_to(ends.pod));
    for drop in DROPS {
        building.add(drop, Rule::new().counter().verdict(Verdict::Drop));
    }
    let ingress = |name, device| Chain {
        name,
        hook: Some((Hook::Ingress(device), 0)),
        drop_by_default: true,
    };
    let inner = |name| Chain { name, hook: None, drop_by_default: false };
    // A chain that is gone to is made before.
    let mut chains: Vec<_> = DROPS.into_iter().map(inner).collect();
    chains.extend([DELIVER, "nd", "near4", "near6", "ip4", "ip6"].map(inner));
    chains.push(ingress("from_pod", tunnel.interface.as_str()));
    chains.push(ingress("from_vm", ends.device));
    Whole { table: TABLE, sets: sets(around), chains, rules: building.rules }
}

fn sets(around: &Around<'_>) -> Vec<(Set<'static>, Option<Vec<Vec<u8>>>)> {
    let blocked = around.policy.blocked();
    let mut near = blocked.clone();
    if !around.policy.allows(Liberty::Node) {
        near.extend(&around.host);
    }
    let keys = |all: &std::collections::BTreeSet<IpAddr>, v4: bool| {
        let some = all.iter().filter(|a| a.is_ipv4() == v4).map(|a| match a {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        });
        Some(some.collect())
    };
    let fixed = |name, key_length| Set { name, key_length, remembers: 0 };
    let asked = |name, key_length| Set { name, key_length, remembers: ASKED_MOST };
    vec![
        (fixed("near4", 4), keys(&near, true)),
        (fixed("near6", 16), keys(&near, false)),
        (fixed("blocked4", 4), keys(&blocked, true)),
        (fixed("blocked6", 16), keys(&blocked, false)),
        (asked("asked4", 12), None),
        (asked("asked6", 24), None),
    ]
}

/// Bytes of the IP or ARP header.
fn net(offset: u32, length: u32) -> Rule {
    Rule::new().payload(0, Base::Network, offset, length)
}

fn ether(ether_type: [u8; 2]) -> Rule {
    // As it stands in the frame: of a tagged one, that is the tag's type.
    Rule::new().payload(0, Base::Link, 12, 2).is(&ether_type)
}

fn l4(protocol: u8) -> Rule {
    Rule::new().meta(0, Meta::L4Protocol).is(&[protocol])
}

trait Is {
    fn is(self, value: &[u8]) -> Self;
    fn differs(self, value: &[u8]) -> Self;
    fn then_net(self, offset: u32, length: u32) -> Self;
    /// None of the values in the first byte of slot 0.
    fn none_of(self, values: &[u8]) -> Self;
}

impl Is for Rule {
    fn is(self, value: &[u8]) -> Self {
        self.compare(0, Compare::Equal, value)
    }

    fn differs(self, value: &[u8]) -> Self {
        self.compare(0, Compare::NotEqual, value)
    }

    fn then_net(self, offset: u32, length: u32) -> Self {
        self.payload(0, Base::Network, offset, length)
    }

    fn none_of(self, values: &[u8]) -> Self {
        values.iter().fold(self, |rule, value| rule.differs(&[*value]))
    }
}

impl Building<'_> {
    fn add(&mut self, chain: &'static str, rule: Rule) {
        self.rules.push((chain, rule));
    }

    fn allows(&self, liberty: Liberty) -> bool {
        self.around.policy.allows(liberty)
    }

    /// The pod's addresses of one family; for IPv6 also the link-local one the kernel derives.
    fn own(&self, v4: bool) -> Vec<Vec<u8>> {
        let mut own = Vec::new();
        for address in &self.tunnel.addresses {
            match address.ip() {
                IpAddr::V4(a) if v4 => own.push(a.octets().to_vec()),
                IpAddr::V6(a) if !v4 => own.push(a.octets().to_vec()),
                _ => {}
            }
        }
        if !v4 && !own.is_empty() {
            own.push(link_local(self.tunnel.mac.0).octets().to_vec());
        }
        own
    }

    fn pod_side(&mut self, vm: u32) {
        if !self.allows(Liberty::Node) {
            let v4 = ether(IPV4).meta(0, Meta::L4Protocol).is(&[UDP]).then_net(12, 4);
            let v4 = v4.lookup(0, "near4", false);
            self.add("from_pod", remember(v4, 1, "asked4"));
            let v6 = ether(IPV6).meta(0, Meta::L4Protocol).is(&[UDP]).then_net(8, 16);
            self.add("from_pod", remember(v6.clone().lookup(0, "near6", false), 4, "asked6"));
            let local = v6.then_net(8, 2).mask(0, &[0xff, 0xc0]).is(&[0xfe, 0x80]).then_net(8, 16);
            self.add("from_pod", remember(local, 4, "asked6"));
        }
        self.add("from_pod", Rule::new().counter().forward_to(vm));
    }

    fn vm_side(&mut self) {
        let stamped = Rule::new().meta(0, Meta::Priority);
        self.add("from_vm", stamped.differs(&STAMP.to_ne_bytes()).goto("drop_source"));
        let (mac, foreign) = (self.tunnel.mac.0, self.allows(Liberty::Foreign));
        if foreign {
            self.add("from_vm", Rule::new().meta(0, Meta::Protocol).is(&IPV4).goto("ip4"));
            self.add("from_vm", Rule::new().meta(0, Meta::Protocol).is(&IPV6).goto("ip6"));
            self.add("from_vm", Rule::new().goto(DELIVER));
            return;
        }
        let other = Rule::new().payload(0, Base::Link, 6, 6).differs(&mac.0);
        self.add("from_vm", other.goto("drop_foreign"));
        for own in self.own(true) {
            self.add("from_vm", ether(IPV4).then_net(12, 4).is(&own).goto("ip4"));
            self.arp(&own);
        }
        if !self.own(true).is_empty() {
            self.add("from_vm", ether(ARP).goto("drop_claim"));
        }
        let own = self.own(false);
        for own in &own {
            self.add("from_vm", ether(IPV6).then_net(8, 16).is(own).goto("ip6"));
        }
        if own.is_empty() {
            // What every Linux interface sends to IPv6 groups when it comes up is no attempt.
            let chatter = ether(IPV6).then_net(24, 1).is(&[0xff]);
            self.add("from_vm", chatter.verdict(Verdict::Drop));
        } else {
            self.nameless(&own);
        }
        self.add("from_vm", Rule::new().goto("drop_foreign"));
    }

    /// Ethernet and IPv4, a question or an answer, from the pod's own addresses.
    fn arp(&mut self, own: &[u8]) {
        let sender = [&self.tunnel.mac.0.0, own].concat();
        for operation in [1, 2] {
            let header = ether(ARP).then_net(0, 8).is(&[0, 1, 8, 0, 6, 4, 0, operation]);
            self.add("from_vm", header.then_net(8, 10).is(&sender).goto(DELIVER));
        }
    }

    /// From no address at all: looking whether somebody has the pod's, and multicast membership.
    fn nameless(&mut self, own: &[Vec<u8>]) {
        let nameless = ether(IPV6).then_net(8, 16).is(&[0; 16]);
        for own in own {
            for (length, option) in [(24, None), (32, Some([14, 1]))] {
                let mut rule = discovery(nameless.clone(), length, 135).then_net(48, 16).is(own);
                if let Some(option) = option {
                    rule = rule.then_net(64, 2).is(&option);
                }
                self.add("from_vm", rule.goto(DELIVER));
            }
        }
        let member = nameless.clone().meta(0, Meta::L4Protocol).is(&[ICMPV6]);
        for kind in [131, 132, 143] {
            let rule = member.clone().payload(0, Base::Transport, 0, 1).is(&[kind]);
            self.add("from_vm", rule.goto(DELIVER));
        }
        let asks = nameless.then_net(6, 1).is(&[ICMPV6]).then_net(40, 1).is(&[133]);
        self.add("from_vm", asks.verdict(Verdict::Drop));
    }

    fn ip4(&mut self) {
        // Options can lead a packet elsewhere; only IGMP is sent with one.
        let plain = net(0, 1).differs(&[0x45]).then_net(9, 1).differs(&[IGMP]);
        self.add("ip4", plain.goto("drop_odd"));
        self.add("ip4", net(16, 1).is(&[127]).goto("drop_node"));
        self.add("ip4", net(16, 4).lookup(0, "near4", false).goto("near4"));
        self.add("ip4", net(9, 1).is(&[TCP]).goto(DELIVER));
        if self.allows(Liberty::Router) {
            self.add("ip4", Rule::new().goto(DELIVER));
            return;
        }
        // What follows a first fragment is of no use without it.
        let later = net(6, 2).mask(0, &[0x1f, 0xff]).differs(&[0, 0]);
        self.add("ip4", later.goto(DELIVER));
        let udp = l4(UDP).payload(0, Base::Transport, 0, 2).differs(&[0, 67]);
        self.add("ip4", udp.goto(DELIVER));
        // Redirects, advertisements and solicitations of routers; membership queries.
        let icmp = l4(ICMP).payload(0, Base::Transport, 0, 1).none_of(&[5, 9, 10]);
        self.add("ip4", icmp.goto(DELIVER));
        let igmp = l4(IGMP).payload(0, Base::Transport, 0, 1).none_of(&[0x11]);
        self.add("ip4", igmp.goto(DELIVER));
        let other = Rule::new().meta(0, Meta::L4Protocol).none_of(&[UDP, ICMP, IGMP]);
        self.add("ip4", other.goto(DELIVER));
        self.add("ip4", Rule::new().goto("drop_router"));
    }

    fn near4(&mut self) {
        self.add("near4", net(16, 4).lookup(0, "blocked4", false).goto("drop_metadata"));
        let part = net(6, 2).mask(0, &[0x3f, 0xff]).differs(&[0, 0]);
        self.add("near4", part.goto("drop_node"));
        self.add("near4", answering(l4(TCP)).goto(DELIVER));
        self.add("near4", answer(l4(UDP).then_net(16, 4), 1, "asked4").goto(DELIVER));
        for kind in [0, 3, 11, 12] {
            let icmp = l4(ICMP).payload(0, Base::Transport, 0, 1).is(&[kind]);
            self.add("near4", icmp.goto(DELIVER));
        }
        self.add("near4", Rule::new().goto("drop_node"));
    }

    fn ip6(&mut self) {
        if !self.allows(Liberty::Foreign) {
            for kind in [135, 136] {
                let nd = net(6, 1).is(&[ICMPV6]).then_net(40, 1).is(&[kind]);
                self.add("ip6", nd.goto("nd"));
            }
        }
        self.add("ip6", net(24, 16).lookup(0, "near6", false).goto("near6"));
        if !self.allows(Liberty::Node) {
            let local = net(24, 2).mask(0, &[0xff, 0xc0]).is(&[0xfe, 0x80]);
            self.add("ip6", local.goto("near6"));
        }
        self.add("ip6", net(6, 1).is(&[TCP]).goto(DELIVER));
        let router = self.allows(Liberty::Router);
        let bare = net(6, 1).is(&[UDP]).payload(0, Base::Transport, 0, 2);
        let bare = if router { bare } else { bare.differs(&DHCPV6) };
        self.add("ip6", bare.goto(DELIVER));
        self.add("ip6", Rule::new().has_extension(ROUTING).goto("drop_odd"));
        // A first part that ends within such headers shows no more than that; what stands behind it in
        // the frame is not the packet's.
        for header in [0, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION] {
            let more = Rule::new().extension(0, FRAGMENT, 0, 1).is(&[header]);
            self.add("ip6", more.goto("drop_odd"));
        }
        if !router {
            // What every host asks for, and nobody answers here, is no attempt.
            let asks = net(6, 1).is(&[ICMPV6]).then_net(40, 1).is(&[133]);
            self.add("ip6", asks.verdict(Verdict::Drop));
        }
        let later = Rule::new().extension(0, FRAGMENT, 2, 2).mask(0, &[0xff, 0xf8]);
        let later = later.differs(&[0, 0]).meta(0, Meta::L4Protocol).differs(&[RESERVED]);
        self.add("ip6", later.goto(DELIVER));
        let ports = l4(UDP).payload(0, Base::Transport, 0, 2);
        let ports = if router { ports } else { ports.differs(&DHCPV6) };
        self.add("ip6", ports.goto(DELIVER));
        // Without foreign addresses, discovery was looked at above; in other wrappings it is dropped.
        let mut kinds = vec![1, 2, 3, 4, 128, 129, 131, 132, 143];
        kinds.extend(if router { vec![130, 133, 134, 137] } else { Vec::new() });
        if self.allows(Liberty::Foreign) {
            kinds.extend([135, 136]);
        }
        for kind in kinds {
            let icmp = l4(ICMPV6).payload(0, Base::Transport, 0, 1).is(&[kind]);
            self.add("ip6", icmp.goto(DELIVER));
        }
        let other = Rule::new().meta(0, Meta::L4Protocol).none_of(&[UDP, ICMPV6, RESERVED]);
        self.add("ip6", other.goto(DELIVER));
        self.add("ip6", l4(ICMPV6).goto("drop_router"));
        self.add("ip6", l4(UDP).goto("drop_router"));
        self.add("ip6", Rule::new().goto("drop_odd"));
    }

    fn near6(&mut self) {
        self.add("near6", net(24, 16).lookup(0, "blocked6", false).goto("drop_metadata"));
        // Without extension headers, so no fragments.
        let bare = |protocol| net(6, 1).is(&[protocol]);
        self.add("near6", answering(bare(TCP)).goto(DELIVER));
        self.add("near6", answer(bare(UDP).then_net(24, 16), 4, "asked6").goto(DELIVER));
        for kind in [1, 2, 3, 4, 129] {
            let icmp = bare(ICMPV6).payload(0, Base::Transport, 0, 1).is(&[kind]);
            self.add("near6", icmp.goto(DELIVER));
        }
        self.add("near6", Rule::new().goto("drop_node"));
    }

    fn nd(&mut self) {
        let mac = self.tunnel.mac.0.0;
        // Whoever looks for others names at most itself.
        let option = |rule: Rule, kind| rule.then_net(64, 8).is(&[&[kind, 1], &mac[..]].concat());
        self.add("nd", discovery(Rule::new(), 24, 135).goto(DELIVER));
        self.add("nd", option(discovery(Rule::new(), 32, 135), 1).goto(DELIVER));
        for own in self.own(false) {
            let claim = |length| {
                let plain = discovery(Rule::new(), length, 136).then_net(44, 1);
                // No router.
                plain.mask(0, &[0x80]).is(&[0]).then_net(48, 16).is(&own)
            };
            self.add("nd", claim(24).goto(DELIVER));
            self.add("nd", option(claim(32), 2).goto(DELIVER));
        }
        self.add("nd", Rule::new().goto("drop_claim"));
    }
}

/// Neighbour discovery of that type and length that has crossed no router.
fn discovery(rule: Rule, length: u8, kind: u8) -> Rule {
    let header = rule.then_net(4, 4).is(&[0, length, ICMPV6, 255]);
    header.then_net(40, 2).is(&[kind, 0])
}

/// TCP, but not the packet that opens a connection.
fn answering(rule: Rule) -> Rule {
    const SYN: u8 = 0x02;
    const SYN_ACK: u8 = 0x12;
    rule.payload(0, Base::Transport, 13, 1).mask(0, &[SYN_ACK]).differs(&[SYN])
}

/// With the asker's address in the slots up to `next`: its port, and the pod's.
fn remember(rule: Rule, next: u32, set: &str) -> Rule {
    let rule = rule.payload(next, Base::Transport, 0, 2).payload(next + 1, Base::Transport, 2, 2);
    rule.remember(set, ASKED_MS)
}

/// The same of an answer.
fn answer(rule: Rule, next: u32, set: &str) -> Rule {
    let rule = rule.payload(next, Base::Transport, 2, 2).payload(next + 1, Base::Transport, 0, 2);
    rule.lookup(0, set, false)
}

/// The modified EUI-64 address of RFC 4291, appendix A.
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let mut bytes = [0u8; 16];
    bytes[..2].copy_from_slice(&[0xfe, 0x80]);
    bytes[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::REASONS;
    use super::*;

    #[test]
    fn every_reason_has_its_chain() {
        let names: Vec<_> = REASONS.iter().map(|(r, _)| format!("drop_{r}")).collect();
        assert_eq!(names, DROPS);
    }
}
