//! The parts of the world that are fakes of our own; the provider's fake is its crate's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use peerpod_providers::fake::{Fake, Operation};
use peerpod_providers::{Candidate, Market, UserData, VmName, VmSpec, tags};
use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::tls::ClientTls;
use peerpod_tunnel::network::{InspectError, PodNetwork, Tunnel, TunnelError};
use tokio::time::{Instant, sleep};

use crate::hypervisor::Failure;
use crate::plan::{FollowFile, Plan};
use crate::pod::phase::Phase;
use crate::pod::record::{Broken, Loaded, Record, RecordError, Records};
use crate::pod::samples;
use crate::pod::world::{Clock, Network, NetworkError, Observer, Planner, Random, Stage};
use crate::proto::hypervisor::CreateVmRequest;
use crate::request::{self, PodRequest};
use crate::volumes::PodVolumes;

mod guest;
mod relay;

pub(super) use guest::{FakeGuest, Mood};
pub(super) use relay::FakeRelay;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics while it holds a lock")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("some years")
}

#[derive(Debug)]
pub(super) struct FakeClock {
    pub(super) begin: Instant,
    pub(super) since: Duration,
    /// Milliseconds by which somebody has set it.
    pub(super) set: std::sync::atomic::AtomicI64,
}

impl FakeClock {
    /// Somebody sets it, forward or back, by so many seconds.
    pub(super) fn set_by(&self, seconds: i64) {
        self.set.fetch_add(seconds * 1000, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Clock for FakeClock {
    fn now_ms(&self) -> u64 {
        let now = millis(self.since + self.begin.elapsed());
        now.saturating_add_signed(self.set.load(std::sync::atomic::Ordering::Relaxed))
    }

    fn boot_ms(&self) -> u64 {
        millis(self.begin.elapsed())
    }
}

#[derive(Debug, Default)]
pub(super) struct FakeChance(std::sync::atomic::AtomicU32);

impl Random for FakeChance {
    fn next(&self) -> u32 {
        self.0.fetch_add(0x9e37_79b9, std::sync::atomic::Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(super) struct FakePlanner;

#[async_trait]
impl Planner for FakePlanner {
    fn parse(&self, request: &CreateVmRequest) -> Result<PodRequest, Failure> {
        request::parse(request, &Default::default()).map_err(Failure::from)
    }

    async fn plan(
        &self,
        request: &PodRequest,
        _: &PodNetwork,
        _: u32,
        name: VmName,
    ) -> Result<Plan, Failure> {
        let sandbox = request.sandbox.to_string();
        // As the test says, by the name.
        let spot = sandbox.starts_with("spot");
        let market = if spot { Market::Spot } else { Market::OnDemand };
        Ok(Plan {
            spec: spec(name.clone(), &sandbox, "node-1"),
            candidates: ["a", "b"].iter().zip(0..).map(|(z, n)| candidate(n, z, market)).collect(),
            size_reason: "the default".to_owned(),
            edit_methods: Vec::new(),
            server_name: name.to_string(),
            authority: None,
            volumes: PodVolumes::default(),
            follow: follow(&sandbox),
            notes: Vec::new(),
        })
    }

    fn client(&self, _: &str) -> Option<ClientTls> {
        None
    }
}

/// As the test says, by the name.
fn follow(sandbox: &str) -> Vec<FollowFile> {
    let content = Secret::new("INITDATA".to_owned());
    let file = FollowFile { path: podvm::contract::INITDATA.to_owned(), content };
    if sandbox.starts_with("follow") { vec![file] } else { Vec::new() }
}

pub(super) fn spec(name: VmName, sandbox: &str, node: &str) -> VmSpec {
    let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    VmSpec {
        tags: [tag(tags::INSTALLATION, "test"), tag(tags::NODE, node), tag(tags::SANDBOX, sandbox)]
            .into(),
        user_data: UserData("PRIVATE KEY".to_owned()),
        ..VmSpec::new(name, sandbox)
    }
}

pub(super) fn candidate(number: u32, zone: &str, market: Market) -> Candidate {
    Candidate { number, instance_type: "small".to_owned(), zone: Some(zone.to_owned()), market }
}

/// Counts what the daemon would show as metrics.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) failed_at: Mutex<Vec<Stage>>,
    pub(super) lost: Mutex<Vec<&'static str>>,
    pub(super) interrupted: Mutex<Vec<&'static str>>,
    pub(super) broken: Mutex<usize>,
    pub(super) sweeps: Mutex<Vec<(Option<usize>, usize)>>,
    pub(super) errors: Mutex<Vec<(&'static str, &'static str)>>,
    pub(super) phases: Mutex<BTreeMap<&'static str, i64>>,
    pub(super) starts: Mutex<Vec<bool>>,
}

impl Observer for Counts {
    fn phase(&self, from: Option<&'static str>, to: Option<&'static str>) {
        let mut phases = lock(&self.phases);
        from.into_iter().for_each(|f| *phases.entry(f).or_default() -= 1);
        to.into_iter().for_each(|t| *phases.entry(t).or_default() += 1);
    }

    fn step(&self, step: &'static str, _: Duration, ok: bool) {
        if step == "start" {
            lock(&self.starts).push(ok);
        }
    }

    fn provider_error(&self, operation: &'static str, kind: &'static str) {
        lock(&self.errors).push((operation, kind));
    }

    fn start_failed(&self, stage: Stage) {
        lock(&self.failed_at).push(stage);
    }

    fn pod_lost(&self, why: &'static str) {
        lock(&self.lost).push(why);
    }

    fn interrupted(&self, source: &'static str) {
        lock(&self.interrupted).push(source);
    }

    fn broken_records(&self, count: usize) {
        *lock(&self.broken) = count;
    }

    fn sweep(&self, found: Option<usize>, deleted: usize) {
        lock(&self.sweeps).push((found, deleted));
    }
}

/// Records in memory; what was saved, and after how many creates.
#[derive(Debug)]
pub(super) struct FakeRecords {
    pub(super) provider: Arc<Fake>,
    pub(super) state: Mutex<RecordState>,
}

#[derive(Debug, Default)]
pub(super) struct RecordState {
    pub(super) all: BTreeMap<String, Record>,
    pub(super) broken: Vec<Broken>,
    pub(super) log: Vec<(String, Phase, u64)>,
    pub(super) full: bool,
    pub(super) hangs: bool,
}

impl FakeRecords {
    pub(super) fn all(&self) -> BTreeMap<String, Record> {
        lock(&self.state).all.clone()
    }

    fn refuse(&self) -> Result<(), RecordError> {
        if lock(&self.state).full {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(RecordError { action: "write", path: "/state/pods".into(), source });
        }
        Ok(())
    }
}

#[async_trait]
impl Records for FakeRecords {
    async fn load(&self) -> Result<Loaded, RecordError> {
        let state = lock(&self.state);
        let records = state.all.values().cloned().collect();
        Ok(Loaded { records, broken: state.broken.clone() })
    }

    async fn save(&self, record: &Record) -> Result<(), RecordError> {
        while lock(&self.state).hangs {
            sleep(Duration::from_millis(100)).await;
        }
        self.refuse()?;
        let mut state = lock(&self.state);
        let line = (record.sandbox.clone(), record.phase.clone());
        state.log.push((line.0, line.1, self.provider.count(Operation::Create)));
        state.all.insert(record.sandbox.clone(), record.clone());
        Ok(())
    }

    async fn remove(&self, sandbox: &str) -> Result<(), RecordError> {
        lock(&self.state).all.remove(sandbox);
        Ok(())
    }
}

/// The kernel.
#[derive(Debug, Default)]
pub(super) struct FakeNetwork {
    pub(super) attached: Mutex<BTreeMap<String, Tunnel>>,
    pub(super) attaches: Mutex<u32>,
    /// Namespaces that are not there.
    pub(super) missing: Mutex<BTreeSet<PathBuf>>,
    pub(super) refuses: Mutex<BTreeSet<&'static str>>,
    pub(super) hangs: Mutex<BTreeSet<&'static str>>,
    pub(super) dedicated: Mutex<bool>,
}

impl FakeNetwork {
    async fn begin(&self, what: &'static str) -> Result<(), NetworkError> {
        while lock(&self.hangs).contains(what) {
            sleep(Duration::from_millis(100)).await;
        }
        if lock(&self.refuses).contains(what) {
            let (sandbox, path) = ("s".to_owned(), "p".to_owned());
            let reason = format!("{what} refused by the test");
            return Err(TunnelError::Netns { sandbox, path, reason }.into());
        }
        Ok(())
    }
}

#[async_trait]
impl Network for FakeNetwork {
    async fn inspect(&self, netns: &Path) -> Result<(PodNetwork, (u64, u64)), NetworkError> {
        self.begin("inspect").await?;
        if lock(&self.missing).contains(netns) {
            return Err(InspectError::NoDefaultRoute(netns.to_owned()).into());
        }
        let dedicated = *lock(&self.dedicated);
        Ok((PodNetwork { dedicated, ..samples::network() }, (4, 5)))
    }

    async fn kernel_vnis(&self) -> Result<BTreeSet<u32>, NetworkError> {
        self.begin("vnis").await?;
        Ok(BTreeSet::new())
    }

    async fn attach(&self, tunnel: &Tunnel) -> Result<(), NetworkError> {
        *lock(&self.attaches) += 1;
        self.begin("attach").await?;
        lock(&self.attached).insert(tunnel.sandbox.clone(), tunnel.clone());
        Ok(())
    }

    async fn detach(&self, tunnel: &Tunnel) -> Result<(), NetworkError> {
        self.begin("detach").await?;
        lock(&self.attached).remove(&tunnel.sandbox);
        Ok(())
    }

    async fn verify(&self, tunnel: &Tunnel) -> Result<Vec<String>, NetworkError> {
        let stands = lock(&self.attached).get(&tunnel.sandbox) == Some(tunnel);
        Ok(if stands { Vec::new() } else { vec!["vxlan1 is missing".to_owned()] })
    }

    async fn clear_leftovers(&self, known: &BTreeSet<String>) -> Result<Vec<String>, NetworkError> {
        let mut attached = lock(&self.attached);
        let gone = attached.keys().filter(|k| !known.contains(*k)).cloned().collect();
        attached.retain(|k, _| known.contains(k));
        Ok(gone)
    }
}
