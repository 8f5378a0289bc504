//! P14: making and taking away a pod's tunnel, as pod 1, 100 and 1000 of a worker.
//!
//! Each level first brings the worker into the state of that many pods: ours by attaching them, the
//! rival's by the same devices and one `iptables-restore` (its own way would take minutes). Then the
//! last pod's tunnel is made and taken away, ours and the rival's by turns. Each side has its own
//! worker namespace.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Instant;

use peerpod_netlink::Netns;
use peerpod_tunnel::network::{self, Policy, Tunnel, TunnelError};

use crate::Bench;
use crate::lab::{self, POD_ADDRESS, Pods};
use crate::machine::own_cpu;
use crate::report::{Row, Sides, Target};
use crate::rival::{self, Daemon, Order};
use crate::samples::Samples;

const ID: &str = "P14";
const PORT: u16 = 9000;
const FIRST_VNI: u32 = 600_000;
const MILLISECOND: f64 = 1e6;

fn tunnel(pods: &Pods, number: usize) -> anyhow::Result<Tunnel> {
    let n = u32::try_from(number)?;
    let pod = pods.pod(number)?;
    Ok(Tunnel {
        sandbox: format!("bench-{n}"),
        vni: FIRST_VNI + n,
        port: PORT,
        netns: pod.path.clone(),
        netns_id: pod.id,
        interface: "eth0".to_owned(),
        mac: "02:00:00:00:00:05".to_owned().try_into().map_err(anyhow::Error::msg)?,
        addresses: vec![POD_ADDRESS.parse()?],
        vm: vm(n),
        mtu: 1450,
    })
}

fn vm(number: u32) -> IpAddr {
    IpAddr::from((0x0a4e_0000 + 2 + number).to_be_bytes())
}

/// One tunnel made and taken away; nanoseconds.
struct Turn {
    attach: f64,
    detach: f64,
    cpu: f64,
}

#[derive(Debug, Default)]
struct Series {
    attach: Samples,
    detach: Samples,
    both: Samples,
    cpu: Samples,
}

impl Series {
    fn push(&mut self, turn: &Turn) {
        self.attach.push(turn.attach / MILLISECOND);
        self.detach.push(turn.detach / MILLISECOND);
        self.both.push((turn.attach + turn.detach) / MILLISECOND);
        self.cpu.push(turn.cpu / MILLISECOND);
    }
}

#[derive(Debug, Default)]
struct Level {
    ours: Series,
    rival: Series,
    launches: u64,
}

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let dir = bench.dir("p14")?;
    let mut ours = Pods::new(lab::quiet()?, dir.join("ours"))?;
    let mut rival = match &bench.programs.iptables {
        Ok(()) => Some(RivalWorker::start(bench, dir.join("rival"))?),
        Err(_) => None,
    };
    let levels: &[usize] = if bench.quick() { &[1, 100] } else { &[1, 100, 1000] };
    let mut rows = Vec::new();
    let mut attached = 0;
    for &level in levels {
        ours.grow(level)?;
        while attached + 1 < level {
            let tunnel = tunnel(&ours, attached)?;
            ours.worker.run(|| network::attach(&tunnel, &Policy::default()))?;
            attached += 1;
        }
        if let Some(rival) = &mut rival {
            rival.fill(level - 1)?;
        }
        rows.extend(self::rows(level, turns(bench, &ours, rival.as_mut(), level - 1)?));
    }
    if let Err(why) = &bench.programs.iptables {
        rows.push(Row::not_measured(ID, "the rival's tunnels", why));
    }
    Ok(rows)
}

fn turns(
    bench: &Bench,
    ours: &Pods,
    mut rival: Option<&mut RivalWorker>,
    last: usize,
) -> anyhow::Result<Level> {
    let tunnel = tunnel(ours, last)?;
    let mut level = Level::default();
    // Pair 0 warms up and is discarded.
    for pair in 0..=bench.pairs() {
        let mine = our_turn(&ours.worker, &tunnel)?;
        let theirs = rival.as_deref_mut().map(RivalWorker::turn).transpose()?;
        if pair == 0 {
            continue;
        }
        level.ours.push(&mine);
        if let Some((turn, launches)) = theirs {
            level.rival.push(&turn);
            level.launches = launches;
        }
    }
    Ok(level)
}

fn our_turn(worker: &Netns, tunnel: &Tunnel) -> anyhow::Result<Turn> {
    let cpu = own_cpu()?;
    let timed = |act: fn(&Tunnel) -> Result<(), TunnelError>| {
        worker.run(|| {
            let begin = Instant::now();
            act(tunnel).map(|()| begin.elapsed().as_nanos() as f64)
        })
    };
    let attach = timed(|tunnel| network::attach(tunnel, &Policy::default()))?;
    let detach = timed(network::detach)?;
    Ok(Turn { attach, detach, cpu: own_cpu()? - cpu })
}

fn rows(level: usize, Level { ours, rival, launches }: Level) -> Vec<Row> {
    let name = |what: &str| format!("{what}, pod {level}");
    let sides = |ours, rival| Sides::ours(ours).rival(rival);
    let both = sides(ours.both, rival.both);
    let times = if level < 1000 { 20.0 } else { 70.0 };
    let (most, by_rival) = (Target::AtMost(3.0), Target::AtMost(1.0 / times));
    let note = (launches > 0).then(|| format!("the rival launched {launches} programs"));
    let shown = |what: &str, ours, rival| {
        Row::against_rival(ID, &name(what), "ms", &sides(ours, rival), None)
    };
    vec![
        Row::alone(ID, &name("attach + detach"), "ms", &both, Some(most)),
        Row::against_rival(ID, &name("the same by the rival"), "ms", &both, Some(by_rival))
            .notes(note),
        shown("attach", ours.attach, rival.attach),
        shown("detach", ours.detach, rival.detach),
        shown("CPU of both", ours.cpu, rival.cpu),
    ]
}

/// The rival on a worker of its own, with one pod that comes and goes.
struct RivalWorker {
    pods: Pods,
    park: PathBuf,
    daemon: Daemon,
    filled: usize,
}

impl RivalWorker {
    fn start(bench: &Bench, dir: PathBuf) -> anyhow::Result<Self> {
        let mut pods = Pods::new(lab::quiet()?, dir.clone())?;
        pods.grow(1)?;
        let park = dir.join("park");
        lab::quiet()?.persist(&park)?;
        let daemon = Daemon::start(bench.programs.rival()?, &dir, Some(&pods.worker))?;
        Ok(Self { pods, park, daemon, filled: 0 })
    }

    fn tunnel(&self, number: u32) -> rival::Tunnel {
        let netns = self.pods.pods.first().map(|p| p.path.display().to_string());
        rival::Tunnel {
            vni: FIRST_VNI + number,
            port: PORT,
            remote: vm(number).to_string(),
            netns: netns.unwrap_or_default(),
            interface: "eth0".to_owned(),
        }
    }

    /// State of `others` further pods.
    fn fill(&mut self, others: usize) -> anyhow::Result<()> {
        let numbers = self.filled..others;
        let fill = numbers.map(|n| Ok(self.tunnel(1 + u32::try_from(n)?)));
        let fill: Vec<_> = fill.collect::<anyhow::Result<_>>()?;
        if fill.is_empty() {
            return Ok(());
        }
        // Links on the worker as our side has them: one for each pod.
        self.pods.grow(others + 1)?;
        let park = self.park.display().to_string();
        self.daemon.ask(&Order { op: "fill", fill, park: &park, ..Order::default() })?;
        self.filled = others;
        Ok(())
    }

    /// Says also how many programs were launched.
    fn turn(&mut self) -> anyhow::Result<(Turn, u64)> {
        let tunnel = self.tunnel(0);
        let mut ask =
            |op| self.daemon.ask(&Order { op, tunnel: Some(tunnel.clone()), ..Order::default() });
        let (attach, detach) = (ask("attach")?, ask("detach")?);
        let cpu = attach.cpu + detach.cpu;
        let turn = Turn { attach: attach.wall, detach: detach.wall, cpu };
        Ok((turn, attach.launches + detach.launches))
    }
}

impl Drop for RivalWorker {
    fn drop(&mut self) {
        let _ = Netns::unpersist(&self.park);
    }
}
