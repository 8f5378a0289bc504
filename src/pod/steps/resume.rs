//! A running pod, from time to time and when an earlier process has left it: its tunnel and its link
//! are looked at and, where something is missing, made again. The VM is not touched.

use std::time::Duration;

use peerpod_providers::Vm;
use tokio::time::sleep;

use super::{create, launch};
use crate::pod::life::Life;

/// Between attempts to put something right.
const AGAIN: Duration = Duration::from_secs(2);
/// How often.
const ATTEMPTS: u32 = 5;

/// Verifies the tunnel and repairs it.
pub(crate) async fn tunnel(life: &Life, vm: &Vm) {
    let tunnel = match life.tunnel(vm) {
        Ok(tunnel) => tunnel,
        Err(error) => return life.amend(|r| r.fail(error.to_string())),
    };
    for _ in 0..ATTEMPTS {
        let verify = life.common.world.network.verify(&tunnel);
        match life.common.observe("verify", verify).await.0 {
            Ok(wrong) if wrong.is_empty() => return,
            Ok(wrong) => tell(life, &wrong.join("; ")),
            Err(_) => {}
        }
        let repaired = life.attach(tunnel.clone()).await.is_ok();
        life.common.world.observer.tunnel_altered(repaired);
        if repaired {
            return;
        }
        sleep(AGAIN).await;
    }
}

/// Somebody has taken the tunnel or a filter of it apart: in the log, the timeline and the status.
fn tell(life: &Life, wrong: &str) {
    tracing::warn!(wrong, "the tunnel is not as it was made; making it again");
    let now = life.common.world.clock.now_ms();
    life.amend(|r| {
        r.note(now, format!("tunnel altered: {wrong}"), None);
        r.fail(format!("the tunnel was altered and is made again: {wrong}"));
    });
}

/// Opens the socket and makes the link again, for a relay that holds them no more.
pub(crate) async fn link(life: &Life, vm: &Vm) {
    for _ in 0..ATTEMPTS {
        if create::open(life).await.is_ok()
            && life.step("connect", launch::connect(life, vm)).await.is_ok()
        {
            return;
        }
        sleep(AGAIN).await;
    }
}
