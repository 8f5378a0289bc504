//! The sides of an agent call: the same client and the same agent, with nothing, the rival, ours or
//! a bare byte relay between them.
//!
//! ```text
//!   direct   client ─unix─────────────────────────────────────────▶ agent
//!   rival    client ─unix─▶ daemon ═════════TLS═▶ far ───────unix─▶ agent
//!   ours     client ─unix─▶ peerpodd relay ═TLS═▶ podvm ─────unix─▶ agent     peerpod-link/1
//!   plain    the same over a connection of its own, as VMs have it that know no sessions
//!   bare     client ─unix─▶ near ═══════════TLS═▶ far ───────unix─▶ agent
//! ```
//!
//! Client and agent are Go programs on the real ttrpc library, for that is what the limit and the
//! rival's "5 times direct" were measured with; a quicker client would only make the same hops look
//! worse beside a smaller number.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use peerpod_netlink::Netns;

use crate::Bench;
use crate::lab;
use crate::machine::cpu_of;
use crate::material::Material;
use crate::ours::{Guest, Ours};
use crate::program::{Program, Start};
use crate::rival::{Client, Daemon, Load, Order};

const RIVAL_PORT: u16 = 15_151;
const BARE_PORT: u16 = 15_152;
const OURS_PORT: u16 = 15_150;
const PLAIN_PORT: u16 = 15_153;

/// One way to the agent.
#[derive(Debug)]
pub(crate) struct Side {
    client: Client,
    /// Processes between client and agent.
    hops: Vec<u32>,
    agent: u32,
}

/// One run of a load; times in nanoseconds.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// MiB in a second.
    pub(crate) rate: f64,
    /// CPU time of client, agent and all between them, a call.
    pub(crate) cpu_all: f64,
    /// CPU time of those between them, a call.
    pub(crate) cpu_hops: f64,
}

impl Side {
    pub(crate) fn measure(&mut self, load: &Load) -> anyhow::Result<Measured> {
        let (hops, ends) = self.cpu()?;
        let timing = self.client.run(load)?;
        let (hops_after, ends_after) = self.cpu()?;
        let calls = load.count as f64;
        Ok(Measured {
            p50: timing.p50,
            p99: timing.p99,
            rate: timing.bytes / f64::from(1 << 20) / (timing.wall / 1e9),
            cpu_all: (hops_after - hops + ends_after - ends) / calls,
            cpu_hops: (hops_after - hops) / calls,
        })
    }

    fn cpu(&self) -> anyhow::Result<(f64, f64)> {
        let sum = |pids: &[u32]| pids.iter().map(|pid| cpu_of(*pid)).sum::<anyhow::Result<f64>>();
        Ok((sum(&self.hops)?, sum(&[self.client.pid(), self.agent])?))
    }
}

/// All sides, standing.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) direct: Side,
    pub(crate) rival: Side,
    pub(crate) bare: Side,
    /// `Err` says why not.
    pub(crate) ours: Result<Side, String>,
    /// The same.
    pub(crate) plain: Result<Side, String>,
    _programs: Vec<Program>,
    _ours: Option<Ours>,
}

/// The kinds of one link of ours: its name, its VM's port and what the forwarder is told.
const KINDS: [(&str, u16, &[&str]); 2] =
    [("session", OURS_PORT, &[]), ("plain", PLAIN_PORT, &["--plain-link"])];

/// What setting them up needs.
struct Site<'a> {
    bench: &'a Bench,
    dir: PathBuf,
    netns: Netns,
    agent_socket: PathBuf,
    agent: u32,
    programs: Vec<Program>,
}

impl Links {
    /// `row` names its directory: the sockets of one row must not lie in another's way.
    pub(crate) fn start(bench: &Bench, row: &str) -> anyhow::Result<Self> {
        let dir = bench.dir(row)?;
        let agent_socket = dir.join("agent.sock");
        let program = bench.programs.rival()?;
        let start = Start { program, log: dir.join("agent.log"), netns: None };
        let agent = start.with(["agent", "-socket", path(&agent_socket)?])?;
        lab::until_served(&agent_socket)?;
        let (pid, programs) = (agent.pid(), vec![agent]);
        let netns = lab::quiet()?;
        let mut site = Site { bench, dir, netns, agent_socket, agent: pid, programs };
        let direct = site.side("direct", &site.agent_socket, Vec::new())?;
        let rival = site.rival().context("the rival's link")?;
        let bare = site.bare().context("the bare relay's link")?;
        let said = |e: anyhow::Error| format!("{e:#}");
        let (ours, plain, kept) = match site.relay().context("our relay") {
            Ok(relay) => {
                let [ours, plain] = KINDS.map(|kind| site.ours(&relay, kind).map_err(said));
                (ours, plain, Some(relay))
            }
            Err(e) => (Err(said(e)), Err("no relay".to_owned()), None),
        };
        Ok(Self { direct, rival, bare, ours, plain, _programs: site.programs, _ours: kept })
    }
}

impl Site<'_> {
    fn side(&self, name: &str, socket: &Path, hops: Vec<u32>) -> anyhow::Result<Side> {
        let log = self.dir.join(format!("client-{name}.log"));
        let client = Client::connect(self.bench.programs.rival()?, &log, socket)?;
        Ok(Side { client, hops, agent: self.agent })
    }

    fn start<'a>(&'a self, program: &'a Path, name: &str) -> Start<'a> {
        let log = self.dir.join(format!("{name}.log"));
        Start { program, log, netns: Some(&self.netns) }
    }

    fn rival(&mut self) -> anyhow::Result<Side> {
        let program = self.bench.programs.rival()?;
        let mut daemon = Daemon::start(program, &self.dir, Some(&self.netns))?;
        let socket = self.dir.join("rival.sock");
        let create = Order { op: "create", id: "a", socket: Some(&socket), ..Order::default() };
        let issued = daemon.ask(&create)?.issued.context("the rival issued nothing")?;
        let material = self.dir.join("rival.json");
        std::fs::write(&material, serde_json::to_vec(&issued)?)?;
        let target = loopback(RIVAL_PORT);
        let far = self.start(program, "rival-far").with([
            "far",
            "-listen",
            &target.to_string(),
            "-agent",
            path(&self.agent_socket)?,
            "-tls",
            path(&material)?,
        ])?;
        lab::until_listens(&self.netns, target)?;
        daemon.ask(&Order { op: "start", id: "a", target: Some(target), ..Order::default() })?;
        let side = self.side("rival", &socket, vec![daemon.0.pid(), far.pid()])?;
        self.programs.extend([daemon.0, far]);
        Ok(side)
    }

    fn bare(&mut self) -> anyhow::Result<Side> {
        let myself = std::env::current_exe()?;
        let (socket, tls) = (self.dir.join("bare.sock"), self.dir.join("bare.json"));
        Material::new()?.write(&tls)?;
        let at = loopback(BARE_PORT).to_string();
        let (agent, near) = (path(&self.agent_socket)?, path(&socket)?);
        let tls = path(&tls)?;
        let far = self.start(&myself, "bare-far");
        let far = far.with(["bare-far", "--listen", &at, "--to", agent, "--tls", tls])?;
        let start = self.start(&myself, "bare-near");
        let near = start.with(["bare-near", "--socket", near, "--to", &at, "--tls", tls])?;
        lab::until_listens(&self.netns, loopback(BARE_PORT))?;
        lab::until_served(&socket)?;
        let side = self.side("bare", &socket, vec![near.pid(), far.pid()])?;
        self.programs.extend([far, near]);
        Ok(side)
    }

    fn relay(&self) -> anyhow::Result<Ours> {
        Ours::start(self.bench, &self.dir.join("ours"), &self.netns)
    }

    fn ours(
        &mut self,
        relay: &Ours,
        (name, port, flags): (&str, u16, &[&str]),
    ) -> anyhow::Result<Side> {
        let (material, target) = (Material::new()?, loopback(port));
        let start = self.start(&self.bench.programs.podvm, &format!("forwarder-{name}"));
        let guest = Guest { name, at: target, agent: &self.agent_socket, flags };
        let forwarder = relay.forwarder(&start, &guest, &material)?;
        lab::until_listens(&self.netns, target)?;
        let socket = relay.link(name, target, &material)?;
        let side = self.side(name, &socket, vec![relay.relay.pid(), forwarder.pid()])?;
        self.programs.push(forwarder);
        Ok(side)
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path of the bench is not UTF-8")
}
