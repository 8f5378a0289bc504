//! Log lines that a peer can cause, few enough that it cannot fill a disk.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So many lines in so much time; the others are counted.
const LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(10);

/// One kind of lines, or those about one peer.
#[derive(Debug, Default)]
pub struct Notices(Mutex<Option<Period>>);

#[derive(Debug)]
struct Period {
    begin: Instant,
    said: u32,
    unsaid: u64,
}

impl Notices {
    /// Of which nothing was said yet.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Says it, or counts it.
    pub fn say(&self, line: impl FnOnce()) {
        let unsaid = {
            let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let current = period.get_or_insert(Period { begin: now, said: 0, unsaid: 0 });
            let mut unsaid = 0;
            if now.duration_since(current.begin) > PERIOD {
                unsaid = current.unsaid;
                *current = Period { begin: now, said: 0, unsaid: 0 };
            }
            if current.said == LINES {
                current.unsaid += 1;
                return;
            }
            current.said += 1;
            unsaid
        };
        if unsaid > 0 {
            tracing::warn!(lines = unsaid, "like lines were left out");
        }
        line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_cut_and_later_lines_are_said_again() {
        let notices = Notices::default();
        let mut said = 0;
        (0..1000).for_each(|_| notices.say(|| said += 1));
        assert_eq!(said, LINES);
        tokio::time::advance(PERIOD * 2).await;
        notices.say(|| said += 1);
        assert_eq!(said, LINES + 1);
    }
}
