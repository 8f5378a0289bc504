//! A whole installation on this machine: the real relay, and a node process that is the real one but
//! for its provider (see `instant.rs`), called as a shim calls.
//!
//! ```text
//!   bench ─ttrpc─▶ hypervisor.sock: relay ─▶ node.sock: `peerpod-bench node` ─▶ instant provider
//!     └── VMs of the bench ◀═TLS═ relay ◀───────────────────┘ Open, Connect
//! ```

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use peerpod_netlink::Netns;
use peerpod_tunnel::link::call::Caller;
use peerpodd::proto::hypervisor::{
    CreateVmRequest, CreateVmResponse, SERVICE, StartVmRequest, StartVmResponse,
};
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::Bench;
use crate::instant::Made;
use crate::ours::Paths;
use crate::program::{Program, Start};
use crate::vm;

/// Port of every VM's forwarder.
pub(crate) const PORT: u16 = 15_150;

/// Where an installation runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    /// The daemons' namespace.
    pub(crate) worker: &'a Netns,
    /// The VMs' namespace, and the one address they share.
    pub(crate) vms: &'a Netns,
    pub(crate) vm: IpAddr,
    pub(crate) forwarder: vm::Forwarder,
    /// Makes tunnels in the kernel; else pods have no network at all.
    pub(crate) tunnels: bool,
}

/// A running installation. Dropping it ends its processes.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) relay: Program,
    pub(crate) node: Program,
    paths: Paths,
    shim: Option<Caller<UnixStream>>,
}

/// First line of the node process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Serving {
    /// CLOCK_MONOTONIC, nanoseconds, when its socket was served.
    pub(crate) serving: f64,
    /// When every record had been taken up.
    pub(crate) recovered: f64,
    pub(crate) pods: usize,
}

/// What a start took, nanoseconds, the provider's own time taken off.
#[derive(Clone, Debug)]
pub(crate) struct Started {
    pub(crate) agent: PathBuf,
    pub(crate) create: f64,
    pub(crate) start: f64,
}

impl Node {
    pub(crate) fn start(bench: &Bench, dir: &Path, site: Site<'_>) -> anyhow::Result<Self> {
        let paths = Paths(dir.to_owned());
        std::fs::create_dir_all(told(dir))?;
        let listener = vm::listen(site.vms, SocketAddr::new(site.vm, PORT))?;
        vm::serve_by_name(bench.runtime.handle(), listener, told(dir), site.forwarder)?;
        let relay = paths.relay(bench, site.worker)?;
        let (node, _) = run(dir, site)?;
        Ok(Self { relay, node, paths, shim: None })
    }

    /// kill -9 of the node process and a new one; says when it served again.
    pub(crate) fn restart(&mut self, site: Site<'_>) -> anyhow::Result<Serving> {
        self.node.kill();
        let (node, serving) = run(&self.paths.0, site)?;
        self.node = node;
        Ok(serving)
    }

    fn call<Q: Message, A: Message + Default>(
        &mut self,
        bench: &Bench,
        method: &'static str,
        request: &Q,
    ) -> anyhow::Result<(A, f64)> {
        let payload = Bytes::from(request.encode_to_vec());
        bench.runtime.block_on(async {
            let mut shim = match self.shim.take() {
                Some(shim) => shim,
                None => Caller::new(UnixStream::connect(self.paths.hypervisor()).await?),
            };
            let begin = Instant::now();
            let answer = shim.call(SERVICE, method, payload).await.context(method)?;
            let took = begin.elapsed().as_nanos() as f64;
            self.shim = Some(shim);
            Ok((A::decode(answer)?, took))
        })
    }

    /// CreateVM and StartVM of a pod in that namespace.
    pub(crate) fn pod(
        &mut self,
        bench: &Bench,
        sandbox: &str,
        netns: &Path,
    ) -> anyhow::Result<Started> {
        let annotation = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let request = CreateVmRequest {
            id: sandbox.to_owned(),
            annotations: [
                annotation("io.kubernetes.cri.sandbox-name", sandbox),
                annotation("io.kubernetes.cri.sandbox-namespace", "bench"),
            ]
            .into(),
            network_namespace_path: netns.display().to_string(),
        };
        let (created, create) = self.call::<_, CreateVmResponse>(bench, "CreateVM", &request)?;
        let request = StartVmRequest { id: sandbox.to_owned() };
        let (StartVmResponse {}, start) = self.call(bench, "StartVM", &request)?;
        let made: Made = self.node.hear().context("the provider's line")?;
        let agent = created.agent_socket_path.into();
        Ok(Started { agent, create, start: start - made.took })
    }
}

fn told(dir: &Path) -> PathBuf {
    dir.join("vms")
}

fn run(dir: &Path, site: Site<'_>) -> anyhow::Result<(Program, Serving)> {
    let myself = std::env::current_exe()?;
    let start = Start { program: &myself, log: dir.join("node.log"), netns: Some(site.worker) };
    let (vm, told) = (site.vm.to_string(), told(dir));
    let mut node = start.with([
        "node".as_ref(),
        "--dir".as_ref(),
        dir.as_os_str(),
        "--told".as_ref(),
        told.as_os_str(),
        "--vm".as_ref(),
        vm.as_ref(),
        if site.tunnels { "--tunnels=true" } else { "--tunnels=false" }.as_ref(),
    ])?;
    let serving = node.hear().context("the node process")?;
    Ok((node, serving))
}
