//! The machine a run was on, and what processes on it have used.

use std::fs::read_to_string;

use anyhow::Context as _;
use nix::time::ClockId;
use nix::unistd::Pid;
use serde::Serialize;

/// Printed above every table; numbers of another machine or day are never compared.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cores: usize,
    memory_gib: f64,
    governor: String,
    load: String,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let first = |path: &str| read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpu = read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
        let memory = read_to_string("/proc/meminfo").unwrap_or_default();
        let total = memory.lines().find_map(|l| l.strip_prefix("MemTotal:"));
        let kib = total.and_then(|t| t.split_whitespace().next()?.parse::<f64>().ok());
        let governor = first("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        Self {
            kernel: first("/proc/sys/kernel/osrelease"),
            cpu: model.map_or("unknown".to_owned(), |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib.unwrap_or_default() / 1024.0 / 1024.0,
            governor: if governor.is_empty() { "none seen".to_owned() } else { governor },
            load: first("/proc/loadavg"),
        }
    }

    pub(crate) fn text(&self) -> String {
        format!(
            "kernel {}, {} x {}, {:.0} GiB, governor {}, load {}",
            self.kernel, self.cores, self.cpu, self.memory_gib, self.governor, self.load
        )
    }
}

/// CPU time of a process that lives, user and system, all its threads; in nanoseconds.
pub(crate) fn cpu_of(pid: u32) -> anyhow::Result<f64> {
    let pid = Pid::from_raw(i32::try_from(pid)?);
    let clock = ClockId::pid_cpu_clock_id(pid).with_context(|| format!("CPU clock of {pid}"))?;
    Ok(nanoseconds(clock.now().with_context(|| format!("CPU time of {pid}"))?))
}

/// CPU time of this process so far, in nanoseconds.
pub(crate) fn own_cpu() -> anyhow::Result<f64> {
    Ok(nanoseconds(ClockId::CLOCK_PROCESS_CPUTIME_ID.now()?))
}

/// CPU time of this process and of the kernel's threads that receive packets when there are too many to do it
/// in passing; in nanoseconds. What an interrupt does in somebody else's time is not in it.
pub(crate) fn network_cpu() -> anyhow::Result<f64> {
    let mut sum = own_cpu()?;
    for process in std::fs::read_dir("/proc")?.flatten() {
        let path = process.path();
        let name = read_to_string(path.join("comm")).unwrap_or_default();
        if name.starts_with("ksoftirqd/") {
            let text = read_to_string(path.join("schedstat")).context("schedstat of ksoftirqd")?;
            sum += text.split_whitespace().next().context("empty schedstat")?.parse::<f64>()?;
        }
    }
    Ok(sum)
}

/// CLOCK_MONOTONIC, which all processes of the machine share, in nanoseconds.
pub(crate) fn monotonic() -> anyhow::Result<f64> {
    Ok(nanoseconds(ClockId::CLOCK_MONOTONIC.now()?))
}

fn nanoseconds(time: nix::sys::time::TimeSpec) -> f64 {
    time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64
}

/// Memory that can be put down to a process alone: shared pages by its share, in MiB.
pub(crate) fn pss_of(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).context("no Pss")?;
    let kib: f64 = line.split_whitespace().next().context("empty Pss")?.parse()?;
    Ok(kib / 1024.0)
}

/// As many open files as the system lets this process and its children have.
pub(crate) fn raise_file_limit() -> anyhow::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
