//! `peerpod-sim`: runs seeds and says which of them break something, and how to see it again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::Parser;
use peerpod_sim::{Choice, Fault, Lives, Outcome, Plan, command, run, shrink};

/// Runs the daemon in a simulated world.
#[derive(Debug, Parser)]
struct Options {
    /// Runs that many seeds, beginning with `--from`.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed of `--seeds`.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Runs this one seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints the whole trace.
    #[arg(long)]
    trace: bool,
    /// Only these faults happen (name#count, as a failing seed prints them).
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<String>>,
    /// These faults never happen.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// The daemon dies at these points, one after the other.
    #[arg(long, value_delimiter = ',')]
    die: Vec<String>,
    /// Every point and every pair of points at which the daemon can die, those of the simulation's
    /// parts and (built with `crash-points`) the daemon's own.
    #[arg(long)]
    pairs: bool,
    /// Every one of the daemon's own points, and so many of their pairs (with `--pairs` all).
    #[arg(long)]
    points: Option<usize>,
    /// Runs at a time.
    #[arg(long)]
    jobs: Option<usize>,
    /// Stops at the first seed that breaks something and does not look for fewer faults.
    #[arg(long)]
    first: bool,
    /// The faults there are.
    #[arg(long)]
    list: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if options.list {
        for fault in Fault::ALL {
            println!("{:24} {}", fault.name(), fault.what());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let choice = Choice {
        only: options.only.clone().map(|o| o.into_iter().filter(|s| !s.is_empty()).collect()),
        without: options.without.iter().cloned().collect(),
    };
    let plan = |seed| Plan { seed, choice: choice.clone(), deaths: options.die.clone() };
    if let Some(pairs) = options.points {
        return points(&options, pairs);
    }
    if options.pairs {
        return self::pairs(&options);
    }
    let plans: Vec<Plan> = match options.seed {
        Some(seed) => vec![plan(seed)],
        None => (options.from..options.from + options.seeds).map(plan).collect(),
    };
    Ok(campaign(&options, &plans, "seeds")?.verdict())
}

/// A death at each of the daemon's own points, and `drawn` pairs of deaths or all.
fn points(options: &Options, drawn: usize) -> anyhow::Result<ExitCode> {
    let seed = options.seed.unwrap_or(1);
    let lives = Lives::explore(seed)?;
    let missing = lives.missing();
    if !missing.is_empty() {
        anyhow::bail!("no life comes by these points: {}", missing.join(", "));
    }
    let (plans, mut pairs) = (lives.singles(), lives.pairs());
    anyhow::ensure!(!plans.is_empty(), "there are no points: build with `--features crash-points`");
    println!("{} points, {} pairs", plans.len(), pairs.len());
    if !options.pairs {
        // Spread over all of them, by a step that shares no factor with their number.
        let (all, step) = (pairs.len(), 1_000_003);
        let first = usize::try_from(options.from)?;
        let chosen = (0..drawn.min(all)).map(|n| pairs[(n * step + first) % all].clone());
        pairs = chosen.collect();
    }
    let singles = campaign(options, &plans, "deaths")?;
    anyhow::ensure!(singles.left == 0, "a life that came by a point did not come by it again");
    let pairs = campaign(options, &pairs, "pairs of deaths")?;
    Ok(if singles.failed.is_empty() { pairs.verdict() } else { singles.verdict() })
}

/// Each death, and then each death of the successor.
fn pairs(options: &Options) -> anyhow::Result<ExitCode> {
    let quiet = Choice { only: Some(BTreeSet::new()), ..Choice::default() };
    let seed = options.seed.unwrap_or(1);
    let calm = |deaths| Plan { seed, choice: quiet.clone(), deaths };
    let mut points = BTreeSet::new();
    // The points of a life with a restart in it, since some are come by only then.
    for death in ["", "save.after", "StopVM.after"] {
        let deaths = Some(death.to_owned()).filter(|d| !d.is_empty()).into_iter().collect();
        points.extend(run(&calm(deaths))?.points.into_keys());
    }
    let pairs = points.iter().flat_map(|a| points.iter().map(move |b| vec![a.clone(), b.clone()]));
    let plans: Vec<Plan> = pairs.map(calm).collect();
    println!("{} points, {} pairs", points.len(), plans.len());
    Ok(campaign(options, &plans, "pairs")?.verdict())
}

/// What all runs had, together.
#[derive(Default)]
struct Sum {
    fired: BTreeMap<String, u64>,
    failed: Vec<Plan>,
    virtual_ms: u64,
    lines: u64,
    left: u64,
    digest: u64,
}

impl Sum {
    fn verdict(&self) -> ExitCode {
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn campaign(options: &Options, plans: &[Plan], what: &str) -> anyhow::Result<Sum> {
    let begin = Instant::now();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let sum = Mutex::new(Sum::default());
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.unwrap_or(jobs).clamp(1, plans.len().max(1)) {
            scope.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = match run(plan) {
                        Ok(outcome) => outcome,
                        Err(error) => return eprintln!("seed {}: {error}", plan.seed),
                    };
                    done.fetch_add(1, Ordering::Relaxed);
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    let failed = add(&mut sum, plan, &outcome);
                    if options.trace {
                        print(&outcome);
                    }
                    if failed && options.first {
                        next.store(plans.len(), Ordering::Relaxed);
                    }
                    drop(sum);
                    if failed {
                        report(plan, outcome, options);
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let done = done.into_inner();
    let whole = done == plans.len() as u64 || options.first;
    anyhow::ensure!(whole, "only {done} of {} {what} came to an end", plans.len());
    if sum.left > 0 {
        println!("{} planned deaths did not come about", sum.left);
    }
    let faults: u64 = sum.fired.values().sum();
    println!(
        "{done} {what}: {} failed; {faults} faults of {} kinds, {} virtual hours, {} trace lines, \
         {:.1} s",
        sum.failed.len(),
        sum.fired.len(),
        sum.virtual_ms / 3_600_000,
        sum.lines,
        begin.elapsed().as_secs_f64()
    );
    if let [plan] = plans {
        println!("seed {}: trace {:016x}", plan.seed, sum.digest);
    }
    Ok(sum)
}

fn add(sum: &mut Sum, plan: &Plan, outcome: &Outcome) -> bool {
    for id in &outcome.fired {
        let kind = id.split('#').next().unwrap_or_default().to_owned();
        *sum.fired.entry(kind).or_default() += 1;
    }
    sum.virtual_ms += outcome.took_ms;
    sum.lines += outcome.trace.len() as u64;
    sum.left += outcome.left as u64;
    sum.digest = outcome.digest;
    if outcome.breach.is_some() {
        sum.failed.push(plan.clone());
    }
    outcome.breach.is_some()
}

fn print(outcome: &Outcome) {
    let mut out = std::io::stdout().lock();
    for line in &outcome.trace {
        // Nobody reads on: there is nothing to be done about that.
        let _ = writeln!(out, "{line}");
    }
}

/// What broke, the command that repeats it, and the end of the trace.
fn report(plan: &Plan, outcome: Outcome, options: &Options) {
    let before = outcome.fired.len();
    let shrunk = if options.first { Ok((plan.clone(), outcome)) } else { shrink(plan, outcome) };
    let (plan, outcome) = match shrunk {
        Ok(shrunk) => shrunk,
        Err(error) => return eprintln!("seed {}: {error}", plan.seed),
    };
    let Some(breach) = &outcome.breach else { return };
    println!("\nseed {} breaks {}: {}", plan.seed, breach.invariant, breach.what);
    println!("  {before} faults, reduced to {}: {}", outcome.fired.len(), outcome.fired.join(" "));
    println!("  repeat: {}", command(&plan));
    for line in outcome.trace.iter().rev().take(6).rev() {
        println!("  | {line}");
    }
}
