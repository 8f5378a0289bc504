//! A link as attributes of a message, both ways.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::{Link, Mac, NewLink, Vxlan};

pub(crate) fn describe<'a>(new: &NewLink<'a>) -> (&'a str, Vec<LinkAttribute>) {
    match new {
        NewLink::Bridge { name } => {
            (*name, vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)])])
        }
        NewLink::Veth { name, peer, peer_netns } => {
            let mut other = LinkMessage::default();
            other.attributes.push(LinkAttribute::IfName((*peer).to_owned()));
            if let Some(netns) = peer_netns {
                other.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
            }
            let data = InfoData::Veth(InfoVeth::Peer(other));
            let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)];
            (*name, vec![LinkAttribute::LinkInfo(info)])
        }
        NewLink::Vxlan { name, vxlan, .. } => {
            let mut data = vec![
                InfoVxlan::Id(vxlan.vni),
                InfoVxlan::Port(vxlan.port),
                InfoVxlan::Learning(false),
                InfoVxlan::UDPCsum(true),
            ];
            data.extend(match vxlan.remote {
                IpAddr::V4(a) => [InfoVxlan::Group(a), InfoVxlan::UDPZeroCsumTX(false)],
                IpAddr::V6(a) => [InfoVxlan::Group6(a), InfoVxlan::UDPZeroCsumTX(false)],
            });
            let data = InfoData::Vxlan(data);
            let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(data)];
            (*name, vec![LinkAttribute::LinkInfo(info)])
        }
    }
}

pub(crate) fn read(message: Message) -> Option<Link> {
    let Message::NewLink(message) = message else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::Stats64(stats) => {
                link.packets = (stats.rx_packets, stats.tx_packets);
                link.bytes = (stats.rx_bytes, stats.tx_bytes);
            }
            LinkAttribute::LinkInfo(infos) => read_info(infos, &mut link),
            _ => {}
        }
    }
    Some(link)
}

fn read_info(infos: Vec<LinkInfo>, link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Vxlan(data)) => {
                let (mut vni, mut remote, mut port) = (None, None, None);
                for item in data {
                    match item {
                        InfoVxlan::Id(id) => vni = Some(id),
                        InfoVxlan::Group(a) => remote = Some(IpAddr::V4(a)),
                        InfoVxlan::Group6(a) => remote = Some(IpAddr::V6(a)),
                        InfoVxlan::Port(p) => port = Some(p),
                        InfoVxlan::Learning(on) => link.lax |= on,
                        InfoVxlan::UDPCsum(on) => link.lax |= !on,
                        InfoVxlan::UDPZeroCsumRX(on) => link.lax |= on,
                        _ => {}
                    }
                }
                if let (Some(vni), Some(remote), Some(port)) = (vni, remote, port) {
                    link.vxlan = Some(Vxlan { vni, remote, port });
                }
            }
            _ => {}
        }
    }
}
