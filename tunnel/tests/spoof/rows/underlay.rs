//! What hosts on the underlay send: tunnel packets from wrong addresses, in odd headers and in parts.

use std::net::IpAddr;

use super::Fate::{Dropped, Kernel, Passes};
use super::{Fate, From, Rows};
use crate::frames::*;
use crate::lab::*;

impl Rows<'_> {
    fn inner(&self, v4: bool) -> Vec<u8> {
        let frame = if v4 {
            let body = udp(POD4.into(), CLUSTER4.into(), (1, 2), b"x");
            ether(self.cluster, self.mac, 0x0800, &ip4((POD4, CLUSTER4), UDP, 0, &[], &body))
        } else {
            let body = udp(POD6.into(), CLUSTER6.into(), (1, 2), b"x");
            ether(self.cluster, self.mac, 0x86dd, &ip6((POD6, CLUSTER6), UDP, &body))
        };
        self.marked(frame)
    }

    /// Sender's and receiver's addresses and MACs.
    fn ends(&self, from: From) -> ((IpAddr, IpAddr), (Mac, Mac)) {
        let [worker, vm, other, third] = self.lab.outer;
        let to = if from == From::ThirdToVm {
            (vm, Lab::mac(&self.lab.vm, "ens0"))
        } else {
            (worker, Lab::mac(&self.lab.worker, "br0"))
        };
        let (ip, ns) = match from {
            From::Other => (other, &self.lab.other),
            From::Forged => (vm, &self.lab.third),
            _ => (third, &self.lab.third),
        };
        ((ip, to.0), (Lab::mac(ns, "ens0"), to.1))
    }

    fn packet(
        &self,
        from: From,
        make: impl FnOnce(IpAddr, IpAddr) -> Vec<Vec<u8>>,
    ) -> Vec<Vec<u8>> {
        let ((source, target), (mac, to)) = self.ends(from);
        let kind = if source.is_ipv4() { 0x0800 } else { 0x86dd };
        make(source, target).iter().map(|p| ether(to, mac, kind, p)).collect()
    }

    fn whole(&self, from: From, vni: u32, flags: u8, v4: bool) -> Vec<Vec<u8>> {
        let mut inner = self.inner(v4);
        if from == From::ThirdToVm {
            // A device takes nothing from its own address.
            inner[..12].copy_from_slice(&[self.mac, self.node].concat());
        }
        self.packet(from, |s, t| {
            vec![plain(s, t, &udp(s, t, (4444, PORT), &vxlan(flags, vni, &inner)))]
        })
    }

    pub(crate) fn underlay(&mut self) {
        let guard = Dropped("guard");
        let senders = [
            ("wrong source, right VNI", From::Third, guard),
            ("another pod's VM, our VNI", From::Other, guard),
            ("wrong source, to the VM", From::ThirdToVm, guard),
            ("the VM's address, forged (stated limit)", From::Forged, Passes),
        ];
        for (name, from, fate) in senders {
            for v4 in [true, false] {
                let name = format!("{name}, {} inside", if v4 { "IPv4" } else { "IPv6" });
                let frames = self.whole(from, VNI, 8, v4);
                self.push(&name, from, fate, frames);
            }
        }
        let frames = self.whole(From::Third, VNI + 7, 8, true);
        self.push("wrong VNI", From::Third, Kernel, frames);
        let frames = self.whole(From::Third, VNI, 0x0c, true);
        self.push("odd VXLAN flags", From::Third, Fate::Twice, frames);
        self.odd();
        if self.lab.outer[0].is_ipv4() { self.parts4() } else { self.parts6() }
    }

    /// Odd headers in one piece.
    fn odd(&mut self) {
        let inner = self.inner(true);
        let data = vxlan(8, VNI, &inner);
        let long = self.packet(From::Third, |s, t| {
            vec![plain(s, t, &[udp(s, t, (4444, PORT), &data), vec![0; 16]].concat())]
        });
        self.push("UDP shorter than its packet", From::Third, Dropped("guard"), long);
        if self.lab.outer[0].is_ipv4() {
            let inner = self.inner(true);
            let data = vxlan(8, VNI, &inner);
            let frames = self.packet(From::Third, |s, t| {
                let mut body = udp(s, t, (4444, PORT), &data);
                body[6..8].copy_from_slice(&[0, 0]);
                vec![plain(s, t, &body)]
            });
            self.push("no UDP checksum", From::Third, Dropped("guard"), frames);
            let data = vxlan(8, VNI, &self.inner(true));
            let frames = self.packet(From::Third, |s, t| {
                let (IpAddr::V4(f), IpAddr::V4(d)) = (s, t) else { return Vec::new() };
                vec![ip4((f, d), UDP, 0, &[1; 8], &udp(s, t, (4444, PORT), &data))]
            });
            self.push("IPv4 options outside", From::Third, Dropped("guard"), frames);
            return;
        }
        for (name, next) in [("hop-by-hop options outside", 0), ("destination options outside", 60)]
        {
            let data = vxlan(8, VNI, &self.inner(true));
            let frames = self.packet(From::Third, |s, t| {
                let (IpAddr::V6(f), IpAddr::V6(d)) = (s, t) else { return Vec::new() };
                vec![ip6((f, d), next, &padding(UDP, &udp(s, t, (4444, PORT), &data)))]
            });
            self.push(name, From::Third, Dropped("guard"), frames);
        }
    }

    fn parts4(&mut self) {
        let guard = Dropped("guard");
        let cases: [(&str, &[Part], Fate); 5] = [
            ("fragments, the first without VNI", &[(0, 8), (8, END)], guard),
            ("fragments, the last one first", &[(8, END), (0, 8)], guard),
            ("fragments of three", &[(0, 8), (8, 16), (16, END)], guard),
            ("fragments, one of them within another", &[(0, 24), (8, 16), (24, END)], guard),
            ("fragments that overlap", &[(0, 24), (16, END)], Kernel),
        ];
        for (name, parts, fate) in cases {
            let data = vxlan(8, VNI, &self.inner(true));
            let frames = self.packet(From::Third, |s, t| {
                let (IpAddr::V4(f), IpAddr::V4(d)) = (s, t) else { return Vec::new() };
                let body = udp(s, t, (4444, PORT), &data);
                let parts = parts.iter().map(|(begin, end)| (*begin, (*end).min(body.len())));
                parts
                    .map(|(begin, end)| {
                        let more = if end < body.len() { 0x2000 } else { 0 };
                        let at = u16::try_from(begin / 8).unwrap();
                        ip4((f, d), UDP, at | more, &[], &body[begin..end])
                    })
                    .collect()
            });
            self.push(name, From::Third, fate, frames);
        }
    }

    fn parts6(&mut self) {
        let guard = Dropped("guard");
        let cases: [(&str, &[Part], Fate); 5] = [
            ("fragments, the first without VNI", &[(0, 8), (8, END)], guard),
            ("fragments, the last one first", &[(8, END), (0, 8)], guard),
            ("fragments, the first with VNI", &[(0, 24), (24, END)], guard),
            ("a fragment that is all", &[(0, END)], guard),
            ("fragments that overlap", &[(0, 24), (16, END)], Fate::Twice),
        ];
        for (name, parts, fate) in cases {
            let data = vxlan(8, VNI, &self.inner(true));
            let id = 100 + u32::from(self.id());
            let frames = self.packet(From::Third, |s, t| {
                let (IpAddr::V6(f), IpAddr::V6(d)) = (s, t) else { return Vec::new() };
                let body = udp(s, t, (4444, PORT), &data);
                let parts = parts.iter().map(|(begin, end)| (*begin, (*end).min(body.len())));
                parts
                    .map(|(begin, end)| {
                        let more = end < body.len();
                        let at = u16::try_from(begin).unwrap();
                        ip6((f, d), 44, &part6(UDP, at, more, id, &body[begin..end]))
                    })
                    .collect()
            });
            self.push(name, From::Third, fate, frames);
        }
    }
}

/// Where a part begins and ends in its packet.
type Part = (usize, usize);
const END: usize = usize::MAX;

fn plain(from: IpAddr, to: IpAddr, body: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(f), IpAddr::V4(t)) => ip4((f, t), UDP, 0, &[], body),
        (IpAddr::V6(f), IpAddr::V6(t)) => ip6((f, t), UDP, body),
        _ => panic!("two families"),
    }
}
