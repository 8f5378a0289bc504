//! A running pod: its tunnel and its link are looked at and, where something is missing, made again. The
//! VM is not touched.

use std::time::Duration;

use peerpod_providers::Vm;
use peerpod_tunnel::network::Tunnel;
use tokio::time::{sleep, timeout};

use super::{create, launch};
use crate::pod::life::Life;

/// Between attempts to put something right.
const AGAIN: Duration = Duration::from_secs(2);
/// How often.
const ATTEMPTS: u32 = 5;

/// Between looks at a tunnel of which no change is told: of a device, say, or with a kernel that does
/// not tell. A rule that somebody has altered would let others in. (Where all of a filter is missing,
/// nothing passes.)
const VERIFY: Duration = Duration::from_secs(30);
/// Between looks at a tunnel that somebody changes without end.
const BREATH: Duration = Duration::from_secs(1);

/// Keeps the tunnel as it was made: looks now, from time to time, and whenever somebody else changes
/// one of its filters.
pub(crate) async fn keep(life: &Life, vm: &Vm) {
    let tunnel = match life.tunnel(vm) {
        Ok(tunnel) => tunnel,
        Err(error) => return life.amend(|r| r.fail(error.to_string())),
    };
    let mut told = false;
    loop {
        // Before the look, so that nothing falls between; and not for longer than to the next one, for
        // it holds the pod's namespace.
        let watch = life.common.world.network.watch(&tunnel).await;
        repair(life, &tunnel).await;
        if told {
            sleep(BREATH).await;
        }
        told = match watch {
            Ok(mut watch) => timeout(VERIFY, watch.altered()).await.is_ok(),
            Err(error) => {
                tracing::debug!(%error, "changes of the tunnel's filters are not told");
                sleep(VERIFY).await;
                false
            }
        };
    }
}

/// Verifies the tunnel and repairs it.
async fn repair(life: &Life, tunnel: &Tunnel) {
    for _ in 0..ATTEMPTS {
        let verify = life.common.world.network.verify(tunnel);
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
