//! VXLAN ids in use by pods of this process: never two pods with the same one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use peerpod_tunnel::network::{VniError, pick_vni};

/// The ids that are given away. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vnis(Arc<Mutex<BTreeSet<u32>>>);

/// An id that is this holder's until it is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    all: Vnis,
    /// The id.
    pub(crate) vni: u32,
}

impl Vnis {
    /// Takes a free id from `min` on, beginning at random, none of those the kernel has.
    pub(crate) fn pick(
        &self,
        min: u32,
        kernel: BTreeSet<u32>,
        start: u32,
    ) -> Result<Reserved, VniError> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = kernel;
        all.extend(taken.iter());
        let vni = pick_vni(min, &all, start)?;
        taken.insert(vni);
        Ok(Reserved { all: self.clone(), vni })
    }

    /// Takes the id that a record has.
    pub(crate) fn take(&self, vni: u32) -> Reserved {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(vni);
        Reserved { all: self.clone(), vni }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.vni);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_nobody_elses_until_it_is_given_back() {
        let all = Vnis::default();
        let first = all.pick(600_000, BTreeSet::from([600_000]), 0).expect("free");
        let second = all.pick(600_000, BTreeSet::new(), 1).expect("free");
        assert_eq!((first.vni, second.vni), (600_001, 600_002));
        drop(first);
        assert_eq!(all.pick(600_000, BTreeSet::new(), 1).expect("free").vni, 600_001);
    }

    #[test]
    fn an_id_of_a_record_is_not_given_away_again() {
        let all = Vnis::default();
        let _kept = all.take(600_000);
        assert_eq!(all.pick(600_000, BTreeSet::new(), 0).expect("free").vni, 600_001);
    }
}
