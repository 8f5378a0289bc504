//! The limit of stream throughput: two processes that move bytes with rustls between them and know
//! nothing of what they move.
//!
//! ```text
//!   client ─unix─▶ near ═TLS═▶ far ─unix─▶ agent
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::material::Material;
use crate::program::end_with_stdin;

/// What §5.3 of the measured facts used for its best byte relay.
const BUFFER: usize = 64 << 10;

/// The worker's process.
pub(crate) async fn near(socket: &Path, to: SocketAddr, tls: &Path) -> anyhow::Result<()> {
    let client = Material::read(tls)?.client();
    let (connector, name) = (TlsConnector::from(client.config()?), client.name()?);
    let listener = UnixListener::bind(socket).context("listening for the client")?;
    tokio::spawn(leave_with_stdin());
    loop {
        let (here, _) = listener.accept().await?;
        let (connector, name) = (connector.clone(), name.clone());
        tokio::spawn(async move {
            let tcp = TcpStream::connect(to).await?;
            tcp.set_nodelay(true)?;
            relay(here, connector.connect(name, tcp).await?).await
        });
    }
}

/// The VM's process.
pub(crate) async fn far(listen: SocketAddr, to: PathBuf, tls: &Path) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(Material::read(tls)?.issued().server()?);
    let listener = TcpListener::bind(listen).await.context("listening for near")?;
    tokio::spawn(leave_with_stdin());
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let (acceptor, to) = (acceptor.clone(), to.clone());
        tokio::spawn(async move {
            relay(UnixStream::connect(to).await?, acceptor.accept(tcp).await?).await
        });
    }
}

async fn relay<A, B>(mut a: A, mut b: B) -> std::io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER, BUFFER).await.map(drop)
}

async fn leave_with_stdin() {
    end_with_stdin().await;
    std::process::exit(0);
}
