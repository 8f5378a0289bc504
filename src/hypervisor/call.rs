//! What a request asks for: which service and method, with which message and how much time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use peerpod_tunnel::link::frame::Request;
use peerpod_tunnel::link::notice::Notices;
use peerpod_tunnel::link::wire;
use prost::Message;
use tokio_util::sync::CancellationToken;

use super::{Failure, FailureKind, Sandboxes};
use crate::proto::{hypervisor, podvminfo};

/// What `Version` answers, as upstream does.
const VERSION: &str = "0.0.0";
/// No caller waits longer, whatever it says; a Rust shim says 10 000 s.
const BUDGET_MAX: Duration = Duration::from_secs(24 * 3600);

/// Field of CreateVM that holds the annotations, and how many there may be.
const ANNOTATIONS: u32 = 2;
const MAX_ANNOTATIONS: usize = 4096;

/// A call with its message.
#[derive(Debug)]
enum What {
    Create(hypervisor::CreateVmRequest),
    Start(hypervisor::StartVmRequest),
    Stop(hypervisor::StopVmRequest),
    Version,
    Info(podvminfo::GetInfoRequest),
}

/// A call, and the time its caller has left.
#[derive(Debug)]
pub(super) struct Call {
    what: What,
    budget: Option<Duration>,
}

impl Call {
    /// Takes a request apart.
    ///
    /// # Errors
    /// UNIMPLEMENTED for what we do not serve, INVALID_ARGUMENT for a message that does not parse.
    pub(super) fn parse(request: &Request) -> Result<Self, Failure> {
        let what = match (request.service.as_str(), request.method.as_str()) {
            (hypervisor::SERVICE, "CreateVM") => {
                annotations(&request.payload)?;
                What::Create(message(request)?)
            }
            (hypervisor::SERVICE, "StartVM") => What::Start(message(request)?),
            (hypervisor::SERVICE, "StopVM") => What::Stop(message(request)?),
            (hypervisor::SERVICE, "Version") => {
                message::<hypervisor::VersionRequest>(request)?;
                What::Version
            }
            (podvminfo::SERVICE, "GetInfo") => What::Info(message(request)?),
            (service, method) => {
                let words = format!("{}/{} is not served here", shown(service), shown(method));
                return Err(Failure::new(FailureKind::Unimplemented, words));
            }
        };
        Ok(Self { what, budget: budget(request.timeout_nano) })
    }

    /// The method, for logs.
    pub(super) fn name(&self) -> &'static str {
        match self.what {
            What::Create(_) => "CreateVM",
            What::Start(_) => "StartVM",
            What::Stop(_) => "StopVM",
            What::Version => "Version",
            What::Info(_) => "GetInfo",
        }
    }

    /// The sandbox, or the pod, for logs.
    pub(super) fn sandbox(&self) -> String {
        match &self.what {
            What::Create(m) => shown(&m.id),
            What::Start(m) => shown(&m.id),
            What::Stop(m) => shown(&m.id),
            What::Version => String::new(),
            What::Info(m) => format!("{}/{}", shown(&m.pod_namespace), shown(&m.pod_name)),
        }
    }

    /// Does it, and says in the log how it ended. A call that is dropped says nothing here: the
    /// connection does.
    pub(super) async fn run(
        self,
        sandboxes: &dyn Sandboxes,
        shutdown: &CancellationToken,
        notices: &Notices,
    ) -> Result<Bytes, Failure> {
        let begin = Instant::now();
        let result = self.answer(sandboxes).await;
        let took = begin.elapsed();
        match &result {
            Ok(_) => tracing::debug!(?took, "answered"),
            Err(_) if shutdown.is_cancelled() => tracing::debug!(?took, "left to the successor"),
            Err(failure) => {
                let kind = failure.kind;
                notices.say(|| tracing::warn!(?took, ?kind, %failure, "refused"));
            }
        }
        result
    }

    async fn answer(self, sandboxes: &dyn Sandboxes) -> Result<Bytes, Failure> {
        let budget = self.budget;
        match self.what {
            What::Create(message) => {
                let agent_socket_path = within(budget, sandboxes.create(message)).await?;
                Ok(encode(&hypervisor::CreateVmResponse { agent_socket_path }))
            }
            What::Start(message) => {
                sandboxes.start(&message.id, budget).await?;
                Ok(encode(&hypervisor::StartVmResponse {}))
            }
            What::Stop(message) => {
                sandboxes.stop(&message.id).await?;
                Ok(encode(&hypervisor::StopVmResponse {}))
            }
            What::Version => {
                Ok(encode(&hypervisor::VersionResponse { version: VERSION.to_owned() }))
            }
            What::Info(m) => {
                let asked = sandboxes.vm_id(&m.pod_namespace, &m.pod_name, m.wait);
                let vmid = within(budget, asked).await?;
                Ok(encode(&podvminfo::GetInfoResponse { vmid }))
            }
        }
    }
}

async fn within<T>(
    budget: Option<Duration>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let Some(budget) = budget else { return work.await };
    tokio::time::timeout(budget, work).await.unwrap_or_else(|_| {
        let words = format!("the caller's time of {budget:?} is over");
        Err(Failure::new(FailureKind::Deadline, words))
    })
}

/// Time left in nanoseconds: 0 is no deadline, less is one that has passed.
fn budget(nanoseconds: i64) -> Option<Duration> {
    let left = u64::try_from(nanoseconds).unwrap_or(0);
    (nanoseconds != 0).then(|| Duration::from_nanos(left).min(BUDGET_MAX))
}

/// A map's entries take many times their bytes, so they are counted first.
fn annotations(message: &[u8]) -> Result<(), Failure> {
    let invalid = |words: String| Err(Failure::new(FailureKind::Invalid, words));
    match wire::count(message, ANNOTATIONS) {
        Ok(..=MAX_ANNOTATIONS) => Ok(()),
        Ok(count) => {
            invalid(format!("annotations: {count} of them, the limit is {MAX_ANNOTATIONS}"))
        }
        Err(e) => invalid(format!("the message of CreateVM does not parse: {e}")),
    }
}

fn message<M: Message + Default>(request: &Request) -> Result<M, Failure> {
    M::decode(request.payload.clone()).map_err(|e| {
        let words = format!("the message of {} does not parse: {e}", shown(&request.method));
        Failure::new(FailureKind::Invalid, words)
    })
}

fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

/// A peer's text, fit for a line of the log.
fn shown(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
