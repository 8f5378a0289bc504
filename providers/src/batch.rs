//! Many questions, one call: whoever asks within a short time of each other shares a call to the
//! cloud (providers.md 2.8). Used for deletes and for looks at VMs that are under way.

use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::{Error, Kind};

/// What is done with all keys at once: one answer each, in the same order.
type Work<K, V> = Arc<dyn Fn(Vec<K>) -> BoxFuture<'static, Vec<Result<V, Error>>> + Send + Sync>;

/// Collects keys for one call.
pub struct Batch<K, V> {
    window: Duration,
    most: usize,
    work: Work<K, V>,
    waiting: Arc<Mutex<Vec<Asked<K, V>>>>,
}

struct Asked<K, V> {
    key: K,
    answer: oneshot::Sender<Result<V, Error>>,
}

impl<K, V> Debug for Batch<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("window", &self.window).finish_non_exhaustive()
    }
}

impl<K: Send + 'static, V: Send + 'static> Batch<K, V> {
    /// Collects for `window` after the first key, but no more than `most` keys for one call of
    /// `work`.
    pub fn new<F>(window: Duration, most: usize, work: F) -> Self
    where
        F: Fn(Vec<K>) -> BoxFuture<'static, Vec<Result<V, Error>>> + Send + Sync + 'static,
    {
        Self { window, most: most.max(1), work: Arc::new(work), waiting: Arc::default() }
    }

    /// The answer for one key. A call under way goes on when this is dropped.
    ///
    /// # Errors
    /// What the work says of this key; `Unavailable` if it said nothing.
    pub async fn ask(&self, key: K) -> Result<V, Error> {
        let (answer, answered) = oneshot::channel();
        let (number, full) = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push(Asked { key, answer });
            let number = waiting.len();
            (number, if number >= self.most { std::mem::take(&mut *waiting) } else { Vec::new() })
        };
        if !full.is_empty() {
            tokio::spawn(run(Arc::clone(&self.work), full));
        } else if number == 1 {
            let (window, work) = (self.window, Arc::clone(&self.work));
            let waiting = Arc::clone(&self.waiting);
            tokio::spawn(async move {
                tokio::time::sleep(window).await;
                let all =
                    std::mem::take(&mut *waiting.lock().unwrap_or_else(PoisonError::into_inner));
                run(work, all).await;
            });
        }
        answered.await.unwrap_or_else(|_| {
            let text = "a shared call ended without an answer for this one";
            Err(Error::new("cloud", "batch", Kind::Unavailable, text))
        })
    }
}

async fn run<K, V>(work: Work<K, V>, asked: Vec<Asked<K, V>>) {
    if asked.is_empty() {
        return;
    }
    let (keys, askers): (Vec<K>, Vec<_>) =
        asked.into_iter().map(|Asked { key, answer }| (key, answer)).unzip();
    for (asker, answer) in askers.into_iter().zip(work(keys).await) {
        // Whoever is gone does not need it.
        let _ = asker.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    type Calls = Arc<Mutex<Vec<Vec<u32>>>>;

    /// Doubles numbers; refuses 13; forgets all beyond the hundredth.
    fn doubler(window: Duration) -> (Batch<u32, u32>, Calls) {
        let calls: Calls = Arc::default();
        let seen = Arc::clone(&calls);
        let batch = Batch::new(window, 100, move |keys: Vec<u32>| {
            seen.lock().expect("no panic").push(keys.clone());
            Box::pin(async move {
                let one = |k| match k {
                    13 => Err(Error::new("test", "double", Kind::Invalid, "13")),
                    k => Ok(k * 2),
                };
                keys.into_iter().filter(|k| *k != 99).map(one).collect()
            })
        });
        (batch, calls)
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_at_the_same_time_shares_a_call_and_gets_their_own_answer() {
        let (batch, calls) = doubler(Duration::from_millis(50));
        let answers = join_all((0..20).map(|n| batch.ask(n))).await;
        for (n, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(double) => assert_eq!(double as usize, 2 * n),
                Err(e) => assert_eq!((n, e.kind), (13, Kind::Invalid)),
            }
        }
        assert_eq!(calls.lock().expect("no panic").len(), 1);
        batch.ask(1).await.expect("another call");
        assert_eq!(calls.lock().expect("no panic").len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_call_is_made_at_once() {
        let (batch, calls) = doubler(Duration::from_secs(3600));
        let begin = tokio::time::Instant::now();
        join_all((100..200).map(|n| batch.ask(n))).await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert_eq!(calls.lock().expect("no panic").len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_missing_is_an_error_and_not_a_wait() {
        let (batch, _) = doubler(Duration::from_millis(1));
        let error = batch.ask(99).await.expect_err("no answer");
        assert_eq!(error.kind, Kind::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_leaves_keeps_no_other_from_its_answer() {
        let (batch, _) = doubler(Duration::from_millis(50));
        let (left, stays) = tokio::join!(
            tokio::time::timeout(Duration::from_millis(1), batch.ask(1)),
            batch.ask(2)
        );
        assert!(left.is_err());
        assert_eq!(stays.expect("answered"), 4);
    }
}
