//! Connections that have not shown yet who they are. There is a place for so many; where all are
//! taken, whoever has had one longest makes room for the newcomer. A worker needs its place for
//! milliseconds, so those that hold theirs shut nobody out.
//!
//! ```text
//!   enter ─▶ place ─┬─ certificate shown ─▶ dropped: the connection counts among the known ones
//!                   └─ all taken, and this is the oldest ─▶ sent_away
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Places. With TLS's longest handshake message and what is read at once, some 40 MiB in all.
pub(super) const PLACES: usize = 256;

#[derive(Debug, Default)]
struct Room {
    last: u64,
    taken: BTreeMap<u64, CancellationToken>,
}

/// See the head of this file.
#[derive(Clone, Debug, Default)]
pub(super) struct Strangers(Arc<Mutex<Room>>);

/// One connection's place, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Strangers,
    number: u64,
    away: CancellationToken,
}

impl Strangers {
    fn room(&self) -> MutexGuard<'_, Room> {
        // Each change is whole before anything could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, perhaps another's.
    pub(super) fn enter(&self) -> Place {
        let mut room = self.room();
        if room.taken.len() >= PLACES
            && let Some((_, oldest)) = room.taken.pop_first()
        {
            oldest.cancel();
        }
        room.last += 1;
        let (number, away) = (room.last, CancellationToken::new());
        room.taken.insert(number, away.clone());
        Place { room: self.clone(), number, away }
    }
}

impl Place {
    /// Ends when somebody else has the place.
    pub(super) async fn sent_away(&self) {
        self.away.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.room().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_goes_and_who_has_left_is_not_counted() {
        let strangers = Strangers::default();
        let first = strangers.enter();
        let mut others: Vec<_> = (1..PLACES).map(|_| strangers.enter()).collect();
        assert!(!first.away.is_cancelled());
        others.pop();
        let _after_one_left = strangers.enter();
        assert!(!first.away.is_cancelled());
        let newest = strangers.enter();
        first.sent_away().await;
        assert!(others.iter().all(|place| !place.away.is_cancelled()));
        assert!(!newest.away.is_cancelled());
        drop((first, others));
        assert_eq!(strangers.room().taken.len(), 2);
    }
}
