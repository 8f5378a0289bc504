//! `--keep`: stay while the pods run, and say how to look around.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use peerpod_standin::lab::isolate;

use crate::world::World;

static WAITING: AtomicBool = AtomicBool::new(false);

/// Whether Ctrl-C means "go on" instead of "away with everything".
pub(crate) fn is_waiting() -> bool {
    WAITING.load(Ordering::SeqCst)
}

/// Says how to look around and returns at Ctrl-C.
pub(crate) async fn stay(world: &World) -> anyhow::Result<()> {
    WAITING.store(true, Ordering::SeqCst);
    let dir = world.lab.dir().path().display();
    let enter = isolate::enter_command();
    let line = |text: &str| world.timeline.line(text);
    line("\nThe pods run. In another shell:");
    line(&format!("  {enter} sh                                  # inside; then:"));
    line(&format!("  ls -R {dir}/pods {dir}/state {dir}/local      # sockets, records, VMs"));
    line(&format!("  tail -f {dir}/logs/run.log                    # the daemon's log"));
    line(&format!("  nsenter --net={dir}/net/worker ip addr        # the worker's network"));
    line(&format!(
        "  nsenter --net={dir}/net/worker {} status",
        world.lab.binaries().peerpodd.display()
    ));
    for pod in &world.pods {
        line(&format!(
            "  nsenter --net={dir}/net/pod-{} ip -d link show vxlan1   # {}, {}",
            pod.net.number, pod.name, pod.net.ip
        ));
    }
    line("Ctrl-C stops the pods and goes on.\n");
    tokio::signal::ctrl_c().await.context("wait for Ctrl-C")?;
    WAITING.store(false, Ordering::SeqCst);
    Ok(())
}
