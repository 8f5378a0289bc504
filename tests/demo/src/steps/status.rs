//! `peerpodd status`, once, and whether it knows every pod.

use anyhow::ensure;

use crate::world::World;

pub(super) async fn run(world: &mut World) -> anyhow::Result<String> {
    let output = world.daemon()?.peerpodd(&["status"]).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "peerpodd status: {}: {text}{errors}", output.status);
    world.timeline.say("peerpodd status:");
    if !world.timeline.is_json() {
        text.lines().for_each(|line| world.timeline.line(&format!("           | {line}")));
    }
    let unknown = world.pods.iter().find(|pod| !text.contains(&pod.name));
    ensure!(unknown.is_none(), "it does not know {}", unknown.map_or("", |p| &p.name));
    Ok(format!("all {} pods are listed", world.pods.len()))
}
