//! The node process of the bench: every part is the real one, put together as the daemon does it,
//! but for the provider (`instant.rs`) and, where a row does not measure it, the kernel's network.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use async_trait::async_trait;
use clap::Args;
use peerpod_netlink::Mac;
use peerpod_providers::Provider;
use peerpod_providers::size::SizeRules;
use peerpod_tunnel::network::{MacText, PodNetwork, Tunnel};
use peerpodd::hypervisor;
use peerpodd::pki::{Pki, TlsSource};
use peerpodd::plan::PlanRules;
use peerpodd::pod::record::Disk;
use peerpodd::pod::world::{
    Chance, Host, Network, NetworkError, Planning, Silent, Tcp, WallClock, World,
};
use peerpodd::pods::{Options, Pods};
use peerpodd::relay::RelayClient;
use peerpodd::request::RequestRules;
use peerpodd::shutdown::Shutdown;
use tokio::net::UnixListener;

use crate::instant::{self, Instantly};
use crate::lab::POD_ADDRESS;
use crate::machine::monotonic;
use crate::node::Serving;
use crate::ours::Paths;
use crate::program::end_with_stdin;

const NAME: &str = "bench";
/// For all records to be taken up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `peerpod-bench node` is told.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Directory of the installation.
    #[arg(long)]
    dir: PathBuf,
    /// Where the provider puts down what a VM is told.
    #[arg(long)]
    told: PathBuf,
    /// Address of every VM.
    #[arg(long)]
    vm: IpAddr,
    /// Make tunnels in the kernel.
    #[arg(long, action = clap::ArgAction::Set)]
    tunnels: bool,
}

/// Serves until the bench closes standard input.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    // As much as the daemon logs.
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let paths = Paths(arguments.dir.clone());
    let shutdown = Shutdown::new();
    let (tracker, token) = (shutdown.tracker(), shutdown.token());
    let (relay, events) =
        RelayClient::start(paths.control(), paths.node(), NAME.to_owned(), &tracker, token.clone());
    let provider: Arc<dyn Provider> =
        Arc::new(Instantly::new(arguments.told.clone(), arguments.vm));
    let state = arguments.dir.join("state");
    std::fs::create_dir_all(&state)?;
    let network: Arc<dyn Network> =
        if arguments.tunnels { Arc::new(Host::default()) } else { Arc::new(Nothing) };
    let world = World {
        planner: Arc::new(planning(&state, provider.as_ref()).await?),
        provider,
        relay,
        network,
        records: Arc::new(Disk::open(&state)?),
        guest: Arc::new(Tcp),
        clock: Arc::new(WallClock),
        random: Arc::new(Chance),
        observer: Arc::new(Silent),
        #[cfg(feature = "crash-points")]
        crash: Arc::new(peerpodd::crash::Sigkill),
    };
    let known = std::fs::read_dir(state.join("pods"))?.count();
    let pods = Pods::start(world, options(&paths), events, tracker.clone(), token.clone()).await?;
    let listener = bind(&paths.node())?;
    let limits = hypervisor::Limits::default();
    tokio::spawn(hypervisor::serve(listener, pods.clone(), limits, token, tracker));
    let serving = monotonic()?;
    let running = until_running(&pods, known).await;
    let serving = Serving { serving, recovered: monotonic()?, pods: running };
    println!("{}", serde_json::to_string(&serving)?);
    end_with_stdin().await;
    Ok(())
}

/// Waits until as many pods run as records were there; returns how many do.
async fn until_running(pods: &Pods, wanted: usize) -> usize {
    let end = Instant::now() + PATIENCE;
    loop {
        let running = pods.snapshot().iter().filter(|p| p.phase == "running").count();
        if running >= wanted || Instant::now() > end {
            return running;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The socket of a killed process is still there.
fn bind(socket: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    UnixListener::bind(socket).with_context(|| socket.display().to_string())
}

async fn planning(state: &Path, provider: &dyn Provider) -> anyhow::Result<Planning> {
    let source = TlsSource::Automatic { client: None };
    let pki = Pki::open(&state.join("pki"), &source, SystemTime::now())?;
    let catalogue = provider.check().await?.types;
    let rules = PlanRules {
        installation: NAME.to_owned(),
        node_name: NAME.to_owned(),
        size: SizeRules { default_type: instant::TYPE.to_owned(), ..SizeRules::default() },
        catalogue,
        vxlan_port: Options::default().vxlan_port,
        ..PlanRules::default()
    };
    Ok(Planning::new(pki, RequestRules::default(), rules))
}

fn options(paths: &Paths) -> Options {
    Options {
        installation: NAME.to_owned(),
        node_name: NAME.to_owned(),
        boot_id: NAME.to_owned(),
        pods_dir: paths.pods(),
        // Nobody else makes VMs here, and a sweep in the middle of a row would be measured.
        sweep_interval: None,
        orphan_grace: Duration::from_secs(3600),
        ..Options::default()
    }
}

/// A kernel without a network: every pod looks the same, and no tunnel is made.
#[derive(Debug)]
struct Nothing;

#[async_trait]
impl Network for Nothing {
    async fn inspect(&self, _: &Path) -> Result<(PodNetwork, (u64, u64)), NetworkError> {
        let found = PodNetwork {
            interface: "eth0".to_owned(),
            mac: MacText(Mac([2, 0, 0, 0, 0, 5])),
            mtu: 1500,
            addresses: POD_ADDRESS.parse().into_iter().collect(),
            routes: Vec::new(),
            neighbors: Vec::new(),
            worker: "10.77.0.1/16".parse().into_iter().collect(),
            underlay_mtu: 1500,
            dedicated: false,
        };
        Ok((found, (0, 0)))
    }

    async fn kernel_vnis(&self) -> Result<BTreeSet<u32>, NetworkError> {
        Ok(BTreeSet::new())
    }

    async fn attach(&self, _: &Tunnel) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn detach(&self, _: &Tunnel) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn verify(&self, _: &Tunnel) -> Result<Vec<String>, NetworkError> {
        Ok(Vec::new())
    }

    async fn clear_leftovers(&self, _: &BTreeSet<String>) -> Result<Vec<String>, NetworkError> {
        Ok(Vec::new())
    }
}
