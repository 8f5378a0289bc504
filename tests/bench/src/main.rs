//! The benchmark: ours, a rival of upstream's shape and the limit, by turns in one run on one
//! machine, printed as the table of goals. `tests/run bench`; README.md says how to read it.
//!
//! It exits with 0 when it has measured, whatever came out: a goal that is missed is a line of the
//! table.
#![allow(clippy::disallowed_methods, reason = "the bench starts and waits for what it measures")]

mod bare;
mod instant;
mod lab;
mod links;
mod machine;
mod material;
mod node;
mod node_role;
mod ours;
mod program;
mod report;
mod rival;
mod rows;
mod samples;
mod traffic;
mod vm;
mod ways;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::machine::Machine;
use crate::program::Programs;
use crate::report::{Row, Verdict};

/// Measures peerpodd beside a rival of upstream's shape and beside the limit.
#[derive(Debug, Parser)]
struct Options {
    /// Only these goals: P4,P5.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Few pairs, to see that everything works; the numbers do not count.
    #[arg(long)]
    quick: bool,
    /// Leave the directory with the programs' logs and say where it is.
    #[arg(long)]
    keep: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Processes that the bench makes of itself.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    BareNear {
        #[arg(long)]
        socket: PathBuf,
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        tls: PathBuf,
    },
    #[command(hide = true)]
    BareFar {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        to: PathBuf,
        #[arg(long)]
        tls: PathBuf,
    },
    #[command(hide = true)]
    Node(node_role::Arguments),
}

/// What every row has at hand.
#[derive(Debug)]
struct Bench {
    quick: bool,
    programs: Programs,
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl Bench {
    /// Pairs that count; the goals want at least 7.
    fn pairs(&self) -> usize {
        if self.quick { 2 } else { 9 }
    }

    fn quick(&self) -> bool {
        self.quick
    }

    /// A directory of a row's own. Short, for it holds sockets.
    fn dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

type Measure = fn(&Bench) -> anyhow::Result<Vec<Row>>;

const GOALS: [(&str, Measure); 10] = [
    ("P1", rows::p1::measure),
    ("P2", rows::p2::measure),
    ("P3", rows::p3::measure),
    ("P4", rows::p4::measure),
    ("P5", rows::p5::measure),
    ("P6", rows::p6::measure),
    ("P8", rows::p8::measure),
    ("P9", rows::p9::measure),
    ("P10", rows::p3::calls),
    ("P14", rows::p14::measure),
];

fn main() -> anyhow::Result<()> {
    peerpod_tunnel::link::tls::install_ring();
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match options.role {
        Some(Role::BareNear { socket, to, tls }) => runtime.block_on(bare::near(&socket, to, &tls)),
        Some(Role::BareFar { listen, to, tls }) => runtime.block_on(bare::far(listen, to, &tls)),
        Some(Role::Node(arguments)) => runtime.block_on(node_role::run(arguments)),
        None => bench(&options, runtime),
    }
}

fn bench(options: &Options, runtime: tokio::runtime::Runtime) -> anyhow::Result<()> {
    let chosen = choose(&options.only)?;
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the bench makes network namespaces and reads other processes' memory: run it as root"
        );
    }
    machine::raise_file_limit()?;
    let machine = Machine::look();
    eprintln!("{}", machine.text());
    let programs = Programs::build()?;
    let dir = tempfile::Builder::new().prefix("ppb").tempdir().context("a directory")?;
    let bench = Bench { quick: options.quick, programs, runtime, dir };
    let mut rows = Vec::new();
    for (id, measure) in chosen {
        let begin = std::time::Instant::now();
        match measure(&bench) {
            Ok(measured) => rows.extend(measured),
            Err(e) => {
                eprintln!("{id}: not measured: {e:#}");
                rows.push(Row::not_measured(id, "all", format!("{e:#}")));
            }
        }
        eprintln!("{id}: measured in {:.0} s", begin.elapsed().as_secs_f64());
    }
    if options.keep {
        eprintln!("logs: {}", bench.dir.keep().display());
    }
    print(options, &machine, &rows)
}

fn choose(only: &[String]) -> anyhow::Result<Vec<(&'static str, Measure)>> {
    if let Some(unknown) = only.iter().find(|o| !GOALS.iter().any(|(id, _)| o == id)) {
        let known: Vec<&str> = GOALS.iter().map(|(id, _)| *id).collect();
        bail!("--only {unknown}: no such goal here; there are {}", known.join(", "));
    }
    let wanted = |id: &str| only.is_empty() || only.iter().any(|o| o == id);
    Ok(GOALS.into_iter().filter(|(id, _)| wanted(id)).collect())
}

#[derive(Serialize)]
struct Report<'a> {
    before: &'a Machine,
    after: &'a Machine,
    quick: bool,
    /// Why no figure of this run counts; absent if they do.
    void: Option<String>,
    rows: &'a [Row],
}

fn print(options: &Options, before: &Machine, rows: &[Row]) -> anyhow::Result<()> {
    let (after, void) = (Machine::look(), void(options, rows));
    if options.output == Output::Json {
        let report = Report { before, after: &after, quick: options.quick, void, rows };
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    println!("before: {}\nafter:  {}\n", before.text(), after.text());
    print!("{}", report::table(rows));
    let count = |verdict| rows.iter().filter(|r| r.verdict == verdict).count();
    println!(
        "\n{} met, {} near, {} missed, {} shown without a goal, {} not measured",
        count(Verdict::Met),
        count(Verdict::Near),
        count(Verdict::Missed),
        count(Verdict::Shown),
        count(Verdict::NotMeasured),
    );
    if let Some(why) = void {
        println!("NO FIGURE OF THIS RUN COUNTS: {why}");
    }
    Ok(())
}

/// A rival that is not of upstream's shape proves nothing, and few pairs prove little.
fn void(options: &Options, rows: &[Row]) -> Option<String> {
    let fair = rows.iter().find(|r| r.what == rows::p4::FAIR_ROW);
    match fair.map(|r| r.verdict) {
        Some(Verdict::Met) | None if options.quick => {
            Some("--quick makes too few pairs".to_owned())
        }
        Some(Verdict::Met) | None => None,
        Some(_) => {
            let (least, most) = rows::p4::FAIR;
            Some(format!("the rival's call is not {least} to {most} times direct (P4)"))
        }
    }
}
