//! P1: how long after a VM's forwarder accepts its agent is known to answer.
//!
//! ```text
//!   a VM:   0 ── SYNs are dropped ──▶ r ── RSTs ──▶ T ── listens ──▶ TLS, Check answered
//! ```
//!
//! Each draw is a VM of its own for ours and one for the rival, with the same T (3 to 40 s) and the
//! same r (T/2 to T); all draws run at once, so that the whole takes as long as the longest. SYNs
//! are counted where they arrive, before anything drops them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use ipnetwork::IpNetwork;
use peerpod_netlink::nft::expression::{Base, Compare, Meta, Rule, Verdict};
use peerpod_netlink::nft::{Batch, Chain, Family, Hook, Nft, Set, Table};
use peerpod_netlink::{Error, Netns};
use peerpodd::pod::probe;
use peerpodd::pod::world::Tcp;
use rand::Rng;

use crate::Bench;
use crate::lab;
use crate::machine::monotonic;
use crate::material::Material;
use crate::report::{Row, Sides, Target};
use crate::rival::{Daemon, Issued, Order};
use crate::samples::Samples;
use crate::vm;

const ID: &str = "P1";
const PORT: u16 = 15_150;
const OURS: u8 = 1;
const RIVAL: u8 = 2;
const TABLE: Table<'static> = Table { family: Family::Inet, name: "bench" };
const DARK: &str = "dark";
/// A VM that boots longer than this is not drawn.
const LONGEST: f64 = 40.0;

/// One VM's life, in seconds from the start.
#[derive(Clone, Copy, Debug)]
struct Draw {
    number: u8,
    lights: f64,
    ready: f64,
}

impl Draw {
    fn new(number: u8) -> Self {
        let mut random = rand::rng();
        let ready = random.random_range(3.0..LONGEST);
        Self { number, ready, lights: random.random_range(ready / 2.0..ready) }
    }

    fn at(self, side: u8) -> SocketAddr {
        SocketAddr::from(([10, 77, side, self.number], PORT))
    }
}

/// What happens to both VMs of a draw.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Lights(Draw),
    Ready(Draw),
}

impl Happening {
    fn when(self) -> f64 {
        match self {
            Self::Lights(draw) => draw.lights,
            Self::Ready(draw) => draw.ready,
        }
    }
}

/// When both VMs of a draw began to accept, CLOCK_MONOTONIC in nanoseconds.
type Accepting = Vec<(u8, f64, f64)>;

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let draws: Vec<Draw> = (1..=if bench.quick() { 12 } else { 100 }).map(Draw::new).collect();
    let (worker, vms) = lab::worker_and_vms(&addresses(&draws)?)?;
    vms.run(|| filter(&draws))?;
    let dir = bench.dir("p1")?;
    let mut daemon = Daemon::start(bench.programs.rival()?, &dir, Some(&worker))?;
    let theirs = daemon.ask(&Order { op: "issue", ..Order::default() })?.issued;
    let theirs = theirs.context("the rival issued nothing")?;
    let material = Material::new()?;
    let begin = monotonic()?;
    let (accepting, ours, rival) = std::thread::scope(|scope| {
        let life = scope.spawn(|| live(bench, &vms, &draws, begin, &material.issued(), &theirs));
        let ours = scope.spawn(|| wait_ours(&worker, &draws, &material));
        let rival = wait_rival(&mut daemon, &draws);
        (joined(life.join()), joined(ours.join()), rival)
    });
    let (accepting, ours, rival) = (accepting?, ours?, rival?);
    let (packets_ours, packets_rival) = vms.run(counted)?;
    let waited: f64 = draws.iter().map(|d| d.ready).sum();
    let lag = |times: &[(u8, f64)], side: u8| -> Samples {
        let when = |n: u8| accepting.iter().find(|a| a.0 == n);
        let begin = |a: &(u8, f64, f64)| if side == OURS { a.1 } else { a.2 };
        times.iter().filter_map(|(n, at)| Some((at - begin(when(*n)?)) / 1e6)).collect()
    };
    let probes = Sides::ours(one(packets_ours / waited)).rival(one(packets_rival / waited));
    Ok(rows(lag(&ours, OURS), lag(&rival, RIVAL), &probes))
}

fn rows(ours: Samples, rival: Samples, probes: &Sides) -> Vec<Row> {
    let means = Sides::ours(one(ours.mean())).rival(one(rival.mean()));
    let p99 = Sides::ours(ours.only(0.99)).rival(rival.only(0.99));
    let note = format!("{} draws, T in 3..40 s, RST from a moment in T/2..T on", ours.0.len());
    let lags = Sides::ours(ours).rival(rival);
    vec![
        Row::against_rival(ID, "ready lag, mean", "ms", &means, Some(Target::AtMost(0.01)))
            .note(note),
        Row::alone(ID, "ready lag, p50 by probing alone", "ms", &lags, Some(Target::AtMost(60.0))),
        Row::alone(ID, "ready lag, p99", "ms", &p99, Some(Target::AtMost(150.0))),
        Row::alone(ID, "SYNs a VM and second", "1/s", probes, Some(Target::AtMost(10.0))),
    ]
}

fn one(value: f64) -> Samples {
    std::iter::once(value).collect()
}

fn joined<T>(result: std::thread::Result<anyhow::Result<T>>) -> anyhow::Result<T> {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn addresses(draws: &[Draw]) -> anyhow::Result<Vec<IpNetwork>> {
    let both = draws.iter().flat_map(|d| [(OURS, d.number), (RIVAL, d.number)]);
    both.map(|(side, number)| lab::address(side, number)).collect()
}

/// All VMs are dark; SYNs are counted for each side.
fn filter(draws: &[Draw]) -> Result<(), Error> {
    let chain = |name, priority| Chain {
        name,
        hook: Some((Hook::Prerouting, priority)),
        drop_by_default: false,
    };
    let syn_to = |side: u8| {
        Rule::new()
            .meta(0, Meta::L4Protocol)
            .compare(0, Compare::Equal, &[6])
            .payload(0, Base::Network, 16, 3)
            .compare(0, Compare::Equal, &[10, 77, side])
            // SYN without ACK
            .payload(0, Base::Transport, 13, 1)
            .mask(0, &[0x12])
            .compare(0, Compare::Equal, &[0x02])
            .counter()
    };
    let dark = Rule::new()
        .meta(0, Meta::L4Protocol)
        .compare(0, Compare::Equal, &[6])
        .payload(0, Base::Network, 16, 4)
        .lookup(0, DARK, false)
        .verdict(Verdict::Drop);
    let mut batch = Batch::new()
        .table(TABLE)
        .chain(TABLE, chain("count", -10))
        .chain(TABLE, chain("drop", 0))
        .set(TABLE, Set { name: DARK, key_length: 4, remembers: 0 })
        .rule(TABLE, "count", &syn_to(OURS))
        .rule(TABLE, "count", &syn_to(RIVAL))
        .rule(TABLE, "drop", &dark);
    for key in draws.iter().flat_map(|d| keys(*d)) {
        batch = batch.element(TABLE, DARK, &key, "boots");
    }
    batch.send("let no SYN in")
}

fn keys(draw: Draw) -> [[u8; 4]; 2] {
    [OURS, RIVAL].map(|side| [10, 77, side, draw.number])
}

fn lights(draw: Draw) -> Result<(), Error> {
    let [a, b] = keys(draw);
    let batch = Batch::new().delete_element(TABLE, DARK, &a).delete_element(TABLE, DARK, &b);
    batch.send("let SYNs in")
}

fn counted() -> Result<(f64, f64), Error> {
    let counters = Nft::counters(TABLE, "count")?;
    let packets = |n: usize| counters.get(n).map_or(0.0, |c| c.packets as f64);
    Ok((packets(0), packets(1)))
}

/// Plays the VMs' lives.
fn live(
    bench: &Bench,
    vms: &Netns,
    draws: &[Draw],
    begin: f64,
    ours: &Issued,
    theirs: &Issued,
) -> anyhow::Result<Accepting> {
    let (ours, theirs) = (ours.server()?, theirs.server()?);
    let mut happenings: Vec<Happening> =
        draws.iter().flat_map(|d| [Happening::Lights(*d), Happening::Ready(*d)]).collect();
    happenings.sort_by(|a, b| a.when().total_cmp(&b.when()));
    let mut accepting = Accepting::new();
    for happening in happenings {
        let left = happening.when() - (monotonic()? - begin) / 1e9;
        if left > 0.0 {
            std::thread::sleep(Duration::from_secs_f64(left));
        }
        match happening {
            Happening::Lights(draw) => vms.run(|| lights(draw))?,
            Happening::Ready(draw) => {
                let mut moments = [0.0; 2];
                for ((side, tls), moment) in
                    [(OURS, &ours), (RIVAL, &theirs)].into_iter().zip(&mut moments)
                {
                    let listener = vm::listen(vms, draw.at(side))?;
                    *moment = monotonic()?;
                    vm::serve(bench.runtime.handle(), listener, tls.clone())?;
                }
                accepting.push((draw.number, moments[0], moments[1]));
            }
        }
    }
    Ok(accepting)
}

/// The prober of the node process, on one thread in the worker's namespace.
fn wait_ours(
    worker: &Netns,
    draws: &[Draw],
    material: &Material,
) -> anyhow::Result<Vec<(u8, f64)>> {
    let tls = material.client();
    let work = async {
        let waits = draws.iter().map(|draw| async {
            let pulse = probe::reach(&Tcp, draw.at(OURS), Some(&tls), |_| {}).await;
            let at = monotonic();
            drop(pulse);
            Ok((draw.number, at?))
        });
        futures_util::future::join_all(waits).await.into_iter().collect()
    };
    // The runtime's sockets belong to the namespace of the thread that makes them.
    worker.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok::<_, Error>(runtime.map(|runtime| runtime.block_on(work)))
    })??
}

fn wait_rival(daemon: &mut Daemon, draws: &[Draw]) -> anyhow::Result<Vec<(u8, f64)>> {
    for draw in draws {
        let id = draw.number.to_string();
        let target = Some(draw.at(RIVAL));
        daemon.0.tell(&Order { op: "dial", id: &id, target, ..Order::default() })?;
    }
    let mut times = Vec::new();
    for _ in draws {
        let answer = daemon.hear()?;
        times.push((answer.id.parse().context("an answer to nobody")?, answer.at));
    }
    Ok(times)
}
