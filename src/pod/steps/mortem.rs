//! After a start that failed though there was a VM: what its console says, and, if the user wants it,
//! a while in which people can look at it.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::pod::life::Life;
use crate::pod::phase::{Made, Phase};
use crate::text::printable;

/// How long the cloud may take to give the console.
const PATIENCE: Duration = Duration::from_secs(15);
/// What of it is told in the log and in the pod's timeline.
const LINES: usize = 20;
const BYTES: usize = 2048;

/// Looks, waits, and lets the delete go on.
pub(super) async fn look(life: &Life) {
    let record = life.record();
    if !record.failed_start || !matches!(record.phase, Phase::Deleting { made: Made::Known(_), .. })
    {
        return;
    }
    let (world, vm) = (&life.common.world, record.vm_ref());
    match timeout(PATIENCE, world.provider.console(&vm)).await {
        Ok(Ok(Some(text))) => {
            let tail = tail(&printable(&text));
            tracing::warn!(name = %vm.name, "the console of the VM that did not start:\n{tail}");
            let now = world.clock.now_ms();
            life.amend(|r| r.note(now, format!("its console said at last: {tail}"), None));
        }
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::debug!(%error, "no console"),
        Err(_) => tracing::debug!("the cloud did not give the console in time"),
    }
    let keep = life.common.options.keep_failed;
    let age = Duration::from_millis(world.clock.now_ms().saturating_sub(record.since_ms));
    let left = keep.saturating_sub(age);
    if !left.is_zero() {
        let left_s = left.as_secs();
        tracing::warn!(name = %vm.name, left_s, "keeping the VM that did not start (keep-failed-vm)");
        sleep(left).await;
    }
}

/// The last lines, and no more bytes than fit.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n");
    let mut from = last.len().saturating_sub(BYTES);
    while !last.is_char_boundary(from) {
        from += 1;
    }
    last.get(from..).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_bounded_in_lines_and_bytes() {
        let text: String = (0..100).map(|n| format!("line {n}\n\n")).collect();
        let tail = super::tail(&text);
        assert_eq!((tail.lines().count(), tail.lines().last()), (LINES, Some("line 99")));
        let wide = "ä".repeat(BYTES);
        assert_eq!(super::tail(&wide).len(), BYTES);
        assert_eq!(super::tail(""), "");
    }
}
