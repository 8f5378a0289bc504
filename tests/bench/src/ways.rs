//! Three ways between another pod of the worker and a pod, as P6 compares them.
//!
//! ```text
//!   peer: eth0 ─ p0 ┐ worker: bridge cni0 ┌ q0 ─ eth0 :pod           limit: the pod's program is here
//!                   └─────────────────────┘        │ ours, rival: redirected to vxlan1
//!                     worker: w0 ═══════ v0 :vm ─ podns: eth0        and here is the program
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use peerpod_netlink::{Handle, Mac, Netns, NewLink, Route, Vxlan};
use peerpod_tunnel::network::guest::{self, GuestNetwork};
use peerpod_tunnel::network::{self, MacText, Policy, Tunnel};

use crate::Bench;
use crate::lab::{address, quiet, within, worker_and_vms};
use crate::rival::{self, Daemon, Order};
use crate::traffic::End;

const PEER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
const MAC: Mac = Mac([2, 0, 0, 0, 0, 5]);
const WORKER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
const VM: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
const VNI: u32 = 600_000;
const PORT: u16 = 9000;
/// What upstream's VM gives the pod at most, whatever the underlay carries.
const RIVALS_MTU: u32 = 1450;

/// What the underlay is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Underlay {
    pub(crate) mtu: u32,
    /// The kernel cuts packets before the underlay, as for a network card that cannot.
    pub(crate) cut: bool,
}

/// One way, standing.
#[derive(Debug)]
pub(crate) struct Way {
    peer: Netns,
    /// Where the pod's programs are.
    program: Netns,
    /// What it takes besides.
    _others: Vec<Netns>,
    bound: Vec<PathBuf>,
    _rival: Option<Daemon>,
}

impl Way {
    pub(crate) fn peer(&self) -> End<'_> {
        End { netns: &self.peer, address: PEER }
    }

    pub(crate) fn pod(&self) -> End<'_> {
        End { netns: &self.program, address: POD }
    }

    /// Without a tunnel.
    pub(crate) fn raw(underlay: Underlay) -> anyhow::Result<Self> {
        let Node { worker, vm, peer, pod } = Node::new(underlay)?;
        if underlay.cut {
            worker.handle()?.set_gso_max_segs("q0", 1)?;
            pod.handle()?.set_gso_max_segs("eth0", 1)?;
        }
        let others = vec![worker, vm];
        Ok(Self { peer, program: pod, _others: others, bound: Vec::new(), _rival: None })
    }

    /// With the tunnel that this project makes, all its filters in place.
    pub(crate) fn ours(dir: &Path, underlay: Underlay) -> anyhow::Result<Self> {
        let Node { worker, vm, peer, pod } = Node::new(underlay)?;
        let (netns, podns) = (dir.join("pod"), dir.join("podns"));
        pod.persist(&netns)?;
        let addresses = vec![pod_address()?];
        let tunnel = Tunnel {
            sandbox: "bench".to_owned(),
            vni: VNI,
            port: PORT,
            netns: netns.clone(),
            netns_id: pod.id()?,
            interface: "eth0".to_owned(),
            mac: MacText(MAC),
            addresses: addresses.clone(),
            vm: VM,
            mtu: network::inner_mtu(underlay.mtu, underlay.mtu, VM)?,
        };
        worker.run(|| network::attach(&tunnel, &Policy::default()))?;
        let guest = GuestNetwork {
            interface: "eth0".to_owned(),
            mac: MacText(MAC),
            mtu: underlay.mtu,
            addresses,
            routes: vec![network::Route {
                destination: "10.244.0.0/24".parse()?,
                gateway: None,
                protocol: "static".to_owned(),
                scope: "link".to_owned(),
            }],
            neighbors: Vec::new(),
            worker: vec![WORKER],
            vni: VNI,
            port: PORT,
            podns: podns.clone(),
            host_interface: Some("v0".to_owned()),
        };
        vm.run(|| guest::setup(&guest))?;
        let program = Netns::open(&podns)?;
        let (others, bound) = (vec![worker, vm, pod], vec![netns, podns]);
        Ok(Self { peer, program, _others: others, bound, _rival: None })
    }

    /// With the tunnel of upstream's shape.
    pub(crate) fn rival(bench: &Bench, dir: &Path, underlay: Underlay) -> anyhow::Result<Self> {
        let Node { worker, vm, peer, pod } = Node::new(underlay)?;
        let netns = dir.join("rival-pod");
        pod.persist(&netns)?;
        let mut daemon = Daemon::start(bench.programs.rival()?, dir, Some(&worker))?;
        let tunnel = rival::Tunnel {
            vni: VNI,
            port: PORT,
            remote: VM.to_string(),
            netns: netns.display().to_string(),
            interface: "eth0".to_owned(),
        };
        daemon.ask(&Order { op: "attach", tunnel: Some(tunnel), ..Order::default() })?;
        let program = quiet()?;
        let inside = program.handle()?;
        let vxlan = Vxlan { vni: VNI, remote: WORKER, port: PORT };
        vm.handle()?.add_vxlan_in((&program, &inside), "eth0", vxlan)?;
        inside.set_mac("eth0", MAC)?;
        inside.set_mtu("eth0", underlay.mtu.min(RIVALS_MTU))?;
        inside.add_address("eth0", pod_address()?)?;
        inside.set_up("eth0", true)?;
        let others = vec![worker, vm, pod];
        let _rival = Some(daemon);
        Ok(Self { peer, program, _others: others, bound: vec![netns], _rival })
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        for path in &self.bound {
            // One that stays bound goes with the bench's directory.
            let _ = Netns::unpersist(path);
        }
    }
}

fn pod_address() -> anyhow::Result<IpNetwork> {
    Ok(IpNetwork::new(POD.into(), 24)?)
}

/// A worker with a bridge, two pods on it, and a VM beside it.
struct Node {
    worker: Netns,
    vm: Netns,
    peer: Netns,
    pod: Netns,
}

impl Node {
    fn new(underlay: Underlay) -> anyhow::Result<Self> {
        let (worker, vm) = worker_and_vms(&[address(0, 2)?])?;
        let (here, there) = (worker.handle()?, vm.handle()?);
        for (handle, name) in [(&here, "w0"), (&there, "v0")] {
            handle.set_mtu(name, underlay.mtu)?;
            if underlay.cut {
                handle.set_gso_max_segs(name, 1)?;
            }
        }
        within(&worker, |here| {
            here.add_link(&NewLink::Bridge { name: "cni0" })?;
            here.set_up("cni0", true)
        })?;
        let peer = on_bridge(&worker, "p0", None, PEER, underlay)?;
        let pod = on_bridge(&worker, "q0", Some(MAC), POD, underlay)?;
        Ok(Self { worker, vm, peer, pod })
    }
}

fn on_bridge(
    worker: &Netns,
    name: &str,
    mac: Option<Mac>,
    address: Ipv4Addr,
    underlay: Underlay,
) -> anyhow::Result<Netns> {
    let pod = quiet()?;
    let inside: Handle = pod.handle()?;
    within(worker, |here| {
        here.add_link(&NewLink::Veth { name, peer: "eth0", peer_netns: Some(&pod) })?;
        here.set_mtu(name, underlay.mtu)?;
        here.set_master(name, "cni0")?;
        here.set_up(name, true)
    })?;
    if let Some(mac) = mac {
        inside.set_mac("eth0", mac)?;
    }
    inside.set_mtu("eth0", underlay.mtu)?;
    inside.add_address("eth0", IpNetwork::new(address.into(), 24)?)?;
    inside.set_up("eth0", true)?;
    inside.add_route(&Route::via("0.0.0.0/0".parse()?, None, "eth0"))?;
    Ok(pod)
}
