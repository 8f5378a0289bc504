//! Network namespaces for the bench, and waiting for what can be seen.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ipnetwork::{IpNetwork, Ipv4Network};
use peerpod_netlink::{Error, Handle, Netns, NewLink, Route};

/// A namespace of its own with only a loopback, so that every port is free.
pub(crate) fn quiet() -> anyhow::Result<Netns> {
    let netns = Netns::create()?;
    netns.handle()?.set_up("lo", true)?;
    Ok(netns)
}

/// `10.77.a.b/16`.
pub(crate) fn address(a: u8, b: u8) -> anyhow::Result<IpNetwork> {
    Ok(IpNetwork::V4(Ipv4Network::new(Ipv4Addr::new(10, 77, a, b), 16)?))
}

/// Two namespaces with a cable between them: the worker is 10.77.0.1, the VMs are what is asked for.
pub(crate) fn worker_and_vms(vms: &[IpNetwork]) -> anyhow::Result<(Netns, Netns)> {
    let (worker, vm) = (quiet()?, quiet()?);
    let here = worker.handle()?;
    here.add_link(&NewLink::Veth { name: "w0", peer: "v0", peer_netns: Some(&vm) })?;
    here.add_address("w0", address(0, 1)?)?;
    here.set_up("w0", true)?;
    // It leads nowhere, but marks the worker's primary interface.
    here.add_route(&Route::via("0.0.0.0/0".parse()?, None, "w0"))?;
    let there = vm.handle()?;
    for address in vms {
        there.add_address("v0", *address)?;
    }
    there.set_up("v0", true)?;
    Ok((worker, vm))
}

/// Runs netlink work in a namespace.
pub(crate) fn within<T: Send>(
    netns: &Netns,
    work: impl FnOnce(&Handle) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    netns.run(|| work(&Handle::here()?))
}

/// Pods of a worker: a namespace each, with an `eth0` that ends on the worker, an address and a
/// default route, as a CNI plugin leaves them. Unbound when it goes.
#[derive(Debug)]
pub(crate) struct Pods {
    pub(crate) worker: Netns,
    pub(crate) pods: Vec<Pod>,
    dir: PathBuf,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) path: PathBuf,
    pub(crate) id: (u64, u64),
}

/// Every pod's address: each is alone in its namespace, and nobody routes to it here.
pub(crate) const POD_ADDRESS: &str = "10.244.0.5/24";
const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);

impl Pods {
    pub(crate) fn new(worker: Netns, dir: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(Self { worker, pods: Vec::new(), dir })
    }

    /// Makes pods until there are `count`.
    pub(crate) fn grow(&mut self, count: usize) -> anyhow::Result<()> {
        for number in self.pods.len()..count {
            let netns = Netns::create()?;
            let name = format!("veth{number}");
            within(&self.worker, |here| {
                let peer_netns = Some(&netns);
                here.add_link(&NewLink::Veth { name: &name, peer: "eth0", peer_netns })?;
                here.set_up(&name, true)
            })?;
            let everywhere = "0.0.0.0/0".parse()?;
            let pod = netns.handle()?;
            pod.add_address("eth0", POD_ADDRESS.parse()?)?;
            pod.set_up("eth0", true)?;
            pod.add_route(&Route::via(everywhere, Some(POD_GATEWAY.into()), "eth0"))?;
            let path = self.dir.join(format!("pod{number}"));
            netns.persist(&path)?;
            self.pods.push(Pod { path, id: netns.id()? });
        }
        Ok(())
    }

    pub(crate) fn pod(&self, number: usize) -> anyhow::Result<&Pod> {
        self.pods.get(number).with_context(|| format!("there is no pod {number}"))
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for pod in &self.pods {
            // A namespace that stays bound only costs memory until the bench's directory goes.
            let _ = Netns::unpersist(&pod.path);
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_micros(500);

/// Waits until something is there.
pub(crate) fn until(what: &str, mut there: impl FnMut() -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    while !there() {
        if Instant::now() > end {
            bail!("waited {PATIENCE:?} for {what}");
        }
        std::thread::sleep(STEP);
    }
    Ok(())
}

/// Waits until somebody accepts on a unix socket.
pub(crate) fn until_served(socket: &Path) -> anyhow::Result<()> {
    until(&socket.display().to_string(), || UnixStream::connect(socket).is_ok())
}

/// Waits until somebody accepts on a port in a namespace.
pub(crate) fn until_listens(netns: &Netns, at: SocketAddr) -> anyhow::Result<()> {
    until(&at.to_string(), || {
        netns.run(|| Ok::<_, Error>(TcpStream::connect(at).is_ok())).unwrap_or(false)
    })
}
