//! Files for a VM, over the control stream of a session of their own: the relay's begins when the VM has all
//! it needs.

use std::time::Duration;

use peerpod_tunnel::link::session::{ALPN, DeliverError, Ended, Link, Over, Refusal};
use peerpod_tunnel::link::tls::ClientTls;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::plan::FollowFile;
use crate::pod::world::{Stage, Undelivered, Unready};

/// Who we are, for VMs.
const BUILD: &str = concat!("peerpodd ", env!("CARGO_PKG_VERSION"));
/// How long the VM keeps the session after a break: it is not taken up again.
const KEEP: Duration = Duration::from_secs(5);
/// How long the word that the session is over may take.
const FAREWELL: Duration = Duration::from_millis(500);

fn refused(why: impl Into<String>) -> Undelivered {
    Undelivered::Refused(why.into())
}

fn unready(stage: Stage, reason: String) -> Undelivered {
    Undelivered::Unready(Unready { stage, reason })
}

/// See [`crate::pod::world::Door::deliver`].
pub(super) async fn deliver(
    stream: TcpStream,
    tls: Option<&ClientTls>,
    files: &[FollowFile],
    bound: Duration,
) -> Result<(), Undelivered> {
    let tls = tls.ok_or_else(|| refused("without TLS its link is a plain one, and takes none"))?;
    let stream = handshake(stream, tls, bound).await?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(refused(
            "its forwarder speaks no peerpod-link/1, over which they would go: the image's podvm is \
             older, upstream's, or has --plain-link",
        ));
    }
    let link = Link::worker(BUILD, KEEP);
    let files: Vec<_> =
        files.iter().map(|f| (f.path.as_str(), f.content.expose().as_bytes())).collect();
    let mut run = std::pin::pin!(link.run(stream));
    let delivered = tokio::select! {
        biased;
        delivered = timeout(bound, link.deliver(&files)) => delivered,
        ended = &mut run => return Err(lost(ended)),
    };
    link.close("the files are there");
    let _ = timeout(FAREWELL, run).await;
    match delivered {
        Ok(Ok(())) => Ok(()),
        Ok(Err(DeliverError::Over(over))) => Err(lost(Ended::Over(over))),
        Ok(Err(error)) => Err(refused(error.to_string())),
        Err(_) => Err(unready(Stage::Agent, format!("the VM has not taken them within {bound:?}"))),
    }
}

async fn handshake(
    stream: TcpStream,
    tls: &ClientTls,
    bound: Duration,
) -> Result<TlsStream<TcpStream>, Undelivered> {
    let fail = |reason: String| unready(Stage::Tls, reason);
    let config = tls.config_offering(&[ALPN]).map_err(|e| fail(e.to_string()))?;
    let name = tls.name().map_err(|e| fail(e.to_string()))?;
    match timeout(bound, TlsConnector::from(config).connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(fail(e.to_string())),
        Err(_) => Err(fail(format!("no handshake within {bound:?}"))),
    }
}

fn lost(ended: Ended) -> Undelivered {
    match ended {
        Ended::Broken(why) => unready(Stage::Agent, format!("the session broke: {why}")),
        Ended::Replaced => unready(Stage::Agent, "the session was replaced".to_owned()),
        Ended::Over(Over::Refused(Refusal::Version)) => refused(Refusal::Version.to_string()),
        Ended::Over(over) => unready(Stage::Agent, format!("the session is over: {over}")),
    }
}
