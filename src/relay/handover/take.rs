//! The new relay's side: asks, checks and prepares all it is given, and says that it serves.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use peerpod_tunnel::link::session::{Export, Link as Session};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::message::{self, About, Empty, Hello, Say, VERSION};
use super::wire::{LARGEST, Wire, WireError};
use super::{Sockets, stream};
use crate::relay::RelayOptions;
use crate::relay::control;
use crate::relay::link::{Configurations, Target};
use crate::relay::sockets::{Allowed, Bound};
use crate::request::SandboxId;

/// The old relay may be busy with another one that asks.
const ANSWER: Duration = Duration::from_secs(30);

/// Why nothing was taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The old relay says no, or what it gives cannot be used; it serves on.
    #[error("{0}")]
    Refused(String),
    /// It has gone in the middle, or has taken its offer back. Worth another try.
    #[error("broken off: {0}")]
    Broken(String),
}

impl From<WireError> for TakeError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Io(e) => Self::Broken(e.to_string()),
            other => Self::Refused(other.to_string()),
        }
    }
}

impl From<io::Error> for TakeError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// All that another relay has held.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) old: About,
    pub(crate) sockets: Sockets,
    pub(crate) pods: Vec<(message::Pod, Bound, Option<Target>)>,
    pub(crate) agents: Vec<(String, UnixStream)>,
    pub(crate) sessions: Vec<(String, Session)>,
    pub(crate) streams: Vec<(message::Stream, UnixStream)>,
    pub(crate) talks: Vec<(message::Talk, UnixStream, Option<UnixStream>)>,
    pub(crate) kins: Vec<(message::Kin, UnixStream)>,
    pub(crate) wire: Wire,
}

/// Asks the relay that serves, if there is one. Everything is this process's once this returns.
///
/// # Errors
/// When it does not come to that; nothing is served then.
pub(crate) async fn take_over(
    options: &RelayOptions,
    known: &Configurations,
) -> Result<Option<Inherited>, TakeError> {
    let Ok(asked) = UnixStream::connect(&options.relay_socket).await else { return Ok(None) };
    let peer = asked.peer_cred()?;
    if !Allowed(options.allowed_uid).admits(peer.uid()) {
        let path = options.relay_socket.display();
        return Err(TakeError::Refused(format!("{path} is served by user {}", peer.uid())));
    }
    let mut wire = Wire::new(asked);
    let taking = async {
        let old = greet(options, &mut wire).await?;
        collect(options, known, &mut wire, old).await
    };
    let taken = timeout(ANSWER, taking).await;
    let mut found = taken.map_err(|_| late())??;
    wire.send(Say::Done(Empty {}), &[]).await?;
    // From here on this process serves.
    let sockets = found.sockets.take().ok_or_else(|| missing("Sockets"))?;
    sockets.own();
    found.pods.iter().for_each(|(_, bound, _)| bound.own());
    let Found { old, pods, agents, sessions, streams, talks, kins, .. } = found;
    Ok(Some(Inherited { old, sockets, pods, agents, sessions, streams, talks, kins, wire }))
}

fn late() -> TakeError {
    TakeError::Broken(format!("the relay that serves has not answered within {ANSWER:?}"))
}

fn missing(what: &str) -> TakeError {
    TakeError::Refused(format!("the old relay's offer lacks {what}"))
}

async fn greet(options: &RelayOptions, wire: &mut Wire) -> Result<About, TakeError> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let hello = Hello {
        version: VERSION,
        oldest: message::oldest(),
        build: options.build.clone(),
        hypervisor: text(&options.hypervisor_socket),
        control: text(&options.control_socket),
        pods_dir: text(&options.pods_dir),
    };
    // One that refuses us unheard may have said why before it closed.
    let _ = wire.send(Say::Hello(hello), &[]).await;
    match wire.recv(LARGEST).await? {
        Some((Some(Say::Welcome(welcome)), _)) => welcome.about.ok_or_else(|| missing("About")),
        Some((Some(Say::Refused(why)), _)) => Err(TakeError::Refused(why)),
        Some(_) => Err(TakeError::Refused("its first word is not Welcome".to_owned())),
        None => Err(TakeError::Broken("it has closed without a word".to_owned())),
    }
}

#[derive(Debug, Default)]
struct Found {
    old: About,
    sockets: Option<Sockets>,
    pods: Vec<(message::Pod, Bound, Option<Target>)>,
    agents: Vec<(String, UnixStream)>,
    sessions: Vec<(String, Session)>,
    streams: Vec<(message::Stream, UnixStream)>,
    talks: Vec<(message::Talk, UnixStream, Option<UnixStream>)>,
    kins: Vec<(message::Kin, UnixStream)>,
}

async fn collect(
    options: &RelayOptions,
    known: &Configurations,
    wire: &mut Wire,
    old: About,
) -> Result<Found, TakeError> {
    let mut found = Found { old, ..Found::default() };
    let mut count = 0;
    loop {
        let Some((say, descriptors)) = wire.recv(LARGEST).await? else {
            return Err(TakeError::Broken("it has gone in the middle".to_owned()));
        };
        match say {
            Some(Say::All(all)) if all == count && found.sockets.is_some() => return Ok(found),
            Some(Say::All(all)) => return Err(missing(&format!("{all} parts, {count} came"))),
            Some(Say::Refused(why)) => return Err(TakeError::Refused(why)),
            Some(say) => found.take(options, known, say, descriptors)?,
            None => return Err(TakeError::Refused("a part that is not known here".to_owned())),
        }
        count += 1;
    }
}

impl Found {
    fn take(
        &mut self,
        options: &RelayOptions,
        known: &Configurations,
        say: Say,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), TakeError> {
        let mut descriptors = descriptors.into_iter();
        let mut next = |what| descriptors.next().ok_or_else(|| missing(what));
        match say {
            Say::Sockets(told) => {
                let [relay, control, hypervisor] = told.files[..] else {
                    return Err(missing("a socket's file"));
                };
                let mut one = |path: &Path, file| adopt(next("a listener")?, path, Some(file));
                self.sockets = Some(Sockets {
                    relay: Arc::new(one(&options.relay_socket, relay)?),
                    control: Arc::new(one(&options.control_socket, control)?),
                    hypervisor: Arc::new(one(&options.hypervisor_socket, hypervisor)?),
                });
            }
            Say::Pod(told) => {
                check_pod(options, &told)?;
                let bound = adopt(next("a pod's listener")?, Path::new(&told.path), told.file)?;
                let target = told.target.clone().map(|target| control::target(target, known));
                let target = target.transpose().map_err(|e| {
                    TakeError::Refused(format!("pod {}: {}", told.sandbox, e.message()))
                })?;
                self.pods.push((told, bound, target));
            }
            Say::Session(told) => {
                let export = Export::from_bytes(told.export.to_vec());
                let session = Session::import(&export)
                    .map_err(|e| TakeError::Refused(format!("pod {}: {e}", told.sandbox)))?;
                self.sessions.push((told.sandbox, session));
            }
            Say::Stream(told) => self.streams.push((told, stream(next("a stream's shim")?)?)),
            Say::Agent(sandbox) => self.agents.push((sandbox, stream(next("a connection")?)?)),
            Say::Talk(told) => {
                let shim = stream(next("a shim's connection")?)?;
                let node = match told.node {
                    Some(_) => Some(stream(next("a node's connection")?)?),
                    None => None,
                };
                self.talks.push((told, shim, node));
            }
            Say::Kin(told) => self.kins.push((told, stream(next("an older relay")?)?)),
            other => return Err(TakeError::Refused(format!("not now: {other:?}"))),
        }
        Ok(())
    }
}

fn adopt(listener: OwnedFd, path: &Path, file: Option<message::File>) -> Result<Bound, TakeError> {
    let file = file.ok_or_else(|| missing("a socket's file"))?;
    Bound::adopt(listener, path, (file.device, file.inode))
        .map_err(|e| TakeError::Refused(format!("{}: {e}", path.display())))
}

fn check_pod(options: &RelayOptions, pod: &message::Pod) -> Result<(), TakeError> {
    let inside = SandboxId::parse(&pod.sandbox).is_ok()
        && Path::new(&pod.path).parent() == Some(&*options.pods_dir.join(&pod.sandbox));
    if inside {
        return Ok(());
    }
    Err(TakeError::Refused(format!("pod {:?} has the path {:?}", pod.sandbox, pod.path)))
}
