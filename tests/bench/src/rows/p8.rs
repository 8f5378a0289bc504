//! P8: memory with live TLS connections that idle: proportional set size, so that pages which
//! processes share count once.
//!
//! The node process is the real one but for its provider and its network (`node.rs`): 1000 tunnels
//! in the kernel would not change its memory. Each pod is one shim connection that has made one call, and its TLS connection to a VM that
//! answers. Both programs that may be in a VM are weighed: ours, which the goals are for, and
//! upstream's, to which each shim's connection and the node's own question have a TLS connection of
//! their own. The VMs are one process, the bench; only the daemons are weighed.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use peerpod_netlink::Netns;
use peerpod_tunnel::link::call::Caller;
use tokio::net::UnixStream;

use crate::Bench;
use crate::lab;
use crate::machine::pss_of;
use crate::node::{Node, PORT, Site};
use crate::report::{Row, Sides, Target};
use crate::rival::{Daemon, Order};
use crate::samples::Samples;
use crate::vm::{self, Forwarder};

const ID: &str = "P8";
/// MiB that node and relay together may have at each level.
const LEVELS: [(usize, f64); 3] = [(0, 8.0), (100, 10.0), (1000, 20.0)];
/// Until each pod has been asked whether it lives, as then goes on all the time: a start's own
/// connections are gone, and plain links have the one that stays beside them.
const SETTLED: Duration = Duration::from_secs(8);
const KIB_IN_MIB: f64 = 1024.0;

/// MiB at each level.
type Weights = Vec<f64>;
pub(crate) type Shim = Caller<UnixStream>;

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let levels = if bench.quick() { &LEVELS[..2] } else { &LEVELS[..] };
    let (mut ours, mut relay, mut rival) = (Vec::new(), Vec::new(), Vec::new());
    let mut upstream = Vec::new();
    // Fresh processes each time; the first pair only warms the page cache.
    for pair in 0..=bench.pairs() {
        let (node, data) = weigh_ours(bench, levels, pair, Forwarder::Ours).context("our side")?;
        let plain =
            weigh_ours(bench, levels, pair, Forwarder::Upstream).context("upstream's VMs")?;
        let theirs = weigh_rival(bench, levels, pair).context("the rival")?;
        if pair > 0 {
            ours.push(node.iter().zip(&data).map(|(a, b)| a + b).collect::<Weights>());
            relay.push(data);
            upstream.push(plain.0.iter().zip(&plain.1).map(|(a, b)| a + b).collect::<Weights>());
            rival.push(theirs);
        }
    }
    let mut rows = Vec::new();
    for (n, (pods, most)) in levels.iter().enumerate() {
        let sides = Sides::ours(at(&ours, n)).rival(at(&rival, n));
        let name = format!("PSS of node + relay, {pods} pods");
        let share = Sides::ours(at(&relay, n)).rival(at(&rival, n));
        rows.push(Row::alone(ID, &name, "MiB", &sides, Some(Target::AtMost(*most))));
        rows.push(Row::against_rival(
            ID,
            &format!("the relay's part, {pods} pods"),
            "MiB",
            &share,
            None,
        ));
    }
    let plain = Sides::ours(growth(&upstream, levels)).rival(growth(&rival, levels));
    let growth = Sides::ours(growth(&ours, levels)).rival(growth(&rival, levels));
    rows.push(Row::alone(ID, "growth a pod", "KiB", &growth, Some(Target::AtMost(12.0))));
    let name = "growth a pod, by the rival";
    rows.push(Row::against_rival(ID, name, "KiB", &growth, Some(Target::AtMost(0.3))));
    let name = "growth a pod with upstream's program in the VM";
    rows.push(Row::against_rival(ID, name, "KiB", &plain, None));
    Ok(rows)
}

fn at(all: &[Weights], level: usize) -> Samples {
    all.iter().filter_map(|w| w.get(level)).copied().collect()
}

fn growth(all: &[Weights], levels: &[(usize, f64)]) -> Samples {
    let pods = levels.last().map_or(1, |l| l.0) as f64;
    let each = |w: &Weights| Some((w.last()? - w.first()?) * KIB_IN_MIB / pods);
    all.iter().filter_map(each).collect()
}

/// A VM behind a port of the namespace.
fn a_vm(
    bench: &Bench,
    netns: &Netns,
    tls: std::sync::Arc<rustls::ServerConfig>,
) -> anyhow::Result<SocketAddr> {
    let at = SocketAddr::from(([127, 0, 0, 1], PORT));
    vm::serve(bench.runtime.handle(), vm::listen(netns, at)?, tls)?;
    Ok(at)
}

/// A shim's connection that has spoken and now waits.
pub(crate) fn shim(bench: &Bench, socket: &Path) -> anyhow::Result<Shim> {
    bench.runtime.block_on(async {
        let mut caller = Caller::new(UnixStream::connect(socket).await?);
        caller.check().await.with_context(|| socket.display().to_string())?;
        Ok(caller)
    })
}

fn weigh_ours(
    bench: &Bench,
    levels: &[(usize, f64)],
    pair: usize,
    forwarder: Forwarder,
) -> anyhow::Result<(Weights, Weights)> {
    let netns = lab::quiet()?;
    let vm = [127, 0, 0, 1].into();
    let site = Site { worker: &netns, vms: &netns, vm, forwarder, tunnels: false };
    let dir = bench.dir(&format!("p8-{forwarder:?}-{pair}"))?;
    let mut node = Node::start(bench, &dir, site)?;
    let (mut shims, mut nodes, mut relays) = (Vec::new(), Weights::new(), Weights::new());
    for (pods, _) in levels {
        while shims.len() < *pods {
            let started = node.pod(bench, &format!("p8-{}", shims.len()), netns.path())?;
            shims.push(shim(bench, &started.agent)?);
        }
        if *pods > 0 {
            std::thread::sleep(SETTLED);
        }
        nodes.push(pss_of(node.node.pid())?);
        relays.push(pss_of(node.relay.pid())?);
    }
    Ok((nodes, relays))
}

fn weigh_rival(bench: &Bench, levels: &[(usize, f64)], pair: usize) -> anyhow::Result<Weights> {
    let netns = lab::quiet()?;
    let dir = bench.dir(&format!("p8-rival-{pair}"))?;
    let mut daemon = Daemon::start(bench.programs.rival()?, &dir, Some(&netns))?;
    // Every VM has the same CA and name, so the certificate of one will do for all.
    let issued = daemon.ask(&Order { op: "issue", ..Order::default() })?.issued;
    let target = a_vm(bench, &netns, issued.context("nothing issued")?.server()?)?;
    let (mut shims, mut weights) = (Vec::new(), Weights::new());
    for (pods, _) in levels {
        while shims.len() < *pods {
            let id = shims.len().to_string();
            let socket = dir.join(format!("{id}.sock"));
            let order = Order { id: &id, ..Order::default() };
            daemon.ask(&Order { op: "create", socket: Some(&socket), ..order.clone() })?;
            daemon.ask(&Order { op: "start", target: Some(target), ..order })?;
            shims.push(shim(bench, &socket)?);
        }
        weights.push(pss_of(daemon.0.pid())?);
    }
    Ok(weights)
}
