//! A VM that is only its forwarder's port: TLS, and an empty answer to every ttrpc request. For the
//! rows in which the VM is not what is measured.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use peerpod_netlink::Netns;
use peerpod_tunnel::link::frame::{FrameReader, Kind, Response};
use peerpod_tunnel::link::session::{ALPN, Owner, Sessions, Stream};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use crate::instant;

/// Which program is in the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forwarder {
    /// Ours: it speaks `peerpod-link/1`.
    Ours,
    /// Upstream's: plain bytes over TLS, one connection for each of the shim's.
    Upstream,
}

/// Listens there, in that namespace. From its return on the kernel accepts connections.
pub(crate) fn listen(netns: &Netns, at: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = netns.run(|| Ok::<_, peerpod_netlink::Error>(TcpListener::bind(at)))??;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers on the listener until the runtime ends.
pub(crate) fn serve(
    on: &Handle,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
) -> anyhow::Result<()> {
    let _runtime = on.enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let acceptor = TlsAcceptor::from(tls);
    on.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(acceptor.clone(), stream));
        }
    });
    Ok(())
}

/// Answers as the VM whose name the worker asks for: each has the certificate that it was told by
/// the provider (see `instant.rs`).
pub(crate) fn serve_by_name(
    on: &Handle,
    listener: TcpListener,
    told: PathBuf,
    forwarder: Forwarder,
) -> anyhow::Result<()> {
    let _runtime = on.enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    on.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_by_name(told.clone(), stream, forwarder));
        }
    });
    Ok(())
}

async fn answer_by_name(
    told: PathBuf,
    stream: TcpStream,
    forwarder: Forwarder,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let name = hello.client_hello().server_name().context("no name asked for")?.to_owned();
    let offered: &[&[u8]] = if forwarder == Forwarder::Ours { &[ALPN] } else { &[] };
    let config = instant::told(&told, &name)?.issued.server_offering(offered)?;
    let tls = hello.into_stream(config).await?;
    if tls.get_ref().1.alpn_protocol() == Some(ALPN) {
        // No link breaks here, so each session has its own list.
        let opened = |stream: Stream| drop(tokio::spawn(answer_calls(stream)));
        Sessions::new("bench VM").serve(tls, &Owner::of(None), opened).await;
    } else {
        answer_calls(tls).await;
    }
    Ok(())
}

/// A probe that goes away in the middle is nobody's fault, so nothing is said of errors.
async fn answer(acceptor: TlsAcceptor, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    if let Ok(stream) = acceptor.accept(stream).await {
        answer_calls(stream).await;
    }
}

async fn answer_calls<S: AsyncRead + AsyncWrite>(stream: S) {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = FrameReader::new(reader, None);
    while let Ok(Some(frame)) = reader.next().await {
        if frame.kind != Kind::Request {
            continue;
        }
        let response = Response::default().frame(frame.stream);
        if response.write(&mut writer).await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}
