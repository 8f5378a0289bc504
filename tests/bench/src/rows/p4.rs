//! P4: an agent call's round trip, 256 B, TLS on. Limit: the same client on the agent's socket.

use crate::Bench;
use crate::links::{Links, Measured};
use crate::report::{Row, Sides, Target};
use crate::rival::Load;
use crate::samples::Samples;

const ID: &str = "P4";
/// The rival's p50 by direct that still is upstream's shape; the real one showed 4.95.
pub(crate) const FAIR: (f64, f64) = (3.5, 8.0);
/// What the row is called that says whether the rival counts.
pub(crate) const FAIR_ROW: &str = "is the rival of upstream's shape? p50 by direct";

#[derive(Debug, Default)]
struct Series {
    p50: Samples,
    p99: Samples,
    cpu_all: Samples,
    cpu_hops: Samples,
}

impl Series {
    fn push(&mut self, m: &Measured) {
        const MICROSECOND: f64 = 1e3;
        self.p50.push(m.p50 / MICROSECOND);
        self.p99.push(m.p99 / MICROSECOND);
        self.cpu_all.push(m.cpu_all / MICROSECOND);
        self.cpu_hops.push(m.cpu_hops / MICROSECOND);
    }
}

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut links = Links::start(bench, ID)?;
    let count = if bench.quick() { 4_000 } else { 20_000 };
    let load = Load { kind: "write", size: 256, count, in_flight: 1 };
    let mut all: [Series; 5] = Default::default();
    // Pair 0 warms up and is discarded.
    for pair in 0..=bench.pairs() {
        let (ours, plain) = (links.ours.as_mut().ok(), links.plain.as_mut().ok());
        let (direct, bare, rival) = (&mut links.direct, &mut links.bare, &mut links.rival);
        let sides = [Some(direct), Some(bare), Some(rival), ours, plain];
        for (side, series) in sides.into_iter().zip(&mut all) {
            let Some(side) = side else { continue };
            let measured = side.measure(&load)?;
            if pair > 0 {
                series.push(&measured);
            }
        }
    }
    let mut rows = rows(all);
    let failed = [("our side", links.ours.err()), ("our plain link", links.plain.err())];
    rows.extend(
        failed.into_iter().filter_map(|(what, why)| Some(Row::not_measured(ID, what, why?))),
    );
    Ok(rows)
}

fn rows([direct, bare, rival, ours, plain]: [Series; 5]) -> Vec<Row> {
    let sides = |limit: &Samples, rival: &Samples, ours: &Samples| {
        Sides::ours(ours.clone()).rival(rival.clone()).limit(limit.clone())
    };
    let p50 = sides(&direct.p50, &rival.p50, &ours.p50);
    let p99 = sides(&direct.p99, &rival.p99, &ours.p99);
    let all = sides(&direct.cpu_all, &rival.cpu_all, &ours.cpu_all);
    // Nobody stands between client and agent there.
    let hops = Sides::ours(ours.cpu_hops.clone()).rival(rival.cpu_hops.clone());
    // The least that two processes with TLS between them can do.
    let floor = sides(&direct.p50, &rival.p50, &bare.p50);
    let floor_cpu = sides(&direct.cpu_all, &rival.cpu_all, &bare.cpu_all);
    let of_plain = sides(&plain.p50, &rival.p50, &ours.p50);
    let of_plain_cpu = sides(&plain.cpu_hops, &rival.cpu_hops, &ours.cpu_hops);
    let (least, most) = FAIR;
    let shown = |what, sides| Row::against_rival(ID, what, "us", sides, None);
    vec![
        Row::of_the_rival(ID, FAIR_ROW, "us", &p50, Target::Between(least, most)),
        Row::against_rival(ID, "call 256 B, p50", "us", &p50, Some(Target::AtMost(0.45))),
        Row::against_limit(ID, "call 256 B, p50, by direct", "us", &p50, Some(Target::AtMost(2.5))),
        shown("call 256 B, p99", &p99),
        Row::against_rival(ID, "CPU a call, all processes", "us", &all, Some(Target::AtMost(0.3))),
        shown("CPU a call, between client and agent", &hops),
        shown("call 256 B, p50, \"ours\" being the bare relay", &floor),
        shown("CPU a call, \"ours\" being the bare relay", &floor_cpu),
        Row::against_limit(ID, "call 256 B, p50, by a plain link", "us", &of_plain, None),
        Row::against_limit(ID, "CPU between, by a plain link", "us", &of_plain_cpu, None),
    ]
}
