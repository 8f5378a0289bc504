//! One connection to the forwarder in a VM: TCP, and TLS over it unless that is turned off.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use peerpod_tunnel::link::ahead::Ahead;
use peerpod_tunnel::link::session::ALPN;
use peerpod_tunnel::link::tls::{ClientTls, TlsError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// Longest time for TCP and TLS together. A SYN lost while the VM boots is repeated by the kernel
/// after 1 s, so a second one fits in; later ones would only make the caller wait.
const DIAL: Duration = Duration::from_secs(3);
/// Keepalive probes that may stay unanswered.
const PROBES: u32 = 3;

/// Where a pod's VM is and how to speak to it.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    tls: Option<Security>,
    /// How long a break may last.
    pub(super) give_up: Duration,
}

#[derive(Debug)]
struct Security {
    shared: Arc<Shared>,
    name: ServerName<'static>,
}

/// What the pods of a node have in common, which is all but the VM's name.
#[derive(Debug)]
struct Shared {
    /// Without a name.
    given: ClientTls,
    config: Arc<ClientConfig>,
}

/// Configurations in use, so that pods share them.
#[derive(Debug, Default)]
pub(super) struct Configurations(Mutex<Vec<Weak<Shared>>>);

impl Configurations {
    fn get(&self, given: ClientTls) -> Result<Arc<Shared>, TlsError> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        if let Some(known) = all.iter().filter_map(Weak::upgrade).find(|k| k.given == given) {
            return Ok(known);
        }
        let shared = Arc::new(Shared { config: given.config_offering(&[ALPN])?, given });
        all.push(Arc::downgrade(&shared));
        Ok(shared)
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DialError {
    /// TCP does not come about, or nothing comes back.
    #[error("{0}")]
    Unreachable(String),
    /// The other side is not who it should be, or refuses us.
    #[error("{0}")]
    Tls(String),
}

impl Target {
    /// Checks the TLS settings.
    pub(super) fn new(
        address: SocketAddr,
        tls: Option<ClientTls>,
        give_up: Duration,
        known: &Configurations,
    ) -> Result<Self, TlsError> {
        let secure = |mut given: ClientTls| -> Result<_, TlsError> {
            let name = given.name()?;
            given.server_name.clear();
            Ok(Security { shared: known.get(given)?, name })
        };
        Ok(Self { address, tls: tls.map(secure).transpose()?, give_up })
    }

    /// Whether connecting to `other` would be the same.
    pub(super) fn same(&self, other: &Self) -> bool {
        let tls = match (&self.tls, &other.tls) {
            (None, None) => true,
            // Equal ones are shared.
            (Some(a), Some(b)) => a.name == b.name && Arc::ptr_eq(&a.shared, &b.shared),
            _ => false,
        };
        tls && self.address == other.address && self.give_up == other.give_up
    }

    /// The TLS settings it was made from.
    pub(super) fn tls(&self) -> Option<ClientTls> {
        let Security { shared, name } = self.tls.as_ref()?;
        Some(ClientTls { server_name: name.to_str().into_owned(), ..shared.given.clone() })
    }

    /// One attempt, at most [`DIAL`] long.
    pub(super) async fn dial(&self) -> Result<Link, DialError> {
        let until = tokio::time::Instant::now() + DIAL;
        let unreachable = |what: &str| DialError::Unreachable(format!("{}: {what}", self.address));
        let tcp = match tokio::time::timeout_at(until, self.tcp()).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(e)) => return Err(unreachable(&e.to_string())),
            Err(_) => return Err(unreachable(&format!("no answer within {DIAL:?}"))),
        };
        let Some(security) = &self.tls else { return Ok(Link::Plain(tcp)) };
        let connector = tokio_rustls::TlsConnector::from(security.shared.config.clone());
        let shake = connector.connect(security.name.clone(), Ahead::new(tcp));
        match tokio::time::timeout_at(until, shake).await {
            Ok(Ok(tls)) => Ok(Link::Tls(Box::new(tls))),
            // What rustls itself objects to comes as InvalidData.
            Ok(Err(e)) if e.kind() == io::ErrorKind::InvalidData => {
                Err(DialError::Tls(format!("{}: {e}", self.address)))
            }
            Ok(Err(e)) => Err(unreachable(&format!("connected, but TLS broke off: {e}"))),
            Err(_) => Err(unreachable("connected, but no answer in TLS in time")),
        }
    }

    async fn tcp(&self) -> io::Result<TcpStream> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        let seconds = |d: Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX).max(1);
        let ms = u32::try_from(self.give_up.as_millis()).unwrap_or(u32::MAX);
        socket.set_nodelay(true)?;
        setsockopt(&socket, sockopt::KeepAlive, &true)?;
        setsockopt(&socket, sockopt::TcpKeepIdle, &seconds(self.give_up / 2))?;
        setsockopt(&socket, sockopt::TcpKeepInterval, &seconds(self.give_up / 2 / PROBES))?;
        setsockopt(&socket, sockopt::TcpKeepCount, &PROBES)?;
        setsockopt(&socket, sockopt::TcpUserTimeout, &ms)?;
        socket.connect(self.address).await
    }
}

/// A standing connection.
#[derive(Debug)]
pub(super) enum Link {
    Plain(TcpStream),
    Tls(Box<TlsStream<Ahead<TcpStream>>>),
}

impl Link {
    /// Whether the VM has chosen a resumable session in TLS.
    pub(super) fn is_resumable(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(ALPN),
        }
    }

    /// Whether it can still be used. A forwarder says nothing before it is spoken to, so whatever
    /// there is to read on an unused connection (an alert, an end) is a reason not to use it.
    pub(super) async fn is_fresh(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        std::future::poll_fn(|cx| {
            Poll::Ready(Pin::new(&mut *self).poll_read(cx, &mut buffer).is_pending())
        })
        .await
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_write(cx, bytes),
        }
    }

    /// The session's frames are in pieces: each would become a record and a packet of its own.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, pieces),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
        }
    }
}
