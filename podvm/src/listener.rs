//! The forwarder's socket. It listens before there is anything to serve with: a worker that looks in
//! the meantime waits in the kernel's queue and is answered at the very moment at which the forwarder
//! serves, instead of with its next probe.
//!
//! ```text
//!   systemd's (podvm.socket) ─▶ or our own, at start ─▶ or our own, once the network stands
//! ```

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{FromRawFd, OwnedFd};

use podvm::contract::FORWARDER_PORT;
use tokio::net::TcpListener;

/// Why nobody can come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("listening on {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("the socket that the service manager has given: {0}")]
    Given(std::io::Error),
}

/// A socket at the start of the process; `None` where the address may come with the VM's network.
///
/// # Errors
/// When the service manager has given something else than a socket.
pub(crate) async fn early(address: Option<SocketAddr>) -> Result<Option<TcpListener>, ListenError> {
    let listener = match given().map_err(ListenError::Given)? {
        Some(listener) => listener,
        None => match listen(address).await {
            Ok(listener) => listener,
            // What is wrong with it is said then.
            Err(error) => {
                tracing::debug!("not yet: {error}");
                return Ok(None);
            }
        },
    };
    tracing::info!(address = %name(&listener), "listening; who comes early waits");
    Ok(Some(listener))
}

/// The first socket of the service manager, by its protocol.
fn given() -> std::io::Result<Option<TcpListener>> {
    let Some(fd) = sd_notify::listen_fds()?.next() else { return Ok(None) };
    // SAFETY: the protocol says that it is open and that it is ours; this is called once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let listener = std::net::TcpListener::from(fd);
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).map(Some)
}

/// Where it listens, for people.
pub(crate) fn name(listener: &TcpListener) -> String {
    listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
}

/// `None` is port 15150 of every address: IPv6's any-address takes IPv4 too; a kernel without IPv6 gets
/// the other one.
///
/// # Errors
/// When the address cannot be had.
pub(crate) async fn listen(address: Option<SocketAddr>) -> Result<TcpListener, ListenError> {
    let bind = async |address: SocketAddr| {
        let listener = TcpListener::bind(address).await;
        listener.map_err(|source| ListenError::Bind { address, source })
    };
    match address {
        Some(address) => bind(address).await,
        None => match bind((Ipv6Addr::UNSPECIFIED, FORWARDER_PORT).into()).await {
            Err(ListenError::Bind { source, .. })
                if source.kind() != std::io::ErrorKind::AddrInUse =>
            {
                bind((Ipv4Addr::UNSPECIFIED, FORWARDER_PORT).into()).await
            }
            other => other,
        },
    }
}
