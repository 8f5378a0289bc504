//! P6: the pod's network through the tunnel, beside the rival's and beside the same two pods without one.
//!
//! TCP to the pod, from it and both; UDP packets of 64 bytes to it and from it. Three underlays: 1500,
//! 9001, and 9001 with every packet cut before the link, for a veth pair hides the MTU otherwise.

use crate::Bench;
use crate::report::{Row, Sides, Target};
use crate::samples::Samples;
use crate::traffic::{Brought, tcp, udp};
use crate::ways::{Underlay, Way};

const ID: &str = "P6";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    ToPod,
    FromPod,
    Both,
    SmallToPod,
    SmallFromPod,
}

impl Load {
    fn text(self) -> &'static str {
        match self {
            Self::ToPod => "TCP to the pod",
            Self::FromPod => "TCP from the pod",
            Self::Both => "TCP both ways",
            Self::SmallToPod => "64 B UDP to the pod",
            Self::SmallFromPod => "64 B UDP from the pod",
        }
    }

    fn small(self) -> bool {
        matches!(self, Self::SmallToPod | Self::SmallFromPod)
    }

    fn run(self, way: &Way, check: bool) -> anyhow::Result<Brought> {
        let (to, from) = ((way.peer(), way.pod()), (way.pod(), way.peer()));
        match self {
            Self::ToPod => tcp(&[to], check),
            Self::FromPod => tcp(&[from], check),
            Self::Both => tcp(&[to, from], check),
            Self::SmallToPod => udp(to.0, to.1),
            Self::SmallFromPod => udp(from.0, from.1),
        }
    }
}

struct Case {
    name: &'static str,
    underlay: Underlay,
    loads: &'static [Load],
    /// Least multiple of the rival's TCP throughput that the goal wants.
    times: Option<f64>,
}

const TCP: [Load; 3] = [Load::ToPod, Load::FromPod, Load::Both];
const ALL: [Load; 5] =
    [Load::ToPod, Load::FromPod, Load::Both, Load::SmallToPod, Load::SmallFromPod];

const CASES: [Case; 3] = [
    Case { name: "1500", underlay: Underlay { mtu: 1500, cut: false }, loads: &ALL, times: None },
    Case { name: "9001", underlay: Underlay { mtu: 9001, cut: false }, loads: &TCP, times: None },
    Case {
        name: "9001 without offload",
        underlay: Underlay { mtu: 9001, cut: true },
        loads: &TCP,
        times: Some(1.5),
    },
];

#[derive(Debug, Default)]
struct Series {
    rate: Samples,
    cpu: Samples,
    lost: Samples,
}

impl Series {
    /// Gb/s and ns a KiB, or thousands of packets a second and ns a packet.
    fn push(&mut self, load: Load, brought: Brought) {
        let Brought { count, seconds, cpu, lost } = brought;
        let (unit, part) = if load.small() { (1e3, 1.0) } else { (1e9 / 8.0, 1024.0) };
        self.rate.push(count / seconds / unit);
        self.cpu.push(cpu / count * part);
        self.lost.push(lost);
    }
}

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let can = bench.programs.rival.as_ref().map(|_| ()).map_err(Clone::clone);
    let can = can.and(bench.programs.iptables.clone());
    for (number, case) in CASES.iter().enumerate() {
        let dir = bench.dir(&format!("p6-{number}"))?;
        let raw = Way::raw(case.underlay)?;
        let ours = Way::ours(&dir, case.underlay)?;
        let rival = can.is_ok().then(|| Way::rival(bench, &dir, case.underlay)).transpose()?;
        for load in case.loads {
            rows.extend(run(bench, case, *load, [Some(&raw), rival.as_ref(), Some(&ours)])?);
        }
    }
    rows.extend(can.err().map(|why| Row::not_measured(ID, "the rival's tunnel", why)));
    Ok(rows)
}

fn run(
    bench: &Bench,
    case: &Case,
    load: Load,
    ways: [Option<&Way>; 3],
) -> anyhow::Result<Vec<Row>> {
    let mut all: [Series; 3] = Default::default();
    // Pair 0 warms up, has its bytes compared, and is discarded.
    for pair in 0..=bench.pairs() {
        for (way, series) in ways.into_iter().zip(&mut all) {
            let Some(way) = way else { continue };
            let brought = load.run(way, pair == 0)?;
            if pair > 0 {
                series.push(load, brought);
            }
        }
    }
    Ok(rows(case, load, all))
}

fn rows(case: &Case, load: Load, [raw, rival, ours]: [Series; 3]) -> Vec<Row> {
    let name = format!("{}, MTU {}", load.text(), case.name);
    let rate = Sides::ours(ours.rate).rival(rival.rate).limit(raw.rate);
    let cpu = Sides::ours(ours.cpu).rival(rival.cpu).limit(raw.cpu);
    let no_more = Some(Target::AtMost(1.0));
    if load.small() {
        let lost = format!(
            "lost before a receiver: ours {:.1} %, rival {:.1} %",
            ours.lost.quantile(0.5) * 100.0,
            rival.lost.quantile(0.5) * 100.0
        );
        let packets = Some(Target::AtLeast(1.3));
        return vec![
            Row::against_rival(ID, &name, "k/s", &rate, packets).note(lost),
            Row::against_limit(ID, &format!("{name}, without a tunnel"), "k/s", &rate, None),
            Row::against_rival(ID, &format!("{name}, CPU a packet"), "ns", &cpu, no_more),
        ];
    }
    let by_raw = case.times.is_none().then_some(Target::AtLeast(0.95));
    vec![
        Row::against_limit(ID, &format!("{name}, without a tunnel"), "Gb/s", &rate, by_raw),
        Row::against_rival(ID, &name, "Gb/s", &rate, case.times.map(Target::AtLeast)),
        Row::against_rival(ID, &format!("{name}, CPU a KiB"), "ns", &cpu, no_more),
    ]
}
