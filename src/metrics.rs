//! Everything that is counted. All names begin with `kata_`, so that a search for `kata` finds them
//! among those of shim, agent and guest; ours go on with `peerpodd_`. Three have the names that
//! existing dashboards of the product ask for: `kata_total_remote_pods`, `kata_failed_remote_pods`,
//! `kata_remote_workload_failure_ratio`, here for the pods of this node.
//!
//! Counters change where things happen ([`Observer`], [`Counted`]); gauges are set from what there
//! is when somebody asks ([`Metrics::render`]).

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use peerpod_providers::{
    Candidate, Deletion, Error, Provider, Report, Resource, Vm, VmRef, VmSpec,
};
use peerpod_tunnel::network::Counters as TunnelCounters;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::pod::world::{Observer, Stage};
use crate::pods::PodStatus;
use crate::relay::{Held, Totals};

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Gauges<const N: usize> = Family<Labels<N>, Gauge>;
type Drops = Family<[(&'static str, String); 2], Gauge>;
type Times<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// The phases a pod is listed in, so that a phase without pods reads 0 instead of nothing.
const PHASES: [&str; 5] = ["prepared", "launching", "running", "deleting", "broken"];

/// From 1 ms to about 9 minutes, doubling.
fn times() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 20))
}

/// All metrics of the node process; registered once, shared by reference.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pods: Gauges<1>,
    total_pods: Gauge,
    failed_pods: Gauge,
    failure_ratio: Gauge<f64, AtomicU64>,
    phase_changes: Counters<1>,
    starts: Counters<1>,
    start_failures: Counters<1>,
    start_time: Histogram,
    steps: Times<2>,
    pods_lost: Counters<1>,
    interruptions: Counters<1>,
    deletes_pending: Gauge,
    vnis: Gauge,
    records_broken: Gauge,
    provider_calls: Counters<2>,
    provider_errors: Counters<2>,
    provider_time: Times<1>,
    sweeps: Counters<1>,
    sweep_found: Gauge,
    sweep_deleted: Counter,
    tunnels_altered: Counters<1>,
    tunnel_dropped: Drops,
    tunnel_guarded: Gauge,
    relay: RelayMetrics,
}

/// What the relay tells of itself. Its counters begin anew with the relay, as a gauge may.
#[derive(Debug, Default)]
struct RelayMetrics {
    connected: Gauge,
    sandboxes: Gauges<1>,
    agent_connections: Gauge,
    bytes: Gauges<1>,
    links: Gauges<1>,
    requests: Gauges<1>,
    peers_refused: Gauge,
}

/// What there is now, for the gauges.
#[derive(Clone, Debug, Default)]
pub struct Now {
    /// All pods.
    pub pods: Vec<PodStatus>,
    /// The last that have ended in another way than by StopVM.
    pub ended: Vec<PodStatus>,
    /// What the relay holds; `None` when it is away.
    pub relay: Option<Vec<Held>>,
    /// The relay's own counts.
    pub totals: Option<Totals>,
    /// What tunnels have dropped, by sandbox, as of the last look at each.
    pub tunnels: BTreeMap<String, TunnelCounters>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("kata"),
            pods: Family::default(),
            total_pods: Gauge::default(),
            failed_pods: Gauge::default(),
            failure_ratio: Gauge::default(),
            phase_changes: Family::default(),
            starts: Family::default(),
            start_failures: Family::default(),
            start_time: times(),
            steps: Family::new_with_constructor(times),
            pods_lost: Family::default(),
            interruptions: Family::default(),
            deletes_pending: Gauge::default(),
            vnis: Gauge::default(),
            records_broken: Gauge::default(),
            provider_calls: Family::default(),
            provider_errors: Family::default(),
            provider_time: Family::new_with_constructor(times),
            sweeps: Family::default(),
            sweep_found: Gauge::default(),
            sweep_deleted: Counter::default(),
            tunnels_altered: Family::default(),
            tunnel_dropped: Family::default(),
            tunnel_guarded: Gauge::default(),
            relay: RelayMetrics::default(),
        };
        metrics.register_product();
        metrics.register_pods();
        metrics.register_provider();
        metrics.register_tunnels();
        metrics.register_relay();
        metrics
    }

    fn register_product(&mut self) {
        let r = &mut self.registry;
        r.register(
            "total_remote_pods",
            "Pods of this node that are not over",
            self.total_pods.clone(),
        );
        r.register(
            "failed_remote_pods",
            "Pods of this node that are neither running nor over",
            self.failed_pods.clone(),
        );
        r.register(
            "remote_workload_failure_ratio",
            "Failed of all pods of this node, in percent",
            self.failure_ratio.clone(),
        );
    }

    fn register_pods(&mut self) {
        let r = self.registry.sub_registry_with_prefix("peerpodd");
        let build: Gauges<1> = Family::default();
        build.get_or_create(&[("version", crate::cli::VERSION)]).set(1);
        r.register("build_info", "Version of this process", build);
        r.register("pods", "Pods by phase", self.pods.clone());
        r.register("phase_changes", "Phases entered", self.phase_changes.clone());
        r.register("starts", "Starts of pods by result", self.starts.clone());
        r.register(
            "start_failures",
            "Failed starts by how far they came",
            self.start_failures.clone(),
        );
        r.register("start_duration_seconds", "Time of a successful start", self.start_time.clone());
        r.register("step_duration_seconds", "Time of one step of a pod's life", self.steps.clone());
        r.register(
            "pods_lost",
            "Running pods that ended without being stopped",
            self.pods_lost.clone(),
        );
        r.register(
            "interruptions",
            "Notices that a running pod's spot VM is taken back, by the cloud that gave them",
            self.interruptions.clone(),
        );
        r.register("deletes_pending", "VMs not yet confirmed gone", self.deletes_pending.clone());
        r.register("vnis_in_use", "VXLAN network ids of pods", self.vnis.clone());
        r.register(
            "records_unreadable",
            "Records that cannot be used",
            self.records_broken.clone(),
        );
    }

    fn register_provider(&mut self) {
        let r = self.registry.sub_registry_with_prefix("peerpodd");
        r.register("provider_calls", "Calls to the provider", self.provider_calls.clone());
        r.register("provider_errors", "Failed calls by kind", self.provider_errors.clone());
        r.register("provider_call_seconds", "Time of a provider call", self.provider_time.clone());
        r.register("sweeps", "Searches for VMs that nobody knows", self.sweeps.clone());
        r.register(
            "sweep_found",
            "Unknown VMs and parts the last search saw",
            self.sweep_found.clone(),
        );
        r.register("sweep_deleted", "Unknown VMs and parts deleted", self.sweep_deleted.clone());
    }

    fn register_tunnels(&mut self) {
        let r = self.registry.sub_registry_with_prefix("peerpodd");
        r.register(
            "tunnel_altered",
            "Tunnels of running pods that somebody had altered, by how the repair ended",
            self.tunnels_altered.clone(),
        );
        r.register(
            "tunnel_dropped_packets",
            "Packets of VMs dropped on the worker by reason, as of the last look at the tunnel",
            self.tunnel_dropped.clone(),
        );
        r.register(
            "tunnel_wrong_source_packets",
            "Tunnel packets dropped since they came from no VM's address, of all pods",
            self.tunnel_guarded.clone(),
        );
    }

    fn register_relay(&mut self) {
        let r = self.registry.sub_registry_with_prefix("peerpodd_relay");
        let m = &self.relay;
        r.register("connected", "1 while the relay answers", m.connected.clone());
        r.register("sandboxes", "Sandboxes the relay holds by state", m.sandboxes.clone());
        r.register("agent_connections", "Shim connections in use", m.agent_connections.clone());
        r.register("bytes", "Bytes carried since the relay's start", m.bytes.clone());
        r.register("links", "Links to VMs made since the relay's start", m.links.clone());
        r.register("requests", "Hypervisor requests since the relay's start", m.requests.clone());
        r.register("peers_refused", "Peers turned away for their user id", m.peers_refused.clone());
    }

    /// All metrics in OpenMetrics text, gauges as of `now`.
    pub fn render(&self, now: &Now) -> String {
        self.set_pods(&now.pods);
        self.set_tunnels(now);
        self.set_relay(now);
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            tracing::error!("metrics cannot be written");
        }
        text
    }

    fn set_pods(&self, pods: &[PodStatus]) {
        let count = |phase: &str| {
            i64::try_from(pods.iter().filter(|p| p.phase == phase).count()).unwrap_or(i64::MAX)
        };
        for phase in PHASES {
            self.pods.get_or_create(&[("phase", phase)]).set(count(phase));
        }
        let failed = count("prepared") + count("launching");
        let total = failed + count("running");
        self.total_pods.set(total);
        self.failed_pods.set(failed);
        self.failure_ratio.set(if total == 0 { 0.0 } else { 100.0 * failed as f64 / total as f64 });
        self.deletes_pending.set(count("deleting"));
        let vnis = pods.iter().filter(|p| p.vni != 0).count();
        self.vnis.set(i64::try_from(vnis).unwrap_or(i64::MAX));
    }

    fn set_tunnels(&self, now: &Now) {
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.tunnel_dropped.clear();
        for (sandbox, counters) in &now.tunnels {
            for (reason, counter) in counters.dropped.iter().filter(|(_, c)| c.packets > 0) {
                let labels = [("sandbox", sandbox.clone()), ("reason", (*reason).to_owned())];
                self.tunnel_dropped.get_or_create(&labels).set(gauge(counter.packets));
            }
        }
        // Each look has read the count of all pods; it never falls while the filter stands.
        let guarded = now.tunnels.values().map(|c| c.guarded.packets).max();
        self.tunnel_guarded.set(gauge(guarded.unwrap_or_default()));
    }

    fn set_relay(&self, now: &Now) {
        let m = &self.relay;
        m.connected.set(i64::from(now.relay.is_some()));
        let held = now.relay.as_deref().unwrap_or_default();
        for state in ["listening", "connected", "closing"] {
            let count = held.iter().filter(|h| h.state == state).count();
            m.sandboxes.get_or_create(&[("state", state)]).set(count as i64);
        }
        m.agent_connections.set(held.iter().map(|h| i64::from(h.agent_connections)).sum());
        let Some(totals) = &now.totals else { return };
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        m.bytes.get_or_create(&[("to", "vm")]).set(gauge(totals.bytes_to_vm));
        m.bytes.get_or_create(&[("to", "shim")]).set(gauge(totals.bytes_to_shim));
        m.links.get_or_create(&[("result", "ok")]).set(gauge(totals.links_made));
        m.links.get_or_create(&[("result", "failed")]).set(gauge(totals.links_failed));
        m.requests.get_or_create(&[("kind", "passed")]).set(gauge(totals.requests));
        m.requests.get_or_create(&[("kind", "replayed")]).set(gauge(totals.requests_replayed));
        m.peers_refused.set(gauge(totals.peers_refused));
    }

    fn provider_call<T>(
        &self,
        operation: &'static str,
        began: tokio::time::Instant,
        outcome: &Result<T, Error>,
    ) {
        let result = if outcome.is_ok() { "ok" } else { "failed" };
        self.provider_calls.get_or_create(&[("operation", operation), ("result", result)]).inc();
        if let Err(error) = outcome {
            let labels = [("operation", operation), ("kind", error.kind.as_str())];
            self.provider_errors.get_or_create(&labels).inc();
        }
        let took = began.elapsed().as_secs_f64();
        self.provider_time.get_or_create(&[("operation", operation)]).observe(took);
    }
}

impl Observer for Metrics {
    fn phase(&self, _from: Option<&'static str>, to: Option<&'static str>) {
        self.phase_changes.get_or_create(&[("phase", to.unwrap_or("gone"))]).inc();
    }

    fn step(&self, step: &'static str, took: Duration, ok: bool) {
        let result = if ok { "ok" } else { "failed" };
        self.steps.get_or_create(&[("step", step), ("result", result)]).observe(took.as_secs_f64());
        if step == "start" {
            self.starts.get_or_create(&[("result", result)]).inc();
            if ok {
                self.start_time.observe(took.as_secs_f64());
            }
        }
    }

    fn start_failed(&self, stage: Stage) {
        self.start_failures.get_or_create(&[("stage", stage.as_str())]).inc();
    }

    fn pod_lost(&self, why: &'static str) {
        self.pods_lost.get_or_create(&[("why", why)]).inc();
    }

    fn interrupted(&self, source: &'static str) {
        self.interruptions.get_or_create(&[("source", source)]).inc();
    }

    fn tunnel_altered(&self, repaired: bool) {
        let repair = if repaired { "ok" } else { "failed" };
        self.tunnels_altered.get_or_create(&[("repair", repair)]).inc();
    }

    fn broken_records(&self, count: usize) {
        self.records_broken.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn sweep(&self, found: Option<usize>, deleted: usize) {
        let result = if found.is_some() { "ok" } else { "failed" };
        self.sweeps.get_or_create(&[("result", result)]).inc();
        if let Some(found) = found {
            self.sweep_found.set(i64::try_from(found).unwrap_or(i64::MAX));
        }
        self.sweep_deleted.inc_by(deleted as u64);
    }
}

/// A provider whose calls are counted, by what they were and how they ended.
#[derive(Debug)]
pub struct Counted {
    /// Who does the work.
    pub provider: std::sync::Arc<dyn Provider>,
    /// Where it is counted.
    pub metrics: std::sync::Arc<Metrics>,
}

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.provider.fmt(f)
    }
}

#[async_trait::async_trait]
impl Provider for Counted {
    async fn check(&self) -> Result<Report, Error> {
        let began = tokio::time::Instant::now();
        let outcome = self.provider.check().await;
        self.metrics.provider_call("check", began, &outcome);
        outcome
    }

    async fn create(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Vm, Error> {
        let began = tokio::time::Instant::now();
        let outcome = self.provider.create(spec, candidate).await;
        self.metrics.provider_call("create", began, &outcome);
        outcome
    }

    async fn delete(&self, vm: &VmRef) -> Result<Deletion, Error> {
        let began = tokio::time::Instant::now();
        let outcome = self.provider.delete(vm).await;
        self.metrics.provider_call("delete", began, &outcome);
        outcome
    }

    async fn list(&self) -> Result<Vec<Resource>, Error> {
        let began = tokio::time::Instant::now();
        let outcome = self.provider.list().await;
        self.metrics.provider_call("list", began, &outcome);
        outcome
    }

    async fn console(&self, vm: &VmRef) -> Result<Option<String>, Error> {
        let began = tokio::time::Instant::now();
        let outcome = self.provider.console(vm).await;
        self.metrics.provider_call("console", began, &outcome);
        outcome
    }
}

#[cfg(test)]
mod tests;
