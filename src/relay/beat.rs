//! Whether the VMs live, asked on the links that stand anyway.
//!
//! ```text
//!   node ─ Beat ─▶ for each pod with a session: a stream of it ─ grpc.Health/Check ─▶ kata-agent
//!        ◀──────── alive: answered     silent: did not, in time     neither: plain, or no time left
//! ```
//!
//! The stream lives as long as its question, so that a pod which idles costs nothing for it, and a
//! hand-over has nothing to carry.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use peerpod_tunnel::link::call::Caller;
use peerpod_tunnel::link::session::Link as Session;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;

use super::control::handed_over;
use super::gate::Gate;
use super::hub::Hub;
use crate::proto::relay as proto;

/// Questions under way at a time: few enough to need no memory, and enough that some dozens of VMs
/// which do not answer keep none of the others from being asked.
const AT_ONCE: usize = 64;
/// How long the end of an answered question may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Asks every VM that has a session; ends within `within`, with what is known by then.
///
/// # Errors
/// When another relay has taken over, or is about to.
pub(super) async fn ask_all(
    hub: &Hub,
    gate: &Arc<Gate>,
    within: Duration,
) -> Result<proto::BeatReply, Status> {
    let end = Instant::now() + within;
    let Some(mut member) = gate.pass().await else { return Err(handed_over()) };
    let mut questions = Vec::new();
    for pod in hub.pods() {
        if let Some(session) = pod.session.session() {
            questions.push(ask(pod.sandbox.clone(), session, end));
        }
    }
    let questions = futures_util::stream::iter(questions).buffer_unordered(AT_ONCE);
    let mut questions = Box::pin(questions.take_until(sleep_until(end)));
    let mut reply = proto::BeatReply::default();
    loop {
        let answered = tokio::select! {
            biased;
            () = member.frozen() => return Err(handed_over()),
            answered = questions.next() => answered,
        };
        match answered {
            Some((sandbox, true)) => reply.alive.push(sandbox),
            Some((sandbox, false)) => reply.silent.push(sandbox),
            None => return Ok(reply),
        }
    }
}

/// Whether the agent behind the session has answered.
async fn ask(sandbox: String, session: Session, end: Instant) -> (String, bool) {
    (sandbox, answers(&session, end).await)
}

async fn answers(session: &Session, end: Instant) -> bool {
    let Some(stream) = session.open() else { return false };
    let mut agent = Caller::new(stream);
    // Half of what is left, so that there is time for those who wait behind it, and to tell.
    let patience = end.saturating_duration_since(Instant::now()) / 2;
    let answered = matches!(timeout(patience, agent.check()).await, Ok(Ok(())));
    if answered {
        let _ = timeout(FAREWELL, agent.finish()).await;
    }
    answered
}
