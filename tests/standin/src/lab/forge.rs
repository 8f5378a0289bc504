//! Frames that nobody has a right to send, and the daemon's filter against them.
//!
//! ```text
//!   stranger ── UDP: VXLAN( pod's MAC → cni0's MAC: pod's IP → cluster, UDP "forged" ) ──▶ worker
//! ```

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerpod_netlink::nft::{Batch, Counter, Family, Nft, Table};
use peerpod_netlink::{Error, Handle, Vxlan};

use super::network::{CLUSTER_HOST, Failed, Network, PodNet, STRANGER, WORKER};

/// The daemon's table in the worker's namespace, and its set of who may speak for a tunnel.
const TABLE: Table<'static> = Table { family: Family::Inet, name: "peerpod" };
const SPEAKERS: &str = "vms4";
/// Rules at the head of its chain that let in; the rest drops.
const ACCEPTING: usize = 2;
/// Where a forged packet would arrive.
const PORT: u16 = 8765;
/// What it carries.
pub const PAYLOAD: &[u8] = b"forged";

/// A listener in the cluster that forged packets are meant for.
#[derive(Debug)]
pub struct Victim(UdpSocket);

impl Victim {
    /// Listens at an address of the cluster.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn listen(network: &Network) -> anyhow::Result<Self> {
        let at = SocketAddrV4::new(CLUSTER_HOST, PORT);
        let socket = network.cluster().run(|| UdpSocket::bind(at).map_err(|e| Failed(e.into())));
        Ok(Self(socket.context("listen for forged packets")?))
    }

    /// Whether a forged packet arrives within `limit`.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn hears(&self, limit: Duration) -> anyhow::Result<bool> {
        self.0.set_read_timeout(Some(limit)).context("set a time limit")?;
        let mut buffer = [0; 64];
        match self.0.recv(&mut buffer) {
            Ok(read) => Ok(&buffer[..read] == PAYLOAD),
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EAGAIN)) => Ok(false),
            Err(e) => Err(e).context("listen for forged packets"),
        }
    }
}

/// Sends one frame for the pod's tunnel from the third address.
///
/// # Errors
/// When the pod has no tunnel, or sending fails.
pub fn send(network: &Network, pod: &PodNet) -> anyhow::Result<()> {
    let vxlan = tunnel(pod)?;
    let own = pod.open()?.run(|| Handle::here()?.link("eth0"))?;
    let bridge = network.worker().run(|| Handle::here()?.link("cni0"))?;
    let source = own.mac.context("the pod's MAC")?.0;
    let target = bridge.mac.context("the bridge's MAC")?.0;
    let frame = frame(vxlan.vni, source, target, pod);
    let send = || -> std::io::Result<()> {
        let socket = UdpSocket::bind(SocketAddrV4::new(STRANGER, 0))?;
        socket.send_to(&frame, SocketAddr::from((WORKER, vxlan.port)))?;
        Ok(())
    };
    network.cluster().run(|| send().map_err(|e| Failed(e.into()))).context("send a forged frame")
}

fn tunnel(pod: &PodNet) -> anyhow::Result<Vxlan> {
    pod.device()?.vxlan.context("the pod's tunnel device is no VXLAN device")
}

fn frame(vni: u32, source: [u8; 6], target: [u8; 6], pod: &PodNet) -> Vec<u8> {
    let length = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
    let mut ip = vec![0x45, 0];
    ip.extend(length(28 + PAYLOAD.len()));
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend(pod.ip.octets());
    ip.extend(CLUSTER_HOST.octets());
    let sum: u32 = ip.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from(folded & 0xffff).unwrap_or_default();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0x08, 0, 0, 0];
    frame.extend(&vni.to_be_bytes()[1..]);
    frame.push(0);
    frame.extend(target);
    frame.extend(source);
    frame.extend([0x08, 0x00]);
    frame.extend(ip);
    frame.extend(5000u16.to_be_bytes());
    frame.extend(PORT.to_be_bytes());
    frame.extend(length(8 + PAYLOAD.len()));
    frame.extend([0, 0]);
    frame.extend(PAYLOAD);
    frame
}

/// What the filter has dropped so far, of all tunnels together.
///
/// # Errors
/// When there is no filter.
pub fn dropped(network: &Network) -> Result<Counter, Error> {
    let counters = network.worker().run(|| Nft::counters(TABLE, "input"))?;
    Ok(counters.into_iter().skip(ACCEPTING).fold(Counter::default(), Counter::plus))
}

/// The pod's tunnel with a filter that lets the third address in as well, until [`Opened::close`].
/// (With no filter at all, the daemon's other table lets nothing pass.) The daemon, which would put it
/// back at once, is held meanwhile.
#[derive(Debug)]
pub struct Opened {
    key: Vec<u8>,
    _held: Held,
}

/// A process that stands still as long as this lives.
#[derive(Debug)]
struct Held(Pid);

impl Drop for Held {
    fn drop(&mut self) {
        // One that has gone needs nothing.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

impl Opened {
    /// Opens the filter of the pod's tunnel, and holds `node`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(network: &Network, pod: &PodNet, node: i32) -> anyhow::Result<Self> {
        let vxlan = tunnel(pod)?;
        // Port, VNI and address, each in 4 bytes of its own.
        let mut key = vxlan.port.to_be_bytes().to_vec();
        key.extend([0, 0]);
        key.extend(&vxlan.vni.to_be_bytes()[1..]);
        key.push(0);
        key.extend(STRANGER.octets());
        let node = Pid::from_raw(node);
        kill(node, Signal::SIGSTOP).context("hold the node process")?;
        let held = Held(node);
        let batch = Batch::new().element(TABLE, SPEAKERS, &key, "test");
        network.worker().run(|| batch.send("open the source filter"))?;
        Ok(Self { key, _held: held })
    }

    /// Puts the filter back as it was.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn close(self, network: &Network) -> Result<(), Error> {
        let batch = Batch::new().delete_element(TABLE, SPEAKERS, &self.key);
        network.worker().run(|| batch.send("close the source filter"))
    }
}
