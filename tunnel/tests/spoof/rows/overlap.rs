//! Parts of packets from the VM that lie over one another: whoever puts them together must not get
//! another packet than the one that was judged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Fate::{Dropped, Passes};
use super::{ALL6, Fate, From, Rows};
use crate::frames::*;
use crate::lab::*;
use crate::wire::beside;

/// Offset in bytes, and what lies there; more follows.
type Part<'a> = (u16, &'a [u8]);

/// What is judged, and what is laid over it.
struct Overlap<'a> {
    name: &'a str,
    fate: Fate,
    first: Part<'a>,
    second: Part<'a>,
}

impl Rows<'_> {
    /// Of IPv4; only the second part is marked.
    fn overlap4(&mut self, to: Ipv4Addr, protocol: u8, overlap: &Overlap<'_>) {
        let target = if to == NODE4 { self.node } else { self.cluster };
        let part = |(at, body): Part<'_>| {
            let packet = ip4((POD4, to), protocol, 0x2000 | (at / 8), &[], body);
            ether(target, self.mac, 0x0800, &packet)
        };
        let (first, second) = (part(overlap.first), part(overlap.second));
        let frames = vec![beside(first, self.id()), self.marked(second)];
        self.push(&format!("{}, IPv4", overlap.name), From::Vm, overlap.fate, frames);
    }

    /// The same of IPv6.
    fn overlap6(&mut self, to: Ipv6Addr, next: u8, overlap: &Overlap<'_>) {
        let target = if to == NODE6 { self.node } else { self.cluster };
        let id = 500 + u32::from(self.id());
        let part = |(at, body): Part<'_>| {
            let packet = ip6((POD6, to), 44, &part6(next, at, true, id, body));
            ether(target, self.mac, 0x86dd, &packet)
        };
        let (first, second) = (part(overlap.first), part(overlap.second));
        let frames = vec![first, self.marked(second)];
        self.push(&format!("{}, IPv6", overlap.name), From::Vm, overlap.fate, frames);
    }

    /// Those that are dropped as a router's.
    pub(super) fn overlapping_routers(&mut self) {
        let (p4, c4): (IpAddr, IpAddr) = (POD4.into(), CLUSTER4.into());
        let (p6, c6): (IpAddr, IpAddr) = (POD6.into(), CLUSTER6.into());
        let over = |name, first, second| Overlap {
            name,
            fate: Dropped("router"),
            first: (0, first),
            second: (0, second),
        };
        let [plain, offer] = [999, 67].map(|port| udp(p4, c4, (port, 68), &[2; 16]));
        self.overlap4(CLUSTER4, UDP, &over("DHCP offer laid over a packet", &plain, &offer));
        let [plain, offer] = [999, 547].map(|port| udp(p6, c6, (port, 546), &[2; 16]));
        self.overlap6(CLUSTER6, UDP, &over("DHCP offer laid over a packet", &plain, &offer));
        let [reply, redirect] = [0, 5].map(icmp);
        self.overlap4(CLUSTER4, ICMP, &over("redirect laid over an answer", &reply, &redirect));
        let [reply, advert] = [129, 134].map(|kind| icmp6(POD6, ALL6, kind, &[0; 12]));
        let name = "router advertisement laid over an answer";
        self.overlap6(ALL6, ICMPV6, &over(name, &reply, &advert));
    }

    /// Those to the node.
    pub(super) fn overlapping_node(&mut self) {
        let flags = |from: IpAddr, to: IpAddr, flags| tcp(from, to, (999, 22), flags);
        let over = |first, second| Overlap {
            name: "SYN to the node laid over an answer",
            fate: Dropped("node"),
            first: (0, first),
            second: (8, second),
        };
        let [answer, syn] = [0x12, 2].map(|f| flags(POD4.into(), NODE4.into(), f));
        self.overlap4(NODE4, TCP, &over(&answer[..16], &syn[8..16]));
        let [answer, syn] = [0x12, 2].map(|f| flags(POD6.into(), NODE6.into(), f));
        self.overlap6(NODE6, TCP, &over(&answer[..16], &syn[8..16]));
    }

    /// Data over data is the receiver's to refuse.
    pub(super) fn overlapping_data(&mut self) {
        let over = |first, second| Overlap {
            name: "data laid over data",
            fate: Passes,
            first: (0, first),
            second: (8, second),
        };
        let body = udp(POD4.into(), CLUSTER4.into(), (999, 53), &[1; 16]);
        self.overlap4(CLUSTER4, UDP, &over(&body, &[2; 16]));
        let body = udp(POD6.into(), CLUSTER6.into(), (999, 53), &[1; 16]);
        self.overlap6(CLUSTER6, UDP, &over(&body, &[2; 16]));
    }
}
