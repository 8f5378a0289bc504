//! What a daemon tells: its probes and its logs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::network::Failed;
use super::{Network, blocking};

/// The daemon's probes; in a namespace of its own the usual port is free.
const PROBES: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

/// The last lines of every log in a directory.
pub fn log_tail(dir: &Path, lines: usize) -> String {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = files.map(|f| f.path()).collect();
    paths.sort();
    let tails = paths.iter().map(|path| {
        let text = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        let last = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
        format!("--- {}\n{}", path.display(), last.join("\n"))
    });
    tails.collect::<Vec<_>>().join("\n")
}

/// GET from the probes of the node in a lab: status code and body.
pub(super) async fn get(network: &Arc<Network>, path: &str) -> anyhow::Result<(u16, String)> {
    let (network, path) = (network.clone(), path.to_owned());
    let ask = move || -> anyhow::Result<(u16, String)> {
        let connect = || {
            TcpStream::connect_timeout(&PROBES, Duration::from_secs(1))
                .map_err(|e| Failed(e.into()))
        };
        let mut stream = network.worker().run(connect).context("connect to the probes")?;
        let limit = Some(Duration::from_secs(5));
        stream.set_read_timeout(limit).context("set a time limit")?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n")
            .context("ask")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("read the answer")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let code = head.split(' ').nth(1).and_then(|c| c.parse().ok()).context("no HTTP status")?;
        Ok((code, body.to_owned()))
    };
    blocking(ask).await
}
