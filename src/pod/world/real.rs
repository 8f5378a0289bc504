//! The real parts of the world that belong to no crate of their own.

mod deliver;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use peerpod_providers::VmName;
use peerpod_tunnel::link::call::Caller;
use peerpod_tunnel::link::tls::ClientTls;
use peerpod_tunnel::network::{self, Counters, InspectSettings, Look, PodNetwork, Policy, Tunnel};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use self::watch::Watches;
use super::{
    Clock, Door, Guest, Network, NetworkError, Planner, Pulse, Random, Stage, Undelivered, Unready,
    Watch,
};
use crate::hypervisor::{Failure, FailureKind};
use crate::labels::{Labels, PodLabels};
use crate::pki::Pki;
use crate::plan::{self, FollowFile, Plan, PlanInput, PlanRules};
use crate::proto::hypervisor::CreateVmRequest;
use crate::request::{self, PodRequest, RequestRules};
use crate::volumes::{Places, PodVolumes};

/// The kernel this process runs on. Everything happens on threads for blocking work, which stand in
/// the process's own network namespace: the worker's.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// What an inspection is told.
    inspect: InspectSettings,
    /// What pods may do.
    policy: Policy,
    /// What the last looks at the tunnels have counted.
    seen: Seen,
    watches: Watches,
}

impl Host {
    /// The kernel as it is to be read and what pods may do; `seen` is told what tunnels count.
    pub fn new(inspect: InspectSettings, policy: Policy, seen: Seen) -> Self {
        Self { inspect, policy, seen, watches: Watches::default() }
    }
}

/// What tunnels have carried and dropped, by sandbox, as of the last look at each. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<BTreeMap<String, Counters>>>);

impl Seen {
    /// All of it.
    pub fn all(&self) -> BTreeMap<String, Counters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, sandbox: &str, counters: Option<Counters>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match counters {
            Some(counters) => all.insert(sandbox.to_owned(), counters),
            None => all.remove(sandbox),
        };
    }
}

/// Once begun, the work is done to its end, also when the caller has gone meanwhile.
async fn apart<T: Send + 'static, E: Into<NetworkError> + Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, NetworkError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| NetworkError::Ended(what))?.map_err(Into::into)
}

#[async_trait]
impl Network for Host {
    async fn inspect(&self, netns: &Path) -> Result<(PodNetwork, (u64, u64)), NetworkError> {
        let (netns, settings) = (netns.to_owned(), self.inspect.clone());
        apart("inspect", move || network::inspect(&netns, &settings)).await
    }

    async fn kernel_vnis(&self) -> Result<BTreeSet<u32>, NetworkError> {
        apart("VXLAN ids", network::kernel_vnis).await
    }

    async fn attach(&self, tunnel: &Tunnel) -> Result<(), NetworkError> {
        let (tunnel, policy) = (tunnel.clone(), self.policy.clone());
        apart("attach", move || network::attach(&tunnel, &policy)).await
    }

    async fn detach(&self, tunnel: &Tunnel) -> Result<(), NetworkError> {
        self.seen.keep(&tunnel.sandbox, None);
        let tunnel = tunnel.clone();
        apart("detach", move || network::detach(&tunnel)).await
    }

    async fn verify(&self, tunnel: &Tunnel) -> Result<Vec<String>, NetworkError> {
        let (sandbox, tunnel, policy) =
            (tunnel.sandbox.clone(), tunnel.clone(), self.policy.clone());
        let look = apart("verify", move || network::verify(&tunnel, &policy)).await?;
        let Look { wrong, counters } = look;
        if counters.is_some() {
            self.seen.keep(&sandbox, counters);
        }
        Ok(wrong)
    }

    async fn watch(&self, tunnel: &Tunnel) -> Result<Box<dyn Watch>, NetworkError> {
        self.watches.begin(tunnel).await
    }

    async fn clear_leftovers(&self, known: &BTreeSet<String>) -> Result<Vec<String>, NetworkError> {
        let known = known.clone();
        apart("left-overs", move || clear_leftovers(&known)).await
    }
}

fn clear_leftovers(known: &BTreeSet<String>) -> Result<Vec<String>, NetworkError> {
    let fail = |e: &dyn std::fmt::Display| NetworkError::Leftovers(e.to_string());
    let found = network::leftovers(known).map_err(|e| fail(&e))?;
    let mut kept = Vec::new();
    let mut gone = Vec::new();
    for leftover in found {
        match network::remove_leftover(&leftover) {
            Ok(()) => gone.push(format!("{leftover:?}")),
            Err(e) => kept.push(format!("{leftover:?}: {e}")),
        }
    }
    if kept.is_empty() { Ok(gone) } else { Err(fail(&kept.join("; "))) }
}

/// VMs over TCP.
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

#[async_trait]
impl Guest for Tcp {
    async fn knock(&self, to: SocketAddr, bound: Duration) -> Result<Box<dyn Door>, Unready> {
        let (stage, reason) = match timeout(bound, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => {
                // Small questions and answers; without effect on a socket that is already dead.
                let _ = stream.set_nodelay(true);
                return Ok(Box::new(Accepted(stream)));
            }
            Ok(Err(e)) if e.kind() == ErrorKind::ConnectionRefused => {
                (Stage::Refused, e.to_string())
            }
            Ok(Err(e)) => (Stage::Unreachable, e.to_string()),
            Err(_) => (Stage::Unreachable, format!("no answer within {bound:?}")),
        };
        Err(Unready { stage, reason: format!("{to}: {reason}") })
    }
}

#[derive(Debug)]
struct Accepted(TcpStream);

#[async_trait]
impl Door for Accepted {
    async fn deliver(
        self: Box<Self>,
        tls: Option<&ClientTls>,
        files: &[FollowFile],
        bound: Duration,
    ) -> Result<(), Undelivered> {
        deliver::deliver(self.0, tls, files, bound).await
    }

    async fn enter(
        self: Box<Self>,
        tls: Option<&ClientTls>,
        bound: Duration,
    ) -> Result<Box<dyn Pulse>, Unready> {
        let Some(tls) = tls else {
            return ask(self.0, bound).await;
        };
        let fail = |reason: String| Unready { stage: Stage::Tls, reason };
        let config = tls.config().map_err(|e| fail(e.to_string()))?;
        let name = tls.name().map_err(|e| fail(e.to_string()))?;
        let handshake = TlsConnector::from(config).connect(name, self.0);
        match timeout(bound, handshake).await {
            Ok(Ok(stream)) => ask(stream, bound).await,
            Ok(Err(e)) => Err(fail(e.to_string())),
            Err(_) => Err(fail(format!("no handshake within {bound:?}"))),
        }
    }
}

async fn ask<S>(stream: S, bound: Duration) -> Result<Box<dyn Pulse>, Unready>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut pulse = Agent(Caller::new(stream));
    let answer = timeout(bound, pulse.beat()).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {bound:?}")));
    match answer {
        Ok(()) => Ok(Box::new(pulse)),
        Err(reason) => Err(Unready { stage: Stage::Agent, reason }),
    }
}

struct Agent<S>(Caller<S>);

impl<S> std::fmt::Debug for Agent<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Agent")
    }
}

#[async_trait]
impl<S: AsyncRead + AsyncWrite + Send> Pulse for Agent<S> {
    async fn beat(&mut self) -> Result<(), String> {
        self.0.check().await.map_err(|e| e.to_string())
    }
}

/// Certificates and rules of this node.
pub struct Planning {
    pki: Pki,
    requests: RequestRules,
    rules: PlanRules,
    /// Where pods' volumes are written down; nowhere is none.
    volumes: Option<Places>,
    /// Who knows the labels of pods; nobody knows none.
    labels: Option<Arc<dyn Labels>>,
}

impl std::fmt::Debug for Planning {
    /// Initdata of the settings may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Planning").field("pki", &self.pki).finish_non_exhaustive()
    }
}

impl Planning {
    /// Plans by these rules.
    pub fn new(pki: Pki, requests: RequestRules, rules: PlanRules) -> Self {
        Self { pki, requests, rules, volumes: None, labels: None }
    }

    /// Pods get the volumes that are written down there.
    #[must_use]
    pub fn with_volumes(self, places: Option<Places>) -> Self {
        Self { volumes: places, ..self }
    }

    /// Labels of pods, where some are wanted, are asked for there.
    #[must_use]
    pub fn with_labels(self, labels: Option<Arc<dyn Labels>>) -> Self {
        Self { labels, ..self }
    }

    async fn labels(&self, request: &PodRequest) -> PodLabels {
        match &self.labels {
            Some(labels) if !self.rules.cost_tags.is_empty() => labels.of(request).await,
            _ => PodLabels::unknown("nobody is asked"),
        }
    }

    async fn volumes(&self, request: &PodRequest) -> Result<PodVolumes, Failure> {
        let Some(places) = self.volumes.clone() else { return Ok(PodVolumes::default()) };
        let request = request.clone();
        let looked = tokio::task::spawn_blocking(move || places.look(&request)).await;
        let ended = |_| Failure::new(FailureKind::Unavailable, "the process ends");
        looked.map_err(ended)?.map_err(Failure::from)
    }
}

#[async_trait]
impl Planner for Planning {
    fn parse(&self, request: &CreateVmRequest) -> Result<PodRequest, Failure> {
        request::parse(request, &self.requests).map_err(Failure::from)
    }

    async fn plan(
        &self,
        request: &PodRequest,
        network: &PodNetwork,
        vni: u32,
        name: VmName,
    ) -> Result<Plan, Failure> {
        let issued = self.pki.issue(name.as_str(), SystemTime::now());
        let issued = issued.map_err(|e| Failure::caused_by(FailureKind::Internal, &e))?;
        let issued = Some(&issued).filter(|i| !i.client_ca_pem.is_empty());
        let volumes = &self.volumes(request).await?;
        let labels = &self.labels(request).await;
        let input = PlanInput { request, network, vni, name, issued, auth: None, volumes, labels };
        plan::plan(&input, &self.rules).map_err(Failure::from)
    }

    fn client(&self, server_name: &str) -> Option<ClientTls> {
        self.pki.client(server_name)
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct WallClock;

impl Clock for WallClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn boot_ms(&self) -> u64 {
        let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let (seconds, nanos) = (since.tv_sec.unsigned_abs(), since.tv_nsec.unsigned_abs());
        seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
    }
}

/// The thread's random numbers.
#[derive(Clone, Copy, Debug)]
pub struct Chance;

impl Random for Chance {
    fn next(&self) -> u32 {
        rand::random()
    }
}

#[cfg(test)]
mod tests;
