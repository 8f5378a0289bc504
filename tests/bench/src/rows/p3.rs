//! P3 and P10 over the clouds' doubles (tests/clouds): how long a hundred creates at once take, how many
//! of the calls are refused for coming too fast, and how many calls a pod's life costs.
//!
//! The daemon is the real one with the provider's own budgets. The VMs that the doubles make are nobody:
//! a start counts as made when its create has ended, and is then stopped. Time is that of a schedule of
//! buckets, tens of seconds, so that the daemon's build (a debug one, see tests/parts/clouds.sh) is no matter.

use crate::Bench;
use crate::report::Row;

/// The burst.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    over::measure(bench)
}

/// One pod.
pub(crate) fn calls(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    over::calls(bench)
}

#[cfg(not(feature = "clouds"))]
mod over {
    use super::*;

    const WHY: &str = "built without clouds; see README.md";

    pub(super) fn measure(_: &Bench) -> anyhow::Result<Vec<Row>> {
        Ok(vec![Row::not_measured("P3", "100 creates at once", WHY)])
    }

    pub(super) fn calls(_: &Bench) -> anyhow::Result<Vec<Row>> {
        Ok(vec![Row::not_measured("P10", "cloud calls of a pod's life", WHY)])
    }
}

#[cfg(feature = "clouds")]
mod over {
    use std::time::{Duration, Instant};

    use anyhow::Context as _;
    use peerpod_clouds::pods::{CLOUDS, Cloud, Schedule, Site};
    use peerpod_it::Bed;
    use peerpod_standin::lab::wait_for;
    use peerpod_standin::shim::{Profile, Shim};
    use serde_json::{Value, json};

    use super::*;
    use crate::report::{Sides, Target};
    use crate::samples::Samples;

    /// How long a slow cloud takes to make a VM, seconds.
    const SLOW: f64 = 20.0;
    /// Between two looks at the pods.
    const LOOK: Duration = Duration::from_millis(500);
    /// No burst takes longer.
    const PATIENCE: Duration = Duration::from_secs(400);

    fn one(value: f64) -> Samples {
        std::iter::once(value).collect()
    }

    /// What a number of pods at once has cost.
    struct Burst {
        pods: usize,
        /// From the first StartVM to the end of the last create, seconds.
        wall: f64,
        /// Calls of all their lives, without looks at operations.
        calls: usize,
        looks: usize,
        throttled: usize,
    }

    /// A daemon with the budgets that it has when nobody says anything of them.
    async fn site(cloud: &'static Cloud) -> anyhow::Result<Site> {
        let mut options = Bed::options(&["--peerpods-limit-per-node=-1"]);
        let usual = cloud.beyond.iter().filter(|(key, _)| key.starts_with("API_RATE_"));
        options.environment = usual.map(|(key, _)| ((*key).to_owned(), String::new())).collect();
        options.environment.push(("PEERPODS_LIMIT_PER_NODE".to_owned(), "-1".to_owned()));
        Site::without_machines(cloud, options).await
    }

    async fn burst(site: &Site, pods: u8, slow: f64) -> anyhow::Result<Burst> {
        let socket = site.bed.lab.dir().socket();
        let mut shims = Vec::new();
        let mut nets = Vec::new();
        for number in 0..pods {
            let (net, spec) = site.bed.pod(number).await?;
            nets.push(net);
            shims.push(Shim::create(Profile::GoLike, &socket, spec).await?);
        }
        site.server.set(&json!({"slow": slow}))?;
        let before = site.server.calls()?.len();
        let began = now_ms();
        let hypervisors: Vec<_> = shims
            .iter()
            .map(|shim| (std::sync::Arc::clone(shim.hypervisor()), shim.spec().sandbox.clone()))
            .collect();
        let starts: Vec<_> = shims
            .into_iter()
            .map(|mut shim| tokio::spawn(async move { shim.start_vm().await }))
            .collect();
        let all_made = || async {
            // When a create ended stands in the pod's timeline: who asks often only costs time.
            tokio::time::sleep(LOOK).await;
            let ends: Vec<u64> = site.bed.pods().await?.iter().filter_map(made).collect();
            let last = ends.iter().max().copied().unwrap_or_default();
            Ok((ends.len() == usize::from(pods)).then_some(last))
        };
        let ended = wait_for("all creates to end", PATIENCE, all_made).await;
        let ended = ended.with_context(|| site.bed.daemon.log_tail())?;
        for (hypervisor, sandbox) in hypervisors {
            hypervisor.stop_vm(&sandbox).await?;
        }
        for start in starts {
            // Stopped while nobody answered.
            let _ = start.await?;
        }
        let gone = || async {
            let left: u64 = site.server.resources()?.values().sum();
            Ok((left == 0 && site.bed.pods().await?.is_empty()).then_some(()))
        };
        wait_for("all VMs to be gone", PATIENCE, gone).await?;
        for net in nets {
            site.bed.lab.network().remove_pod(&net)?;
        }
        let all = site.server.calls()?;
        let ours = all.get(before..).unwrap_or_default();
        let ours = ours.iter().filter(|c| c.operation != "check" && !c.path.contains("oauth2"));
        let (looks, calls): (Vec<_>, Vec<_>) = ours.partition(|c| c.path.contains("/operations/"));
        let throttled = calls.iter().filter(|c| site.cloud.is_throttle(c.status)).count();
        let wall = ended.saturating_sub(began) as f64 / 1e3;
        let (calls, looks) = (calls.len(), looks.len());
        Ok(Burst { pods: usize::from(pods), wall, calls, looks, throttled })
    }

    /// When a pod's create ended well, milliseconds since 1970.
    fn made(pod: &Value) -> Option<u64> {
        let moments = pod["timeline"].as_array()?;
        moments.iter().find(|m| m["what"] == "create")?["at_ms"].as_u64()
    }

    fn now_ms() -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn measure(bench: &Bench) -> anyhow::Result<Vec<Row>> {
        let pods = if bench.quick() { 20 } else { 100 };
        let mut rows = Vec::new();
        for cloud in CLOUDS {
            let measured = bench.runtime.block_on(of_cloud(cloud, pods));
            match measured.with_context(|| cloud.name) {
                Ok(measured) => rows.extend(measured),
                Err(e) => rows.push(Row::not_measured("P3", cloud.name, format!("{e:#}"))),
            }
        }
        Ok(rows)
    }

    async fn of_cloud(cloud: &'static Cloud, pods: u8) -> anyhow::Result<Vec<Row>> {
        let site = site(cloud).await?;
        let name = cloud.name;
        let mut rows = Vec::new();
        for (slow, how) in [(0.0, ""), (SLOW, ", each takes 20 s")] {
            let begin = Instant::now();
            let alone = burst(&site, 1, slow).await?;
            let all = burst(&site, pods, slow).await?;
            eprintln!("{name}: {:.0} s", begin.elapsed().as_secs_f64());
            let best = cloud.schedule.best(pods) + alone.wall;
            let sides = Sides::ours(one(all.wall)).limit(one(best));
            let what = format!("{name}: {pods} creates at once{how}, until the last has ended");
            let Schedule { per_second, burst } = cloud.schedule;
            let note = format!(
                "limit: one create's own {:.2} s, and {burst} at once, then {per_second} a second",
                alone.wall
            );
            // Without any wait for a turn the schedule is no measure of what so many cost this machine.
            let waits = best > alone.wall || slow > 0.0;
            let target = waits.then_some(Target::AtMost(1.1));
            let row = Row::against_limit("P3", &what, "s", &sides, target);
            rows.push(row.note(note));
            if slow > 0.0 {
                continue;
            }
            let share = 100.0 * all.throttled as f64 / all.calls.max(1) as f64;
            let what = format!("{name}: calls of {pods} lives at once that were throttled");
            let sides = Sides::ours(one(share));
            rows.push(Row::alone("P3", &what, "%", &sides, Some(Target::AtMost(1.0))));
            rows.push(calls_row(cloud, &all, cloud.calls.1));
        }
        Ok(rows)
    }

    fn calls_row(cloud: &Cloud, burst: &Burst, most: f64) -> Row {
        let pods = burst.pods;
        let what = match pods {
            1 => format!("{}: calls of a pod's life", cloud.name),
            _ => format!("{}: calls of a pod's life, {pods} at once", cloud.name),
        };
        let sides = Sides::ours(one(burst.calls as f64 / pods as f64));
        let looks = burst.looks as f64 / pods as f64;
        Row::alone("P10", &what, "calls", &sides, Some(Target::AtMost(most)))
            .note(format!("and {looks:.1} looks at operations, which have a quota of their own"))
    }

    pub(super) fn calls(bench: &Bench) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for cloud in CLOUDS {
            let life = async {
                let site = site(cloud).await?;
                burst(&site, 1, 0.0).await
            };
            match bench.runtime.block_on(life) {
                Ok(life) => rows.push(calls_row(cloud, &life, cloud.calls.0)),
                Err(e) => rows.push(Row::not_measured("P10", cloud.name, format!("{e:#}"))),
            }
        }
        Ok(rows)
    }
}
