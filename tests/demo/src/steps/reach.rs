//! Every pod reaches its neighbour and a service behind the worker, TCP and UDP; what comes back is
//! what was sent, and the tunnel's counters cover it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use peerpod_standin::lab::network::{SERVICE, spawn_in};
use peerpod_standin::lab::{Lab, blocking};
use peerpod_standin::shim::Container;

use crate::timeline::Timeline;
use crate::world::{Pod, World};

/// Ports of the echo servers, in pods and behind the worker.
pub(super) const TCP: u16 = 7000;
const UDP: u16 = 7001;
const TCP_BYTES: u64 = 1 << 20;
const UDP_BYTES: u64 = 50_000;

pub(super) async fn run(world: &mut World) -> anyhow::Result<String> {
    let _tcp = serve(&world.lab, "tcp-echo", SocketAddr::from((SERVICE, TCP))).await?;
    let _udp = serve(&world.lab, "udp-echo", SocketAddr::from((SERVICE, UDP))).await?;
    try_join_all(world.pods.iter_mut().map(listen)).await?;
    let all = &world.pods;
    let pairs = all.iter().zip(all.iter().cycle().skip(1));
    let sent = pairs.map(|(from, to)| exchange(&world.timeline, from, to));
    let bytes: u64 = try_join_all(sent).await?.into_iter().sum();
    Ok(format!("{} KiB from {} pods to pods and to {SERVICE}, all back", bytes >> 10, all.len()))
}

/// Echo servers as containers of the pod.
async fn listen(pod: &mut Pod) -> anyhow::Result<()> {
    for (tool, port) in [("tcp-echo", TCP), ("udp-echo", UDP)] {
        let at = format!("0.0.0.0:{port}");
        let id = format!("{tool}-{}", pod.net.number);
        let process = pod.shim.run_container(&Container::tool(&id, &[tool, &at])).await?;
        let line = process.first_line().await?;
        ensure!(line.starts_with("listening"), "{}: {tool} says {line:?}", pod.name);
    }
    Ok(())
}

async fn exchange(timeline: &Timeline, from: &Pod, to: &Pod) -> anyhow::Result<u64> {
    let mut targets = vec![(SERVICE.to_string(), "the service".to_owned())];
    if from.name != to.name {
        targets.insert(0, (to.net.ip.to_string(), to.name.clone()));
    }
    let before = from.tunnel_bytes().await?;
    let mut total = 0;
    for (address, name) in targets {
        for (tool, port, bytes) in [("tcp-send", TCP, TCP_BYTES), ("udp-send", UDP, UDP_BYTES)] {
            let (count, seed) = (bytes.to_string(), rand::random::<u32>().to_string());
            let report = from.send(tool, format!("{address}:{port}"), &[&count, &seed]).await?;
            ensure!(
                report.ok && report.bytes == bytes,
                "{} to {name}, {tool}: {}",
                from.name,
                report.error.unwrap_or_default()
            );
            total += bytes;
            let text = format!("{} to {name} and back by {}", bytes, &tool[..3]);
            timeline.took(Some(&from.name), &text, std::time::Duration::from_millis(report.ms));
        }
    }
    let after = from.tunnel_bytes().await?;
    let (received, sent) = (after.0 - before.0, after.1 - before.1);
    ensure!(
        received >= total && sent >= total,
        "{}: {total} bytes sent, but the tunnel counts {sent} out and {received} in",
        from.name
    );
    Ok(total)
}

/// An echo server behind the worker; it ends with this value.
pub(super) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server in the cluster's namespace and waits until it listens.
pub(super) async fn serve(lab: &Lab, tool: &str, at: SocketAddr) -> anyhow::Result<Server> {
    #[allow(clippy::disallowed_methods, reason = "a server in the cluster, no part of the daemon")]
    let mut command = Command::new(&lab.binaries().agent);
    command.args(["tool", tool, &at.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let network = lab.network().clone();
    blocking(move || {
        let mut server = Server(spawn_in(network.cluster(), &mut command)?);
        let out = server.0.stdout.take().context("the server's stdout")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).context("wait for the server")?;
        ensure!(line.starts_with("listening"), "the server says {line:?}");
        Ok(server)
    })
    .await
}
