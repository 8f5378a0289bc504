//! What of a pod concerns another relay that takes this one's place.

use std::sync::Arc;

use tokio::net::UnixStream;

use super::{Desk, Pod, lock, part};
use crate::proto::relay as proto;
use crate::relay::gate::Member;
use crate::relay::handover::message;
use crate::relay::hub::Side;
use crate::relay::link::Target;
use crate::relay::pipe::End;
use crate::relay::sockets::Bound;
use crate::relay::stream::StreamPipe;

impl Pod {
    /// Goes on with what another relay has known.
    pub(in crate::relay) fn restore(&self, target: Option<Target>, down: Option<proto::LinkDown>) {
        self.target.send_replace(target.map(Arc::new));
        lock(&self.down).told = down;
    }

    /// Its listener, for another relay.
    pub(in crate::relay) fn bound(&self) -> Option<Arc<Bound>> {
        lock(&self.bound).clone()
    }

    /// Another relay serves the socket from now on; joined connections stay here.
    pub(in crate::relay) async fn moved(&self) {
        if let Some(bound) = lock(&self.bound).take() {
            bound.disown();
        }
        lock(&self.ahead).take();
        let accepting = lock(&self.accepting).take();
        if let Some(task) = accepting {
            // It was parked, and ends.
            let _ = task.await;
        }
    }

    /// Moves the bytes of a connection that can go to another relay at any time; `None` once it has.
    pub(super) async fn streams(&self, mut pipe: StreamPipe, member: &mut Member) -> Option<End> {
        loop {
            tokio::select! {
                biased;
                () = member.frozen() => {
                    let (sandbox, stream) = (self.sandbox.clone(), pipe.stream().id());
                    let say = message::Say::Stream(message::Stream { sandbox, stream });
                    let returns = self.session.returns();
                    if member.park(part(say, pipe.shim())).await {
                        return None;
                    }
                    // A session that came back is another one to us.
                    if self.session.returns() != returns
                        && let Some(same) = self.session.resume(stream)
                    {
                        pipe.replace(same);
                    }
                }
                end = pipe.run(&self.traffic) => return Some(end),
            }
        }
    }

    /// Goes on with a connection that another relay has joined to the pod's session.
    pub(in crate::relay) fn adopt_stream(
        self: &Arc<Self>,
        shim: UnixStream,
        stream: u32,
        desk: &Desk,
    ) {
        let Some(stream) = self.session.resume(stream) else {
            return tracing::warn!(sandbox = self.sandbox, stream, "a stream its session lacks");
        };
        let (pod, hub, mut member) = (self.clone(), desk.hub.clone(), desk.gate.member());
        let connection = Box::pin(async move {
            let _counted = hub.enter(&pod.sandbox, Side::Agent);
            let pipe = StreamPipe::new(shim, stream);
            let end = tokio::select! {
                () = pod.closed.cancelled() => return,
                end = pod.streams(pipe, &mut member) => end,
            };
            if let Some(end) = end {
                pod.ended(&hub, end);
            }
        });
        desk.tracker.spawn("relay: agent connection", connection);
    }
}
