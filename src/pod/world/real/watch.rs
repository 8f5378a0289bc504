//! Waits for changes that others make to a tunnel's filters. The host's filter has one socket for all
//! pods, which whoever waits reads for everybody; each pod's filter has its own.

use std::sync::Arc;

use async_trait::async_trait;
use peerpod_tunnel::network::{self, Tunnel};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, OnceCell, watch};

use super::{NetworkError, apart};
use crate::pod::world::Watch;

/// The host's filter. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Watches(Arc<OnceCell<Arc<Host>>>);

#[derive(Debug)]
struct Host {
    socket: Mutex<AsyncFd<network::Watch>>,
    told: watch::Sender<()>,
}

impl Watches {
    /// From now on, of both filters of a tunnel.
    pub(super) async fn begin(&self, tunnel: &Tunnel) -> Result<Box<dyn Watch>, NetworkError> {
        let host = Arc::clone(self.0.get_or_try_init(Host::new).await?);
        let told = host.told.subscribe();
        let tunnel = tunnel.clone();
        let pod = apart("watch", move || network::Watch::pod(&tunnel)).await?;
        Ok(Box::new(Both { host, told, pod: readable(pod)? }))
    }
}

impl Host {
    async fn new() -> Result<Arc<Self>, NetworkError> {
        // On a thread for blocking work, which stands in the worker's namespace.
        let socket = apart("watch", network::Watch::host).await?;
        let (told, _) = watch::channel(());
        Ok(Arc::new(Self { socket: Mutex::new(readable(socket)?), told }))
    }
}

fn readable(socket: network::Watch) -> Result<AsyncFd<network::Watch>, NetworkError> {
    // SAFETY: it owns its descriptor, gives no other, and stays within until both are dropped.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    socket.map_err(|e| NetworkError::Watch(e.into()))
}

/// A tunnel's filters.
#[derive(Debug)]
struct Both {
    host: Arc<Host>,
    told: watch::Receiver<()>,
    pod: AsyncFd<network::Watch>,
}

#[async_trait]
impl Watch for Both {
    async fn altered(&mut self) {
        tokio::select! {
            // The sender lives as long as this.
            _ = self.told.changed() => {}
            () = of_host(&self.host) => {}
            () = of(&self.pod) => {}
        }
    }
}

/// Reads for all who wait; only one can at a time.
async fn of_host(host: &Host) {
    let socket = host.socket.lock().await;
    of(&socket).await;
    host.told.send_replace(());
}

/// Until a change is told. A socket that fails tells nothing more: the looks from time to time remain.
async fn of(socket: &AsyncFd<network::Watch>) {
    while let Ok(mut ready) = socket.readable().await {
        match socket.get_ref().altered() {
            Ok(true) => return,
            Ok(false) => ready.clear_ready(),
            Err(_) => break,
        }
    }
    std::future::pending().await
}
