//! The relay's gRPC API, `proto/relay.proto`, on a unix socket for one user.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::notice::Notices;
use peerpod_tunnel::link::strangers::{Place, Stay};
use peerpod_tunnel::link::tls::{ClientTls, Profile};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status, Streaming};

use super::beat;
use super::handover::{self, Kins};
use super::hub::{Events, Hub};
use super::link::{Configurations, DialError, Target};
use super::pod::{Desk, Pod};
use super::sockets::{Bound, check_path, clear_dead, ensure_directory};
use crate::crash::here;
use crate::proto::relay as proto;
use crate::request::SandboxId;
use proto::{edit_reply::Outcome, from_node, relay_server};

/// Metadata that says where a call failed; without it, the transport failed.
pub(super) const STAGE: &str = "peerpodd-stage";
/// Larger than a ttrpc frame, which an edit may carry.
pub(super) const MAX_MESSAGE: usize = 8 << 20;
/// How long the first message of Attach may take.
const FIRST: Duration = Duration::from_secs(5);

/// Of node processes that come and go.
static ATTACHING: Notices = Notices::new();

/// Where a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The relay says no.
    Refused,
    /// TCP to the VM.
    Unreachable,
    /// TLS with the VM.
    Tls,
    /// Another node process has taken over.
    Replaced,
    /// The two sides speak no common version of the API.
    Version,
}

impl Stage {
    /// As metadata.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::Replaced => "replaced",
            Self::Version => "version",
        }
    }
}

/// An error answer that says where the call failed.
pub(super) fn status(stage: Stage, message: impl Into<String>) -> Status {
    let code = match stage {
        Stage::Refused | Stage::Version => Code::FailedPrecondition,
        Stage::Unreachable => Code::Unavailable,
        Stage::Tls => Code::Unauthenticated,
        Stage::Replaced => Code::Aborted,
    };
    let mut status = Status::new(code, message);
    status.metadata_mut().insert(STAGE, MetadataValue::from_static(stage.name()));
    status
}

/// Without a stage, so that the caller tries again, at the successor.
pub(super) fn handed_over() -> Status {
    Status::unavailable("the relay has handed over to its successor")
}

fn refuse(message: impl Into<String>) -> Status {
    status(Stage::Refused, message)
}

/// The API's server.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) hub: Arc<Hub>,
    pub(super) desk: Desk,
    pub(super) pods_dir: PathBuf,
    pub(super) build: String,
    pub(super) shutdown: CancellationToken,
    pub(super) changing: Changing,
    pub(super) configurations: Arc<Configurations>,
    /// Older relays that still hold connections.
    pub(super) kins: Arc<Kins>,
}

/// Open and Close of one sandbox must not overtake each other; those of others go on.
#[derive(Debug, Default)]
pub(super) struct Changing(Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Changing {
    async fn one(&self, sandbox: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, turn| turn.strong_count() > 0);
            let turn = all.get(sandbox).and_then(Weak::upgrade).unwrap_or_default();
            all.insert(sandbox.to_owned(), Arc::downgrade(&turn));
            turn
        };
        turn.lock_owned().await
    }
}

impl Service {
    fn pod(&self, sandbox: &str) -> Result<Arc<Pod>, Status> {
        self.hub.pod(sandbox).ok_or_else(|| refuse(format!("no sandbox {sandbox:?} is open")))
    }

    /// `<pods_dir>/<sandbox>/<name>`, and its directory made.
    fn agent_path(&self, sandbox: &str, path: &str) -> Result<PathBuf, Status> {
        let path = Path::new(path);
        let directory = self.pods_dir.join(sandbox);
        let name = path.strip_prefix(&directory).ok().and_then(|rest| rest.to_str());
        // strip_prefix drops "." and doubled slashes, so the whole is compared once more.
        let plain = |name: &&str| {
            !name.is_empty()
                && !name.contains('/')
                && !name.starts_with('.')
                && directory.join(name).as_os_str() == path.as_os_str()
        };
        if name.filter(plain).is_none() {
            let inside = directory.display();
            return Err(refuse(format!("{}: not a file in {inside}", path.display())));
        }
        check_path(path).map_err(|e| refuse(e.to_string()))?;
        ensure_directory(&directory, 0o700).map_err(|e| refuse(e.to_string()))?;
        Ok(path.to_owned())
    }

    async fn open_pod(&self, request: proto::OpenRequest) -> Result<(), Status> {
        let sandbox = SandboxId::parse(&request.sandbox).map_err(|e| refuse(e.to_string()))?;
        let _one = self.changing.one(sandbox.as_str()).await;
        let Some(_pass) = self.desk.gate.pass().await else { return Err(handed_over()) };
        if let Some(pod) = self.hub.pod(sandbox.as_str()) {
            return match pod.path.as_os_str() == request.path.as_str() {
                true => Ok(()),
                false => Err(refuse(format!("{sandbox} is open on {}", pod.path.display()))),
            };
        }
        let path = self.agent_path(sandbox.as_str(), &request.path)?;
        let bound = Bound::bind(&path).await.map_err(|e| refuse(e.to_string()))?;
        let pod = Arc::new(Pod::new(String::from(sandbox), path, request.edit_methods));
        self.hub.add(pod.clone());
        pod.serve(bound, &self.desk);
        tracing::info!(sandbox = pod.sandbox, path = %pod.path.display(), "open");
        Ok(())
    }

    async fn close_pod(&self, request: proto::CloseRequest) -> Result<bool, Status> {
        let _one = self.changing.one(&request.sandbox).await;
        let Some(_pass) = self.desk.gate.pass().await else { return Err(handed_over()) };
        let Some(pod) = self.hub.pod(&request.sandbox) else {
            // It may have been a relay's that was killed.
            if let Ok(sandbox) = SandboxId::parse(&request.sandbox) {
                clear_dead(&self.pods_dir.join(sandbox.as_str())).await;
            }
            return Ok(false);
        };
        pod.close().await;
        self.kins.close(&request).await;
        self.hub.remove(&pod.sandbox);
        self.hub.counters.closed.to_vm.add(pod.traffic.to_vm.get());
        self.hub.counters.closed.to_shim.add(pod.traffic.to_shim.get());
        if let Some(directory) = pod.path.parent() {
            // Not ours alone; whoever put something there removes it.
            let _ = std::fs::remove_dir(directory);
        }
        tracing::info!(sandbox = pod.sandbox, reason = request.reason, "closed");
        Ok(true)
    }

    fn held(&self, pod: &Pod) -> proto::Held {
        let target = pod.target();
        let (agent_connections, hypervisor_connections, idle_ms) = self.hub.presence(&pod.sandbox);
        let state = match (pod.closing(), &target) {
            (true, _) => "closing",
            (false, Some(_)) => "connected",
            (false, None) => "listening",
        };
        proto::Held {
            sandbox: pod.sandbox.clone(),
            path: pod.path.to_string_lossy().into_owned(),
            state: state.to_owned(),
            target: target.map(|t| t.address.to_string()).unwrap_or_default(),
            agent_connections,
            hypervisor_connections,
            bytes_to_vm: pod.traffic.to_vm.get(),
            bytes_to_shim: pod.traffic.to_shim.get(),
            idle_ms,
            mode: pod.session.mode().to_owned(),
            elsewhere: self.kins.of(&pod.sandbox),
        }
    }

    fn check_api(&self, api: u32, oldest: u32, build: &str) -> Result<(), Status> {
        if proto::spoken(api, oldest).is_some() {
            return Ok(());
        }
        Err(status(
            Stage::Version,
            format!(
                "the node process (build {build}) speaks version {} of the relay's API, this relay \
                 (build {}) speaks {}: replace the older one of the two",
                proto::range(api, oldest),
                self.build,
                proto::range(proto::API, proto::oldest_api()),
            ),
        ))
    }
}

pub(super) fn tls(given: proto::Tls) -> ClientTls {
    ClientTls {
        server_name: given.server_name,
        ca_pem: given.ca_pem,
        client_cert_pem: given.client_cert_pem,
        client_key_pem: Secret::new(given.client_key_pem),
        profile: Profile { min_version: given.min_version, cipher_suites: given.cipher_suites },
        skip_verify: given.skip_verify,
        any_time: given.any_time,
    }
}

/// What a Connect asks for, checked.
pub(super) fn target(
    request: proto::ConnectRequest,
    known: &Configurations,
) -> Result<Target, Status> {
    let address: SocketAddr = request
        .target
        .parse()
        .map_err(|_| refuse(format!("target: {:?} is not address:port", request.target)))?;
    if request.give_up_ms == 0 {
        return Err(refuse("give_up_ms: 0 would close every connection at once"));
    }
    let give_up = Duration::from_millis(request.give_up_ms.into());
    Target::new(address, request.tls.map(tls), give_up, known).map_err(|e| refuse(e.to_string()))
}

type ToNode = Pin<Box<dyn Stream<Item = Result<proto::ToNode, Status>> + Send>>;

#[tonic::async_trait]
impl relay_server::Relay for Service {
    type AttachStream = ToNode;

    async fn hello(
        &self,
        request: Request<proto::HelloRequest>,
    ) -> Result<Response<proto::HelloReply>, Status> {
        let request = request.into_inner();
        self.check_api(request.api, request.oldest, &request.build)?;
        Ok(Response::new(proto::HelloReply {
            api: proto::API,
            oldest: proto::oldest_api(),
            build: self.build.clone(),
            epoch: self.hub.epoch,
            pid: std::process::id(),
            hands_over: handover::message::VERSION,
        }))
    }

    async fn open(
        &self,
        request: Request<proto::OpenRequest>,
    ) -> Result<Response<proto::OpenReply>, Status> {
        here!(RelayOpenBefore);
        self.open_pod(request.into_inner()).await?;
        here!(RelayOpenAfter);
        Ok(Response::new(proto::OpenReply {}))
    }

    async fn connect(
        &self,
        request: Request<proto::ConnectRequest>,
    ) -> Result<Response<proto::ConnectReply>, Status> {
        let request = request.into_inner();
        let pod = self.pod(&request.sandbox)?;
        let target = target(request, &self.configurations)?;
        here!(RelayDialBefore);
        let connected = tokio::select! {
            connected = pod.connect(&self.hub, &self.desk.gate, target) => connected,
            () = self.desk.gate.gone() => Ok(false),
        };
        here!(RelayDialAfter);
        let here = connected.map_err(|e| match e {
            DialError::Unreachable(why) => status(Stage::Unreachable, why),
            DialError::Tls(why) => status(Stage::Tls, why),
        })?;
        if !here {
            return Err(handed_over());
        }
        Ok(Response::new(proto::ConnectReply { mode: pod.session.mode().to_owned() }))
    }

    async fn close(
        &self,
        request: Request<proto::CloseRequest>,
    ) -> Result<Response<proto::CloseReply>, Status> {
        here!(RelayCloseBefore);
        let existed = self.close_pod(request.into_inner()).await?;
        here!(RelayCloseAfter);
        Ok(Response::new(proto::CloseReply { existed }))
    }

    async fn list(
        &self,
        _: Request<proto::ListRequest>,
    ) -> Result<Response<proto::ListReply>, Status> {
        let sandboxes: Vec<_> = self.hub.pods().iter().map(|pod| self.held(pod)).collect();
        let mut totals = self.hub.counters.totals();
        totals.bytes_to_vm += sandboxes.iter().map(|held| held.bytes_to_vm).sum::<u64>();
        totals.bytes_to_shim += sandboxes.iter().map(|held| held.bytes_to_shim).sum::<u64>();
        (totals.requests_held, totals.edits_held) = self.hub.held();
        let mut relays = self.kins.relays();
        relays.push(proto::RelayProcess {
            epoch: self.hub.epoch,
            build: self.build.clone(),
            pid: std::process::id(),
            connections: self.hub.joined().values().sum(),
            serves: true,
        });
        Ok(Response::new(proto::ListReply { sandboxes, totals: Some(totals), relays }))
    }

    async fn beat(
        &self,
        request: Request<proto::BeatRequest>,
    ) -> Result<Response<proto::BeatReply>, Status> {
        let within = Duration::from_millis(request.into_inner().within_ms.into());
        beat::ask_all(&self.hub, &self.desk.gate, within).await.map(Response::new)
    }

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<proto::WatchReply>, Status> {
        let Some(_pass) = self.desk.gate.pass().await else { return Err(handed_over()) };
        self.pod(&request.into_inner().sandbox)?.session.watch();
        Ok(Response::new(proto::WatchReply {}))
    }

    async fn attach(
        &self,
        request: Request<Streaming<proto::FromNode>>,
    ) -> Result<Response<ToNode>, Status> {
        let caller = request.extensions().get::<Arc<Place>>().cloned();
        let mut from = request.into_inner();
        let first = tokio::time::timeout(FIRST, from.message()).await;
        let first = first.map_err(|_| refuse("the first message of Attach did not come"))??;
        let Some(from_node::Message::Attached(attached)) = first.and_then(|f| f.message) else {
            return Err(refuse("the first message of Attach must be Attached"));
        };
        self.check_api(attached.api, attached.oldest, &attached.build)?;
        check_path(Path::new(&attached.node_socket)).map_err(|e| refuse(e.to_string()))?;
        ATTACHING.say(|| {
            tracing::info!(build = attached.build, socket = attached.node_socket, "node attached");
        });
        let events = self.hub.attach(attached);
        let (hub, session) = (self.hub.clone(), events.session);
        let ended = CancellationToken::new();
        let _stays = caller.map(|place| place.stay());
        let guard =
            Detach { hub: hub.clone(), session, _ended: ended.clone().drop_guard(), _stays };
        self.desk.tracker.spawn("relay: messages of the node", async move {
            ended.run_until_cancelled(listen(&hub, session, from)).await;
            hub.detach(session);
        });
        let shutdown = self.shutdown.clone().cancelled_owned();
        Ok(Response::new(Box::pin(to_node(events, guard).take_until(shutdown))))
    }
}

/// What an attached node process says, until it goes.
async fn listen(hub: &Hub, session: u64, mut from: Streaming<proto::FromNode>) {
    loop {
        let message = match from.message().await {
            Ok(Some(message)) => message.message,
            Ok(None) => return,
            Err(e) => {
                ATTACHING.say(|| {
                    tracing::info!(error = e.message(), "the node process has gone");
                });
                return;
            }
        };
        match message {
            Some(from_node::Message::Ready(proto::Ready {})) => hub.ready(session),
            Some(from_node::Message::Edited(proto::EditReply { ticket, outcome })) => {
                hub.answer(session, ticket, self::outcome(outcome));
            }
            Some(from_node::Message::Attached(_)) | None => {}
        }
    }
}

/// What became of an edit.
pub(super) fn outcome(told: Option<Outcome>) -> super::edit::Answer {
    match told {
        Some(Outcome::Payload(payload)) => Ok(payload),
        Some(Outcome::Refused(why)) => Err(why),
        None => Err("the node process gave no outcome".to_owned()),
    }
}

/// Ends a session when its stream is dropped, whoever drops it.
struct Detach {
    hub: Arc<Hub>,
    session: u64,
    _ended: tokio_util::sync::DropGuard,
    /// Whoever is attached does not make room for others.
    _stays: Option<Stay>,
}

impl Drop for Detach {
    fn drop(&mut self) {
        self.hub.detach(self.session);
    }
}

fn to_node(
    events: Events,
    guard: Detach,
) -> impl Stream<Item = Result<proto::ToNode, Status>> + Send {
    futures_util::stream::unfold((events, guard), |(mut events, guard)| async move {
        let next = events.next().await?;
        let message = next.map(|message| proto::ToNode { message: Some(message) });
        Some((message, (events, guard)))
    })
}
