//! Notices at once when somebody else changes a filter of ours: of the host's namespace or of a pod's.

use std::os::fd::{AsRawFd, RawFd};

use peerpod_netlink::{Error, nft};

use super::{Tunnel, TunnelError, guard, pin};

/// Hears of changes in one namespace. Reading it never waits; its descriptor becomes readable.
#[derive(Debug)]
pub struct Watch {
    socket: nft::Watch,
    table: &'static str,
}

impl Watch {
    /// Of the source filter, in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn host() -> Result<Self, TunnelError> {
        Ok(Self { socket: nft::Watch::here()?, table: guard::TABLE.name })
    }

    /// Of the filter in the pod's namespace, which lives as long as this.
    ///
    /// # Errors
    /// When the namespace has gone or the kernel refuses.
    pub fn pod(tunnel: &Tunnel) -> Result<Self, TunnelError> {
        let socket = tunnel.open()?.run(nft::Watch::here)?;
        Ok(Self { socket, table: pin::TABLE.name })
    }

    /// Whether another process has changed the filter since the last question.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn altered(&self) -> Result<bool, Error> {
        self.socket.changed(self.table)
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
