//! What goes to the kernel, byte for byte. Headers of netlink and what the kernel computes with are in the
//! machine's order, what nftables says and what lies in packets in the network's; so the same test says
//! other bytes on s390x, where it runs under an emulator (`tests/run s390x`).

use std::net::IpAddr;

use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use crate::link::{NewLink, Vxlan, describe, read};
use crate::nft::attribute::{Attributes, find, walk};
use crate::nft::expression::{Base, Rule};
use crate::nft::{Batch, Chain, Family, Hook, Set, Table, dump};

const BIG: bool = cfg!(target_endian = "big");
const TABLE: Table<'static> = Table { family: Family::Inet, name: "t" };

/// As a machine of this one's order keeps it.
fn here16(big: [u8; 2]) -> [u8; 2] {
    let [a, b] = big;
    if BIG { [a, b] } else { [b, a] }
}

fn here32(big: [u8; 4]) -> [u8; 4] {
    let [a, b, c, d] = big;
    if BIG { [a, b, c, d] } else { [d, c, b, a] }
}

fn head(length: u8, kind: [u8; 2], flags: [u8; 2], sequence: u8, family: [u8; 4]) -> Vec<u8> {
    let mut bytes = here32([0, 0, 0, length]).to_vec();
    bytes.extend(here16(kind));
    bytes.extend(here16(flags));
    bytes.extend(here32([0, 0, 0, sequence]));
    bytes.extend([0; 4]);
    bytes.extend(family);
    bytes
}

/// Length and kind of an attribute.
fn attribute(length: u8, kind: [u8; 2]) -> Vec<u8> {
    [here16([0, length]), here16(kind)].concat()
}

#[test]
fn a_batch_has_heads_in_the_machines_order_and_values_in_the_networks() {
    let priority = -300;
    let base = Chain { name: "c", hook: Some((Hook::Input, priority)), drop_by_default: true };
    let set = Set { name: "s", key_length: 0x0102, remembers: 0 };
    let batch =
        Batch::new().chain(TABLE, base).set(TABLE, set).element(TABLE, "s", &[0x23, 0x28], "");
    let name = |kind, letter| [attribute(6, [0, kind]), vec![letter, 0, 0, 0]].concat();
    let number = |kind, value: [u8; 4]| [attribute(8, [0, kind]), value.to_vec()].concat();
    let marks = [0, 0, 0, 10];
    let wanted = [
        head(20, [0, 0x10], [0, 1], 0, marks),
        // The chain: request, create. The last message asks for an acknowledgement, too.
        head(76, [10, 3], [4, 1], 1, [1, 0, 0, 0]),
        name(1, b't'),
        name(3, b'c'),
        attribute(20, [0x80, 4]),
        number(1, [0, 0, 0, 1]),
        number(2, [0xff, 0xff, 0xfe, 0xd4]),
        number(5, [0, 0, 0, 0]),
        attribute(11, [0, 7]),
        b"filter\0\0".to_vec(),
        head(68, [10, 9], [4, 1], 2, [1, 0, 0, 0]),
        name(1, b't'),
        name(2, b's'),
        number(3, [0, 0, 0, 0]),
        number(4, [0, 0, 0, 0]),
        number(5, [0, 0, 1, 2]),
        number(10, [0, 0, 0, 1]),
        head(64, [10, 12], [4, 5], 3, [1, 0, 0, 0]),
        name(1, b't'),
        name(2, b's'),
        attribute(28, [0x80, 3]),
        attribute(24, [0x80, 1]),
        attribute(12, [0x80, 1]),
        attribute(6, [0, 1]),
        vec![0x23, 0x28, 0, 0],
        attribute(7, [0, 6]),
        vec![0, 1, 0, 0],
        head(20, [0, 0x11], [0, 1], 4, marks),
    ];
    assert_eq!(batch.finished(), wanted.concat());
}

/// The data of the n-th expression of a rule.
fn expression(rule: &Rule, n: usize) -> Vec<u8> {
    let expression = walk(&rule.expressions.0).nth(n).expect("expression").1;
    find(expression, 2).expect("data").to_vec()
}

#[test]
fn a_rule_says_numbers_in_the_networks_order_and_loads_the_machines_own() {
    let rule = Rule::new()
        .payload(1, Base::Transport, 12, 3)
        .forward_to(0x0102_0304)
        .prioritise(0x7065_6572)
        .remember("s", 0x0102_0304_0506_0708)
        .goto("c");
    let payload = expression(&rule, 0);
    assert_eq!(find(&payload, 3), Some(&[0, 0, 0, 12][..]), "an offset is nftables'");
    assert_eq!(find(&payload, 4), Some(&[0, 0, 0, 3][..]));
    let loaded = |n| find(find(&expression(&rule, n), 2)?, 1).map(<[u8]>::to_vec);
    assert_eq!(loaded(1), Some(here32([1, 2, 3, 4]).to_vec()), "an index is the machine's");
    assert_eq!(loaded(3), Some(here32(*b"peer").to_vec()), "so is a priority");
    let timeout = expression(&rule, 5);
    assert_eq!(find(&timeout, 6), Some(&[1, 2, 3, 4, 5, 6, 7, 8][..]));
    let verdict = expression(&rule, 6);
    let verdict = find(&verdict, 2).and_then(|data| find(data, 2)).expect("verdict");
    assert_eq!(find(verdict, 1), Some(&[0xff, 0xff, 0xff, 0xfc][..]), "goto is -4");
}

#[test]
fn counters_are_read_in_the_networks_order() {
    let rule = Rule::new().counter();
    let mut told = rule.expressions.0.clone();
    // Its bytes and its packets, each 8 zeros so far, stand at the end.
    let end = told.len();
    told[end - 20..end - 12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 1, 2]);
    told[end - 8..].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 3]);
    let told = Attributes::default().bytes(4, &told).0;
    let counted = dump::counter_of(&told);
    assert_eq!((counted.bytes, counted.packets), (0x0102, 3));
}

#[test]
fn a_vxlan_link_has_its_vni_in_the_machines_order_and_its_port_in_the_networks() {
    let remote = IpAddr::from([192, 0, 2, 7]);
    let vxlan = Vxlan { vni: 0x000a_0b0c, remote, port: 9000 };
    let (name, attributes) = describe(&NewLink::Vxlan { name: "ppvx", vxlan, alias: "" });
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.extend(attributes);
    let message = RouteNetlinkMessage::NewLink(message);
    assert_eq!(read(message.clone()).expect("a link").vxlan, Some(vxlan));

    let mut packet = NetlinkMessage::new(NetlinkHeader::default(), message.into());
    packet.finalize();
    let mut bytes = vec![0; packet.header.length as usize];
    packet.serialize(&mut bytes);
    assert_eq!(bytes[4..6], here16([0, 16]), "RTM_NEWLINK");
    // Behind the heads of netlink and of links.
    let attributes = &bytes[32..];
    assert_eq!(find(attributes, 3), Some(&b"ppvx\0"[..]));
    let data = find(attributes, 18).and_then(|info| find(info, 2)).expect("data");
    assert_eq!(find(data, 1), Some(&here32([0, 0x0a, 0x0b, 0x0c])[..]), "VNI");
    assert_eq!(find(data, 15), Some(&[0x23, 0x28][..]), "port");
    assert_eq!(find(data, 2), Some(&[192, 0, 2, 7][..]), "the other end");
    assert_eq!(find(data, 7), Some(&[0][..]), "no learning");

    let again = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).expect("parse");
    let NetlinkPayload::InnerMessage(again) = again.payload else { panic!("{again:?}") };
    assert_eq!(read(again).expect("a link").vxlan, Some(vxlan));
}
