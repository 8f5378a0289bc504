//! The time in which a relay serves: from its first or a regained moment until it is told to end or
//! another one has taken over.
//!
//! ```text
//!   settle what was inherited ─▶ accept shims, node processes, successors ─▶ told / failed / handed over
//! ```

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use peerpod_tunnel::link::notice::Notices;
use peerpod_tunnel::link::strangers::{Crowd, Strangers};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::caller::Caller;
use super::control;
use super::gate::{Gate, Member};
use super::handover::{GiveError, Giver, Inherited, Kins, Sockets, Successor, message};
use super::hub::Hub;
use super::hypervisor::Talk;
use super::link::Configurations;
use super::pod::{Desk, Pod};
use super::sockets::{Allowed, Bound};
use super::{RelayError, RelayOptions};
use crate::proto::relay::relay_server::RelayServer;
use crate::shutdown::Tracker;

/// How long calls of the node process that are under way may take once the relay is to end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Of hand-overs that did not come about.
static REFUSED: Notices = Notices::new();
/// Connections at the hypervisor socket that have asked nothing yet, …
const SILENT: usize = 256;
/// … and those that have; a Go shim makes one for each call.
const SHIMS: usize = 2048;
/// Connections at the control socket, besides that of the node process that is attached.
const CALLERS: usize = 64;

/// What outlasts a reign.
#[derive(Debug)]
pub(super) struct Realm {
    pub(super) options: Arc<RelayOptions>,
    pub(super) sockets: Sockets,
    pub(super) hub: Arc<Hub>,
    pub(super) kins: Arc<Kins>,
    pub(super) configurations: Arc<Configurations>,
    pub(super) tracker: Tracker,
    pub(super) shutdown: CancellationToken,
}

/// How a reign has ended.
#[derive(Debug)]
pub(super) enum Over {
    Told,
    /// Another relay serves.
    Successor(Box<Successor>),
    /// Another relay serves, without a connection to this one.
    Late,
}

impl Realm {
    /// Serves.
    pub(super) async fn reign(
        &self,
        inherited: Option<Inherited>,
    ) -> Result<(Desk, Over), RelayError> {
        let over = self.shutdown.child_token();
        let _ends = over.clone().drop_guard();
        let desk = Desk {
            hub: self.hub.clone(),
            gate: Gate::new(),
            allowed: Allowed(self.options.allowed_uid),
            tracker: self.tracker.clone(),
        };
        self.sockets.own();
        match inherited {
            Some(inherited) => self.settle(inherited, &desk, &over),
            None => self.take_up(&desk).await,
        }
        self.announce();
        let accepting = accept_shims(self.sockets.hypervisor.clone(), desk.clone(), over.clone());
        self.tracker.spawn("relay: hypervisor socket", accepting);
        let giver = Giver {
            options: self.options.clone(),
            sockets: self.sockets.clone(),
            desk: desk.clone(),
        };
        // A hand-over that has begun is led to its end: half of one would be none or two relays.
        let mut giving = self.tracker.spawn("relay: successors", give(giver, over.clone()));
        let serving = self.serve_control(&desk, over.clone());
        let mut serving = self.tracker.spawn("relay: control socket", serving);
        let late = async {
            self.shutdown.cancelled().await;
            tokio::time::sleep(LAST_ANSWERS).await;
        };
        let mut served = Ok(());
        let given = tokio::select! {
            given = &mut giving => Some(given),
            ended = &mut serving => {
                served = ended.unwrap_or(Ok(()));
                None
            }
            // A node process that does not read must not keep us.
            () = late => None,
        };
        over.cancel();
        let given = match given {
            Some(given) => given,
            None => giving.await,
        };
        // A panic there is the end of this relay.
        match given.ok().flatten() {
            Some(over) => Ok((desk, over)),
            None => {
                served?;
                Ok((desk, Over::Told))
            }
        }
    }

    fn announce(&self) {
        tracing::info!(
            hypervisor = %self.options.hypervisor_socket.display(),
            control = %self.options.control_socket.display(),
            epoch = self.hub.epoch,
            "relay serves"
        );
    }

    /// Goes on with what another relay has held.
    fn settle(&self, inherited: Inherited, desk: &Desk, over: &CancellationToken) {
        let Inherited { old, pods, agents, sessions, streams, talks, kins, wire, .. } = inherited;
        let counts = (pods.len(), agents.len(), talks.len());
        tracing::info!(
            from = old.epoch,
            build = old.build,
            pods = counts.0,
            agent_connections = counts.1 + streams.len(),
            sessions = sessions.len(),
            hypervisor_connections = counts.2,
            "taken over"
        );
        let mut stayed = Vec::new();
        for (told, bound, target) in pods {
            let path = bound.path().to_owned();
            let pod = Arc::new(Pod::new(told.sandbox.clone(), path, told.edit_methods));
            pod.restore(target, told.down);
            pod.restore_watch(told.watched, told.interruption.map(|said| *said));
            self.hub.add(pod.clone());
            self.hub.restore(&told.sandbox, told.spoken, told.idle_ms);
            if told.stayed > 0 {
                let connections = told.stayed;
                stayed.push(message::Stayed { sandbox: told.sandbox, connections });
            }
            pod.serve(bound, desk);
        }
        for (told, stream) in kins {
            let wire = super::handover::resume(stream, &told.wire.unwrap_or_default());
            let about = told.about.unwrap_or_default();
            self.kins.follow(desk, about, wire, &told.stayed, self.shutdown.clone());
        }
        self.kins.follow(desk, old, wire, &stayed, self.shutdown.clone());
        for (sandbox, session) in sessions {
            if let Some(pod) = self.hub.pod(&sandbox) {
                pod.session.inherit(session);
                pod.session.keep(&pod, desk);
            }
        }
        for (told, shim) in streams {
            if let Some(pod) = self.hub.pod(&told.sandbox) {
                pod.adopt_stream(shim, told.stream, desk);
            }
        }
        for (sandbox, shim) in agents {
            match self.hub.pod(&sandbox) {
                Some(pod) => pod.adopt(shim, None, desk),
                None => tracing::warn!(sandbox, "a connection without a pod is closed"),
            }
        }
        for (told, shim, node) in talks {
            let talk = Talk::restore(&self.hub, told, shim, node);
            lead(talk, desk, desk.gate.member(), over);
        }
    }

    /// Serves again the pods of which something is still here.
    async fn take_up(&self, desk: &Desk) {
        for pod in self.hub.pods() {
            match Bound::bind(&pod.path).await {
                Ok(bound) => pod.serve(bound, desk),
                Err(error) => tracing::warn!(sandbox = pod.sandbox, %error, "not served again"),
            }
        }
    }

    /// Another relay serves: pods go there, but for connections that cannot.
    pub(super) async fn leave_pods(&self) {
        let joined = self.hub.joined();
        for pod in self.hub.pods() {
            pod.moved().await;
            if !joined.contains_key(&pod.sandbox) {
                pod.close().await;
                self.hub.remove(&pod.sandbox);
            }
        }
    }

    fn serve_control(
        &self,
        desk: &Desk,
        over: CancellationToken,
    ) -> impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static {
        let service = control::Service {
            hub: self.hub.clone(),
            desk: desk.clone(),
            pods_dir: self.options.pods_dir.clone(),
            build: self.options.build.clone(),
            shutdown: over.clone(),
            changing: control::Changing::default(),
            configurations: self.configurations.clone(),
            kins: self.kins.clone(),
        };
        let api = RelayServer::new(service)
            .max_decoding_message_size(control::MAX_MESSAGE)
            .max_encoding_message_size(control::MAX_MESSAGE);
        let callers = Strangers::new(CALLERS);
        let accepting = (self.sockets.control.clone(), desk.clone(), desk.gate.member(), callers);
        let incoming = futures_util::stream::unfold(accepting, |mut from| async {
            let (socket, desk, member, callers) = &mut from;
            let node = accept(socket, desk, member).await?;
            let caller = Caller::new(node, callers.enter());
            Some((Ok::<Caller, std::io::Error>(caller), from))
        });
        tonic::transport::Server::builder()
            .add_service(api)
            .serve_with_incoming_shutdown(incoming.boxed(), over.cancelled_owned())
    }
}

/// The next peer, whom nobody else accepts; `None` once all has moved.
async fn accept(socket: &Bound, desk: &Desk, member: &mut Member) -> Option<UnixStream> {
    loop {
        tokio::select! {
            biased;
            () = member.frozen() => if member.park(Ok(None)).await {
                return None;
            },
            peer = socket.accept(desk.allowed, || desk.hub.counters.peers_refused.add(1)) => {
                return Some(peer);
            }
        }
    }
}

async fn accept_shims(socket: Arc<Bound>, desk: Desk, over: CancellationToken) {
    let mut member = desk.gate.member();
    let crowd = Crowd::new(SILENT, SHIMS);
    let accepting = async {
        while let Some(shim) = accept(&socket, &desk, &mut member).await {
            desk.hub.counters.hypervisor_accepted.add(1);
            lead(Talk::new(shim, crowd.enter()), &desk, desk.gate.member(), &over);
        }
    };
    over.run_until_cancelled(accepting).await;
}

fn lead(talk: Talk, desk: &Desk, member: Member, over: &CancellationToken) {
    let (hub, over) = (desk.hub.clone(), over.clone());
    // Boxed: see Pod::serve.
    let conversation = Box::pin(async move {
        tokio::select! {
            () = over.cancelled() => {}
            () = talk.lead(hub, member) => {}
        }
    });
    desk.tracker.spawn("relay: hypervisor connection", conversation);
}

/// Hands over to the first who may; `None` when this relay is to end.
async fn give(giver: Giver, over: CancellationToken) -> Option<Over> {
    let Giver { desk, sockets, .. } = &giver;
    loop {
        let refused = || desk.hub.counters.peers_refused.add(1);
        let accepted = over.run_until_cancelled(sockets.relay.accept(desk.allowed, refused)).await;
        match giver.hand_over(accepted?).await {
            Ok(successor) => return Some(Over::Successor(Box::new(successor))),
            Err(GiveError::Late) => return Some(Over::Late),
            Err(reason) => {
                REFUSED.say(|| tracing::warn!(%reason, "no hand-over; serving on"));
            }
        }
    }
}
