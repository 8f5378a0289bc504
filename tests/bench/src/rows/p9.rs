//! P9: from exec to a serving socket, and back to 1000 live pods after kill -9 of the node process.
//!
//! Serving means: somebody accepts on the hypervisor socket (the row with the goal), and a `Version`
//! call is answered there, which for us needs relay and node. The rival never recovers (its pods die
//! with it), so for recovery there is no rival.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use peerpod_netlink::Netns;
use peerpod_tunnel::link::call::{CallError, Caller};
use tokio::net::UnixStream;

use crate::Bench;
use crate::lab;
use crate::machine::monotonic;
use crate::node::{Node, Site};
use crate::ours::Paths;
use crate::program::{Program, Start};
use crate::report::{Row, Sides, Target};
use crate::rows::p8::{Shim, shim};
use crate::samples::Samples;
use crate::vm::Forwarder;

const ID: &str = "P9";
const MILLISECOND: f64 = 1e6;
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_micros(100);

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    // One that cannot be measured does not take the other along.
    let or_why = |what: &str, rows: anyhow::Result<Vec<Row>>| {
        rows.unwrap_or_else(|e| vec![Row::not_measured(ID, what, format!("{e:#}"))])
    };
    let mut rows = or_why("cold start", cold(bench));
    rows.extend(or_why("recovery", recovery(bench)));
    Ok(rows)
}

fn cold(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let runs = if bench.quick() { 3 } else { 30 };
    let mut accepts = [Samples::default(), Samples::default()];
    let mut answers = [Samples::default(), Samples::default()];
    // Run 0 warms the page cache.
    for run in 0..=runs {
        let dir = bench.dir(&format!("p9-{run}"))?;
        for (side, start) in [start_ours, start_rival].into_iter().enumerate() {
            let (accept, answer) = start(bench, &dir)?;
            if run > 0 {
                accepts[side].push(accept / MILLISECOND);
                answers[side].push(answer / MILLISECOND);
            }
        }
    }
    let sides = |[ours, rival]: [Samples; 2]| Sides::ours(ours).rival(rival);
    let (accepts, answers) = (sides(accepts), sides(answers));
    let most = Some(Target::AtMost(30.0));
    Ok(vec![
        Row::alone(ID, "exec to an accepting hypervisor socket", "ms", &accepts, most),
        Row::against_rival(ID, "the same by the rival", "ms", &accepts, None),
        Row::against_rival(ID, "exec to an answered Version call", "ms", &answers, None),
    ])
}

/// `peerpodd run`, which starts relay and node, on the local provider.
fn start_ours(bench: &Bench, dir: &Path) -> anyhow::Result<(f64, f64)> {
    let paths = Paths(dir.join("ours"));
    let netns = lab::quiet()?;
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let args = [
        "run".to_owned(),
        flag("socket", &paths.hypervisor()),
        flag("pods-dir", &paths.pods()),
        flag("run-dir", &paths.run()),
        flag("state-dir", &paths.0.join("state")),
        "--provider=local".to_owned(),
    ];
    std::fs::create_dir_all(&paths.0)?;
    let log = dir.join("run.log");
    let start = Start { program: &bench.programs.peerpodd, log, netns: Some(&netns) };
    let begin = Instant::now();
    let mut program = start.with(&args)?;
    let times = serving(bench, begin, &paths.hypervisor(), &mut program)?;
    end(&mut program)?;
    Ok(times)
}

fn start_rival(bench: &Bench, dir: &Path) -> anyhow::Result<(f64, f64)> {
    let socket = dir.join("rival.sock");
    let log = dir.join("rival.log");
    let start = Start { program: bench.programs.rival()?, log, netns: None };
    let begin = Instant::now();
    let mut program =
        start.with(["daemon".as_ref(), "-hypervisor".as_ref(), socket.as_os_str()])?;
    serving(bench, begin, &socket, &mut program)
}

/// Lets a parent take its children along.
fn end(program: &mut Program) -> anyhow::Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(program.pid())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    program.wait(PATIENCE)
}

/// Nanoseconds from `begin` until somebody accepts, and until somebody answers.
fn serving(
    bench: &Bench,
    begin: Instant,
    socket: &Path,
    program: &mut Program,
) -> anyhow::Result<(f64, f64)> {
    while StdUnixStream::connect(socket).is_err() {
        program.lives()?;
        if begin.elapsed() > PATIENCE {
            bail!("{}: nobody accepts within {PATIENCE:?}", socket.display());
        }
        std::thread::sleep(STEP);
    }
    let accepted = begin.elapsed().as_nanos() as f64;
    bench.runtime.block_on(async {
        let call = async {
            let mut caller = Caller::new(UnixStream::connect(socket).await?);
            let answer = caller.call("hypervisor.Hypervisor", "Version", bytes::Bytes::new()).await;
            match answer {
                // The rival answers that it has no such method: an answer all the same.
                Ok(_) | Err(CallError::Refused { .. }) => Ok(()),
                Err(e) => Err(anyhow::Error::from(e)),
            }
        };
        tokio::time::timeout(PATIENCE, call).await.context("no answer to Version")?
    })?;
    Ok((accepted, begin.elapsed().as_nanos() as f64))
}

/// Makes the pods once, then kills and restarts the node process again and again.
fn recovery(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let count = if bench.quick() { 50 } else { 1000 };
    let netns = lab::quiet()?;
    let vm = [127, 0, 0, 1].into();
    let site = Site { worker: &netns, vms: &netns, vm, forwarder: Forwarder::Ours, tunnels: false };
    let mut node = Node::start(bench, &bench.dir("p9-node")?, site)?;
    let mut shims = pods(bench, &mut node, &netns, count)?;
    let (mut serving, mut all, mut calls) =
        (Samples::default(), Samples::default(), Samples::default());
    for round in 0..=bench.pairs() {
        let killed = monotonic()?;
        let back = node.restart(site)?;
        if back.pods != count {
            bail!("{} of {count} pods are back", back.pods);
        }
        // Every shim's connection must have lived on, and the agent behind it answers.
        bench.runtime.block_on(async {
            for shim in &mut shims {
                shim.check().await?;
            }
            Ok::<_, CallError>(())
        })?;
        let done = monotonic()?;
        if round > 0 {
            serving.push((back.serving - killed) / MILLISECOND);
            all.push((back.recovered - killed) / MILLISECOND);
            calls.push((done - killed) / MILLISECOND);
        }
    }
    let row = |what: &str, samples, most| {
        let what = format!("kill -9 of the node, {count} pods: {what}");
        Row::alone(ID, &what, "ms", &Sides::ours(samples), Some(Target::AtMost(most)))
    };
    Ok(vec![
        row("its socket serves", serving, 50.0),
        row("all are taken up", all, 1000.0),
        row("every agent has answered its shim", calls, 1000.0)
            .note("no shim connection broke; the relay holds them"),
    ])
}

/// Pods without a network, each with a shim that has spoken.
fn pods(bench: &Bench, node: &mut Node, netns: &Netns, count: usize) -> anyhow::Result<Vec<Shim>> {
    let one = |n| {
        let started = node.pod(bench, &format!("p9-{n}"), netns.path())?;
        shim(bench, &started.agent)
    };
    (0..count).map(one).collect()
}
