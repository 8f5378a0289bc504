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
//! not at all. All that is under way stands in a [`Talk`] and not in a future, so that it can stop
//! between any two bytes and go on in another relay. Only requests are looked into: which sandbox and method they name.
//!
//! A Rust shim gives StopVM one second and then closes, so a StopVM outlives its connection: it is
//! kept until a node process has answered it. Anything else is of no use once its shim has gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::OptionFuture;
use peerpod_tunnel::link::frame::{Frame, FrameError, FrameReader, Kind, Request};
use peerpod_tunnel::link::notice::Notices;
use peerpod_tunnel::link::strangers::Room;
use peerpod_tunnel::link::wire;
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};

use super::gate::Member;
use super::handover::{Part, flush, message};
use super::hub::{self, Guard, Hub, Node};
use super::pipe::hung_up;
use super::queue::Queue;
use super::side::{Half, Side};
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

/// Of connections that ended in another way than they should.
static NOTICES: Notices = Notices::new();

/// A shim's connection and all that is under way on it.
#[derive(Debug)]
pub(super) struct Talk {
    shim: Side,
    node: Option<NodeSide>,
    queue: Queue,
    named: Vec<Guard>,
    /// The shim has closed.
    ended: bool,
    /// `None` for one that another relay has let in.
    room: Option<Room>,
}

/// The connection to a node process.
#[derive(Debug)]
struct NodeSide {
    side: Side,
    /// Which node process.
    instance: u64,
}

impl Talk {
    /// One that begins.
    pub(super) fn new(shim: UnixStream, room: Room) -> Self {
        let (queue, named) = (Queue::default(), Vec::new());
        let shim = Side::new(shim, Some(STALL));
        Self { shim, node: None, queue, named, ended: false, room: Some(room) }
    }

    /// One that another relay has led so far.
    pub(super) fn restore(
        hub: &Arc<Hub>,
        told: message::Talk,
        shim: UnixStream,
        node: Option<UnixStream>,
    ) -> Self {
        let calls = told.calls.iter().filter_map(|call| {
            let frame = call.frame()?;
            let asked = match frame.kind {
                Kind::Request => self::call(&frame).ok().flatten(),
                Kind::Response | Kind::Data => None,
            };
            // Without the connection on which it was sent it is to be sent again.
            let sent = call.sent && node.is_some();
            Some((frame, sent, call.outlives, asked.map(|asked| hub.wait_for(asked))))
        });
        let side = |stream, stall, air: Option<message::Air>| {
            Side::resume(stream, stall, &air.unwrap_or_default())
        };
        let writing = told.node.as_ref().is_some_and(|air| !air.unwritten.is_empty());
        let queue = Queue::restore(calls, writing && node.is_some());
        let instance = told.instance;
        let node = node.map(|node| NodeSide { side: side(node, None, told.node), instance });
        let named = told.named.iter().map(|sandbox| hub.enter(sandbox, hub::Side::Hypervisor));
        let named = named.collect();
        let shim = side(shim, Some(STALL), told.shim);
        Self { shim, node, queue, named, ended: told.ended, room: None }
    }

    fn part(&self) -> std::io::Result<Part> {
        let calls = self.queue.calls();
        let node = self.node.as_ref();
        let told = message::Talk {
            shim: Some(self.shim.air()),
            node: node.map(|node| node.side.air()),
            instance: node.map_or(0, |node| node.instance),
            ended: self.ended,
            named: self.named.iter().map(|guard| guard.sandbox().to_owned()).collect(),
            calls: calls.iter().map(|(f, sent, out)| message::Call::new(f, *sent, *out)).collect(),
        };
        let mut descriptors = vec![self.shim.copy()?];
        if let Some(node) = node {
            descriptors.push(node.side.copy()?);
        }
        Ok(Part { say: message::Say::Talk(told), descriptors })
    }

    /// Serves until the shim closes, or until all of it has moved.
    pub(super) async fn lead(mut self, hub: Arc<Hub>, mut member: Member) {
        loop {
            {
                let Self { shim, node, queue, named, ended, room } = &mut self;
                let away = room.as_ref().map(Room::sent_away);
                let Side { reader, out } = shim;
                let stream = reader.get_ref().clone();
                let reading = async {
                    if !*ended {
                        match read_shim(&hub, queue, reader, named, room).await {
                            Ok(()) => tracing::debug!("a shim closed its hypervisor connection"),
                            Err(e) => NOTICES.say(|| {
                                tracing::warn!(error = %e, "hypervisor connection closed");
                            }),
                        }
                        *ended = true;
                        named.clear();
                    }
                    // Boxed: a connection that lives should not set aside room for it.
                    Box::pin(last_calls(&hub, queue)).await;
                };
                tokio::select! {
                    biased;
                    () = member.frozen() => {}
                    () = reading => return,
                    // Once it has asked something it has its place no more, and nobody can have it.
                    Some(()) = OptionFuture::from(away) => return NOTICES.say(|| {
                        tracing::warn!("hypervisor connection closed: silent, and others came");
                    }),
                    why = keep_node(&hub, queue, (&stream, out), node) => {
                        return NOTICES.say(|| {
                            tracing::info!(why, "hypervisor connection closed");
                        });
                    }
                }
            }
            let part = self.part();
            if member.park(part.map(Some)).await {
                return;
            }
        }
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
        return NOTICES.say(|| {
            tracing::warn!(calls, "too many StopVM of closed shims are kept, these are dropped");
        });
    };
    NOTICES.say(|| tracing::info!(calls, "StopVM is kept, its shim did not wait for the answer"));
    if tokio::time::timeout(KEPT, queue.all_answered()).await.is_err() {
        NOTICES.say(|| {
            tracing::warn!("no node process has answered StopVM of a closed shim, it is dropped");
        });
    }
}

async fn read_shim(
    hub: &Arc<Hub>,
    queue: &Queue,
    reader: &mut FrameReader<Half>,
    named: &mut Vec<Guard>,
    place: &mut Option<Room>,
) -> Result<(), FrameError> {
    loop {
        if !room(queue, reader.get_ref()).await {
            return Ok(());
        }
        let Some(frame) = reader.next().await? else { return Ok(()) };
        if place.as_mut().is_some_and(|place| !place.speaks()) {
            NOTICES.say(|| tracing::warn!("hypervisor connection closed: too many"));
            return Ok(());
        }
        let pending = match frame.kind {
            Kind::Request => call(&frame)?,
            Kind::Response | Kind::Data => None,
        };
        if let Some(call) = &pending {
            name(hub, named, &call.sandbox);
        }
        hub.counters.requests.add(u64::from(frame.kind == Kind::Request));
        let outlives = frame.payload.len() <= KEPT_BYTES
            && pending.as_ref().is_some_and(|call| call.method == STOP);
        queue.push(frame, pending.map(|call| hub.wait_for(call)), outlives);
    }
}

/// Waits for room; false when the shim is gone meanwhile.
async fn room(queue: &Queue, shim: &Half) -> bool {
    loop {
        tokio::select! {
            biased;
            () = queue.room() => return true,
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                if hung_up(shim) {
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
        named.push(hub.enter(sandbox, hub::Side::Hypervisor));
    }
}

/// Joins the queue to one node process after the other. Returns why that has no use any more.
async fn keep_node(
    hub: &Hub,
    queue: &Queue,
    (shim, out): (&Half, &mut BytesMut),
    node: &mut Option<NodeSide>,
) -> &'static str {
    let mut place = hub.node();
    let (mut fruitless, mut generation) = (0, 0);
    loop {
        if node.is_none() {
            let Some(target) = while_writing(shim, out, wanted(queue, &mut place)).await else {
                return "the relay is shutting down";
            };
            if target.generation != generation {
                (fruitless, generation) = (0, target.generation);
            }
            match UnixStream::connect(&target.socket).await {
                Ok(stream) => {
                    let side = Side::new(stream, None);
                    *node = Some(NodeSide { side, instance: target.instance });
                }
                Err(e) => {
                    tracing::debug!(socket = %target.socket.display(), error = %e, "node socket");
                }
            }
        }
        if let Some(side) = node {
            let before = queue.answers();
            joined(queue, side, (shim, out), &mut place).await;
            *node = None;
            hub.counters.replayed.add(queue.send_again());
            fruitless = if queue.answers() == before { fruitless + 1 } else { 0 };
        }
        if fruitless >= FRUITLESS {
            return "the node process breaks off on its requests";
        }
        // Another node process is dialled at once.
        let _ = tokio::time::timeout(REDIAL, place.changed()).await;
    }
}

/// Where the next request goes, once there is one and a node process for it.
async fn wanted(queue: &Queue, place: &mut watch::Receiver<Node>) -> Option<Node> {
    queue.work().await;
    place.wait_for(|node| node.attached).await.map(|node| node.clone()).ok()
}

/// The rest of an answer goes on to the shim while something else is waited for.
async fn while_writing<T>(shim: &Half, out: &mut BytesMut, wait: impl Future<Output = T>) -> T {
    let write = async {
        // A shim that has gone is noticed where it is read.
        let _ = flush(&shim.0, out).await;
        std::future::pending::<std::convert::Infallible>().await
    };
    tokio::select! {
        value = wait => value,
        never = write => match never {},
    }
}

/// Returns when the node's connection breaks or another node process takes over.
async fn joined(
    queue: &Queue,
    node: &mut NodeSide,
    (shim, out): (&Half, &mut BytesMut),
    place: &mut watch::Receiver<Node>,
) {
    let (instance, Side { reader, out: requests }) = (node.instance, &mut node.side);
    let stream = reader.get_ref().clone();
    let over = Notify::new();
    let send = async {
        loop {
            if flush(&stream.0, requests).await.is_err() {
                return;
            }
            queue.written();
            queue.next().await.put(requests);
        }
    };
    let stop = async {
        tokio::select! {
            () = send => {}
            // Its sender lives as long as the relay.
            _ = place.wait_for(|node| node.attached && node.instance != instance) => {}
        }
        over.notify_one();
        std::future::pending().await
    };
    let receive = async {
        loop {
            if flush(&shim.0, out).await.is_err() {
                // A shim that has gone is noticed where it is read, after its last words.
                out.clear();
            }
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
                    // From here on it reaches the shim, whole, whatever becomes of the node.
                    frame.put(out);
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
