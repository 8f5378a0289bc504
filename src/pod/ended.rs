//! The last pods that have come to their end in another way than by StopVM, so that somebody who looks
//! for one finds why.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::Record;

/// A pod that fails again and again must not push out all others' within minutes, nor fill memory.
const MOST: usize = 32;

/// Their records, without user data.
#[derive(Debug, Default)]
pub(crate) struct Ended(Mutex<VecDeque<Arc<Record>>>);

impl Ended {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Record>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a record that is over, and forgets the oldest one.
    pub(crate) fn keep(&self, record: Arc<Record>) {
        let mut all = self.lock();
        all.retain(|r| r.sandbox != record.sandbox);
        while all.len() >= MOST {
            all.pop_front();
        }
        all.push_back(record);
    }

    /// Oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Record>> {
        self.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples;

    #[test]
    fn the_last_ones_are_kept_and_each_once() {
        let (ended, sample) = (Ended::default(), samples::record("x"));
        let numbered = |n: usize| Arc::new(Record { sandbox: n.to_string(), ..sample.clone() });
        for n in (0..40).chain([39]) {
            ended.keep(numbered(n));
        }
        let kept: Vec<_> = ended.all().iter().map(|r| r.sandbox.clone()).collect();
        assert_eq!((kept.len(), kept[0].as_str(), kept[31].as_str()), (MOST, "8", "39"));
    }
}
