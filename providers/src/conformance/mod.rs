//! What every provider promises, as functions over the trait (providers.md 10.6). A provider is
//! done when all rows hold over its double; a test is one loop:
//!
//! ```text
//!   for (row, outcome) in conformance::check(&double).await { outcome.expect(row) }
//! ```
//! The rows make a few VMs each, under names of their own, and take them away again. Against a
//! real cloud they cost money; against a double they need seconds.

mod rows;
mod tools;

use std::time::Duration;

use futures_util::future::BoxFuture;

pub use crate::fake::Operation;
use crate::{Candidate, Kind, Provider, UserDataLimit, VmRef, Volume};

/// A provider together with a hand on whatever stands behind it.
pub trait Double: Send + Sync {
    /// The provider under test.
    fn provider(&self) -> &dyn Provider;

    /// The installation id it was given.
    fn installation(&self) -> &str;

    /// A place where VMs can be made.
    fn candidate(&self) -> Candidate;

    /// Largest user data, where there is a limit.
    fn user_data_limit(&self) -> Option<UserDataLimit>;

    /// [`crate::Report::template`] of the provider.
    fn template(&self) -> String {
        String::new()
    }

    /// VMs per page of a list, where lists have pages.
    fn page(&self) -> usize {
        1
    }

    /// How long a delete may take to be over.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// How long an effect may lag behind a call that was dropped.
    fn lag(&self) -> Duration {
        Duration::from_millis(100)
    }

    /// Why a row says nothing of this cloud, with where that is written; `None` if it does.
    fn exempt(&self, _row: &str) -> Option<&'static str> {
        None
    }

    /// A disk that can be attached.
    fn volume(&self) -> Option<Volume> {
        None
    }

    /// Whether the provider spaces its calls out as the cloud asks.
    fn budgets(&self) -> bool {
        false
    }

    /// Has the cloud stop a VM, as somebody does in its console; false if this double cannot.
    fn stop(&self, _vm: &VmRef) -> bool {
        false
    }

    /// Lets something go wrong in the next call; false if this double cannot do that.
    fn inject(&self, _injection: Injection) -> bool {
        false
    }
}

/// What a double lets go wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// The next call of that kind fails so and does nothing.
    Fail(Operation, Kind),
    /// The next create takes effect and its reply is lost.
    LostReply,
    /// The next create fails halfway and leaves parts.
    Partial,
    /// The next list breaks after its first page.
    BrokenList,
    /// In the next create the volume cannot be attached.
    VolumeFails,
}

/// How a promise was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was.
    Kept,
    /// The double cannot put it to the test.
    Untested,
    /// It says nothing of this cloud, for that reason.
    Exempt(&'static str),
}

/// A promise that was broken, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// How a row is put to the test.
type Run = for<'a> fn(&'a dyn Double) -> BoxFuture<'a, Result<Outcome, Violation>>;

/// One promise.
#[derive(Clone, Copy)]
pub struct Row {
    /// The promise.
    pub name: &'static str,
    run: Run,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Row {
    /// Puts one promise to the test.
    ///
    /// # Errors
    /// [`Violation`] if it is not kept.
    pub async fn check(&self, double: &dyn Double) -> Result<Outcome, Violation> {
        match double.exempt(self.name) {
            Some(reason) => Ok(Outcome::Exempt(reason)),
            None => (self.run)(double).await,
        }
    }
}

/// Every promise.
pub fn rows() -> Vec<Row> {
    let row = |name, run| Row { name, run };
    vec![
        row("create gives an address", |d| Box::pin(rows::create_gives_an_address(d))),
        row("a replay gives the same VM", |d| Box::pin(rows::a_replay_gives_the_same_vm(d))),
        row("a lost reply leaves one VM", |d| Box::pin(rows::a_lost_reply_leaves_one_vm(d))),
        row("a foreign name is not adopted", |d| Box::pin(rows::a_foreign_name_is_not_adopted(d))),
        row("delete twice is gone", |d| Box::pin(rows::delete_twice_is_gone(d))),
        row("delete needs no native id", |d| Box::pin(rows::delete_needs_no_native_id(d))),
        row("delete of unknown is gone", |d| Box::pin(rows::delete_of_unknown_is_gone(d))),
        row("delete takes parts, too", |d| Box::pin(rows::delete_takes_parts_too(d))),
        row("a list is complete", |d| Box::pin(rows::a_list_is_complete(d))),
        row("a broken list is an error", |d| Box::pin(rows::a_broken_list_is_an_error(d))),
        row("a dropped create is not lost", |d| Box::pin(rows::a_dropped_create_is_not_lost(d))),
        row("errors keep their kind", |d| Box::pin(rows::errors_keep_their_kind(d))),
        row("a throttle is obeyed", |d| Box::pin(rows::a_throttle_is_obeyed(d))),
        row("a volume's failure leaves nothing", |d| {
            Box::pin(rows::a_volumes_failure_leaves_nothing(d))
        }),
        row("a stopped VM is told", |d| Box::pin(rows::a_stopped_vm_is_told(d))),
        row("odd names break no create", |d| Box::pin(rows::odd_names_break_no_create(d))),
        row("too much user data is named", |d| Box::pin(rows::too_much_user_data_is_named(d))),
        row("secrets do not show", |d| Box::pin(rows::secrets_do_not_show(d))),
    ]
}

/// Puts every promise to the test.
pub async fn check(double: &dyn Double) -> Vec<(&'static str, Result<Outcome, Violation>)> {
    let mut outcomes = Vec::new();
    for row in rows() {
        outcomes.push((row.name, row.check(double).await));
    }
    outcomes
}
