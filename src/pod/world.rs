//! All that a pod's actor sees of the world, each part behind a small trait: an actor runs the same
//! on a simulated world, which then owns cloud, disk, network, clock and chance. The passing of time
//! is tokio's, which a test can pause.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpod_providers::{Provider, VmName};
use peerpod_tunnel::link::tls::ClientTls;
use peerpod_tunnel::network::{InspectError, PodNetwork, Tunnel, TunnelError, VniError};
use serde::{Deserialize, Serialize};

use super::record::Records;
use crate::hypervisor::Failure;
use crate::plan::{FollowFile, Plan};
use crate::proto::hypervisor::CreateVmRequest;
use crate::relay::api::Control;
use crate::request::PodRequest;

mod real;

pub use real::{Chance, Host, Planning, Seen, Tcp, WallClock};

/// The parts, put together in `app`.
#[derive(Clone, Debug)]
pub struct World {
    /// Where VMs come from.
    pub provider: Arc<dyn Provider>,
    /// Who holds the shims' connections.
    pub relay: Arc<dyn Control>,
    /// The kernel's network on this worker.
    pub network: Arc<dyn Network>,
    /// The disk.
    pub records: Arc<dyn Records>,
    /// The VMs' forwarders, as far as this process talks to them.
    pub guest: Arc<dyn Guest>,
    /// What turns a request into what is to be made.
    pub planner: Arc<dyn Planner>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub random: Arc<dyn Random>,
    /// Who counts.
    pub observer: Arc<dyn Observer>,
    /// Who may end the process at any of its points.
    #[cfg(feature = "crash-points")]
    pub crash: Arc<dyn crate::crash::Crash>,
}

/// Request → plan: pure but for the making of a certificate.
#[async_trait]
pub trait Planner: Send + Sync + Debug {
    /// Takes a shim's request apart and checks it.
    ///
    /// # Errors
    /// Names the field.
    fn parse(&self, request: &CreateVmRequest) -> Result<PodRequest, Failure>;

    /// Issues the VM's certificate and says what is to be made.
    ///
    /// # Errors
    /// Names what cannot be had.
    async fn plan(
        &self,
        request: &PodRequest,
        network: &PodNetwork,
        vni: u32,
        name: VmName,
    ) -> Result<Plan, Failure>;

    /// What the worker needs to talk to the VM of that name; `None` when TLS is turned off.
    fn client(&self, server_name: &str) -> Option<ClientTls>;
}

/// The kernel's network. Every call is idempotent.
#[async_trait]
pub trait Network: Send + Sync + Debug {
    /// Reads a pod's namespace; returns what it found and the namespace's identity.
    ///
    /// # Errors
    /// Names the namespace and what is wrong with it.
    async fn inspect(&self, netns: &Path) -> Result<(PodNetwork, (u64, u64)), NetworkError>;

    /// VXLAN ids the kernel has in use.
    ///
    /// # Errors
    /// When the kernel does not tell.
    async fn kernel_vnis(&self) -> Result<BTreeSet<u32>, NetworkError>;

    /// Makes or repairs a tunnel; nothing of it is left after an error.
    ///
    /// # Errors
    /// Names the step.
    async fn attach(&self, tunnel: &Tunnel) -> Result<(), NetworkError>;

    /// Takes a tunnel away; what is absent is done.
    ///
    /// # Errors
    /// Names everything that is left; every step was tried.
    async fn detach(&self, tunnel: &Tunnel) -> Result<(), NetworkError>;

    /// What is wrong with a tunnel, in words; nothing is well.
    ///
    /// # Errors
    /// When the kernel does not tell.
    async fn verify(&self, tunnel: &Tunnel) -> Result<Vec<String>, NetworkError>;

    /// Notices from now on when somebody else changes a filter of the tunnel. Without that, looking
    /// from time to time has to do.
    ///
    /// # Errors
    /// When the namespace has gone or the kernel does not tell.
    async fn watch(&self, tunnel: &Tunnel) -> Result<Box<dyn Watch>, NetworkError> {
        let _ = tunnel;
        Ok(Box::new(Quiet))
    }

    /// Takes away what carries our mark but none of the `known` sandboxes'; returns it in words.
    ///
    /// # Errors
    /// When the kernel does not tell, or keeps something.
    async fn clear_leftovers(&self, known: &BTreeSet<String>) -> Result<Vec<String>, NetworkError>;
}

/// Notices changes.
#[async_trait]
pub trait Watch: Send + Debug {
    /// Ends when something was changed since the watch began.
    async fn altered(&mut self);
}

/// Notices nothing.
#[derive(Debug)]
struct Quiet;

#[async_trait]
impl Watch for Quiet {
    async fn altered(&mut self) {
        std::future::pending().await
    }
}

/// What the kernel's network refuses.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Reading a pod's namespace.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// Looking for VXLAN ids.
    #[error(transparent)]
    Vni(#[from] VniError),
    /// Making, taking away or looking at a tunnel.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// Clearing what was left over.
    #[error("left-over network objects: {0}")]
    Leftovers(String),
    /// Noticing changes of filters.
    #[error("watch for changes of filters: {0}")]
    Watch(#[source] std::io::Error),
    /// The call was given up, as the process ends.
    #[error("{0}: given up, as the process ends")]
    Ended(&'static str),
}

/// How far a start came with its VM. The order is the order of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Nothing has come back from the cloud yet.
    Requested,
    /// The cloud gave a VM an address, and nothing has been heard from there.
    Address,
    /// Attempts to connect end in silence or "no route".
    Unreachable,
    /// The VM is up, but nothing listens on the forwarder's port yet.
    Refused,
    /// The forwarder accepts, but TLS does not come about.
    Tls,
    /// TLS stands, but the agent does not answer.
    Agent,
    /// The agent has answered.
    Ready,
}

impl Stage {
    /// One word for metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Address => "address",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Tls => "tls",
            Self::Agent => "agent",
            Self::Ready => "ready",
        }
    }

    /// What that means to somebody who waits.
    pub fn explain(self) -> &'static str {
        match self {
            Self::Requested => "the cloud has not given the VM an address",
            Self::Address => "the VM has an address, but was not heard from",
            Self::Unreachable => "the VM has an address, but does not answer there",
            Self::Refused => "the VM is up, but its forwarder does not listen",
            Self::Tls => "the VM's forwarder answers, but TLS does not come about",
            Self::Agent => "TLS with the VM stands, but its agent does not answer",
            Self::Ready => "the agent has answered",
        }
    }
}

/// An attempt to reach a VM that ended before the agent answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", stage.explain())]
pub struct Unready {
    /// How far it came.
    pub stage: Stage,
    /// What happened, for people.
    pub reason: String,
}

/// The forwarders in the VMs.
#[async_trait]
pub trait Guest: Send + Sync + Debug {
    /// One attempt to connect, of at most `bound`.
    ///
    /// # Errors
    /// `Unreachable` or `Refused`.
    async fn knock(&self, to: SocketAddr, bound: Duration) -> Result<Box<dyn Door>, Unready>;
}

/// Files did not get into a VM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    /// This time; another attempt may.
    #[error(transparent)]
    Unready(#[from] Unready),
    /// They never will.
    #[error("{0}")]
    Refused(String),
}

/// An accepted connection.
#[async_trait]
pub trait Door: Send + Debug {
    /// TLS, and these files over the control stream of a session, of at most `bound` each, until the VM
    /// has said that it has them. Files that are there already are no error.
    ///
    /// # Errors
    /// By [`Undelivered`].
    async fn deliver(
        self: Box<Self>,
        tls: Option<&ClientTls>,
        files: &[FollowFile],
        bound: Duration,
    ) -> Result<(), Undelivered> {
        let _ = (tls, files, bound);
        Err(Undelivered::Refused("it takes none".to_owned()))
    }

    /// TLS and one question to the agent, of at most `bound`.
    ///
    /// # Errors
    /// `Tls` or `Agent`.
    async fn enter(
        self: Box<Self>,
        tls: Option<&ClientTls>,
        bound: Duration,
    ) -> Result<Box<dyn Pulse>, Unready>;
}

/// A connection to an agent that has answered; kept to ask again.
#[async_trait]
pub trait Pulse: Send + Debug {
    /// Asks once. The caller bounds the time; after an error the connection is of no more use.
    ///
    /// # Errors
    /// In words.
    async fn beat(&mut self) -> Result<(), String>;
}

/// Clocks. How long something takes or lasts is measured by tokio's, which nobody sets; these two are
/// for what a record must tell the next process.
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since 1970: for people, and to compare with what a cloud says. Somebody may set
    /// it, a day back or forward.
    fn now_ms(&self) -> u64;

    /// Milliseconds since this machine was started, time asleep included: for ages, which a record
    /// carries from one process to the next. As good as the other where nobody sets the clock.
    fn boot_ms(&self) -> u64 {
        self.now_ms()
    }
}

/// Chance.
pub trait Random: Send + Sync + Debug {
    /// Any number, all alike.
    fn next(&self) -> u32;
}

/// Who counts what happens. Everything defaults to nothing, so that a test counts what it needs.
pub trait Observer: Send + Sync + Debug {
    /// A pod went from one phase to another; `None` stands for not being there.
    fn phase(&self, from: Option<&'static str>, to: Option<&'static str>) {
        let _ = (from, to);
    }

    /// A step ended: `inspect`, `plan`, `save`, `open`, `create`, `attach`, `ready`, `connect`,
    /// `start`, `close`, `detach`, `delete`, …
    fn step(&self, step: &'static str, took: Duration, ok: bool) {
        let _ = (step, took, ok);
    }

    /// A provider's call failed with an error of that kind.
    fn provider_error(&self, operation: &'static str, kind: &'static str) {
        let _ = (operation, kind);
    }

    /// A start failed when it had come that far.
    fn start_failed(&self, stage: Stage) {
        let _ = stage;
    }

    /// A running pod is over without StopVM: `shim`, `vm`, `spot`, `boot`, `superseded`, `expired`, …
    fn pod_lost(&self, why: &'static str) {
        let _ = why;
    }

    /// The cloud has said that it takes a running pod's spot VM back: `aws`, `azure`, `gcp`, `other`.
    fn interrupted(&self, source: &'static str) {
        let _ = source;
    }

    /// A running pod's tunnel was not as it is to be; whether that was put right.
    fn tunnel_altered(&self, repaired: bool) {
        let _ = repaired;
    }

    /// Records that could not be read and were set aside or left alone: how many there are.
    fn broken_records(&self, count: usize) {
        let _ = count;
    }

    /// A sweep ended: things without a record, those of them deleted; `None` when the list failed.
    fn sweep(&self, found: Option<usize>, deleted: usize) {
        let _ = (found, deleted);
    }
}

/// Counts nothing.
#[derive(Debug)]
pub struct Silent;

impl Observer for Silent {}
