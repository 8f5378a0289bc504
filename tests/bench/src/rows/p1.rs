//! P1: how long after a VM's forwarder accepts its agent is known to answer.
//!
//! ```text
//!   a VM:   0 ── SYNs are dropped ──▶ r ── RSTs ──▶ T ── listens ──▶ TLS, Check answered
//! ```
//!
//! Each draw is a VM of its own for ours and one for the rival, with the same T (3 to 40 s) and the
//! same r (T/2 to T); all draws run at once, so that the whole takes as long as the longest. SYNs
//! are counted where they arrive, before anything drops them. A third VM of each draw does as ours do:
//! it listens before it serves (0.2 to 3 s, not before r), and who comes meanwhile waits in its queue.

use std::collections::BTreeMap;
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
const EARLY: u8 = 3;
const SIDES: [u8; 3] = [OURS, RIVAL, EARLY];
const TABLE: Table<'static> = Table { family: Family::Inet, name: "bench" };
const DARK: &str = "dark";
const DRAWS_A_BATCH: usize = 25;
/// A VM that boots longer than this is not drawn.
const LONGEST: f64 = 40.0;

/// One VM's life, in seconds from the start.
#[derive(Clone, Copy, Debug)]
struct Draw {
    number: u8,
    lights: f64,
    /// The VM that listens early does.
    listens: f64,
    ready: f64,
}

impl Draw {
    fn new(number: u8) -> Self {
        let mut random = rand::rng();
        let ready = random.random_range(3.0..LONGEST);
        let lights = random.random_range(ready / 2.0..ready);
        let listens = (ready - random.random_range(0.2..3.0)).max(lights);
        Self { number, lights, listens, ready }
    }

    fn at(self, side: u8) -> SocketAddr {
        SocketAddr::from(([10, 77, side, self.number], PORT))
    }
}

/// What happens to the VMs of a draw.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Lights(Draw),
    Listens(Draw),
    Ready(Draw),
}

impl Happening {
    fn when(self) -> f64 {
        match self {
            Self::Lights(draw) => draw.lights,
            Self::Listens(draw) => draw.listens,
            Self::Ready(draw) => draw.ready,
        }
    }
}

/// When the VMs of a draw began to serve, by [`SIDES`]; CLOCK_MONOTONIC in nanoseconds.
type Serving = Vec<(u8, [f64; 3])>;

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
    let (serving, ours, early, rival) = std::thread::scope(|scope| {
        let life = scope.spawn(|| live(bench, &vms, &draws, begin, &material.issued(), &theirs));
        let ours = scope.spawn(|| wait_ours(&worker, &draws, OURS, &material));
        let early = scope.spawn(|| wait_ours(&worker, &draws, EARLY, &material));
        let rival = wait_rival(&mut daemon, &draws);
        (joined(life.join()), joined(ours.join()), joined(early.join()), rival)
    });
    let (serving, times) = (serving?, [ours?, rival?, early?]);
    let waited: f64 = draws.iter().map(|d| d.ready).sum();
    let packets = vms.run(counted)?.map(|count| one(count / waited));
    let mut lags: [Samples; 3] = Default::default();
    for ((lag, times), at) in lags.iter_mut().zip(&times).zip(0..) {
        let since = |n: u8| serving.iter().find(|s| s.0 == n)?.1.get(at).copied();
        *lag = times.iter().filter_map(|(n, at)| Some((at - since(*n)?) / 1e6)).collect();
    }
    let [probes, theirs, probes_early] = packets;
    let probes = Sides::ours(probes).rival(theirs.clone());
    let probes_early = Sides::ours(probes_early).rival(theirs);
    let [ours, rival, early] = lags;
    let mut all = rows(ours, rival.clone(), &probes);
    all.extend(rows_early(early, rival, &probes_early));
    Ok(all)
}

/// The VM's hint: it listens as soon as it can and serves as soon as it may.
fn rows_early(ours: Samples, rival: Samples, probes: &Sides) -> Vec<Row> {
    let means = Sides::ours(one(ours.mean())).rival(one(rival.mean()));
    let p99 = Sides::ours(ours.only(0.99));
    let lags = Sides::ours(ours).rival(rival);
    let what = |value| format!("ready lag, {value}, of a VM that listens early");
    let at_most = |most| Some(Target::AtMost(most));
    vec![
        Row::against_rival(ID, &what("mean"), "ms", &means, at_most(0.01)),
        Row::alone(ID, &what("p50"), "ms", &lags, at_most(20.0)),
        Row::alone(ID, &what("p99"), "ms", &p99, at_most(150.0)),
        Row::alone(ID, "SYNs to it, a second", "1/s", probes, at_most(10.0)),
    ]
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
    let all = draws.iter().flat_map(|d| SIDES.map(|side| (side, d.number)));
    all.map(|(side, number)| lab::address(side, number)).collect()
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
    let batch = Batch::new()
        .table(TABLE)
        .chain(TABLE, chain("count", -10))
        .chain(TABLE, chain("drop", 0))
        .set(TABLE, Set { name: DARK, key_length: 4, remembers: 0 })
        .rule(TABLE, "count", &syn_to(OURS))
        .rule(TABLE, "count", &syn_to(RIVAL))
        .rule(TABLE, "count", &syn_to(EARLY))
        .rule(TABLE, "drop", &dark);
    batch.send("count SYNs")?;
    // The kernel's acknowledgements of one batch have to fit into a socket's buffer.
    draws.chunks(DRAWS_A_BATCH).try_for_each(|draws| {
        let all = draws.iter().flat_map(|d| keys(*d));
        let add = |batch: Batch, key: [u8; 4]| batch.element(TABLE, DARK, &key, "boots");
        all.fold(Batch::new(), add).send("let no SYN in")
    })
}

fn keys(draw: Draw) -> [[u8; 4]; 3] {
    SIDES.map(|side| [10, 77, side, draw.number])
}

fn lights(draw: Draw) -> Result<(), Error> {
    let without = |batch: Batch, key: &[u8; 4]| batch.delete_element(TABLE, DARK, key);
    keys(draw).iter().fold(Batch::new(), without).send("let SYNs in")
}

fn counted() -> Result<[f64; 3], Error> {
    let counters = Nft::counters(TABLE, "count")?;
    Ok([0, 1, 2].map(|n: usize| counters.get(n).map_or(0.0, |c| c.packets as f64)))
}

/// Plays the VMs' lives.
fn live(
    bench: &Bench,
    vms: &Netns,
    draws: &[Draw],
    begin: f64,
    ours: &Issued,
    theirs: &Issued,
) -> anyhow::Result<Serving> {
    let (ours, theirs) = (ours.server()?, theirs.server()?);
    let life = |d: &Draw| [Happening::Lights(*d), Happening::Listens(*d), Happening::Ready(*d)];
    let mut happenings: Vec<Happening> = draws.iter().flat_map(life).collect();
    happenings.sort_by(|a, b| a.when().total_cmp(&b.when()));
    let (mut serving, mut listening) = (Serving::new(), BTreeMap::new());
    for happening in happenings {
        let left = happening.when() - (monotonic()? - begin) / 1e9;
        if left > 0.0 {
            std::thread::sleep(Duration::from_secs_f64(left));
        }
        match happening {
            Happening::Lights(draw) => vms.run(|| lights(draw))?,
            Happening::Listens(draw) => {
                listening.insert(draw.number, vm::listen(vms, draw.at(EARLY))?);
            }
            Happening::Ready(draw) => {
                let mut moments = [0.0; 3];
                for (side, moment) in SIDES.into_iter().zip(&mut moments) {
                    let early = (side == EARLY).then(|| listening.remove(&draw.number)).flatten();
                    let listener = early.map_or_else(|| vm::listen(vms, draw.at(side)), Ok)?;
                    *moment = monotonic()?;
                    let tls = if side == RIVAL { &theirs } else { &ours };
                    vm::serve(bench.runtime.handle(), listener, tls.clone())?;
                }
                serving.push((draw.number, moments));
            }
        }
    }
    Ok(serving)
}

/// The prober of the node process, on one thread in the worker's namespace.
fn wait_ours(
    worker: &Netns,
    draws: &[Draw],
    side: u8,
    material: &Material,
) -> anyhow::Result<Vec<(u8, f64)>> {
    let tls = material.client();
    let work = async {
        let waits = draws.iter().map(|draw| async {
            let pulse = probe::reach(&Tcp, draw.at(side), Some(&tls), |_| {}).await;
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
