//! What goes wrong, and in which call.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Kind;

/// One of the provider's four calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// [`crate::Provider::check`].
    Check,
    /// [`crate::Provider::create`].
    Create,
    /// [`crate::Provider::delete`].
    Delete,
    /// [`crate::Provider::list`].
    List,
}

impl Operation {
    /// The word errors use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::List => "list",
        }
    }
}

/// One thing that goes wrong in a call. Several may befall the same call, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call takes that much longer, before anything else.
    Delay(Duration),
    /// The call never answers and does nothing.
    Hang,
    /// The call fails and does nothing.
    Fail(Kind),
    /// create, delete: the call fails as unavailable; it takes effect that much later all the
    /// same.
    LateEffect(Duration),
    /// create: a disk and an interface are made, the VM is not, and the call fails.
    Partial(Kind),
    /// create: the VM is made, its address is not learnt in this call.
    NoAddress,
    /// create: the VM stops that long after it was made.
    DiesAfter(Duration),
    /// create, delete: the call takes effect and fails nevertheless.
    LostReply(Kind),
    /// list: fails after that many pages.
    BreaksAfter(usize),
}

/// Faults by operation and number of the call, and how many calls there were.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    once: BTreeMap<(Operation, u64), Vec<Fault>>,
    always: BTreeMap<Operation, Vec<Fault>>,
    counts: BTreeMap<Operation, u64>,
}

impl Script {
    /// In the call with that number, counted from 1.
    pub(super) fn at(&mut self, operation: Operation, call: u64, fault: Fault) {
        self.once.entry((operation, call)).or_default().push(fault);
    }

    /// In the next call.
    pub(super) fn next(&mut self, operation: Operation, fault: Fault) {
        self.at(operation, self.count(operation) + 1, fault);
    }

    /// In every call from now on.
    pub(super) fn always(&mut self, operation: Operation, fault: Fault) {
        self.always.entry(operation).or_default().push(fault);
    }

    /// Nothing goes wrong any more.
    pub(super) fn clear(&mut self) {
        self.once.clear();
        self.always.clear();
    }

    /// Calls so far.
    pub(super) fn count(&self, operation: Operation) -> u64 {
        self.counts.get(&operation).copied().unwrap_or(0)
    }

    /// Counts a call and says what befalls it.
    pub(super) fn begin(&mut self, operation: Operation) -> Faults {
        let count = self.counts.entry(operation).or_insert(0);
        *count += 1;
        let mut faults = self.once.remove(&(operation, *count)).unwrap_or_default();
        faults.extend(self.always.get(&operation).into_iter().flatten());
        Faults(faults)
    }
}

/// What befalls one call.
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    /// The first fault of which `pick` makes something.
    pub(super) fn find<T>(&self, pick: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        self.0.iter().find_map(pick)
    }

    /// Whether a fault befalls it.
    pub(super) fn has(&self, fault: Fault) -> bool {
        self.0.contains(&fault)
    }

    /// How much longer the call takes.
    pub(super) fn delay(&self) -> Duration {
        self.0.iter().map(|f| if let Fault::Delay(d) = f { *d } else { Duration::ZERO }).sum()
    }
}
