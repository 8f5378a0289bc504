//! Frames, byte by byte, right or wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) type Mac = [u8; 6];

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const IGMP: u8 = 2;
pub(crate) const ICMPV6: u8 = 58;

pub(crate) fn sum(parts: &[&[u8]]) -> [u8; 2] {
    let all = parts.concat();
    let words = all.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

fn len(n: usize) -> [u8; 2] {
    u16::try_from(n).unwrap().to_be_bytes()
}

pub(crate) fn ether(to: Mac, from: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), body].concat()
}

pub(crate) fn tagged(frame: &[u8], kind: u16, tag: u16) -> Vec<u8> {
    [&frame[..12], &kind.to_be_bytes(), &tag.to_be_bytes(), &frame[12..]].concat()
}

fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(f), IpAddr::V4(t)) => {
            [&f.octets()[..], &t.octets(), &[0, protocol], &len(length)].concat()
        }
        (IpAddr::V6(f), IpAddr::V6(t)) => {
            let tail = [0, 0, 0, protocol];
            [&f.octets()[..], &t.octets(), &[0, 0], &len(length), &tail].concat()
        }
        _ => panic!("two families"),
    }
}

/// A layer 4 header with its checksum at `at`.
fn summed(mut body: Vec<u8>, at: usize, from: IpAddr, to: IpAddr, protocol: u8) -> Vec<u8> {
    let sum = sum(&[&pseudo(from, to, protocol, body.len()), &body]);
    body[at..at + 2].copy_from_slice(&sum);
    body
}

pub(crate) fn udp(from: IpAddr, to: IpAddr, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let (f, t) = (ports.0.to_be_bytes(), ports.1.to_be_bytes());
    let body = [&f[..], &t, &len(8 + data.len()), &[0, 0], data].concat();
    summed(body, 6, from, to, UDP)
}

pub(crate) fn tcp(from: IpAddr, to: IpAddr, ports: (u16, u16), flags: u8) -> Vec<u8> {
    let (f, t) = (ports.0.to_be_bytes(), ports.1.to_be_bytes());
    let rest = [0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0, 0, 0, 0, 0];
    summed([&f[..], &t, &rest].concat(), 16, from, to, TCP)
}

pub(crate) fn icmp(kind: u8) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, 0, 1, 0, 1];
    let sum = sum(&[&body]);
    body[2..4].copy_from_slice(&sum);
    body
}

pub(crate) fn icmp6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let body = [&[kind, 0, 0, 0], body].concat();
    summed(body, 2, from.into(), to.into(), ICMPV6)
}

/// Neighbour discovery: flags, target, options.
pub(crate) fn nd(
    (from, to): (Ipv6Addr, Ipv6Addr),
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    options: &[u8],
) -> Vec<u8> {
    icmp6(from, to, kind, &[&[flags, 0, 0, 0], &target.octets()[..], options].concat())
}

pub(crate) fn lla(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1], &mac[..]].concat()
}

pub(crate) fn arp(operation: u8, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &mac, &sender.octets(), &[0; 6], &target.octets()].concat()
}

/// An IPv4 header with options and fragment field.
pub(crate) fn ip4(
    (from, to): (Ipv4Addr, Ipv4Addr),
    protocol: u8,
    fragment: u16,
    options: &[u8],
    body: &[u8],
) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    let mut head = vec![0x40 | words, 0];
    head.extend(len(20 + options.len() + body.len()));
    head.extend([0x12, 0x34]);
    head.extend(fragment.to_be_bytes());
    head.extend([64, protocol, 0, 0]);
    head.extend(from.octets());
    head.extend(to.octets());
    head.extend(options);
    let sum = sum(&[&head]);
    head[10..12].copy_from_slice(&sum);
    [head, body.to_vec()].concat()
}

pub(crate) fn ip6((from, to): (Ipv6Addr, Ipv6Addr), next: u8, body: &[u8]) -> Vec<u8> {
    let head = [&[0x60, 0, 0, 0], &len(body.len())[..], &[next, 255]].concat();
    [&head[..], &from.octets(), &to.octets(), body].concat()
}

/// An IPv6 fragment header before a part; `at` counts bytes.
pub(crate) fn part6(next: u8, at: u16, more: bool, id: u32, body: &[u8]) -> Vec<u8> {
    let place = at | u16::from(more);
    [&[next, 0], &place.to_be_bytes()[..], &id.to_be_bytes(), body].concat()
}

/// Eight bytes of an extension header: padding.
pub(crate) fn padding(next: u8, body: &[u8]) -> Vec<u8> {
    [&[next, 0, 1, 4, 0, 0, 0, 0], body].concat()
}

pub(crate) fn vxlan(flags: u8, vni: u32, frame: &[u8]) -> Vec<u8> {
    [&[flags, 0, 0, 0], &vni.to_be_bytes()[1..], &[0], frame].concat()
}
