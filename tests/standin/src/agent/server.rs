//! The socket: connections, requests side by side, answers in the order they are ready, faults.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use peerpod_tunnel::link::frame::{Frame, FrameReader, Kind, MAX_PAYLOAD, Request, Response};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::faults::{Effect, Faults};
use super::record::{Dump, Record};
use super::sandbox::Sandbox;
use super::{Options, Rule, service};
use crate::messages::{HEALTH, code};

/// Longest wait of an out-of-order answer for another one to pass it.
const HELD: Duration = Duration::from_secs(2);

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) sandbox: Sandbox,
    pub(super) record: Record,
    pub(super) faults: Faults,
    cut: watch::Sender<u64>,
    over: watch::Sender<bool>,
    connections: AtomicU64,
}

/// A listening agent.
#[derive(Debug)]
pub struct Agent {
    listener: UnixListener,
    shared: Arc<Shared>,
}

/// A frame to send, and who wants to know when it has gone.
type Outgoing = (Frame, Option<oneshot::Sender<()>>);

impl Agent {
    /// Listens; a stale socket is replaced. Call it inside a runtime.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(options: Options) -> anyhow::Result<Self> {
        let listener = listen(&options.listen)?;
        let shared = Shared {
            sandbox: Sandbox::new(),
            record: Record::new(options.record.clone()),
            faults: Faults::new(options.faults.clone(), options.control.clone()),
            cut: watch::Sender::new(0),
            over: watch::Sender::new(false),
            connections: AtomicU64::new(0),
            options,
        };
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// What was seen so far.
    pub fn dump(&self) -> Dump {
        self.shared.record.dump()
    }

    /// Replaces the fault rules.
    pub fn set_faults(&self, rules: Vec<Rule>) {
        self.shared.faults.set(rules);
    }

    /// Serves until DestroySandbox (or a fault that ends it).
    ///
    /// # Errors
    /// When the socket breaks.
    pub async fn serve(&self) -> anyhow::Result<()> {
        let mut over = self.shared.over.subscribe();
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => {
                    let (stream, _) = accepted.context("accept on the agent's socket")?;
                    tasks.spawn(connection(self.shared.clone(), stream));
                }
                Some(_) = tasks.join_next() => {}
                _ = over.wait_for(|over| *over) => return Ok(()),
            }
        }
    }
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let dir = path.parent().context("the socket needs a directory")?;
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("replace {}", path.display()));
        }
        _ => {}
    }
    UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))
}

async fn connection(shared: Arc<Shared>, stream: UnixStream) {
    let id = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
    shared.record.change(|d| d.connections = d.connections.max(id));
    let (reader, mut writer) = stream.into_split();
    let mut reader = FrameReader::new(reader, None);
    let (send, mut outgoing) = mpsc::channel::<Outgoing>(64);
    let sent = watch::Sender::new(0u64);
    let progress = sent.subscribe();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some((frame, told)) = outgoing.recv().await {
            if frame.write(&mut writer).await.is_err() {
                return;
            }
            sent.send_modify(|n| *n += 1);
            if let Some(told) = told {
                let _ = told.send(());
            }
        }
    });
    let mut cut = shared.cut.subscribe();
    let mut spoken = false;
    loop {
        tokio::select! {
            frame = reader.next() => {
                let Ok(Some(frame)) = frame else { break };
                if !std::mem::replace(&mut spoken, true) {
                    shared.record.change(|d| d.spoken += 1);
                }
                let one = One { shared: shared.clone(), id, send: send.clone() };
                tasks.spawn(one.answer(frame, progress.clone()));
            }
            Some(_) = tasks.join_next() => {}
            _ = cut.changed() => break,
        }
    }
}

/// One request on its way through.
struct One {
    shared: Arc<Shared>,
    id: u64,
    send: mpsc::Sender<Outgoing>,
}

impl One {
    async fn answer(self, frame: Frame, progress: watch::Receiver<u64>) {
        if frame.kind != Kind::Request {
            return;
        }
        let Ok(request) = Request::parse(&frame.payload) else {
            let refused = Response::error(code::INVALID_ARGUMENT, "no ttrpc request");
            return self.put(frame.stream, refused).await;
        };
        self.shared.record.call(self.id, &request);
        let effect = self.shared.faults.strike(&request.method);
        match &effect {
            Some(Effect::Eof) => return self.shared.cut.send_modify(|n| *n += 1),
            Some(Effect::Exit) => return self.end(),
            Some(Effect::Hang) => return std::future::pending().await,
            Some(Effect::Slow(ms)) => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Some(Effect::Refuse(code, text)) => {
                return self.put(frame.stream, Response::error(*code, text.clone())).await;
            }
            Some(Effect::OutOfOrder | Effect::Large) | None => {}
        }
        let mut response = self.handle(&request).await;
        match effect {
            Some(Effect::OutOfOrder) => held(progress).await,
            Some(Effect::Large) => fill(&mut response),
            _ => {}
        }
        self.put(frame.stream, response).await;
        if request.method == "DestroySandbox" && request.service != HEALTH {
            self.end();
        }
    }

    async fn handle(&self, request: &Request) -> Response {
        let work = service::call(&self.shared, request);
        let done = match u64::try_from(request.timeout_nano) {
            Ok(nanos @ 1..) => tokio::time::timeout(Duration::from_nanos(nanos), work).await,
            _ => Ok(work.await),
        };
        match done {
            Ok(Ok(payload)) => Response { status: None, payload },
            Ok(Err(refusal)) => Response::error(refusal.code, refusal.message),
            Err(_) => Response::error(code::DEADLINE_EXCEEDED, "deadline of the request"),
        }
    }

    /// Sends the answer and returns when it is on the wire.
    async fn put(&self, stream: u32, response: Response) {
        let (told, gone) = oneshot::channel();
        if self.send.send((response.frame(stream), Some(told))).await.is_ok() {
            let _ = gone.await;
        }
    }

    fn end(&self) {
        self.shared.over.send_replace(true);
    }
}

async fn held(mut progress: watch::Receiver<u64>) {
    let now = *progress.borrow_and_update();
    let _ = tokio::time::timeout(HELD, progress.wait_for(|n| *n > now)).await;
}

/// Appends a field that nobody knows, so that the frame is as long as it may be.
fn fill(response: &mut Response) {
    // Tag and length of the unknown field, and of the payload in the response around it.
    const AROUND: usize = 2 + 4 + 1 + 4;
    let room = MAX_PAYLOAD.saturating_sub(response.payload.len() + AROUND);
    let mut payload = response.payload.to_vec();
    peerpod_tunnel::link::wire::put(&mut payload, 1000, &vec![0x5a; room]);
    response.payload = Bytes::from(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_answer_has_the_protocols_largest_frame() {
        for length in [0, 5, 4000] {
            let mut response = Response { status: None, payload: vec![8; length].into() };
            fill(&mut response);
            assert_eq!(response.frame(1).payload.len(), MAX_PAYLOAD);
        }
    }
}
