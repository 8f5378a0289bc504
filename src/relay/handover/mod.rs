//! One relay takes the place of another under running pods.
//!
//! ```text
//!   new                         old
//!    │──── relay.sock: Hello ────▶│ peer's user, program, version, paths      no ─▶ Refused
//!    │◀─── Welcome ───────────────│ freeze: everything stands still between two bytes
//!    │◀─── Sockets, Pod…, Agent…, Talk…, Kin…, All     descriptors by SCM_RIGHTS
//!    │ checks and prepares it all │                     whatever breaks up to here: old thaws,
//!    │──── Done ─────────────────▶│                     new drops its copies and asks again
//!    │ serves                     │ holds what cannot move, and the listeners unused
//!    │◀─── Left, LinkDown, Edit ──│
//!    │──── Close, Edited, End ───▶│ ends when it holds nothing more
//! ```
//!
//! The one moment that counts is when the new relay has sent Done. The old one can take its offer
//! back before that and only so: it shuts the connection down, after which Done cannot be sent, and
//! looks whether Done was in it already. So never do both serve, nor neither.
//!
//! | dies by kill -9 | then |
//! |---|---|
//! | new, before Done | old thaws: nobody has noticed |
//! | old, before Done | new begins anew; the pods have lost their relay, as in any such death |
//! | old, later | connections that stayed with it end, all others go on |
//! | new, later, while old still lives | old serves again; what had moved is lost, what stayed goes on |
//!
//! What cannot move is a shim's connection that is joined to its VM by bytes over TLS. It stays
//! until it ends, or until the old relay is told to end (SIGTERM, or End when its successor ends in
//! order) and its time for that is over. The node process sees only the newest relay, which speaks
//! for all older ones behind it.

mod check;
mod give;
mod kin;
pub(super) mod message;
mod stay;
mod take;
mod wire;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::net::UnixStream;

pub(super) use give::{GiveError, Giver, Successor};
pub(super) use kin::{Kins, resume};
pub(super) use stay::{Stayed, stay};
pub use take::TakeError;
pub(super) use take::{Inherited, take_over};
pub(super) use wire::flush;

use super::RelayOptions;
use super::sockets::{Bound, SocketError};

/// Something that moves: a message and its descriptors.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) say: message::Say,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// The sockets of a relay that are no pod's.
#[derive(Clone, Debug)]
pub(super) struct Sockets {
    /// Where another relay asks. Bound first: of two relays that start at once, one finds the other.
    pub(super) relay: Arc<Bound>,
    pub(super) control: Arc<Bound>,
    pub(super) hypervisor: Arc<Bound>,
}

impl Sockets {
    /// Serves all three anew.
    pub(super) async fn bind(options: &RelayOptions) -> Result<Self, SocketError> {
        let relay = Arc::new(Bound::bind(&options.relay_socket).await?);
        let control = Arc::new(Bound::bind(&options.control_socket).await?);
        let hypervisor = Arc::new(Bound::bind(&options.hypervisor_socket).await?);
        Ok(Self { relay, control, hypervisor })
    }

    fn all(&self) -> [&Bound; 3] {
        [&self.relay, &self.control, &self.hypervisor]
    }

    pub(super) fn own(&self) {
        self.all().into_iter().for_each(Bound::own);
    }

    pub(super) fn disown(&self) {
        self.all().into_iter().for_each(Bound::disown);
    }
}

/// A stream that another process has held.
fn stream(descriptor: OwnedFd) -> std::io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(descriptor);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Whoever speaks the language of relays in a test.
#[cfg(test)]
pub(super) struct Stranger(wire::Wire);

#[cfg(test)]
impl Stranger {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(wire::Wire::new(stream))
    }

    pub(super) async fn connect(path: &std::path::Path) -> Self {
        Self::new(UnixStream::connect(path).await.expect("connect"))
    }

    pub(super) async fn say(&mut self, say: message::Say) {
        self.give(say, &[]).await;
    }

    pub(super) async fn give(&mut self, say: message::Say, with: &[std::os::fd::BorrowedFd<'_>]) {
        self.0.send(say, with).await.expect("send");
    }

    /// In one piece.
    pub(super) async fn say_at_once(&mut self, all: &[message::Say]) {
        for say in all {
            wire::put(&mut self.0.out, say.clone(), 0);
        }
        flush(&self.0.stream, &mut self.0.out).await.expect("send");
    }

    /// Descriptors are dropped.
    pub(super) async fn hear(&mut self) -> Option<message::Say> {
        self.0.recv(wire::LARGEST).await.expect("receive").and_then(|(say, _)| say)
    }
}
