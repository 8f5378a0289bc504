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
            Ok(wrong) => tracing::warn!(wrong = wrong.join("; "), "repairing the tunnel"),
            Err(_) => {}
        }
        if life.attach(tunnel.clone()).await.is_ok() {
            return;
        }
        sleep(AGAIN).await;
    }
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
