//! What happens to the worker and around it while pods come and go: one thing after the other, each
//! only if the seed has it.

use std::sync::Arc;

use crate::dice::Fault;
use crate::disk;
use crate::site::Site;

/// Until nothing is to go wrong any more; what is going on then is let come to its end.
pub(crate) async fn run(site: Arc<Site>) {
    let core = Arc::clone(&site.core);
    while !core.dice.is_calm() {
        core.pass_ms("chaos", 2000, 25_000).await;
        match core.dice.amount("which-chaos", 0, 13) {
            0 | 1 => site.kill(),
            2 => site.restart().await,
            3 => site.second().await,
            4 => site.lose_power(),
            5 => jump(&site),
            6 => site.cloud.close_for_a_while().await,
            7 => site.disturb_machines(),
            8 => site.kernel.disturb_namespace(),
            9 => site.kernel.disturb(),
            10 => relay_dies(&site).await,
            11 => relay_drops(&site).await,
            12 => site.relay.disturb_link(),
            _ => disk::read_only_time(&core, &site.store).await,
        }
    }
}

/// The wall clock is wrong from now on, by up to an hour.
fn jump(site: &Site) {
    if site.core.fires_harmlessly(Fault::ClockJump) {
        let jump = site.core.dice.amount("jump", 0, 7_200_000);
        let offset = i64::try_from(jump).unwrap_or_default() - 3_600_000;
        site.core.set_clock(offset);
        site.core.trace(format!("the clock is off by {} s", offset / 1000));
    }
}

async fn relay_dies(site: &Site) {
    if site.core.fires_harmlessly(Fault::RelayKilled) {
        site.relay.die("relay-killed");
        site.core.pass_ms("relay-back", 20, 3000).await;
        site.attach_again().await;
    }
}

async fn relay_drops(site: &Site) {
    if site.core.fires_harmlessly(Fault::RelayDropped) {
        site.relay.drop_daemon();
        site.core.pass_ms("relay-back", 20, 3000).await;
        site.attach_again().await;
    }
}
