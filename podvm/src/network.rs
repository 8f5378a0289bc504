//! The pod's network in the VM: waits until the VM itself is on the network, then sets up.

use std::time::Duration;

use peerpod_tunnel::network::guest::{self, GuestError, GuestNetwork, Underlay};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often the kernel is asked while the VM has no address.
const POLL: Duration = Duration::from_millis(50);
/// Pause after the kernel has refused a step, and how often that is taken for passing.
const REFUSED: Duration = Duration::from_secs(1);
const REFUSALS: u32 = 5;

/// Why the pod has no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("pod network: {0}")]
    Guest(#[from] GuestError),
    #[error("pod network: nothing after {limit:?}: {last}")]
    TimeOver { limit: Duration, last: GuestError },
    #[error("the task that sets the pod's network up is gone: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Sets the pod's network up, waiting at most `limit` for an address of the VM. `None` when told to
/// stop before it stood.
///
/// # Errors
/// By [`NetworkError`].
pub(crate) async fn up(
    guest: &GuestNetwork,
    limit: Duration,
    stop: &CancellationToken,
) -> Result<Option<Underlay>, NetworkError> {
    let end = Instant::now() + limit;
    let mut refusals = 0;
    let mut told = false;
    loop {
        let plan = guest.clone();
        let error = match tokio::task::spawn_blocking(move || guest::setup(&plan)).await? {
            Ok(underlay) => return Ok(Some(underlay)),
            Err(error) => error,
        };
        let pause = match &error {
            GuestError::NotYet => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!("waiting for the VM's own network");
                }
                POLL
            }
            GuestError::Kernel(_) if refusals < REFUSALS => {
                refusals += 1;
                tracing::warn!(again_in = ?REFUSED, "pod network: {error}");
                REFUSED
            }
            _ => return Err(error.into()),
        };
        if Instant::now() + pause > end {
            return Err(NetworkError::TimeOver { limit, last: error });
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

/// Takes the pod's network away.
///
/// # Errors
/// When the kernel refuses.
pub(crate) async fn down(guest: GuestNetwork) -> Result<(), NetworkError> {
    Ok(tokio::task::spawn_blocking(move || guest::teardown(&guest)).await??)
}
