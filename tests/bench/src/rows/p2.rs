//! P2: what the daemon adds to CreateVM and StartVM, with a provider and a VM that are there at
//! once. The rival does the same work in its order: look at the namespace, issue a certificate,
//! listen; then rules, device, redirect, connect. Its orders come by a pipe, ours by ttrpc through
//! the relay; its disk is never written, our records are.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use peerpod_netlink::Netns;

use crate::Bench;
use crate::lab::{self, Pods};
use crate::machine::cpu_of;
use crate::node::{Node, PORT, Site};
use crate::report::{Row, Sides, Target};
use crate::rival::{Daemon, Order, Tunnel};
use crate::samples::Samples;
use crate::vm::{self, Forwarder};

const ID: &str = "P2";
const MILLISECOND: f64 = 1e6;
const FIRST_VNI: u32 = 700_000;

#[derive(Debug, Default)]
struct Series {
    create: Samples,
    start: Samples,
    both: Samples,
    cpu: Samples,
}

impl Series {
    fn push(&mut self, create: f64, start: f64, cpu: f64) {
        self.create.push(create / MILLISECOND);
        self.start.push(start / MILLISECOND);
        self.both.push((create + start) / MILLISECOND);
        self.cpu.push(cpu / MILLISECOND);
    }
}

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let dir = bench.dir("p2")?;
    let count = if bench.quick() { 10 } else { 200 };
    let mut ours = Ours::start(bench, dir.join("ours"))?;
    let mut rival = match &bench.programs.iptables {
        Ok(()) => Some(Rival::start(bench, dir.join("rival"))?),
        Err(_) => None,
    };
    let (mut mine, mut theirs) = (Series::default(), Series::default());
    // Pod 0 warms up and is discarded.
    for number in 0..=count {
        let (create, start, cpu) = ours.pod(bench, number)?;
        let other = rival.as_mut().map(|r| r.pod(bench, number)).transpose()?;
        if number == 0 {
            continue;
        }
        mine.push(create, start, cpu);
        if let Some((create, start, cpu)) = other {
            theirs.push(create, start, cpu);
        }
    }
    let mut rows = rows(count, mine, theirs);
    if let Err(why) = &bench.programs.iptables {
        rows.push(Row::not_measured(ID, "the rival's start", why));
    }
    Ok(rows)
}

fn rows(count: usize, ours: Series, rival: Series) -> Vec<Row> {
    let sides = |ours, rival| Sides::ours(ours).rival(rival);
    let tail = sides(ours.both.only(0.99), rival.both.only(0.99));
    let both = sides(ours.both, rival.both);
    let shown = |what, ours, rival| Row::against_rival(ID, what, "ms", &sides(ours, rival), None);
    let note = format!("{count} pods that stay, one after the other");
    vec![
        Row::alone(ID, "CreateVM + StartVM, p50", "ms", &both, Some(Target::AtMost(10.0)))
            .note(note),
        Row::alone(ID, "CreateVM + StartVM, p99", "ms", &tail, Some(Target::AtMost(25.0))),
        Row::against_rival(ID, "CreateVM + StartVM, by the rival", "ms", &both, None),
        shown("CreateVM", ours.create, rival.create),
        shown("StartVM", ours.start, rival.start),
        shown("CPU of both", ours.cpu, rival.cpu),
    ]
}

/// The worker and a VM, for either side.
fn place(dir: PathBuf) -> anyhow::Result<(Pods, Netns, IpAddr)> {
    let address = lab::address(0, 2)?;
    let (worker, vms) = lab::worker_and_vms(&[address])?;
    Ok((Pods::new(worker, dir)?, vms, address.ip()))
}

struct Ours {
    pods: Pods,
    node: Node,
}

impl Ours {
    fn start(bench: &Bench, dir: PathBuf) -> anyhow::Result<Self> {
        let (pods, vms, vm) = place(dir.join("pods"))?;
        let site =
            Site { worker: &pods.worker, vms: &vms, vm, forwarder: Forwarder::Ours, tunnels: true };
        let node = Node::start(bench, &dir, site)?;
        Ok(Self { pods, node })
    }

    fn pod(&mut self, bench: &Bench, number: usize) -> anyhow::Result<(f64, f64, f64)> {
        self.pods.grow(number + 1)?;
        let netns = self.pods.pod(number)?.path.clone();
        let pids = [self.node.node.pid(), self.node.relay.pid()];
        let cpu = || pids.iter().map(|pid| cpu_of(*pid)).sum::<anyhow::Result<f64>>();
        let before = cpu()?;
        let started = self.node.pod(bench, &format!("p2-{number}"), &netns)?;
        Ok((started.create, started.start, cpu()? - before))
    }
}

struct Rival {
    pods: Pods,
    daemon: Daemon,
    target: SocketAddr,
    dir: PathBuf,
}

impl Rival {
    fn start(bench: &Bench, dir: PathBuf) -> anyhow::Result<Self> {
        let (pods, vms, vm) = place(dir.join("pods"))?;
        let mut daemon = Daemon::start(bench.programs.rival()?, &dir, Some(&pods.worker))?;
        let issued = daemon.ask(&Order { op: "issue", ..Order::default() })?.issued;
        let target = SocketAddr::new(vm, PORT);
        let listener = vm::listen(&vms, target)?;
        let tls = issued.context("nothing issued")?.server()?;
        vm::serve(bench.runtime.handle(), listener, tls)?;
        Ok(Self { pods, daemon, target, dir })
    }

    fn pod(&mut self, _: &Bench, number: usize) -> anyhow::Result<(f64, f64, f64)> {
        self.pods.grow(number + 1)?;
        let (id, socket) = (number.to_string(), self.dir.join(format!("{number}.sock")));
        let tunnel = Some(Tunnel {
            vni: FIRST_VNI + u32::try_from(number)?,
            port: 9000,
            remote: self.target.ip().to_string(),
            netns: self.pods.pod(number)?.path.display().to_string(),
            interface: "eth0".to_owned(),
        });
        let order = Order { id: &id, tunnel, ..Order::default() };
        let create =
            self.daemon.ask(&Order { op: "create", socket: Some(&socket), ..order.clone() })?;
        let start = self.daemon.ask(&Order { op: "start", target: Some(self.target), ..order })?;
        Ok((create.wall, start.wall, create.cpu + start.cpu))
    }
}
