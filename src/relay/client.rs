//! The node process's side of the relay's API.
//!
//! ```text
//!   away ──connect, Hello, Attach, Pending──▶ attached ──stream ends──▶ away
//!    │      (short pauses, for ever)            │ Attached, then Ready     │ Lost
//!    └ calls wait, at most CALL                 └ calls pass, events flow
//! ```

mod event;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use peerpod_tunnel::link::tls::ClientTls;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status, Streaming};

use super::api::{Beat, Control, ControlError, Event, Held, Totals};
use super::control::{MAX_MESSAGE, STAGE, Stage};
use crate::proto::relay as proto;
use crate::shutdown::Tracker;
use proto::{edit_reply, from_node, relay_client, to_node};

/// How long a call waits for a relay that is away, and for its answer.
const CALL: Duration = Duration::from_secs(5);
/// Events that may wait for the node process.
const EVENTS: usize = 1024;
/// Messages to the relay that may wait.
const MESSAGES: usize = 256;
/// Pauses between attempts to attach: the first, doubled up to the last. Short, since shims may be
/// waiting: node and relay are often started together, and the relay is there within milliseconds.
const RETRY: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(250));
/// After another node process has taken over: that one is right, unless it goes.
const REPLACED: Duration = Duration::from_secs(10);

/// Between attempts to attach to a relay of a version that we do not speak.
const VERSION: Duration = Duration::from_secs(1);

type Api = relay_client::RelayClient<Channel>;

/// A standing connection.
#[derive(Clone, Debug)]
struct Up {
    api: Api,
    messages: mpsc::Sender<proto::FromNode>,
    generation: u64,
}

/// Up, or why not.
type Link = Result<Up, String>;

/// Talks to the relay and stays attached to it.
#[derive(Debug)]
pub struct RelayClient {
    link: watch::Receiver<Link>,
}

impl RelayClient {
    /// Attaches to the relay on `control_socket` and stays so until `shutdown`. The relay passes
    /// shims' requests on to `node_socket`, which should be served by then. Events must be read;
    /// the channel ends with `shutdown`.
    pub fn start(
        control_socket: PathBuf,
        node_socket: PathBuf,
        build: String,
        tracker: &Tracker,
        shutdown: CancellationToken,
    ) -> (Arc<Self>, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let link = watch::Sender::new(Err("not attached yet".to_owned()));
        let client = Arc::new(Self { link: link.subscribe() });
        let attached = proto::Attached {
            api: proto::API,
            build,
            node_socket: node_socket.to_string_lossy().into_owned(),
            instance: rand::random(),
            oldest: proto::oldest_api(),
        };
        let keeper = Keeper { control_socket, attached, events, link, generation: 0 };
        tracker.spawn("relay client", async move {
            shutdown.run_until_cancelled(keeper.run()).await;
        });
        (client, receiver)
    }

    /// What the relay has counted.
    ///
    /// # Errors
    /// `Away`.
    pub async fn totals(&self) -> Result<Totals, ControlError> {
        let reply =
            self.call(CALL, |mut api| async move { api.list(proto::ListRequest {}).await }).await?;
        Ok(reply.totals.unwrap_or_default())
    }

    /// The connection, once it is newer than `after`.
    async fn up(&self, after: u64) -> Result<Up, ControlError> {
        let mut link = self.link.clone();
        let newer = |l: &Link| l.as_ref().is_ok_and(|up| up.generation > after);
        match tokio::time::timeout(CALL, link.wait_for(newer)).await {
            Ok(Ok(up)) => up.clone().map_err(ControlError::Away),
            Ok(Err(_)) => Err(ControlError::Away("this process is shutting down".to_owned())),
            Err(_) => Err(ControlError::Away(match &*self.link.borrow() {
                Err(why) => why.clone(),
                Ok(_) => "the connection broke and is not back".to_owned(),
            })),
        }
    }

    /// Calls, and once more if the connection broke meanwhile and is back.
    async fn call<T, F>(&self, limit: Duration, call: impl Fn(Api) -> F) -> Result<T, ControlError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let up = self.up(0).await?;
        let first = bounded(limit, call(up.api)).await;
        match first {
            Err(Failed::Transport(_)) => {}
            other => return other.map_err(Failed::into_error),
        }
        let again = self.up(up.generation).await?;
        bounded(limit, call(again.api)).await.map_err(Failed::into_error)
    }
}

enum Failed {
    /// The relay said so.
    Said(ControlError),
    /// The connection broke.
    Transport(String),
    /// Not worth another try in the same call.
    Late(Duration),
}

impl Failed {
    fn into_error(self) -> ControlError {
        match self {
            Self::Said(error) => error,
            Self::Transport(why) => ControlError::Away(why),
            Self::Late(limit) => ControlError::Away(format!("no answer within {limit:?}")),
        }
    }
}

async fn bounded<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failed> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(failed(&status)),
        Err(_) => Err(Failed::Late(limit)),
    }
}

fn stage(status: &Status) -> Option<&str> {
    status.metadata().get(STAGE).and_then(|value| value.to_str().ok())
}

fn failed(status: &Status) -> Failed {
    let message = status.message().to_owned();
    match (stage(status), status.code()) {
        (Some(s), _) if s == Stage::Unreachable.name() => {
            Failed::Said(ControlError::Unreachable(message))
        }
        (Some(s), _) if s == Stage::Tls.name() => Failed::Said(ControlError::Tls(message)),
        (Some(_), _) => Failed::Said(ControlError::Refused(message)),
        (None, Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange) => {
            Failed::Said(ControlError::Refused(message))
        }
        (None, code) => Failed::Transport(format!("{code:?}: {message}")),
    }
}

#[async_trait]
impl Control for RelayClient {
    async fn open(
        &self,
        sandbox: &str,
        path: &Path,
        edit_methods: &[String],
    ) -> Result<(), ControlError> {
        let request = proto::OpenRequest {
            sandbox: sandbox.to_owned(),
            path: path.to_string_lossy().into_owned(),
            edit_methods: edit_methods.to_vec(),
        };
        let open = |mut api: Api| {
            let request = request.clone();
            async move { api.open(request).await }
        };
        self.call(CALL, open).await.map(drop)
    }

    async fn connect(
        &self,
        sandbox: &str,
        target: SocketAddr,
        tls: Option<&ClientTls>,
        give_up: Duration,
    ) -> Result<(), ControlError> {
        let request = proto::ConnectRequest {
            sandbox: sandbox.to_owned(),
            target: target.to_string(),
            tls: tls.map(tls_message),
            give_up_ms: millis(give_up),
        };
        let connect = |mut api: Api| {
            let request = request.clone();
            async move { api.connect(request).await }
        };
        self.call(CALL, connect).await.map(drop)
    }

    async fn close(&self, sandbox: &str, reason: &str) -> Result<bool, ControlError> {
        let request =
            proto::CloseRequest { sandbox: sandbox.to_owned(), reason: reason.to_owned() };
        let close = |mut api: Api| {
            let request = request.clone();
            async move { api.close(request).await }
        };
        self.call(CALL, close).await.map(|reply| reply.existed)
    }

    async fn list(&self) -> Result<Vec<Held>, ControlError> {
        let list = |mut api: Api| async move { api.list(proto::ListRequest {}).await };
        self.call(CALL, list).await.map(|reply| reply.sandboxes)
    }

    async fn beat(&self, within: Duration) -> Result<Beat, ControlError> {
        let request = proto::BeatRequest { within_ms: millis(within) };
        let beat = |mut api: Api| async move { api.beat(request).await };
        let reply = self.call(within + CALL, beat).await?;
        Ok(Beat { alive: reply.alive, silent: reply.silent })
    }

    async fn watch(&self, sandbox: &str) -> Result<(), ControlError> {
        let watch = |mut api: Api| {
            let request = proto::WatchRequest { sandbox: sandbox.to_owned() };
            async move { api.watch(request).await }
        };
        self.call(CALL, watch).await.map(drop)
    }

    async fn edited(
        &self,
        ticket: u64,
        outcome: Result<Bytes, String>,
    ) -> Result<(), ControlError> {
        let outcome = Some(match outcome {
            Ok(payload) => edit_reply::Outcome::Payload(payload),
            Err(why) => edit_reply::Outcome::Refused(why),
        });
        let reply = from_node::Message::Edited(proto::EditReply { ticket, outcome });
        let up = self.up(0).await?;
        let sent = up.messages.send(proto::FromNode { message: Some(reply) }).await;
        sent.map_err(|_| ControlError::Away("the connection broke".to_owned()))
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

pub(super) fn tls_message(tls: &ClientTls) -> proto::Tls {
    proto::Tls {
        server_name: tls.server_name.clone(),
        ca_pem: tls.ca_pem.clone(),
        client_cert_pem: tls.client_cert_pem.clone(),
        client_key_pem: tls.client_key_pem.expose().to_owned(),
        min_version: tls.profile.min_version.clone(),
        cipher_suites: tls.profile.cipher_suites.clone(),
        skip_verify: tls.skip_verify,
        any_time: tls.any_time,
    }
}

/// Keeps the connection.
struct Keeper {
    control_socket: PathBuf,
    attached: proto::Attached,
    events: mpsc::Sender<Event>,
    link: watch::Sender<Link>,
    generation: u64,
}

/// Nobody reads the events any more.
struct Unread;

impl Keeper {
    async fn run(mut self) {
        let (mut pause, mut said) = (RETRY.0, String::new());
        loop {
            match self.attach().await {
                Ok((epoch, up, stream)) => {
                    let since = Instant::now();
                    let Ok(end) = self.follow(epoch, up, stream).await else { return };
                    if since.elapsed() >= RETRY.1 {
                        pause = RETRY.0;
                    }
                    if stage(&end) == Some(Stage::Replaced.name()) {
                        tracing::error!(reason = end.message(), "the relay has sent us away");
                        pause = REPLACED;
                    }
                    self.say(Err(end.message().to_owned()));
                    if self.events.send(Event::Lost).await.is_err() {
                        return;
                    }
                }
                Err(status) => {
                    let why = format!("{}: {}", self.control_socket.display(), reason(&status));
                    if stage(&status) == Some(Stage::Version.name()) {
                        // Only a replaced relay or a replaced node process helps.
                        if said != why {
                            tracing::error!(why, "the relay cannot be used; pods that run go on");
                            said.clone_from(&why);
                        }
                        pause = VERSION;
                    }
                    tracing::debug!(why, "not attached to the relay");
                    self.say(Err(why));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    fn say(&self, link: Link) {
        drop(self.link.send_replace(link));
    }

    async fn attach(&mut self) -> Result<(u64, Up, Streaming<proto::ToNode>), Status> {
        let attaching = async {
            let mut api = dial(&self.control_socket).await?;
            let proto::Attached { api: version, oldest, build, .. } = self.attached.clone();
            let hello = proto::HelloRequest { api: version, build, oldest };
            let relay = api.hello(hello).await?.into_inner();
            check_version(&self.attached, &relay)?;
            let epoch = relay.epoch;
            let (messages, receiver) = mpsc::channel(MESSAGES);
            let first = from_node::Message::Attached(self.attached.clone());
            // There is room: it is the first.
            let _ = messages.try_send(proto::FromNode { message: Some(first) });
            let stream = api.attach(ReceiverStream::new(receiver)).await?.into_inner();
            Ok::<_, Status>((epoch, api, messages, stream))
        };
        let attached = tokio::time::timeout(CALL, attaching).await;
        let late = |_| Status::deadline_exceeded("the relay does not answer");
        let (epoch, api, messages, stream) = attached.map_err(late)??;
        self.generation += 1;
        Ok((epoch, Up { api, messages, generation: self.generation }, stream))
    }

    /// Passes events on until the stream ends; says why it did.
    async fn follow(
        &self,
        epoch: u64,
        up: Up,
        mut stream: Streaming<proto::ToNode>,
    ) -> Result<Status, Unread> {
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message.message,
                Ok(None) => return Ok(Status::unavailable("the relay closed the connection")),
                Err(status) => return Ok(status),
            };
            let Some(message) = message else { continue };
            let pending = matches!(message, to_node::Message::Pending(_));
            if self.events.send(event::read(epoch, message)).await.is_err() {
                return Err(Unread);
            }
            if pending {
                // Only now, so that no request overtakes the word that it is coming.
                let ready = from_node::Message::Ready(proto::Ready {});
                let told = up.messages.send(proto::FromNode { message: Some(ready) }).await;
                if told.is_err() {
                    return Ok(Status::unavailable("the relay closed the connection"));
                }
                self.say(Ok(up.clone()));
            }
        }
    }
}

/// The relay has checked it too, unless it is older than this check.
fn check_version(ours: &proto::Attached, relay: &proto::HelloReply) -> Result<(), Status> {
    if proto::spoken(relay.api, relay.oldest).is_some() {
        return Ok(());
    }
    let message = format!(
        "the relay (build {}) speaks version {} of its API, this node process (build {}) speaks {}: \
         replace the older one of the two",
        relay.build,
        proto::range(relay.api, relay.oldest),
        ours.build,
        proto::range(ours.api, ours.oldest),
    );
    Err(super::control::status(Stage::Version, message))
}

/// The innermost cause says it best: "No such file or directory" instead of "transport error".
fn reason(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    let mut text = status.message().to_owned();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

pub(crate) async fn dial(socket: &Path) -> Result<Api, Status> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is never looked up; the connector above decides where to go.
    let endpoint = Endpoint::from_static("http://relay.invalid");
    let channel = endpoint.connect_with_connector(connector).await;
    let channel = channel.map_err(|e| Status::from_error(Box::new(e)))?;
    let api = relay_client::RelayClient::new(channel);
    Ok(api.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
}
