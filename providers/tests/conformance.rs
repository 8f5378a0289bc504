//! The fake and the local provider keep every promise; and a provider that breaks one is caught by
//! that row.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

#[cfg(feature = "local")]
mod common;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use peerpod_providers::budget::{Budget, Rate};
use peerpod_providers::conformance::{self, Double, Injection, Operation, Outcome};
use peerpod_providers::fake::{Fake, Fault, Options};
use peerpod_providers::{
    Candidate, Deletion, Error, Kind, Market, Provider, Report, Resource, ResourceKind,
    UserDataLimit, Vm, VmName, VmRef, VmSpec, Volume,
};

const LIMIT: UserDataLimit = UserDataLimit { size: 4096, base64: false };

fn options() -> Options {
    Options {
        page: 2,
        user_data_limit: LIMIT.size,
        delete_takes: Duration::from_millis(30),
        ..Options::default()
    }
}

/// The fake behind a wrapper that may break one promise.
struct FakeDouble {
    fake: Arc<Fake>,
    provider: Box<dyn Provider>,
}

impl FakeDouble {
    fn with(flaw: Option<Flaw>) -> Self {
        let fake = Arc::new(Fake::new(options()));
        let budget = Budget::new("create", Rate { per_second: 1e3, burst: 1000 });
        let provider = Box::new(Flawed { fake: Arc::clone(&fake), flaw, budget });
        Self { fake, provider }
    }
}

impl Double for FakeDouble {
    fn provider(&self) -> &dyn Provider {
        self.provider.as_ref()
    }

    fn installation(&self) -> &str {
        "test"
    }

    fn candidate(&self) -> Candidate {
        Candidate {
            number: 0,
            instance_type: "small".to_owned(),
            zone: None,
            market: Market::OnDemand,
        }
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        Some(LIMIT)
    }

    fn page(&self) -> usize {
        2
    }

    fn volume(&self) -> Option<Volume> {
        Some(Volume::new("disk-1", 0))
    }

    fn budgets(&self) -> bool {
        true
    }

    fn stop(&self, vm: &VmRef) -> bool {
        self.fake.kill(&vm.name)
    }

    fn inject(&self, injection: Injection) -> bool {
        let (operation, fault) = match injection {
            Injection::Fail(operation, kind) => (operation, Fault::Fail(kind)),
            Injection::LostReply => (Operation::Create, Fault::LostReply(Kind::Unavailable)),
            Injection::Partial => (Operation::Create, Fault::Partial(Kind::Other)),
            Injection::BrokenList => (Operation::List, Fault::BreaksAfter(1)),
            Injection::VolumeFails => (Operation::Create, Fault::Partial(Kind::Invalid)),
        };
        self.fake.script_next(operation, fault);
        true
    }
}

/// One broken promise each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Flaw {
    NoAddress,
    NewVmEachTime,
    ForgetsAnAttempt,
    AdoptsForeign,
    AbsentIsAnError,
    NeedsNativeId,
    LeavesParts,
    ShortList,
    HidesABrokenList,
    MakesItInTheBackground,
    ForgetsTheKind,
    IgnoresThrottles,
    ForgetsAFailedVolume,
    SaysItRuns,
    ChokesOnNames,
    LimitWithoutNumbers,
    TellsUserData,
}

/// Which row catches which flaw.
const CAUGHT: [(&str, Flaw); 18] = [
    ("create gives an address", Flaw::NoAddress),
    ("a replay gives the same VM", Flaw::NewVmEachTime),
    ("a lost reply leaves one VM", Flaw::ForgetsAnAttempt),
    ("a foreign name is not adopted", Flaw::AdoptsForeign),
    ("delete twice is gone", Flaw::AbsentIsAnError),
    ("delete needs no native id", Flaw::NeedsNativeId),
    ("delete of unknown is gone", Flaw::AbsentIsAnError),
    ("delete takes parts, too", Flaw::LeavesParts),
    ("a list is complete", Flaw::ShortList),
    ("a broken list is an error", Flaw::HidesABrokenList),
    ("a dropped create is not lost", Flaw::MakesItInTheBackground),
    ("errors keep their kind", Flaw::ForgetsTheKind),
    ("a throttle is obeyed", Flaw::IgnoresThrottles),
    ("a volume's failure leaves nothing", Flaw::ForgetsAFailedVolume),
    ("a stopped VM is told", Flaw::SaysItRuns),
    ("odd names break no create", Flaw::ChokesOnNames),
    ("too much user data is named", Flaw::LimitWithoutNumbers),
    ("secrets do not show", Flaw::TellsUserData),
];

struct Flawed {
    fake: Arc<Fake>,
    flaw: Option<Flaw>,
    budget: Budget,
}

impl Flawed {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// A second VM for the same sandbox.
    fn another(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Vm, Error> {
        let n = self.fake.vms().len();
        let name = VmName::from_existing(format!("{}-{n}", spec.name));
        self.fake.plant(&VmSpec { name, ..spec.clone() }, candidate)
    }

    fn has(&self, name: &VmName) -> bool {
        self.fake.vms().iter().any(|vm| vm.spec.name == *name)
    }
}

impl fmt::Debug for Flawed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vms = self.fake.vms();
        let told = vms.iter().filter(|_| self.is(Flaw::TellsUserData));
        f.debug_list().entries(told.map(|vm| vm.spec.user_data.0.as_str())).finish()
    }
}

impl fmt::Display for Flawed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("flawed")
    }
}

#[async_trait::async_trait]
impl Provider for Flawed {
    async fn check(&self) -> Result<Report, Error> {
        self.fake.check().await
    }

    async fn create(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Vm, Error> {
        if self.is(Flaw::MakesItInTheBackground) {
            let (fake, spec, candidate) = (Arc::clone(&self.fake), spec.clone(), candidate.clone());
            let made = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                fake.create(&spec, &candidate).await
            });
            return made.await.unwrap();
        }
        if self.is(Flaw::ForgetsAnAttempt) && self.has(&spec.name) {
            return self.another(spec, candidate);
        }
        if self.is(Flaw::ChokesOnNames) && spec.tags.values().any(|value| !value.is_ascii()) {
            return Err(Error::new("flawed", "create", Kind::Invalid, "what a name"));
        }
        let create = self.fake.create(spec, candidate);
        let created = match self.flaw {
            Some(Flaw::IgnoresThrottles) => create.await,
            _ => self.budget.call(create).await,
        };
        match created {
            Ok(mut vm) => {
                if self.is(Flaw::NoAddress) {
                    vm.addresses.clear();
                }
                if self.is(Flaw::NewVmEachTime) {
                    vm.native_id = format!("vm-{}", self.fake.count(Operation::Create));
                }
                Ok(vm)
            }
            Err(e) if self.is(Flaw::AdoptsForeign) && self.has(&spec.name) => {
                let theirs = self.fake.vms().into_iter().find(|vm| vm.spec.name == spec.name);
                theirs.map(|vm| vm.spec).ok_or(e).and_then(|s| self.fake.plant(&s, candidate))
            }
            Err(mut e) => {
                if self.is(Flaw::ForgetsTheKind) {
                    e.kind = Kind::Other;
                }
                if self.is(Flaw::LimitWithoutNumbers) {
                    e.message = "user data are too long".to_owned();
                }
                Err(e)
            }
        }
    }

    async fn delete(&self, vm: &VmRef) -> Result<Deletion, Error> {
        let refuse = |kind, message: &str| Err(Error::new("flawed", "delete", kind, message));
        let there = self.has(&vm.name);
        if self.is(Flaw::AbsentIsAnError) && !there {
            return refuse(Kind::NotFound, "no such VM");
        }
        if self.is(Flaw::NeedsNativeId) && vm.native_id.is_none() {
            return refuse(Kind::Invalid, "the id is empty");
        }
        let parts = [Flaw::LeavesParts, Flaw::ForgetsAFailedVolume];
        if parts.iter().any(|flaw| self.is(*flaw)) && !there {
            return Ok(Deletion::Gone);
        }
        self.fake.delete(vm).await
    }

    async fn list(&self) -> Result<Vec<Resource>, Error> {
        let list = self.fake.list().await;
        if self.is(Flaw::HidesABrokenList) {
            return Ok(list.unwrap_or_default());
        }
        let mut list = list?;
        if self.is(Flaw::ShortList) {
            list.truncate(2);
        }
        if self.is(Flaw::SaysItRuns) {
            list.iter_mut().for_each(|r| r.running = Some(true));
        }
        if self.is(Flaw::LeavesParts) {
            list.retain(|r| r.kind != ResourceKind::Address);
        }
        Ok(list)
    }
}

/// A cell of the table that `tests/run conformance` prints.
fn tell(provider: &str, row: &str, word: &str) {
    println!("conformance\t{provider}\t{row}\t{word}");
}

#[tokio::test(start_paused = true)]
async fn the_fake_keeps_every_promise() {
    let double = FakeDouble::with(None);
    for (row, outcome) in conformance::check(&double).await {
        assert_eq!(outcome, Ok(Outcome::Kept), "{row}");
        tell("fake", row, "kept");
    }
    assert!(double.fake.vms().is_empty(), "the suite takes its VMs away again");
}

#[tokio::test(start_paused = true)]
async fn a_broken_promise_is_caught_by_its_row() {
    let caught: BTreeMap<&str, Flaw> = CAUGHT.into_iter().collect();
    for row in conformance::rows() {
        let flaw = caught[row.name];
        let double = FakeDouble::with(Some(flaw));
        let outcome = row.check(&double).await;
        assert!(outcome.is_err(), "{:?} does not catch {flaw:?}: {outcome:?}", row.name);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_double_cannot_do_is_called_untested_and_not_kept() {
    struct Plain(FakeDouble);
    impl Double for Plain {
        fn provider(&self) -> &dyn Provider {
            self.0.provider()
        }
        fn installation(&self) -> &str {
            "test"
        }
        fn candidate(&self) -> Candidate {
            self.0.candidate()
        }
        fn user_data_limit(&self) -> Option<UserDataLimit> {
            None
        }
    }
    let outcomes = conformance::check(&Plain(FakeDouble::with(None))).await;
    let untested = outcomes.iter().filter(|(_, o)| *o == Ok(Outcome::Untested)).count();
    assert_eq!((untested, outcomes.iter().all(|(_, o)| o.is_ok())), (8, true), "{outcomes:?}");
}

#[cfg(feature = "local")]
mod local {
    use std::os::unix::fs::PermissionsExt;

    use peerpod_netlink::{Error as Netlink, Netns};
    use peerpod_providers::local::{Local, USER_DATA_LIMIT};

    use super::*;

    const UNTESTED: &str = "exempt: local's VMs are processes of this machine, and no cloud stands behind \
                            them that could be made to fail (providers.md 7)";

    struct LocalDouble(Local);

    impl Double for LocalDouble {
        fn provider(&self) -> &dyn Provider {
            &self.0
        }

        fn installation(&self) -> &str {
            common::INSTALLATION
        }

        fn candidate(&self) -> Candidate {
            common::here()
        }

        fn user_data_limit(&self) -> Option<UserDataLimit> {
            Some(USER_DATA_LIMIT)
        }
    }

    fn double(dir: &std::path::Path) -> LocalDouble {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["helper", "podvm", "agent"] {
            let helper = env!("CARGO_BIN_EXE_peerpod-providers-test-helper");
            std::fs::copy(helper, dir.join(name)).unwrap();
        }
        let settings = common::settings(dir, "172.31.0.0/24");
        LocalDouble(Local::new(settings, common::INSTALLATION))
    }

    #[test]
    fn the_local_provider_keeps_every_promise_that_can_be_tested() {
        if !nix::unistd::geteuid().is_root() {
            println!(
                "SKIP local::the_local_provider_keeps_every_promise_that_can_be_tested: needs root \
                 to make network namespaces"
            );
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let double = double(dir.path());
        let done: Result<_, Netlink> = Netns::create().unwrap().run(|| {
            common::wire(&["192.0.2.1/24"])?;
            Ok(common::runtime().block_on(conformance::check(&double)))
        });
        for (row, outcome) in done.unwrap() {
            // Nothing stands behind it that could be made to fail.
            let untested = [
                "a lost reply",
                "delete takes parts",
                "a broken list",
                "errors keep",
                "a throttle",
                "a volume",
                "a stopped VM",
            ];
            let untested = untested.iter().any(|u| row.starts_with(u));
            let expected = if untested { Outcome::Untested } else { Outcome::Kept };
            assert_eq!(outcome, Ok(expected), "{row}");
            tell("local", row, if untested { UNTESTED } else { "kept" });
        }
    }
}
