//! The path between the worker and its VMs is cut for a moment, and the agent links' connections are
//! broken at the worker: the relay dials again, and execs that count both ways go on where they stood.
//!
//! ```text
//!   execs  ── counting ──── ✂ stand still ───────────▶ ── counting on, every number once ──▶
//!   links  ── broken ✗  dialled again … the path is back ─ session goes on ──▶
//! ```

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use peerpod_netlink::Handle;
use peerpod_standin::lab::network::Failed;
use peerpod_standin::lab::{Lab, blocking, wait_for};

use super::restart::{COUNTED, Count, ENOUGH, PATIENCE, all_reach};
use crate::world::World;

/// How long the path is away once the connections are broken.
const CUT: Duration = Duration::from_millis(600);
/// And if this kernel cannot break connections for us: until the relay takes them for dead.
const LONG_CUT: Duration = Duration::from_secs(5);
/// Port of the forwarder in a VM.
const FORWARDER: u16 = 15150;
/// Interfaces of VMs on the worker's bridge.
const PORTS: &str = "ppl";

pub(super) async fn run(world: &mut World) -> anyhow::Result<String> {
    let mut counts = Vec::new();
    for pod in world.pods.iter().take(COUNTED) {
        counts.push(Count::start(pod, "cut").await.with_context(|| pod.name.clone())?);
    }
    all_reach(&counts, ENOUGH).await?;
    let made = links_made(world).await?;
    let begin = Instant::now();
    plug(&world.lab, false).await?;
    let (broken, cut) = match break_connections(&world.lab).await {
        Ok(broken) => (format!("{broken} connections broken"), CUT),
        Err(error) => (format!("this kernel breaks no connection ({error:#})"), LONG_CUT),
    };
    world.timeline.say(&format!("the path to the VMs is cut, {broken}"));
    tokio::time::sleep(cut).await;
    plug(&world.lab, true).await?;
    let again = || async { Ok((links_made(world).await? > made).then_some(())) };
    wait_for("the relay's new connections", PATIENCE, again).await?;
    let more = counts.iter().map(|count| count.least() + ENOUGH).max().unwrap_or_default();
    all_reach(&counts, more).await?;
    world.timeline.took(None, "the links stand again and the execs count on", begin.elapsed());
    let mut total = 0;
    for count in counts {
        total += count.finish(&world.timeline).await?;
    }
    Ok(format!("cut for {} ms; {total} lines both ways, none lost or repeated", cut.as_millis()))
}

/// Connections to VMs that the relay has made so far.
async fn links_made(world: &World) -> anyhow::Result<u64> {
    let daemon = world.daemon.as_ref().context("the daemon has been stopped")?;
    let (code, text) = daemon.get("/metrics").await?;
    ensure!(code == 200, "/metrics: {code}");
    let line = text.lines().find(|l| l.contains("links") && l.contains("result=\"ok\""));
    let value = line.and_then(|l| l.rsplit(' ').next()).context("/metrics counts no links")?;
    value.parse().with_context(|| format!("/metrics: {value:?} is no number"))
}

/// Takes the VMs from the worker's bridge, or gives them back.
async fn plug(lab: &Lab, plugged: bool) -> anyhow::Result<()> {
    let network = lab.network().clone();
    let set = move || -> Result<(), peerpod_netlink::Error> {
        let here = Handle::here()?;
        for link in here.links()?.iter().filter(|link| link.name.starts_with(PORTS)) {
            here.set_up(&link.name, plugged)?;
        }
        Ok(())
    };
    blocking(move || network.worker().run(set).context("the VMs' interfaces")).await
}

/// Has the kernel end every connection from the worker to a forwarder, and gives how many it were.
async fn break_connections(lab: &Lab) -> anyhow::Result<usize> {
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
