//! P5: stream throughput, 32 KiB and 1 MiB a call, TLS on. Limit: a bare rustls byte relay.
//!
//! A stream of an agent is one call after the other (`ReadStdout` to the shim: logs, exec;
//! `WriteStdin` to the VM), so one is in flight; four at a time stand for four streams.

use crate::Bench;
use crate::links::Links;
use crate::report::{Row, Sides, Target};
use crate::rival::Load;
use crate::samples::Samples;

const ID: &str = "P5";
/// Bytes of one measurement of one side.
const VOLUME: usize = 64 << 20;

struct Case {
    kind: &'static str,
    size: usize,
    in_flight: usize,
    /// Least multiple of the rival's throughput that the goal wants.
    times: Option<f64>,
}

const CASES: [Case; 6] = [
    Case { kind: "read", size: 32 << 10, in_flight: 1, times: Some(4.0) },
    Case { kind: "write", size: 32 << 10, in_flight: 1, times: Some(4.0) },
    Case { kind: "read", size: 1 << 20, in_flight: 1, times: Some(3.0) },
    Case { kind: "write", size: 1 << 20, in_flight: 1, times: Some(3.0) },
    Case { kind: "read", size: 32 << 10, in_flight: 4, times: None },
    Case { kind: "read", size: 1 << 20, in_flight: 4, times: None },
];

#[derive(Debug, Default)]
struct Series {
    rate: Samples,
    cpu: Samples,
}

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut links = Links::start(bench, ID)?;
    let mut rows = Vec::new();
    for case in &CASES {
        rows.extend(run(bench, &mut links, case)?);
    }
    let failed = [("our side", links.ours.err()), ("our plain link", links.plain.err())];
    rows.extend(
        failed.into_iter().filter_map(|(what, why)| Some(Row::not_measured(ID, what, why?))),
    );
    Ok(rows)
}

fn run(bench: &Bench, links: &mut Links, case: &Case) -> anyhow::Result<Vec<Row>> {
    let volume = if bench.quick() { VOLUME / 4 } else { VOLUME };
    let Case { kind, size, in_flight, .. } = *case;
    let load = Load { kind, size, count: volume / size, in_flight };
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
                series.rate.push(measured.rate);
                series.cpu.push(measured.cpu_all / size as f64);
            }
        }
    }
    Ok(self::rows(case, all))
}

fn rows(case: &Case, [direct, bare, rival, ours, plain]: [Series; 5]) -> Vec<Row> {
    let size = if case.size < 1 << 20 { "32 KiB" } else { "1 MiB" };
    let name = format!("{} {size}, {} in flight", case.kind, case.in_flight);
    let of_plain = Sides::ours(ours.rate.clone()).limit(plain.rate);
    // No link can be quicker than none; so much of the rival's rate is to be had here.
    let ceiling = direct.rate.by(&rival.rate).quantile(0.5);
    let rate = Sides::ours(ours.rate).rival(rival.rate).limit(bare.rate);
    let cpu = Sides::ours(ours.cpu).rival(rival.cpu).limit(bare.cpu);
    let goal = case.times.map(Target::AtLeast);
    let of_bare = case.times.map(|_| Target::AtLeast(0.8));
    let by_bare = format!("{name}, by the bare relay");
    let seconds = format!("{name}, CPU seconds of all processes");
    let by_plain = format!("{name}, by a plain link");
    let direct = direct.rate.quantile(0.5);
    let note = format!("direct {direct:.0} MiB/s, {ceiling:.1} of the rival");
    vec![
        Row::against_rival(ID, &name, "MiB/s", &rate, goal).note(note),
        Row::against_limit(ID, &by_bare, "MiB/s", &rate, of_bare),
        Row::against_rival(ID, &seconds, "s/GB", &cpu, None),
        Row::against_limit(ID, &by_plain, "MiB/s", &of_plain, None),
    ]
}
