//! The namespaces: a worker with a bridge for its pods, a network behind it, pods.
//!
//! ```text
//!   pod-N eth0 10.244.0.(10+N) ══ ppN ─┐
//!                                 cni0 10.244.0.1   worker   eth0 10.99.0.1 ══ eth0 10.99.0.2  cluster
//!                                   default route by 10.99.0.2                  10.99.0.66   a third address
//!                                                                               10.96.0.10   behind it (lo)
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, ensure};
use ipnetwork::IpNetwork;
use peerpod_netlink::{Error, Handle, Link, Mac, Netns, NewLink, Route};

/// The worker's own address, where VMs send to.
pub const WORKER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// The cluster's address next to the worker.
pub const CLUSTER_HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// An address that is neither a worker's nor a VM's.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 66);
/// A service's address behind the cluster.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The pods' gateway on the worker.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The tunnel's device in a pod's namespace.
pub const DEVICE: &str = "vxlan1";
/// Pods that fit.
pub const MOST_PODS: u8 = 240;

/// The namespaces of a lab.
#[derive(Debug)]
pub struct Network {
    dir: PathBuf,
    worker: Netns,
    cluster: Netns,
}

/// A pod's namespace, as a CNI would have made it.
#[derive(Clone, Debug)]
pub struct PodNet {
    /// Which pod.
    pub number: u8,
    /// Where its namespace is bound.
    pub path: PathBuf,
    /// Its address.
    pub ip: Ipv4Addr,
}

impl PodNet {
    /// Opens the namespace.
    ///
    /// # Errors
    /// When it has gone.
    pub fn open(&self) -> Result<Netns, Error> {
        Netns::open(&self.path)
    }

    /// The tunnel's device.
    ///
    /// # Errors
    /// When there is none.
    pub fn device(&self) -> Result<Link, Error> {
        self.open()?.run(|| Handle::here()?.link(DEVICE))
    }

    /// Sets the tunnel's device up or down.
    ///
    /// # Errors
    /// When there is none.
    pub fn set_device(&self, up: bool) -> Result<(), Error> {
        self.open()?.run(|| Handle::here()?.set_up(DEVICE, up))
    }
}

impl Network {
    /// Makes worker and cluster.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn build(dir: &Path) -> anyhow::Result<Self> {
        let worker = bound(&dir.join("worker"))?;
        let cluster = bound(&dir.join("cluster"))?;
        let network = Self { dir: dir.to_owned(), worker, cluster };
        network.worker.run(|| network.wire_worker()).context("wire the worker")?;
        network.cluster.run(wire_cluster).context("wire the cluster")?;
        let forward = || -> anyhow::Result<()> {
            let path = "/proc/sys/net/ipv4/ip_forward";
            std::fs::write(path, "1").with_context(|| format!("write {path}"))
        };
        network.worker.run(|| forward().map_err(Failed))?;
        Ok(network)
    }

    fn wire_worker(&self) -> Result<(), Error> {
        let here = Handle::here()?;
        here.set_up("lo", true)?;
        here.add_link(&NewLink::Veth {
            name: "eth0",
            peer: "eth0",
            peer_netns: Some(&self.cluster),
        })?;
        here.add_address("eth0", net(WORKER, 24))?;
        here.set_up("eth0", true)?;
        here.add_link(&NewLink::Bridge { name: "cni0" })?;
        // Without one of its own a bridge takes the lowest of its ports', which come and go with pods,
        // and for the others the gateway would be away until they ask for it again.
        here.set_mac("cni0", Mac([2, 0, 10, 244, 0, 1]))?;
        here.add_address("cni0", net(GATEWAY, 24))?;
        here.set_up("cni0", true)?;
        // The far end is not up yet; a default route only wants the link to be.
        here.add_route(&Route::via(
            net(Ipv4Addr::UNSPECIFIED, 0),
            Some(CLUSTER_HOST.into()),
            "eth0",
        ))
    }

    /// The worker's namespace, where the daemon runs.
    pub fn worker(&self) -> &Netns {
        &self.worker
    }

    /// The namespace behind the worker.
    pub fn cluster(&self) -> &Netns {
        &self.cluster
    }

    /// Makes a pod's namespace: one interface, one address, a default route by the worker.
    ///
    /// # Errors
    /// When the number is too high or taken, or the kernel refuses.
    pub fn add_pod(&self, number: u8) -> anyhow::Result<PodNet> {
        ensure!(number < MOST_PODS, "pod number {number}; {MOST_PODS} fit");
        let path = self.dir.join(format!("pod-{number}"));
        let pod = bound(&path)?;
        let name = port(number);
        let ip = Ipv4Addr::new(10, 244, 0, 10 + number);
        let worker = || -> Result<(), Error> {
            let here = Handle::here()?;
            here.add_link(&NewLink::Veth { name: &name, peer: "eth0", peer_netns: Some(&pod) })?;
            here.set_master(&name, "cni0")?;
            here.set_up(&name, true)
        };
        self.worker.run(worker).with_context(|| format!("join pod {number} to the worker"))?;
        let inside = || -> Result<(), Error> {
            let here = Handle::here()?;
            here.set_up("lo", true)?;
            here.add_address("eth0", net(ip, 24))?;
            here.set_up("eth0", true)?;
            here.add_route(&Route::via(net(Ipv4Addr::UNSPECIFIED, 0), Some(GATEWAY.into()), "eth0"))
        };
        pod.run(inside).with_context(|| format!("wire pod {number}"))?;
        Ok(PodNet { number, path, ip })
    }

    /// Takes a pod's namespace away, as the CNI does after the sandbox.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_pod(&self, pod: &PodNet) -> Result<(), Error> {
        Netns::unpersist(&pod.path)?;
        self.worker.run(|| Handle::here()?.delete_link(&port(pod.number)))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for bound in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let _ = Netns::unpersist(&bound.path());
        }
    }
}

/// Carries any error through [`Netns::run`].
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct Failed(pub anyhow::Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error.into())
    }
}

/// Starts a program inside a namespace: a child inherits that of the thread it comes from.
///
/// # Errors
/// When it cannot be started.
pub fn spawn_in(netns: &Netns, command: &mut Command) -> anyhow::Result<Child> {
    let child = netns.run(|| command.spawn().map_err(|e| Failed(e.into())));
    child.with_context(|| format!("start {:?}", command.get_program()))
}

fn bound(path: &Path) -> anyhow::Result<Netns> {
    ensure!(!path.exists(), "{} is taken", path.display());
    let netns = Netns::create()?;
    netns.persist(path)?;
    Ok(Netns::open(path)?)
}

fn wire_cluster() -> Result<(), Error> {
    let here = Handle::here()?;
    here.set_up("lo", true)?;
    here.add_address("lo", net(SERVICE, 32))?;
    here.add_address("eth0", net(CLUSTER_HOST, 24))?;
    here.add_address("eth0", net(STRANGER, 24))?;
    here.set_up("eth0", true)?;
    here.add_route(&Route::via(net(Ipv4Addr::new(10, 244, 0, 0), 24), Some(WORKER.into()), "eth0"))
}

fn net(address: Ipv4Addr, prefix: u8) -> IpNetwork {
    IpNetwork::new(IpAddr::V4(address), prefix)
        .unwrap_or_else(|_| IpNetwork::from(IpAddr::V4(address)))
}

fn port(number: u8) -> String {
    format!("pod{number}")
}
