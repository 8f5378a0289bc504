//! The old relay's side, up to the moment at which the new one serves.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::socket::{Shutdown, shutdown};
use peerpod_tunnel::link::session::Export;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::message::{self, About, File, Hello, Say, Welcome};
use super::wire::{LARGEST, Wire, WireError};
use super::{Sockets, check};
use crate::proto::relay as proto;
use crate::relay::RelayOptions;
use crate::relay::client::tls_message;
use crate::relay::gate::Frozen;
use crate::relay::pod::{Desk, Pod};

/// How long the first message may take, and how large it may be.
const HELLO: (Duration, usize) = (Duration::from_secs(5), 4 << 10);
/// How long calls that are under way may take.
const FREEZE: Duration = Duration::from_secs(3);
/// How long it may take until the new relay serves; meanwhile nobody does.
const OFFER: Duration = Duration::from_secs(10);

/// Why the old relay goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GiveError {
    /// Whoever asks must not.
    #[error("refused: {0}")]
    Refused(String),
    /// The one who asked does not finish.
    #[error("broken off: {0}")]
    Broken(String),
    /// It has finished when it was given up: the only case in which this relay must not go on.
    #[error("the new relay has finished too late")]
    Late,
}

impl From<WireError> for GiveError {
    fn from(error: WireError) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<std::io::Error> for GiveError {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// What is handed over, besides what stands in the tasks.
#[derive(Clone, Debug)]
pub(crate) struct Giver {
    pub(crate) options: Arc<RelayOptions>,
    pub(crate) sockets: Sockets,
    pub(crate) desk: Desk,
}

/// The new relay, which serves.
#[derive(Debug)]
pub(crate) struct Successor {
    pub(super) wire: Wire,
    /// Ends of connections that stayed behind.
    pub(super) left: mpsc::UnboundedReceiver<String>,
    pub(crate) build: String,
}

impl Giver {
    /// Hands everything over to whoever asks, if it may.
    ///
    /// # Errors
    /// Why it did not come to that; but for `Late`, this relay goes on as before.
    pub(crate) async fn hand_over(&self, stream: UnixStream) -> Result<Successor, GiveError> {
        let stranger = check::program(&stream);
        let mut wire = Wire::new(stream);
        let hello = match stranger {
            Ok(()) => self.hello(&mut wire).await,
            Err(why) => Err(GiveError::Refused(why)),
        };
        let hello = match hello {
            Ok(hello) => hello,
            Err(e) => {
                if let GiveError::Refused(why) = &e {
                    // Best effort: it may have gone.
                    let _ = timeout(HELLO.0, wire.send(Say::Refused(why.clone()), &[])).await;
                }
                return Err(e);
            }
        };
        let frozen = match self.desk.gate.freeze(FREEZE).await {
            Ok(frozen) => frozen,
            Err(why) => {
                let busy = format!("not now: {why}");
                let _ = timeout(HELLO.0, wire.send(Say::Refused(busy.clone()), &[])).await;
                return Err(GiveError::Broken(busy));
            }
        };
        let (stayed, left) = self.desk.hub.stay();
        let mut sessions = Vec::new();
        let offered = async {
            self.offer(&mut wire, &frozen, &stayed, &mut sessions).await?;
            done(&mut wire).await
        };
        let offered = timeout(OFFER, offered).await;
        let given = offered.unwrap_or_else(|_| Err(GiveError::Broken(format!("{OFFER:?} over"))));
        if let Err(why) = given {
            if take_back(&mut wire) {
                self.sockets.disown();
                frozen.moved();
                return Err(GiveError::Late);
            }
            for (pod, export) in sessions {
                if let Err(error) = pod.session.import(&export) {
                    tracing::error!(sandbox = pod.sandbox, %error, "its session is lost");
                }
            }
            return Err(why);
        }
        self.sockets.disown();
        frozen.moved();
        Ok(Successor { wire, left, build: hello.build })
    }

    async fn hello(&self, wire: &mut Wire) -> Result<Hello, GiveError> {
        let first = timeout(HELLO.0, wire.recv(HELLO.1)).await;
        let first = first.map_err(|_| GiveError::Refused("no Hello came".to_owned()))??;
        let Some((Some(Say::Hello(hello)), _)) = first else {
            return Err(GiveError::Refused("the first message must be Hello".to_owned()));
        };
        let version = check::hello(&self.options, &hello).map_err(GiveError::Refused)?;
        let about = About {
            epoch: self.desk.hub.epoch,
            build: self.options.build.clone(),
            pid: std::process::id(),
        };
        wire.send(Say::Welcome(Welcome { version, about: Some(about) }), &[]).await?;
        Ok(hello)
    }

    async fn offer(
        &self,
        wire: &mut Wire,
        frozen: &Frozen,
        stayed: &std::collections::BTreeMap<String, u32>,
        sessions: &mut Vec<(Arc<Pod>, Export)>,
    ) -> Result<(), GiveError> {
        let sockets = self.sockets.all();
        let files = sockets.map(|bound| file(bound.identity())).to_vec();
        let [relay, control, hypervisor] = sockets;
        let copies = [relay.copy()?, control.copy()?, hypervisor.copy()?];
        let with = [copies[0].as_fd(), copies[1].as_fd(), copies[2].as_fd()];
        wire.send(Say::Sockets(message::Sockets { files }), &with).await?;
        let mut count = 1;
        for pod in self.desk.hub.pods() {
            let Some(bound) = pod.bound() else { continue };
            let mut told = self.pod(&pod);
            told.file = Some(file(bound.identity()));
            told.stayed = stayed.get(&pod.sandbox).copied().unwrap_or_default();
            wire.send(Say::Pod(told), &[bound.copy()?.as_fd()]).await?;
            count += 1;
            if pod.edit_methods.is_empty()
                && let Some(export) = pod.session.export()
            {
                let bytes = Bytes::copy_from_slice(export.as_bytes());
                sessions.push((pod.clone(), export));
                let session = message::Session { sandbox: pod.sandbox.clone(), export: bytes };
                wire.send(Say::Session(session), &[]).await?;
                count += 1;
            }
        }
        for part in frozen.parts() {
            let with: Vec<_> = part.descriptors.iter().map(AsFd::as_fd).collect();
            wire.send(part.say, &with).await?;
            count += 1;
        }
        Ok(wire.send(Say::All(count), &[]).await?)
    }

    fn pod(&self, pod: &Pod) -> message::Pod {
        let target = pod.target().map(|target| proto::ConnectRequest {
            sandbox: pod.sandbox.clone(),
            target: target.address.to_string(),
            tls: target.tls().as_ref().map(tls_message),
            give_up_ms: u32::try_from(target.give_up.as_millis()).unwrap_or(u32::MAX),
        });
        let (_, _, idle_ms) = self.desk.hub.presence(&pod.sandbox);
        message::Pod {
            sandbox: pod.sandbox.clone(),
            path: pod.path.to_string_lossy().into_owned(),
            edit_methods: pod.edit_methods.clone(),
            target,
            file: None,
            spoken: self.desk.hub.has_spoken(&pod.sandbox),
            idle_ms,
            stayed: 0,
            down: pod.down(),
            watched: pod.session.is_watched(),
            interruption: pod.interruption().map(Box::new),
        }
    }
}

fn file((device, inode): (u64, u64)) -> File {
    File { device, inode }
}

/// Waits until the new relay serves.
async fn done(wire: &mut Wire) -> Result<(), GiveError> {
    match wire.recv(LARGEST).await? {
        Some((Some(Say::Done(_)), _)) => Ok(()),
        Some((Some(Say::Refused(why)), _)) => Err(GiveError::Broken(why)),
        Some(_) => Err(GiveError::Broken("something else than Done came".to_owned())),
        None => Err(GiveError::Broken("the new relay has gone".to_owned())),
    }
}

/// After this the new relay cannot say any more that it serves. True if it already has.
fn take_back(wire: &mut Wire) -> bool {
    // One that has gone cannot be shut out, and need not be.
    let _ = shutdown(wire.stream.as_raw_fd(), Shutdown::Both);
    let done = |say: &Option<Say>| matches!(say, Some(Say::Done(_)));
    while let Some((say, _)) = wire.inbox.rest(&wire.stream) {
        if done(&say) {
            return true;
        }
    }
    false
}
