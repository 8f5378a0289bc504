//! Connections that have not shown yet who they are. There is a place for so many; where all are
//! taken, whoever has had one longest makes room for the newcomer. Who is meant to be there needs its
//! place for milliseconds, so those that hold theirs shut nobody out.
//!
//! ```text
//!   enter ─▶ place ─┬─ has shown who it is ─▶ dropped, or stays: it counts among the known ones
//!                   └─ all taken, and this is the oldest ─▶ sent_away
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

#[derive(Debug, Default)]
struct Hall {
    last: u64,
    taken: BTreeMap<u64, CancellationToken>,
}

impl Hall {
    fn enter(&mut self, places: usize, away: CancellationToken) -> u64 {
        if self.taken.len() >= places
            && let Some((_, oldest)) = self.taken.pop_first()
        {
            oldest.cancel();
        }
        self.last += 1;
        self.taken.insert(self.last, away);
        self.last
    }
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct Strangers {
    places: usize,
    hall: Arc<Mutex<Hall>>,
}

/// One connection's place, free again when dropped.
#[derive(Debug)]
pub struct Place {
    strangers: Strangers,
    number: Mutex<u64>,
    away: CancellationToken,
}

/// A connection that cannot be sent away for as long as this is kept; then it is the newest of all.
#[derive(Debug)]
pub struct Stay(Arc<Place>);

impl Strangers {
    /// With so many places.
    pub fn new(places: usize) -> Self {
        Self { places, hall: Arc::default() }
    }

    fn hall(&self) -> MutexGuard<'_, Hall> {
        // Each change is whole before anything could panic.
        self.hall.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, perhaps another's.
    pub fn enter(&self) -> Place {
        let away = CancellationToken::new();
        let number = self.hall().enter(self.places, away.clone());
        Place { strangers: self.clone(), number: Mutex::new(number), away }
    }
}

impl Place {
    fn number(&self) -> MutexGuard<'_, u64> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when somebody else has the place.
    pub fn sent_away(&self) -> WaitForCancellationFutureOwned {
        self.away.clone().cancelled_owned()
    }

    /// Whether somebody else has the place.
    pub fn is_sent_away(&self) -> bool {
        self.away.is_cancelled()
    }

    /// Makes room, and keeps the connection.
    pub fn stay(self: &Arc<Self>) -> Stay {
        self.strangers.hall().taken.remove(&self.number());
        Stay(Arc::clone(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.strangers.hall().taken.remove(&self.number());
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let Place { strangers, away, .. } = &*self.0;
        let mut taken = strangers.hall();
        *self.0.number() = taken.enter(strangers.places, away.clone());
    }
}

/// A socket where whoever asks something is known, and so many of those are served.
#[derive(Clone, Debug)]
pub struct Crowd {
    silent: Strangers,
    known: Arc<Semaphore>,
}

/// A connection's room in a [`Crowd`].
#[derive(Debug)]
pub struct Room {
    place: Option<Place>,
    known: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Crowd {
    /// With places for those that have asked nothing yet, and for those that have.
    pub fn new(silent: usize, known: usize) -> Self {
        Self { silent: Strangers::new(silent), known: Arc::new(Semaphore::new(known)) }
    }

    /// One more, which has asked nothing yet.
    pub fn enter(&self) -> Room {
        Room { place: Some(self.silent.enter()), known: self.known.clone(), permit: None }
    }
}

impl Room {
    /// It has asked something; false when there are too many of those.
    pub fn speaks(&mut self) -> bool {
        if self.place.take().is_some() {
            self.permit = self.known.clone().try_acquire_owned().ok();
        }
        self.permit.is_some()
    }

    /// Ends when it has still asked nothing and somebody else has its place.
    pub fn sent_away(&self) -> impl Future<Output = ()> + use<> {
        let away = self.place.as_ref().map(Place::sent_away);
        async move {
            match away {
                Some(away) => away.await,
                None => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: usize = 8;

    #[tokio::test]
    async fn the_oldest_goes_and_who_has_left_is_not_counted() {
        let strangers = Strangers::new(PLACES);
        let first = strangers.enter();
        let mut others: Vec<_> = (1..PLACES).map(|_| strangers.enter()).collect();
        assert!(!first.is_sent_away());
        others.pop();
        let _after_one_left = strangers.enter();
        assert!(!first.is_sent_away());
        let newest = strangers.enter();
        first.sent_away().await;
        assert!(others.iter().all(|place| !place.is_sent_away()));
        assert!(!newest.is_sent_away());
        drop((first, others));
        assert_eq!(strangers.hall().taken.len(), 2);
    }

    #[test]
    fn who_stays_is_sent_away_only_after_that() {
        let strangers = Strangers::new(PLACES);
        let first = Arc::new(strangers.enter());
        let stay = first.stay();
        let flood: Vec<_> = (0..2 * PLACES).map(|_| strangers.enter()).collect();
        assert!(!first.is_sent_away());
        drop(stay);
        assert!(!first.is_sent_away(), "it is the newest now");
        assert_eq!(strangers.hall().taken.len(), PLACES);
        let _more: Vec<_> = (0..PLACES).map(|_| strangers.enter()).collect();
        assert!(first.is_sent_away());
        drop(flood);
    }
}
