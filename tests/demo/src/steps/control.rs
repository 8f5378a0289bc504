//! The control of `reach`: with the tunnel's device down nothing gets through; so it did go
//! through the tunnel. The daemon may mend the device meanwhile; then it is tried again.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use peerpod_standin::lab::blocking;
use peerpod_standin::lab::network::{DEVICE, SERVICE};

use super::reach::{TCP, serve};
use crate::world::{Pod, World};

const BYTES: &str = "20000";

pub(super) async fn run(world: &mut World) -> anyhow::Result<String> {
    let _server = serve(&world.lab, "tcp-echo", SocketAddr::from((SERVICE, TCP))).await?;
    let pod = world.pods.first().context("no pod")?;
    for _ in 0..5 {
        if let Some(error) = without_device(pod).await? {
            world.timeline.of(&pod.name, &format!("{DEVICE} down: {error}"));
            let report = send(pod, "5000").await?;
            ensure!(report.ok, "{DEVICE} up again, but: {}", report.error.unwrap_or_default());
            world.timeline.of(&pod.name, &format!("{DEVICE} up: everything comes back again"));
            return Ok(format!("no way around {DEVICE}"));
        }
    }
    bail!("the daemon sets {DEVICE} up again faster than it can be tried")
}

/// Tries with the device down. `None` if somebody has set it up meanwhile.
async fn without_device(pod: &Pod) -> anyhow::Result<Option<String>> {
    set(pod, false).await?;
    let report = send(pod, "400").await;
    let net = pod.net.clone();
    let still_down = blocking(move || Ok(!net.device()?.up)).await;
    set(pod, true).await?;
    let (report, still_down) = (report?, still_down?);
    match (report.ok, still_down) {
        (true, true) => bail!("{}: the transfer works without {DEVICE}", pod.name),
        (false, true) => Ok(Some(report.error.unwrap_or_default())),
        (_, false) => Ok(None),
    }
}

async fn set(pod: &Pod, up: bool) -> anyhow::Result<()> {
    let net = pod.net.clone();
    blocking(move || net.set_device(up).with_context(|| format!("set {DEVICE}"))).await
}

async fn send(pod: &Pod, timeout: &str) -> anyhow::Result<peerpod_standin::tool::Report> {
    let to = format!("{SERVICE}:{TCP}");
    pod.send("tcp-send", to, &[BYTES, "1", "--timeout", timeout]).await
}
