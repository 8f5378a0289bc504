//! The rows: what is sent, from where, and what becomes of it.

mod overlap;
mod underlay;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::frames::*;
use super::lab::*;
use super::wire::label;

/// Where a frame is put onto the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// On the underlay, by a host that has no business there.
    Third,
    /// On the underlay, by the VM of another pod.
    Other,
    /// On the underlay, by the third host with the VM's address.
    Forged,
    /// On the underlay, by the third host, for the VM instead of the worker.
    ThirdToVm,
    /// In the VM, on the pod's interface.
    Vm,
}

/// What is to become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It arrives.
    Passes,
    /// Dropped and counted under that reason; `guard` is the source filter's.
    Dropped(&'static str),
    /// Dropped and counted by the source filter, and without it by the kernel.
    Twice,
    /// Dropped by the kernel itself, with and without our filter.
    Kernel,
}

pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) from: From,
    pub(crate) fate: Fate,
    /// All that is one sending: several for a packet in parts.
    pub(crate) frames: Vec<Vec<u8>>,
}

/// Makes rows; the row's number is in its frames.
pub(crate) struct Rows<'a> {
    lab: &'a Lab,
    mac: Mac,
    cluster: Mac,
    node: Mac,
    pub(crate) all: Vec<Row>,
}

const ANY6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const EVIL4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 77);
const EVIL6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0x77);
const EVIL: Mac = [2, 0, 0, 0, 0, 0x77];
const ALL6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
use Fate::{Dropped, Passes};

pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let half = [u16::from_be_bytes([a ^ 2, b]), u16::from_be_bytes([c, 0xff])];
    let rest = [u16::from_be_bytes([0xfe, d]), u16::from_be_bytes([e, f])];
    Ipv6Addr::new(0xfe80, 0, 0, 0, half[0], half[1], rest[0], rest[1])
}

impl<'a> Rows<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Self {
        let mac = lab.tunnel.mac.0.0;
        let (cluster, node) = (Lab::mac(&lab.cluster, "eth0"), Lab::mac(&lab.worker, "cni0"));
        Self { lab, mac, cluster, node, all: Vec::new() }
    }

    fn id(&self) -> u16 {
        u16::try_from(self.all.len()).unwrap()
    }

    fn push(&mut self, name: &str, from: From, fate: Fate, frames: Vec<Vec<u8>>) {
        self.all.push(Row { name: name.to_owned(), from, fate, frames });
    }

    fn marked(&self, frame: Vec<u8>) -> Vec<u8> {
        label(frame, self.id())
    }

    /// A frame of the VM, to the cluster's link or the node's.
    fn vm(&mut self, name: &str, fate: Fate, frame: Vec<u8>) {
        let frame = self.marked(frame);
        self.push(name, From::Vm, fate, vec![frame]);
    }

    fn vm4(&mut self, name: &str, fate: Fate, to: Ipv4Addr, protocol: u8, body: &[u8]) {
        let target = if [NODE4, Ipv4Addr::new(192, 0, 2, 1)].contains(&to) {
            self.node
        } else {
            self.cluster
        };
        let packet = ip4((POD4, to), protocol, 0, &[], body);
        self.vm(name, fate, ether(target, self.mac, 0x0800, &packet));
    }

    fn vm6(&mut self, name: &str, fate: Fate, to: Ipv6Addr, next: u8, body: &[u8]) {
        let target =
            if to == NODE6 || to.is_unicast_link_local() { self.node } else { self.cluster };
        let packet = ip6((POD6, to), next, body);
        self.vm(name, fate, ether(target, self.mac, 0x86dd, &packet));
    }

    /// Neighbour discovery by the VM.
    fn vm_nd(&mut self, name: &str, fate: Fate, from: Ipv6Addr, next: u8, body: &[u8]) {
        let packet = ip6((from, ALL6), next, body);
        self.vm(name, fate, ether(self.cluster, self.mac, 0x86dd, &packet));
    }

    pub(crate) fn ordinary(&mut self) {
        let (p4, c4): (IpAddr, IpAddr) = (POD4.into(), CLUSTER4.into());
        let (p6, c6): (IpAddr, IpAddr) = (POD6.into(), CLUSTER6.into());
        self.vm4("TCP SYN to the cluster", Passes, CLUSTER4, TCP, &tcp(p4, c4, (999, 80), 2));
        self.vm6("TCP SYN to the cluster, IPv6", Passes, CLUSTER6, TCP, &tcp(p6, c6, (999, 80), 2));
        self.vm4("UDP to the cluster", Passes, CLUSTER4, UDP, &udp(p4, c4, (999, 53), b"x"));
        self.vm6("UDP to the cluster, IPv6", Passes, CLUSTER6, UDP, &udp(p6, c6, (999, 53), b"x"));
        self.vm4("ping of the cluster", Passes, CLUSTER4, ICMP, &icmp(8));
        self.vm6(
            "ping of the cluster, IPv6",
            Passes,
            CLUSTER6,
            ICMPV6,
            &icmp6(POD6, CLUSTER6, 128, &[0; 4]),
        );
        let dns = Ipv4Addr::new(169, 254, 20, 10);
        self.vm4(
            "UDP to a node-local DNS cache",
            Passes,
            dns,
            UDP,
            &udp(p4, dns.into(), (999, 53), b"x"),
        );
        let nested = udp(p4, c4, (999, PORT), &vxlan(8, VNI, &[0; 60]));
        self.vm4("VXLAN of our own VNI as payload", Passes, CLUSTER4, UDP, &nested);
        self.vm4(
            "SYN-ACK to the node",
            Passes,
            NODE4,
            TCP,
            &tcp(p4, NODE4.into(), (80, 999), 0x12),
        );
        self.vm6(
            "SYN-ACK to the node, IPv6",
            Passes,
            NODE6,
            TCP,
            &tcp(p6, NODE6.into(), (80, 999), 0x12),
        );
        self.vm4("echo reply to the node", Passes, NODE4, ICMP, &icmp(0));
        let own = arp(2, self.mac, POD4, CLUSTER4);
        self.vm("ARP reply for the pod's own", Passes, ether(self.cluster, self.mac, 0x0806, &own));
        let ask = arp(1, self.mac, POD4, NODE4);
        self.vm("ARP request for the gateway", Passes, ether([255; 6], self.mac, 0x0806, &ask));
        let target = nd((POD6, ALL6), 135, 0, CLUSTER6, &lla(1, self.mac));
        self.vm_nd("neighbour solicitation", Passes, POD6, ICMPV6, &target);
        let own = nd((POD6, ALL6), 136, 0x20, POD6, &lla(2, self.mac));
        self.vm_nd("neighbour advertisement of the pod's own", Passes, POD6, ICMPV6, &own);
        let local = link_local(self.mac);
        let own = nd((local, ALL6), 136, 0x60, local, &lla(2, self.mac));
        self.vm_nd("the same of its link-local one", Passes, local, ICMPV6, &own);
        let probe = nd((ANY6, ALL6), 135, 0, POD6, &[]);
        self.vm_nd("duplicate detection of the pod's own", Passes, ANY6, ICMPV6, &probe);
        let report = padding(ICMPV6, &icmp6(local, ALL6, 143, &[0; 4]));
        self.vm_nd("multicast report behind an option", Passes, local, 0, &report);
        self.overlapping_data();
    }

    pub(crate) fn pinned(&mut self) {
        let (p4, c4): (IpAddr, IpAddr) = (POD4.into(), CLUSTER4.into());
        let (p6, c6): (IpAddr, IpAddr) = (POD6.into(), CLUSTER6.into());
        let (mac, cluster) = (self.mac, self.cluster);
        let good = ether(
            cluster,
            mac,
            0x0800,
            &ip4((POD4, CLUSTER4), UDP, 0, &[], &udp(p4, c4, (1, 2), b"x")),
        );
        let good6 =
            ether(cluster, mac, 0x86dd, &ip6((POD6, CLUSTER6), UDP, &udp(p6, c6, (1, 2), b"x")));
        let mut foreign = good.clone();
        foreign[6..12].copy_from_slice(&EVIL);
        self.vm("foreign MAC", Dropped("foreign"), foreign);
        let mut foreign = good6.clone();
        foreign[6..12].copy_from_slice(&EVIL);
        self.vm("foreign MAC, IPv6", Dropped("foreign"), foreign);
        let packet = ip4((EVIL4, CLUSTER4), UDP, 0, &[], &udp(EVIL4.into(), c4, (1, 2), b"x"));
        self.vm("foreign source address", Dropped("foreign"), ether(cluster, mac, 0x0800, &packet));
        let packet = ip6((EVIL6, CLUSTER6), UDP, &udp(EVIL6.into(), c6, (1, 2), b"x"));
        self.vm(
            "foreign source address, IPv6",
            Dropped("foreign"),
            ether(cluster, mac, 0x86dd, &packet),
        );
        self.vm("VLAN tag", Dropped("foreign"), tagged(&good, 0x8100, 5));
        self.vm("VLAN tag, IPv6", Dropped("foreign"), tagged(&good6, 0x8100, 5));
        self.vm("VLAN tag with priority alone", Dropped("foreign"), tagged(&good, 0x8100, 0));
        self.vm("QinQ", Dropped("foreign"), tagged(&tagged(&good, 0x8100, 5), 0x88a8, 6));
        let stp = [&[0x42, 0x42, 3][..], &[0; 35]].concat();
        self.vm("bridge protocol (LLC)", Dropped("foreign"), ether(cluster, mac, 38, &stp));
        self.vm(
            "reverse ARP",
            Dropped("foreign"),
            ether(cluster, mac, 0x8035, &arp(3, mac, POD4, POD4)),
        );
        let route = ip4((POD4, CLUSTER4), ICMP, 0, &[7, 7, 4, 0, 0, 0, 0, 0], &icmp(8));
        self.vm("IPv4 options", Dropped("odd"), ether(cluster, mac, 0x0800, &route));
        let routed =
            [&[UDP, 2, 4, 1, 0, 0, 0, 0][..], &NODE6.octets(), &udp(p6, c6, (1, 2), b"x")].concat();
        self.vm6("IPv6 routing header", Dropped("odd"), CLUSTER6, 43, &routed);
        let chain = part6(60, 0, true, 1, &padding(ICMPV6, &[]));
        self.vm6("first fragment without its upper header", Dropped("odd"), CLUSTER6, 44, &chain);
    }

    pub(crate) fn claims(&mut self) {
        let (mac, cluster) = (self.mac, self.cluster);
        let claim = Dropped("claim");
        let mut frame = |name: &str, body: Vec<u8>| {
            self.vm(name, claim, ether(cluster, mac, 0x0806, &body));
        };
        frame("ARP reply for another's address", arp(2, mac, EVIL4, CLUSTER4));
        frame("gratuitous ARP for the gateway", arp(1, mac, NODE4, NODE4));
        frame("ARP for the pod's address by another MAC", arp(2, EVIL, POD4, CLUSTER4));
        let mut wide = arp(2, mac, POD4, CLUSTER4);
        wide[5] = 16;
        frame("ARP with another address length", wide);
        let na = |target, flags, options: &[u8]| nd((POD6, ALL6), 136, flags, target, options);
        let ns = |options: &[u8]| nd((POD6, ALL6), 135, 0, CLUSTER6, options);
        let cases = [
            ("advertisement of the gateway's address", na(NODE6, 0x20, &lla(2, mac))),
            ("advertisement with another MAC", na(POD6, 0x20, &lla(2, EVIL))),
            (
                "advertisement with a second option",
                na(POD6, 0x20, &[lla(2, mac), lla(2, EVIL)].concat()),
            ),
            ("advertisement as a router", na(POD6, 0xa0, &lla(2, mac))),
            ("solicitation with another MAC", ns(&lla(1, EVIL))),
            (
                "solicitation with another MAC behind a nonce",
                ns(&[lla(14, mac), lla(1, EVIL)].concat()),
            ),
        ];
        for (name, body) in cases {
            self.vm_nd(name, claim, POD6, ICMPV6, &body);
        }
        let probe = nd((ANY6, ALL6), 135, 0, EVIL6, &[]);
        self.vm_nd(
            "duplicate detection of another's address",
            Dropped("foreign"),
            ANY6,
            ICMPV6,
            &probe,
        );
    }

    pub(crate) fn routers(&mut self) {
        let (mac, local) = (self.mac, link_local(self.mac));
        let advert = nd((POD6, ALL6), 136, 0x20, NODE6, &lla(2, mac));
        let behind = padding(ICMPV6, &advert);
        self.vm_nd("advertisement behind an option", Dropped("router"), POD6, 0, &behind);
        let inside = part6(ICMPV6, 0, false, 2, &advert);
        self.vm_nd("advertisement in a fragment", Dropped("router"), POD6, 44, &inside);
        let ra = icmp6(local, ALL6, 134, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        let router = Dropped("router");
        self.vm_nd("router advertisement", router, local, ICMPV6, &ra);
        self.vm_nd(
            "router advertisement behind an option",
            router,
            local,
            0,
            &padding(ICMPV6, &ra),
        );
        self.vm_nd(
            "router advertisement behind two",
            router,
            local,
            60,
            &padding(60, &padding(ICMPV6, &ra)),
        );
        self.vm_nd(
            "router advertisement in a fragment",
            router,
            local,
            44,
            &part6(ICMPV6, 0, true, 3, &ra),
        );
        self.vm_nd("redirect, IPv6", router, local, ICMPV6, &icmp6(local, ALL6, 137, &[0; 36]));
        self.vm_nd(
            "multicast query, IPv6",
            router,
            local,
            0,
            &padding(ICMPV6, &icmp6(local, ALL6, 130, &[0; 20])),
        );
        let (p4, c4): (IpAddr, IpAddr) = (POD4.into(), CLUSTER4.into());
        self.vm4("DHCP offer", router, CLUSTER4, UDP, &udp(p4, c4, (67, 68), &[2; 240]));
        self.vm6(
            "DHCPv6 offer",
            router,
            CLUSTER6,
            UDP,
            &udp(POD6.into(), CLUSTER6.into(), (547, 546), &[2; 8]),
        );
        self.vm4("ICMP redirect", router, CLUSTER4, ICMP, &icmp(5));
        self.vm4("ICMP router advertisement", router, CLUSTER4, ICMP, &icmp(9));
        self.vm4("multicast query", router, CLUSTER4, IGMP, &icmp(0x11));
        self.overlapping_routers();
    }

    pub(crate) fn node(&mut self) {
        let (p4, p6): (IpAddr, IpAddr) = (POD4.into(), POD6.into());
        let node = Dropped("node");
        let mut targets = vec![NODE4];
        if let IpAddr::V4(outer) = self.lab.outer[0] {
            targets.push(outer);
        }
        for to in targets {
            let name = |what: &str| format!("{what} to the node's {to}");
            self.vm4(&name("TCP SYN"), node, to, TCP, &tcp(p4, to.into(), (999, 22), 2));
            self.vm4(
                &name("UDP, nobody asked,"),
                node,
                to,
                UDP,
                &udp(p4, to.into(), (999, 53), b"x"),
            );
            self.vm4(&name("ping"), node, to, ICMP, &icmp(8));
            let nested = udp(p4, to.into(), (999, PORT), &vxlan(8, VNI, &[0; 60]));
            self.vm4(&name("VXLAN"), node, to, UDP, &nested);
        }
        let packet =
            ip4((POD4, NODE4), TCP, 0x2000, &[], &tcp(p4, NODE4.into(), (999, 22), 0x10)[..16]);
        self.vm("a fragment to the node", node, ether(self.node, self.mac, 0x0800, &packet));
        for to in [Ipv4Addr::new(10, 244, 0, 255), Ipv4Addr::BROADCAST, Ipv4Addr::LOCALHOST] {
            self.vm4(&format!("UDP to {to}"), node, to, UDP, &udp(p4, to.into(), (999, 53), b"x"));
        }
        for to in [NODE6, link_local(self.node)] {
            let name = |what: &str| format!("{what} to the node's {to}");
            self.vm6(&name("TCP SYN"), node, to, TCP, &tcp(p6, to.into(), (999, 22), 2));
            self.vm6(
                &name("UDP, nobody asked,"),
                node,
                to,
                UDP,
                &udp(p6, to.into(), (999, 53), b"x"),
            );
            self.vm6(&name("ping"), node, to, ICMPV6, &icmp6(POD6, to, 128, &[0; 4]));
            let behind = padding(TCP, &tcp(p6, to.into(), (999, 22), 2));
            self.vm6(&name("TCP SYN behind an option"), node, to, 60, &behind);
            let part = part6(TCP, 0, true, 4, &tcp(p6, to.into(), (999, 22), 2)[..16]);
            self.vm6(&name("a fragment"), node, to, 44, &part);
        }
        self.overlapping_node();
    }

    pub(crate) fn metadata(&mut self) {
        let (p4, p6): (IpAddr, IpAddr) = (POD4.into(), POD6.into());
        let metadata = Dropped("metadata");
        for to in ["169.254.169.254", "169.254.170.2", "168.63.129.16"] {
            let to: Ipv4Addr = to.parse().unwrap();
            self.vm4(
                &format!("TCP SYN to {to}"),
                metadata,
                to,
                TCP,
                &tcp(p4, to.into(), (999, 80), 2),
            );
        }
        for to in ["fd00:ec2::254", "fd20:ce::254"] {
            let to: Ipv6Addr = to.parse().unwrap();
            self.vm6(
                &format!("TCP SYN to {to}"),
                metadata,
                to,
                TCP,
                &tcp(p6, to.into(), (999, 80), 2),
            );
        }
    }
}
