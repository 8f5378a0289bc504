//! Effects that must neither overtake one another nor be cut off: each runs to its end in a task of
//! its own, also when whoever waits for it has gone, and the next one begins only then.
//!
//! Without this the save, or the tunnel, of a start that was cancelled could come after the one of
//! the stop that cancelled it.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::shutdown::Tracker;

/// One line of effects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue(Arc<Mutex<()>>);

impl Queue {
    /// Runs `effect` after all that were queued before it. `None` when the process ends first.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        tracker: &Tracker,
        name: &'static str,
        effect: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let turn = Arc::clone(&self.0).lock_owned().await;
        let done = tracker.spawn(name, async move {
            let done = effect.await;
            drop(turn);
            done
        });
        done.await.ok()
    }
}
