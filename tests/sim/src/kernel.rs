//! The worker's kernel: namespaces of pods, devices of tunnels, and devices of somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use peerpod_tunnel::network::{InspectError, MacText, PodNetwork, Tunnel, TunnelError};
use peerpodd::pod::world::{Network, NetworkError};

use crate::check;
use crate::cloud::Cloud;
use crate::core::{Core, lock};
use crate::dice::Fault;
use crate::process::Process;

/// An id that a device of somebody else has.
pub(crate) const FOREIGN_VNI: u32 = 555_003;

/// What there is; it outlives daemons, not power losses.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Paths of namespaces, and what each is.
    pub(crate) namespaces: BTreeMap<PathBuf, u64>,
    /// By owner mark.
    pub(crate) tunnels: BTreeMap<String, Tunnel>,
    /// Marks of which some object is left, without being a tunnel.
    pub(crate) halves: BTreeSet<String>,
    next: u64,
}

#[derive(Debug)]
pub(crate) struct Kernel {
    core: Arc<Core>,
    cloud: Arc<Cloud>,
    pub(crate) state: Mutex<State>,
}

impl Kernel {
    pub(crate) fn new(core: &Arc<Core>, cloud: &Arc<Cloud>) -> Arc<Self> {
        let (core, cloud) = (Arc::clone(core), Arc::clone(cloud));
        Arc::new(Self { core, cloud, state: Mutex::default() })
    }

    /// The CNI makes a namespace for a sandbox.
    pub(crate) fn add_namespace(&self, path: &Path) {
        let mut state = lock(&self.state);
        state.next += 1;
        let id = state.next;
        state.namespaces.insert(path.to_owned(), id);
    }

    /// A namespace goes, with the devices in it.
    pub(crate) fn drop_namespace(&self, path: &Path) {
        let mut state = lock(&self.state);
        state.namespaces.remove(path);
        state.tunnels.retain(|_, t| t.netns != path);
    }

    fn put(&self, tunnel: &Tunnel) {
        let mut state = lock(&self.state);
        state.halves.remove(&tunnel.sandbox);
        state.tunnels.insert(tunnel.sandbox.clone(), tunnel.clone());
    }

    /// Something of a tunnel has gone, and something is left.
    fn halve(&self, sandbox: &str) {
        let mut state = lock(&self.state);
        if state.tunnels.remove(sandbox).is_some() {
            state.halves.insert(sandbox.to_owned());
        }
    }

    fn clear(&self, known: &BTreeSet<String>) -> Vec<String> {
        let mut state = lock(&self.state);
        let all = state.tunnels.keys().chain(&state.halves);
        let gone = all.filter(|s| !known.contains(*s)).cloned().collect();
        state.tunnels.retain(|s, _| known.contains(s));
        state.halves.retain(|s| known.contains(s));
        gone
    }

    pub(crate) fn lose_power(&self) {
        *lock(&self.state) = State::default();
    }

    /// A device goes behind our back.
    pub(crate) fn disturb(&self) {
        let mut state = lock(&self.state);
        let all: Vec<String> = state.tunnels.keys().cloned().collect();
        if all.is_empty() {
            return;
        }
        let n = self.core.dice.amount("which-device", 0, all.len() as u64 - 1);
        let Some(sandbox) = usize::try_from(n).ok().and_then(|n| all.get(n)) else { return };
        if self.core.fires_harmlessly(Fault::DeviceGone) {
            state.tunnels.remove(sandbox);
        }
    }

    /// A namespace vanishes under a pod.
    pub(crate) fn disturb_namespace(&self) {
        let tunnel = {
            let state = lock(&self.state);
            let all: Vec<&Tunnel> = state.tunnels.values().collect();
            let n = self.core.dice.amount("which-netns", 0, all.len().max(1) as u64 - 1);
            usize::try_from(n).ok().and_then(|n| all.get(n).map(|t| (*t).clone()))
        };
        if let Some(tunnel) = tunnel
            && self.core.fires(Fault::NetnsGone, &tunnel.sandbox)
        {
            self.drop_namespace(&tunnel.netns);
        }
    }
}

fn network() -> Option<PodNetwork> {
    Some(PodNetwork {
        interface: "eth0".to_owned(),
        mac: MacText::try_from("02:00:00:00:00:01".to_owned()).ok()?,
        mtu: 1500,
        addresses: vec!["10.244.1.5/24".parse().ok()?],
        routes: Vec::new(),
        neighbors: Vec::new(),
        worker: vec!["192.168.0.10/24".parse().ok()?],
        underlay_mtu: 1500,
        dedicated: false,
    })
}

/// The kernel as one daemon calls it.
#[derive(Debug)]
pub(crate) struct Calls {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) process: Arc<Process>,
}

impl Calls {
    async fn begin(&self, what: &str) {
        self.process.reach(&format!("{what}.before")).await;
        let core = &self.kernel.core;
        if core.fires_harmlessly(Fault::KernelSlow) {
            core.pass_ms("kernel-slow", 500, 4000).await;
        } else {
            core.pass_ms("kernel", 0, 4).await;
        }
    }

    fn refused(&self, sandbox: &str, what: &str) -> NetworkError {
        let (sandbox, path) = (sandbox.to_owned(), "p".to_owned());
        self.kernel.core.trace(format!("{} {what} of {sandbox} fails", self.process.id));
        TunnelError::Netns { sandbox, path, reason: format!("{what} refused") }.into()
    }
}

#[async_trait]
impl Network for Calls {
    async fn inspect(&self, netns: &Path) -> Result<(PodNetwork, (u64, u64)), NetworkError> {
        self.begin("inspect").await;
        let gone = || NetworkError::Inspect(InspectError::NoDefaultRoute(netns.to_owned()));
        let sandbox = netns.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if self.kernel.core.fires(Fault::InspectFails, sandbox) {
            return Err(gone());
        }
        let id = lock(&self.kernel.state).namespaces.get(netns).copied().ok_or_else(gone)?;
        self.process.reach("inspect.after").await;
        Ok((network().ok_or_else(gone)?, (4, id)))
    }

    async fn kernel_vnis(&self) -> Result<BTreeSet<u32>, NetworkError> {
        self.begin("vnis").await;
        if let Some(id) = self.kernel.core.dice.fires(Fault::VnisFail) {
            self.kernel.core.excuse_all(&id);
            return Err(NetworkError::Ended("VXLAN ids"));
        }
        let state = lock(&self.kernel.state);
        let mut all: BTreeSet<u32> = state.tunnels.values().map(|t| t.vni).collect();
        all.insert(FOREIGN_VNI);
        Ok(all)
    }

    async fn attach(&self, tunnel: &Tunnel) -> Result<(), NetworkError> {
        self.begin("attach").await;
        let (kernel, sandbox) = (&self.kernel, &tunnel.sandbox);
        check::attach(&kernel.cloud, kernel, tunnel);
        if kernel.core.fires(Fault::AttachFails, sandbox) {
            return Err(self.refused(sandbox, "attach"));
        }
        let there = lock(&kernel.state).namespaces.get(&tunnel.netns).copied();
        if there != Some(tunnel.netns_id.1) {
            return Err(self.refused(sandbox, "attach: another namespace"));
        }
        lock(&kernel.state).halves.insert(sandbox.clone());
        self.process.reach("attach.middle").await;
        kernel.put(tunnel);
        kernel.core.trace(format!("{} attach {sandbox} vni {}", self.process.id, tunnel.vni));
        self.process.reach("attach.after").await;
        Ok(())
    }

    async fn detach(&self, tunnel: &Tunnel) -> Result<(), NetworkError> {
        self.begin("detach").await;
        let (kernel, sandbox) = (&self.kernel, &tunnel.sandbox);
        check::ends(&kernel.core, sandbox, "its tunnel is taken away");
        kernel.halve(sandbox);
        if kernel.core.fires(Fault::DetachFails, sandbox) {
            return Err(self.refused(sandbox, "detach"));
        }
        self.process.reach("detach.middle").await;
        lock(&kernel.state).halves.remove(sandbox);
        kernel.core.trace(format!("{} detach {sandbox}", self.process.id));
        self.process.reach("detach.after").await;
        Ok(())
    }

    async fn verify(&self, tunnel: &Tunnel) -> Result<Vec<String>, NetworkError> {
        self.begin("verify").await;
        if self.kernel.core.fires_harmlessly(Fault::VerifyFails) {
            return Err(self.refused(&tunnel.sandbox, "verify"));
        }
        let stands = lock(&self.kernel.state).tunnels.get(&tunnel.sandbox) == Some(tunnel);
        Ok(if stands { Vec::new() } else { vec!["vxlan1 is missing".to_owned()] })
    }

    async fn clear_leftovers(&self, known: &BTreeSet<String>) -> Result<Vec<String>, NetworkError> {
        self.begin("leftovers").await;
        if self.kernel.core.fires_harmlessly(Fault::LeftoversFail) {
            return Err(NetworkError::Leftovers("the kernel does not tell".to_owned()));
        }
        let gone = self.kernel.clear(known);
        gone.iter().for_each(|s| check::ends(&self.kernel.core, s, "its tunnel is cleared away"));
        self.process.reach("leftovers.after").await;
        Ok(gone)
    }
}
