//! The path between the worker and its VMs, cut; and the connections over it, broken.

use std::net::Ipv4Addr;

use anyhow::Context;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use peerpod_netlink::{Handle, Link};

use super::network::Failed;
use super::{Lab, blocking};

/// Port of the forwarder in a VM.
const FORWARDER: u16 = 15150;
/// Interfaces of VMs: on the worker's bridge, and on that of a libvirt behind it.
const PORTS: [&str; 2] = ["ppl", "vnet"];

/// Takes the VMs from their bridge, or gives them back.
///
/// # Errors
/// Of the kernel.
pub async fn plug(lab: &Lab, plugged: bool) -> anyhow::Result<()> {
    let network = lab.network().clone();
    let set = move || -> Result<(), peerpod_netlink::Error> {
        let here = Handle::here()?;
        let is_port = |link: &&Link| PORTS.iter().any(|port| link.name.starts_with(port));
        for link in here.links()?.iter().filter(is_port) {
            here.set_up(&link.name, plugged)?;
        }
        Ok(())
    };
    let both =
        move || [network.worker(), network.cluster()].into_iter().try_for_each(|n| n.run(set));
    blocking(move || both().context("the VMs' interfaces")).await
}

/// Has the kernel end every connection from the worker to a forwarder, and gives how many it were.
///
/// # Errors
/// When the kernel cannot, as some are built without it.
pub async fn break_connections(lab: &Lab) -> anyhow::Result<usize> {
    let network = lab.network().clone();
    blocking(move || network.worker().run(|| destroy_all().map_err(Failed)).context("break")).await
}

fn destroy_all() -> anyhow::Result<usize> {
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").context("read net/tcp")?;
    let all: Vec<_> = table.lines().filter_map(connection).collect();
    let socket = Socket::new(NETLINK_SOCK_DIAG).context("open sock_diag")?;
    for connection in &all {
        destroy(&socket, connection)?;
    }
    Ok(all.len())
}

type End = (Ipv4Addr, u16);

/// An established connection to a forwarder, from a line of net/tcp.
fn connection(line: &str) -> Option<(End, End)> {
    const ESTABLISHED: &str = "01";
    let end = |text: &str| -> Option<End> {
        let (address, port) = text.split_once(':')?;
        let address = u32::from_str_radix(address, 16).ok()?;
        Some((Ipv4Addr::from(address.to_ne_bytes()), u16::from_str_radix(port, 16).ok()?))
    };
    let mut words = line.split_whitespace().skip(1);
    let (local, remote) = (end(words.next()?)?, end(words.next()?)?);
    (words.next()? == ESTABLISHED && remote.1 == FORWARDER).then_some((local, remote))
}

/// SOCK_DESTROY of linux/sock_diag.h, with an inet_diag_req_v2.
fn destroy(socket: &Socket, ((local, from), (remote, to)): &(End, End)) -> anyhow::Result<()> {
    const SOCK_DESTROY: u16 = 21;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const LENGTH: u32 = 16 + 56;
    let mut message = Vec::with_capacity(LENGTH as usize);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(SOCK_DESTROY.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 8]);
    // Family and protocol, nothing further, any state.
    message.extend([2, 6, 0, 0]);
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(from.to_be_bytes());
    message.extend(to.to_be_bytes());
    for address in [local, remote] {
        message.extend(address.octets());
        message.extend([0; 12]);
    }
    // Any interface, any cookie.
    message.extend([0; 4]);
    message.extend([0xff; 8]);
    socket.send_to(&message, &SocketAddr::new(0, 0), 0).context("ask sock_diag")?;
    let (answer, _) = socket.recv_from_full().context("hear sock_diag")?;
    let code = answer.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    let gone = code == Some(-nix::libc::ENOENT);
    match code {
        Some(code) if code != 0 && !gone => {
            Err(std::io::Error::from_raw_os_error(-code)).context("SOCK_DESTROY")
        }
        _ => Ok(()),
    }
}
