//! The hypervisor socket: passes the frames of each shim connection to the node process, and knows
//! which requests a node process that died has left unanswered.
//!
//! ```text
//!   shim ─▶ read ─▶ queue (unanswered) ─▶ send ─▶ node.sock      one connection there per one here,
//!   shim ◀─ write ◀──── answers ◀──────── receive ◀┘             made when there is something to send
//!
//!   away ──Ready──▶ dial ──▶ joined ──broken / another node process──▶ away (all unanswered: unsent)
//! ```
//!
//! Reading goes on while the node is away, until the queue is full. Answers are passed on whole or
//! not at all. Only requests are looked into: which sandbox and method they name.
//!
//! A Rust shim gives StopVM one second and then closes, so a StopVM outlives its connection: it is
//! kept until a node process has answered it. Anything else is of no use once its shim has gone.

use std::sync::Arc;
use std::time::Duration;

use peerpod_tunnel::link::frame::{Frame, FrameError, FrameReader, Kind, Request};
use peerpod_tunnel::link::wire;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};

use super::hub::{Guard, Hub, Node, Side};
use super::pipe::hung_up;
use super::queue::Queue;
use crate::proto::{hypervisor, relay as proto};
use crate::request::SandboxId;

/// How long the rest of a frame may take.
const STALL: Duration = Duration::from_secs(30);
/// How long a request of a shim that has closed may still take to reach the node.
const LAST_CALL: Duration = Duration::from_secs(1);
/// How long a StopVM is kept for a node process once its shim has closed. A node that comes back
/// later finds the pod without a shim and ends it for that.
const KEPT: Duration = Duration::from_secs(600);
/// Payload of a StopVM that is kept; an id and a shim's metadata need far less.
const KEPT_BYTES: usize = 4 << 10;
/// Pause before the node's socket is dialled again.
const REDIAL: Duration = Duration::from_millis(100);
/// Connections that a node process may break in a row without answering anything, before the shim's
/// connection is taken for the reason and closed.
const FRUITLESS: u32 = 8;
/// Sandboxes that one connection may name; a shim names one.
const NAMES: usize = 64;
/// Field of all three calls that holds the sandbox.
const ID: u32 = 1;
/// The call that outlives its shim.
const STOP: &str = "StopVM";

/// Serves one shim connection until the shim closes it.
pub(super) async fn converse(hub: Arc<Hub>, shim: UnixStream) {
    let (read, write) = shim.into_split();
    let queue = Queue::default();
    let reading = async {
        match read_shim(&hub, &queue, read).await {
            Ok(()) => tracing::debug!("a shim closed its hypervisor connection"),
            Err(e) => tracing::warn!(error = %e, "hypervisor connection closed"),
        }
        // Boxed: a connection that lives should not set aside room for it.
        Box::pin(last_calls(&hub, &queue)).await;
    };
    tokio::select! {
        () = reading => {}
        why = keep_node(&hub, &queue, write) => tracing::info!(why, "hypervisor connection closed"),
    }
}

/// Returns when nothing that the shim has asked for has a use any more.
async fn last_calls(hub: &Hub, queue: &Queue) {
    // A shim that is in a hurry does not wait for the answer to its last call.
    let _ = tokio::time::timeout(LAST_CALL, queue.all_sent()).await;
    let calls = queue.shim_gone();
    if calls == 0 {
        return;
    }
    let Some(_kept) = hub.keep(calls) else {
        tracing::warn!(calls, "too many StopVM of closed shims are kept, these are dropped");
        return;
    };
    tracing::info!(calls, "StopVM is kept, its shim did not wait for the answer");
    if tokio::time::timeout(KEPT, queue.all_answered()).await.is_err() {
        tracing::warn!("no node process has answered StopVM of a closed shim, it is dropped");
    }
}

async fn read_shim(hub: &Arc<Hub>, queue: &Queue, read: OwnedReadHalf) -> Result<(), FrameError> {
    let mut named = Vec::new();
    let mut reader = FrameReader::new(read, Some(STALL));
    loop {
        if !room(queue, reader.get_ref()).await {
            return Ok(());
        }
        let Some(frame) = reader.next().await? else { return Ok(()) };
        let pending = match frame.kind {
            Kind::Request => call(&frame)?,
            Kind::Response | Kind::Data => None,
        };
        if let Some(call) = &pending {
            name(hub, &mut named, &call.sandbox);
        }
        hub.counters.requests.add(u64::from(frame.kind == Kind::Request));
        let outlives = frame.payload.len() <= KEPT_BYTES
            && pending.as_ref().is_some_and(|call| call.method == STOP);
        queue.push(frame, pending.map(|call| hub.wait_for(call)), outlives);
    }
}

/// Waits for room; false when the shim is gone meanwhile.
async fn room(queue: &Queue, shim: &OwnedReadHalf) -> bool {
    loop {
        tokio::select! {
            biased;
            () = queue.room() => return true,
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                if hung_up(shim.as_ref()) {
                    return false;
                }
            }
        }
    }
}

/// Which sandbox a request is about, if it is a hypervisor call that says so.
fn call(frame: &Frame) -> Result<Option<proto::PendingCall>, FrameError> {
    let request = Request::parse(&frame.payload)?;
    if request.service != hypervisor::SERVICE {
        return Ok(None);
    }
    let id = wire::text(&request.payload, ID).filter(|id| SandboxId::parse(id).is_ok());
    let call = |id: &str| proto::PendingCall { sandbox: id.to_owned(), method: request.method };
    Ok(id.map(call))
}

/// Binds the connection to a sandbox.
fn name(hub: &Arc<Hub>, named: &mut Vec<Guard>, sandbox: &str) {
    if !named.iter().any(|guard| guard.is_of(sandbox)) && named.len() < NAMES {
        named.reserve_exact(1);
        named.push(hub.enter(sandbox, Side::Hypervisor));
    }
}

/// Joins the queue to one node process after the other. Returns why that has no use any more.
async fn keep_node(hub: &Hub, queue: &Queue, mut shim: OwnedWriteHalf) -> &'static str {
    let mut node = hub.node();
    let (mut fruitless, mut generation) = (0, 0);
    loop {
        queue.work().await;
        let Ok(target) = node.wait_for(|node| node.attached).await.map(|node| node.clone()) else {
            return "the relay is shutting down";
        };
        if target.generation != generation {
            (fruitless, generation) = (0, target.generation);
        }
        let before = queue.answers();
        match UnixStream::connect(&target.socket).await {
            Ok(stream) => {
                joined(queue, stream, &mut shim, &mut node, target.instance).await;
                hub.counters.replayed.add(queue.send_again());
                fruitless = if queue.answers() == before { fruitless + 1 } else { 0 };
            }
            Err(e) => tracing::debug!(socket = %target.socket.display(), error = %e, "node socket"),
        }
        if fruitless >= FRUITLESS {
            return "the node process breaks off on its requests";
        }
        // Another node process is dialled at once.
        let _ = tokio::time::timeout(REDIAL, node.changed()).await;
    }
}

/// Returns when the node's connection breaks or another node process takes over.
async fn joined(
    queue: &Queue,
    stream: UnixStream,
    shim: &mut OwnedWriteHalf,
    node: &mut watch::Receiver<Node>,
    instance: u64,
) {
    let (read, mut write) = stream.into_split();
    let over = Notify::new();
    let send = async {
        loop {
            let frame = queue.next().await;
            if frame.write(&mut write).await.is_err() {
                return;
            }
            queue.written();
        }
    };
    let stop = async {
        tokio::select! {
            () = send => {}
            // Its sender lives as long as the relay.
            _ = node.wait_for(|node| node.attached && node.instance != instance) => {}
        }
        over.notify_one();
        std::future::pending().await
    };
    // Never dropped while it writes, so that the shim gets whole frames only.
    let receive = async {
        let mut reader = FrameReader::new(read, None);
        loop {
            let next = tokio::select! {
                // What has come is passed on before the end is looked at.
                biased;
                next = reader.next() => next,
                () = over.notified() => return,
            };
            match next {
                Ok(Some(frame)) => {
                    if frame.kind == Kind::Response {
                        queue.answered(frame.stream);
                    }
                    // A shim that has gone is noticed where it is read, after its last words.
                    let _ = frame.write(shim).await;
                }
                Ok(None) => return,
                Err(e) => {
                    tracing::debug!(error = %e, "the node's connection broke");
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = receive => {}
        () = stop => {}
    }
}
