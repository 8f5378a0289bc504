//! Namespaces: a cluster beside two pods on a worker; their VMs and a third host on the underlay.
//!
//! ```text
//!   cluster eth0 ─┐                              ┌─ vm ens0      (podns eth0 = inside the VM)
//!   pod eth0 ─────┼─ cni0 (worker) br0 ──────────┼─ other ens0   (VM of another pod)
//!                 ┘                              └─ third ens0
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use peerpod_netlink::nft::expression::Rule;
use peerpod_netlink::nft::{Batch, Chain, Family, Hook, Table};
use peerpod_netlink::{Error, Handle, Netns, NewLink, Route};
use peerpod_tunnel::network::guest::{self, GuestNetwork};
use peerpod_tunnel::network::{self, Counters, InspectSettings, Policy, Tunnel};

use super::frames::Mac;

pub(crate) const PORT: u16 = 9000;
pub(crate) const VNI: u32 = 700_001;
pub(crate) const POD4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
pub(crate) const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 5);
pub(crate) const NODE4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
pub(crate) const NODE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1);
pub(crate) const CLUSTER4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 9);
pub(crate) const CLUSTER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 9);

pub(crate) const HOST_TABLE: Table<'static> = Table { family: Family::Inet, name: "peerpod" };
pub(crate) const POD_TABLE: Table<'static> = Table { family: Family::Netdev, name: "peerpod" };

/// Addresses of worker, vm, other and third on the underlay.
pub(crate) type Outer = [IpAddr; 4];

pub(crate) fn outer(v4: bool) -> Outer {
    let n = |n: u8| -> IpAddr {
        if v4 {
            Ipv4Addr::new(192, 0, 2, n).into()
        } else {
            Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, n.into()).into()
        }
    };
    [n(1), n(2), n(3), n(4)]
}

pub(crate) struct Lab {
    pub(crate) worker: Netns,
    pub(crate) pod: Netns,
    pub(crate) cluster: Netns,
    pub(crate) vm: Netns,
    pub(crate) other: Netns,
    pub(crate) third: Netns,
    pub(crate) outer: Outer,
    pub(crate) tunnel: Tunnel,
    pub(crate) policy: Policy,
    dir: tempfile::TempDir,
}

fn with(ip: IpAddr, prefix4: u8) -> IpNetwork {
    IpNetwork::new(ip, if ip.is_ipv4() { prefix4 } else { 64 }).unwrap()
}

impl Lab {
    pub(crate) fn new(v4: bool, policy: Policy) -> Self {
        let make = || Netns::create().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (worker, pod, cluster) = (make(), make(), make());
        let (vm, other, third, outer) = (make(), make(), make(), outer(v4));
        pod.persist(&dir.path().join("pod")).unwrap();
        wire(&worker, [&cluster, &pod], [&vm, &other, &third], outer).unwrap();
        let path = dir.path().join("pod");
        let inspect = || network::inspect(&path, &InspectSettings::default());
        let (found, netns_id) = worker.run(inspect).unwrap();
        let mtu = found.inner_mtu(outer[1]).unwrap();
        let tunnel = Tunnel {
            sandbox: "pod".to_owned(),
            vni: VNI,
            port: PORT,
            netns: path,
            netns_id,
            interface: found.interface.clone(),
            mac: found.mac,
            addresses: found.addresses.clone(),
            vm: outer[1],
            mtu,
        };
        let guest = GuestNetwork {
            interface: found.interface,
            mac: found.mac,
            mtu: found.mtu,
            addresses: found.addresses,
            routes: found.routes,
            neighbors: found.neighbors,
            worker: vec![outer[0]],
            vni: VNI,
            port: PORT,
            podns: dir.path().join("podns"),
            host_interface: None,
        };
        let lab = Self { worker, pod, cluster, vm, other, third, outer, tunnel, policy, dir };
        lab.attach();
        lab.attach_other();
        lab.vm.run(|| guest::setup(&guest)).map_err(|e| e.to_string()).unwrap();
        lab
    }

    pub(crate) fn attach(&self) {
        let attach = || network::attach(&self.tunnel, &self.policy);
        self.worker.run(attach).map_err(|e| e.to_string()).unwrap();
    }

    /// The tunnel of another pod, whose VM is `other`: it may speak, but not for us.
    fn attach_other(&self) {
        let ns = Netns::create().unwrap();
        ns.handle().unwrap().add_link(&NewLink::Bridge { name: "eth0" }).unwrap();
        let path = self.dir.path().join("other");
        ns.persist(&path).unwrap();
        let other = Tunnel {
            sandbox: "other".to_owned(),
            vni: VNI + 1,
            netns: path,
            netns_id: ns.id().unwrap(),
            vm: self.outer[2],
            ..self.tunnel.clone()
        };
        let attach = || network::attach(&other, &self.policy);
        self.worker.run(attach).map_err(|e| e.to_string()).unwrap();
    }

    pub(crate) fn verify(&self) -> Vec<String> {
        let verify = || network::verify(&self.tunnel, &self.policy);
        self.worker.run(verify).map_err(|e| e.to_string()).unwrap().wrong
    }

    pub(crate) fn counters(&self) -> Counters {
        let read = || network::counters(&self.tunnel);
        self.worker.run(read).map_err(|e| e.to_string()).unwrap()
    }

    pub(crate) fn podns(&self) -> Netns {
        Netns::open(self.podns_path()).unwrap()
    }

    fn podns_path(&self) -> PathBuf {
        self.dir.path().join("podns")
    }

    pub(crate) fn mac(ns: &Netns, link: &str) -> Mac {
        ns.handle().unwrap().link(link).unwrap().mac.unwrap().0
    }

    /// The same tunnel without any filter: bare forwarding, and everybody may speak.
    pub(crate) fn open_up(&self) {
        let pod = self.pod.handle().unwrap();
        let index = |name| pod.link(name).unwrap().index;
        let (eth0, vxlan) = (index("eth0"), index("vxlan1"));
        let chain = |name, device| Chain {
            name,
            hook: Some((Hook::Ingress(device), 0)),
            drop_by_default: false,
        };
        let bare = Batch::new()
            .delete_table(POD_TABLE)
            .new_table(POD_TABLE)
            .chain(POD_TABLE, chain("from_pod", "eth0"))
            .chain(POD_TABLE, chain("from_vm", "vxlan1"))
            .rule(POD_TABLE, "from_pod", &Rule::new().forward_to(vxlan))
            .rule(POD_TABLE, "from_vm", &Rule::new().forward_to(eth0));
        self.pod.run(|| bare.send("bare forwarding")).unwrap();
        self.delete_host_table(&self.worker);
        self.delete_host_table(&self.vm);
    }

    pub(crate) fn delete_host_table(&self, ns: &Netns) {
        ns.run(|| Batch::new().delete_table(HOST_TABLE).send("no source filter")).unwrap();
    }
}

fn wire(
    worker: &Netns,
    inside: [&Netns; 2],
    hosts: [&Netns; 3],
    outer: Outer,
) -> Result<(), Error> {
    let here = worker.handle()?;
    for bridge in ["br0", "cni0"] {
        here.add_link(&NewLink::Bridge { name: bridge })?;
        here.set_up(bridge, true)?;
    }
    here.add_address("cni0", with(NODE4.into(), 24))?;
    here.add_address("cni0", with(NODE6.into(), 64))?;
    here.add_address("br0", with(outer[0], 24))?;
    let default = if outer[0].is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse().unwrap();
    here.add_route(&Route::via(default, None, "br0"))?;
    let plug = |name: &str, bridge, ns: &Netns, peer: &str| -> Result<Handle, Error> {
        // Made where it is to be: a move waits for the kernel.
        worker.run(|| {
            Handle::here()?.add_link(&NewLink::Veth { name, peer, peer_netns: Some(ns) })
        })?;
        here.set_master(name, bridge)?;
        here.set_up(name, true)?;
        let there = ns.handle()?;
        there.set_up(peer, true)?;
        Ok(there)
    };
    let ips: [[IpAddr; 2]; 2] = [[CLUSTER4.into(), CLUSTER6.into()], [POD4.into(), POD6.into()]];
    for (n, (ns, ips)) in inside.into_iter().zip(ips).enumerate() {
        let there = plug(&format!("in{n}"), "cni0", ns, "eth0")?;
        for (ip, gateway) in ips.into_iter().zip([IpAddr::V4(NODE4), NODE6.into()]) {
            there.add_address("eth0", with(ip, 24))?;
            let all = if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse().unwrap();
            there.add_route(&Route::via(all, Some(gateway), "eth0"))?;
        }
    }
    for (n, ns) in hosts.into_iter().enumerate() {
        let there = plug(&format!("out{n}"), "br0", ns, "ens0")?;
        there.add_address("ens0", with(outer[n + 1], 24))?;
        there.add_route(&Route::via(default, Some(outer[0]), "ens0"))?;
    }
    Ok(())
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in ["pod", "other", "podns"] {
            let _ = Netns::unpersist(&self.dir.path().join(name));
        }
    }
}
