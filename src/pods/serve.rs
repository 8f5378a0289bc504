//! What the hypervisor edge calls. A request finds its pod, leaves word at its desk, and waits.
//!
//! While the process ends nobody is answered: the relay keeps unanswered requests and sends them to
//! the next process, so that a shim notices nothing.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpod_providers::VmName;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::Pods;
use super::registry::{Full, Insert, is_young};
use crate::crash::reach;
use crate::hypervisor::{Failure, FailureKind, Sandboxes};
use crate::pod::{Command, End, Pod, Reply, Whose};
use crate::proto::hypervisor::CreateVmRequest;
use crate::request::PodRequest;

/// How much earlier than its caller's deadline a start is given up, so that the caller hears why: a
/// twentieth, but never more than this.
const MARGIN: Duration = Duration::from_secs(1);
/// How long a stop of a sandbox without a usable record waits for the relay.
const CLOSE: Duration = Duration::from_millis(300);

#[async_trait]
impl Sandboxes for Pods {
    async fn create(&self, request: CreateVmRequest) -> Result<String, Failure> {
        self.serving().await;
        reach!(self.common.world, CreateVmBefore);
        // A known id is answered whatever else the request says: a shim that was restarted repeats
        // it when the network namespace has long gone.
        if let Some(pod) = self.registry.get(&request.id) {
            match self.ask(&pod, Command::Create).await {
                // It has gone in this very moment: the id is new.
                Err(e) if e.kind == FailureKind::NotFound => {}
                answer => return answer,
            }
        }
        let parsed = self.common.world.planner.parse(&request);
        let request = parsed.map_err(|e| named(&request, e))?;
        let pod = self.admit(request, &self.replayed().await)?;
        let created = self.ask(&pod, Command::Create).await;
        reach!(self.common.world, CreateVmAfter);
        created
    }

    async fn start(&self, id: &str, deadline: Option<Duration>) -> Result<(), Failure> {
        self.serving().await;
        reach!(self.common.world, StartVmBefore);
        let deadline = deadline.map(|d| d.saturating_sub((d / 20).min(MARGIN)));
        let deadline = deadline.and_then(|d| Instant::now().checked_add(d));
        let Some(pod) = self.registry.get(id) else {
            self.left_alone(id)?;
            return Err(unknown(id));
        };
        let started = self.ask(&pod, |reply| Command::Start { deadline, reply }).await;
        reach!(self.common.world, StartVmAfter);
        started
    }

    async fn stop(&self, id: &str) -> Result<(), Failure> {
        self.serving().await;
        reach!(self.common.world, StopVmBefore);
        let Some(pod) = self.registry.get(id) else {
            self.left_alone(id)?;
            self.close_broken(id).await;
            return Ok(());
        };
        let stopped = self.ask(&pod, Command::Stop).await;
        reach!(self.common.world, StopVmAfter);
        match stopped {
            // It has gone in this very moment.
            Err(e) if e.kind == FailureKind::NotFound => Ok(()),
            other => other,
        }
    }

    async fn vm_id(&self, namespace: &str, pod: &str, wait: bool) -> Result<String, Failure> {
        let none = |what: &str| {
            Err(Failure::new(FailureKind::NotFound, format!("pod {namespace}/{pod}: {what}")))
        };
        let mut changes = self.registry.changes();
        let mut known = false;
        loop {
            let found = self.registry.find(namespace, pod);
            let Some(found) = found else {
                if known || !wait {
                    return none("no such pod, or it has gone");
                }
                changed(&mut changes).await;
                continue;
            };
            known = true;
            let mut seen = found.seen();
            let record = seen.borrow_and_update().clone();
            let vm = record.as_ref().and_then(|r| r.phase.vm().map(|vm| vm.native_id.clone()));
            if let Some(id) = vm.filter(|id| !id.is_empty()) {
                return Ok(id);
            }
            if record.is_some_and(|r| r.phase.is_over()) {
                return none("it is being deleted");
            }
            if !wait {
                return none("its VM is not known yet");
            }
            tokio::select! {
                biased;
                closed = seen.changed() => if closed.is_err() { changed(&mut changes).await },
                () = changed(&mut changes) => {}
            }
        }
    }
}

/// The registry lives as long as its caller.
async fn changed(changes: &mut tokio::sync::watch::Receiver<u64>) {
    let _ = changes.changed().await;
}

impl Pods {
    /// Returns only while this process takes work.
    async fn serving(&self) {
        if self.common.shutdown.is_cancelled() {
            pending::<()>().await;
        }
    }

    /// Sandboxes whose CreateVM an earlier process left unanswered, in the order in which it came to
    /// the relay; known once the relay has told, which it does before it replays anything.
    async fn replayed(&self) -> Arc<[String]> {
        let mut replayed = self.replayed.subscribe();
        match replayed.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(all)) => Arc::clone(all),
            // Its sender lives as long as we do.
            _ => Arc::default(),
        }
    }

    /// Lets a new pod in; sandboxes of the same pod that have not come to run are superseded.
    fn admit(&self, request: PodRequest, replayed: &[String]) -> Result<Pod, Failure> {
        let whose = Whose {
            sandbox: request.sandbox.to_string(),
            namespace: request.namespace.clone(),
            pod: request.pod.clone(),
        };
        self.left_alone(&whose.sandbox)?;
        let superseded = self.superseded_by(&whose, replayed);
        let ending = superseded.iter().map(|p| p.whose.sandbox.clone()).collect();
        let inserted = self.insert(request, &ending).map_err(|Full(limit)| {
            let what = format!("this node has its limit of {limit} pods already");
            whose.failure(FailureKind::Exhausted, &what)
        })?;
        for pod in superseded {
            let reason = format!("superseded by sandbox {} of the same pod", whose.sandbox);
            pod.tell(Command::Over(End::new("superseded", FailureKind::Cancelled, reason)));
        }
        Ok(inserted)
    }

    fn insert(&self, request: PodRequest, ending: &BTreeSet<String>) -> Result<Pod, Full> {
        let sandbox = request.sandbox.to_string();
        let mut task = None;
        let inserted =
            self.registry.insert(&sandbox, self.common.options.limit, ending, |taken| {
                let name = VmName::first_form(&request.pod, &sandbox);
                let name = if taken.contains(&name) {
                    let installation = &self.common.options.installation;
                    VmName::second_form(installation, &request.pod, &sandbox)
                } else {
                    name
                };
                let (pod, life) = Pod::begin(&self.common, request, name);
                task = Some(life);
                pod
            })?;
        match inserted {
            Insert::Known(pod) => Ok(pod),
            Insert::New(pod) => {
                if let Some(life) = task {
                    self.spawn(&pod, life);
                }
                Ok(pod)
            }
        }
    }

    /// A new call is later than all there is. A replayed one is later than those that are replayed
    /// before it, and may be earlier than all others, whatever comes first here: each shim has a
    /// connection of its own, and what was recorded may be newer than what was left unanswered.
    fn superseded_by(&self, whose: &Whose, replayed: &[String]) -> Vec<Pod> {
        let at = replayed.iter().position(|s| *s == whose.sandbox);
        let earlier = at.and_then(|at| replayed.get(..at));
        let is_earlier = |p: &Pod| earlier.is_none_or(|e| e.contains(&p.whose.sandbox));
        let same = |p: &Pod| {
            let other = &p.whose;
            other.sandbox != whose.sandbox
                && other.namespace == whose.namespace
                && other.pod == whose.pod
        };
        let all = self.registry.all().into_iter();
        all.filter(|p| same(p) && is_young(p) && is_earlier(p)).collect()
    }

    /// Leaves a command and waits for its answer.
    async fn ask<T>(
        &self,
        pod: &Pod,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        pod.tell(command(reply));
        match answer.await {
            Ok(answer) => answer,
            Err(_) if self.common.shutdown.is_cancelled() => pending().await,
            Err(_) => Err(pod.whose.failure(FailureKind::NotFound, "it has gone")),
        }
    }

    /// Refuses what is asked of a sandbox whose record is of another version. Whoever stops it hears
    /// so, too: its VM goes on, and only the daemon that knows it can end it.
    fn left_alone(&self, id: &str) -> Result<(), Failure> {
        let broken = self.broken().into_iter().find(|b| b.newer && b.sandbox == id);
        broken.map_or(Ok(()), |b| {
            let what = format!(
                "sandbox {id}: its record is of another version of the daemon and is left alone, \
                 as is its VM ({}); run that version again to go on with it",
                b.reason
            );
            Err(Failure::new(FailureKind::Precondition, what))
        })
    }

    /// A sandbox whose record cannot be used: its shim's connections can be closed all the same.
    async fn close_broken(&self, id: &str) {
        if self.broken().iter().any(|b| b.sandbox == id) {
            let closed = timeout(CLOSE, self.common.world.relay.close(id, "StopVM")).await;
            tracing::warn!(sandbox = id, ?closed, "stopped without a usable record");
        }
    }
}

fn unknown(id: &str) -> Failure {
    let shown: String = id.chars().take(80).collect();
    Failure::new(FailureKind::NotFound, format!("sandbox {shown:?}: no such sandbox"))
}

/// A request that could not be read, with whatever of it says whose it is.
fn named(request: &CreateVmRequest, failure: Failure) -> Failure {
    let short = |key| {
        let value = request.annotations.get(key).map(String::as_str).unwrap_or_default();
        value.chars().filter(|c| !c.is_control()).take(80).collect::<String>()
    };
    let (pod, namespace) =
        (short(crate::request::keys::NAME), short(crate::request::keys::NAMESPACE));
    let sandbox: String = request.id.chars().filter(|c| !c.is_control()).take(80).collect();
    let whose = Whose { sandbox, namespace, pod };
    whose.failure(failure.kind, &format!("CreateVM: {}", failure.message))
}
