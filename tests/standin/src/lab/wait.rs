//! Waiting for what can be observed.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::bail;

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until `look` finds something; an error of `look` ends the wait at once.
///
/// # Errors
/// After `limit`, naming `what`; or what `look` says.
pub async fn wait_for<T, F>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let begin = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if begin.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
