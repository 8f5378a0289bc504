//! Probes, metrics and status of the node process, over HTTP on the loopback address.
//!
//! | path | says |
//! |---|---|
//! | `/startup` | 200 once this process has served, and from then on |
//! | `/healthz` | 200 while this process answers at all |
//! | `/readyz` | 200 while nothing is missing; otherwise 503, and the body names what is |
//! | `/metrics` | OpenMetrics text |
//! | `/status` | [`Report`] as JSON, for `peerpodd status` |
//!
//! Pods never change what the probes say: a crash-looping pod is no reason to kill the daemon.

mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, Now};
use crate::pods::PodStatus;

/// How long a probe or scrape waits for the relay; without it, the answer just lacks the links.
pub const ASK_RELAY: Duration = Duration::from_millis(500);

/// Ready is the absence of guards: whoever is not up yet holds one by name.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Missing>>);

#[derive(Debug, Default)]
struct Missing {
    missing: BTreeMap<&'static str, usize>,
    started: bool,
}

/// Keeps the process from being ready until it is dropped.
#[derive(Debug)]
pub struct Guard {
    readiness: Readiness,
    name: &'static str,
}

impl Readiness {
    /// Nothing is missing.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on `name` is missing.
    #[must_use]
    pub fn guard(&self, name: &'static str) -> Guard {
        *self.lock().missing.entry(name).or_default() += 1;
        Guard { readiness: self.clone(), name }
    }

    /// What is missing.
    pub fn missing(&self) -> BTreeSet<&'static str> {
        self.lock().missing.keys().copied().collect()
    }

    /// Calls are taken now. What is missing later does not take that back.
    pub fn serving(&self) {
        self.lock().started = true;
    }

    /// Whether calls were ever taken.
    pub fn started(&self) -> bool {
        self.lock().started
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Missing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.readiness.lock();
        if let Some(count) = state.missing.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                state.missing.remove(self.name);
            }
        }
    }
}

/// What is told of the process and its pods.
#[async_trait]
pub trait Insight: Send + Sync + 'static {
    /// Gauges of now.
    async fn now(&self) -> Now;
}

/// What `/status` answers with. Holds no secret.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The process itself.
    pub process: About,
    /// Whether the relay answers.
    pub relay: bool,
    /// What `/readyz` would name.
    pub missing: Vec<String>,
    /// All pods.
    pub pods: Vec<PodStatus>,
    /// The last that have ended in another way than by StopVM, oldest first; forgotten with the process.
    #[serde(default)]
    pub ended: Vec<PodStatus>,
    /// What the relay holds, by sandbox.
    pub links: BTreeMap<String, LinkStatus>,
}

/// The process itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Version and commit.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// Name of the provider.
    pub provider: String,
    /// The tag our VMs carry.
    pub installation: String,
    /// Process id.
    pub pid: u32,
    /// Privileges the process still has, in words.
    #[serde(default)]
    pub privileges: String,
}

/// The link of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// `listening`, `connected` or `closing`.
    pub state: String,
    /// Address and port of the VM.
    pub target: String,
    /// Connections of the shim that are in use.
    pub connections: u32,
    /// Those of them that an older relay holds until they end.
    #[serde(default)]
    pub elsewhere: u32,
    /// `plain`, `peerpod-link/1`, or empty while there is none.
    #[serde(default)]
    pub mode: String,
    /// Bytes carried.
    pub bytes_to_vm: u64,
    /// Bytes carried.
    pub bytes_to_shim: u64,
}

/// All that the pages are made from.
#[derive(Clone)]
pub struct Pages {
    /// The process itself.
    pub about: Arc<About>,
    /// Guards.
    pub readiness: Readiness,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Pods and links.
    pub insight: Arc<dyn Insight>,
}

/// Why there are no probes.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Somebody has the port.
    #[error("--probe-port (PROBE_PORT) = {port}: 127.0.0.1:{port} is taken by another process")]
    Taken {
        /// The port.
        port: u16,
    },
    /// The port cannot be used.
    #[error("--probe-port (PROBE_PORT) = {port}: 127.0.0.1:{port} cannot be listened on")]
    Listen {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Takes the port.
///
/// # Errors
/// Names the setting.
pub async fn bind(port: u16) -> Result<TcpListener, AdminError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => AdminError::Taken { port },
        _ => AdminError::Listen { port, source },
    })
}

/// Answers until told to end.
pub async fn serve(listener: TcpListener, pages: Pages, shutdown: CancellationToken) {
    let router = Router::new()
        .route("/startup", get(startup))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(pages);
    serve::run(listener, router, shutdown).await;
}

fn said(good: bool, missing: &BTreeSet<&'static str>) -> Response {
    if good {
        return "ok\n".into_response();
    }
    let names: Vec<_> = missing.iter().copied().collect();
    let text = format!("not ready, missing: {}\n", names.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn startup(State(pages): State<Pages>) -> Response {
    said(pages.readiness.started(), &pages.readiness.missing())
}

async fn readyz(State(pages): State<Pages>) -> Response {
    let missing = pages.readiness.missing();
    said(missing.is_empty(), &missing)
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let text = pages.metrics.render(&pages.insight.now().await);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn status(State(pages): State<Pages>) -> Response {
    let now = pages.insight.now().await;
    let links = now.relay.iter().flatten().map(|held| {
        let link = LinkStatus {
            state: held.state.clone(),
            target: held.target.clone(),
            connections: held.agent_connections,
            elsewhere: held.elsewhere.iter().map(|older| older.connections).sum(),
            mode: held.mode.clone(),
            bytes_to_vm: held.bytes_to_vm,
            bytes_to_shim: held.bytes_to_shim,
        };
        (held.sandbox.clone(), link)
    });
    let report = Report {
        process: About::clone(&pages.about),
        relay: now.relay.is_some(),
        missing: pages.readiness.missing().into_iter().map(str::to_owned).collect(),
        links: links.collect(),
        pods: now.pods,
        ended: now.ended,
    };
    match serde_json::to_string(&report) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests;
