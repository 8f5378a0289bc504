use futures_util::FutureExt;

use super::*;
use crate::{ResourceKind, UserData, tags};

fn spec(n: u32) -> VmSpec {
    VmSpec {
        tags: BTreeMap::from([
            (tags::INSTALLATION.to_owned(), "test".to_owned()),
            (tags::SANDBOX.to_owned(), format!("abc-{n}")),
        ]),
        user_data: UserData("#cloud-config\n".to_owned()),
        ..VmSpec::new(VmName::first_form(&format!("pod{n}"), "abc"), format!("abc-{n}"))
    }
}

fn at(number: u32) -> Candidate {
    Candidate { number, instance_type: "small".to_owned(), zone: None, market: Market::OnDemand }
}

fn ref_to(spec: &VmSpec) -> VmRef {
    VmRef { name: spec.name.clone(), sandbox: spec.sandbox.clone(), native_id: None }
}

fn kind<T>(result: Result<T, Error>) -> Kind {
    result.err().expect("a failure").kind
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn faults_befall_the_calls_they_were_scripted_for() {
    let fake = Fake::new(Options::default());
    fake.script(Operation::Create, 2, Fault::Fail(Kind::Capacity));
    assert!(fake.create(&spec(1), &at(0)).await.is_ok());
    assert_eq!(kind(fake.create(&spec(2), &at(0)).await), Kind::Capacity);
    assert!(fake.create(&spec(2), &at(1)).await.is_ok());
    assert_eq!((fake.count(Operation::Create), fake.vms().len()), (3, 2));
    let outcomes: Vec<_> = fake.calls().into_iter().map(|c| c.outcome).collect();
    assert_eq!(outcomes, [Some(Ok(())), Some(Err(Kind::Capacity)), Some(Ok(()))]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_leaves_a_vm_that_a_replay_finds() {
    let fake = Fake::new(Options::default());
    fake.script_next(Operation::Create, Fault::LostReply(Kind::Unavailable));
    assert_eq!(kind(fake.create(&spec(1), &at(0)).await), Kind::Unavailable);
    let there = fake.vms()[0].native_id.clone();
    assert_eq!(fake.create(&spec(1), &at(0)).await.expect("replay").native_id, there);
    fake.script_next(Operation::Delete, Fault::LostReply(Kind::Other));
    assert_eq!(kind(fake.delete(&ref_to(&spec(1))).await), Kind::Other);
    assert!(fake.vms().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_late_effect_comes_after_the_failure() {
    let fake = Fake::new(Options::default());
    fake.script_next(Operation::Create, Fault::LateEffect(SECOND));
    assert_eq!(kind(fake.create(&spec(1), &at(0)).await), Kind::Unavailable);
    assert!(fake.vms().is_empty());
    sleep(SECOND).await;
    assert_eq!(fake.vms().len(), 1);
    fake.script_next(Operation::Delete, Fault::LateEffect(SECOND));
    assert_eq!(kind(fake.delete(&ref_to(&spec(1))).await), Kind::Unavailable);
    assert_eq!(fake.vms().len(), 1);
    sleep(SECOND).await;
    assert!(fake.vms().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_partial_create_leaves_parts_that_list_shows_and_delete_takes() {
    let fake = Fake::new(Options::default());
    fake.script_next(Operation::Create, Fault::Partial(Kind::Quota));
    assert_eq!(kind(fake.create(&spec(1), &at(0)).await), Kind::Quota);
    let kinds: Vec<_> = fake.list().await.expect("list").into_iter().map(|r| r.kind).collect();
    assert_eq!(kinds, [ResourceKind::Disk, ResourceKind::Interface]);
    assert_eq!(fake.delete(&ref_to(&spec(1))).await.expect("delete"), Deletion::Gone);
    assert!(fake.resources().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_address_that_was_lost_is_there_at_the_next_call() {
    let fake = Fake::new(Options::default());
    fake.script_next(Operation::Create, Fault::NoAddress);
    assert_eq!(kind(fake.create(&spec(1), &at(0)).await), Kind::Unavailable);
    assert_eq!(fake.create(&spec(1), &at(0)).await.expect("replay").addresses.len(), 1);
    assert_eq!(fake.vms().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_vm_may_stop_after_its_start_by_script_by_kill_or_vanish() {
    let fake = Fake::new(Options::default());
    fake.script_next(Operation::Create, Fault::DiesAfter(SECOND));
    fake.create(&spec(1), &at(0)).await.expect("made");
    let runs = || fake.resources().first().and_then(|r| r.running);
    assert_eq!(runs(), Some(true));
    sleep(SECOND).await;
    assert_eq!(runs(), Some(false));
    assert!(fake.vanish(&spec(1).name) && !fake.vanish(&spec(1).name));
    fake.create(&spec(1), &at(0)).await.expect("made again");
    assert!(fake.kill(&spec(1).name));
    assert_eq!(runs(), Some(false));
}

#[tokio::test(start_paused = true)]
async fn deletes_take_their_time_and_do_not_begin_anew_when_asked_again() {
    let fake = Fake::new(Options { delete_takes: SECOND, ..Options::default() });
    fake.create(&spec(1), &at(0)).await.expect("made");
    let vm = ref_to(&spec(1));
    assert_eq!(fake.delete(&vm).await.expect("delete"), Deletion::Accepted);
    assert_eq!(kind(fake.create(&spec(1), &at(0)).await), Kind::Unavailable);
    sleep(SECOND / 2).await;
    assert_eq!(fake.delete(&vm).await.expect("delete"), Deletion::Accepted);
    sleep(SECOND / 2).await;
    assert_eq!(fake.delete(&vm).await.expect("delete"), Deletion::Gone);
}

#[tokio::test(start_paused = true)]
async fn an_empty_bucket_says_when_to_come_again() {
    let rate = Rate { burst: 2, per_second: 0.5 };
    let rates = BTreeMap::from([(Operation::List, rate)]);
    let fake = Fake::new(Options { rates, ..Options::default() });
    assert!(fake.list().await.is_ok() && fake.list().await.is_ok());
    let Kind::Throttled(Some(wait)) = kind(fake.list().await) else {
        panic!("not throttled");
    };
    assert_eq!(wait, Duration::from_secs(2));
    sleep(wait).await;
    assert!(fake.list().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn room_is_limited_by_type_zone_and_market() {
    let fake = Fake::new(Options::default());
    fake.set_room("small", None, Market::OnDemand, 1);
    assert!(fake.create(&spec(1), &at(0)).await.is_ok());
    assert_eq!(kind(fake.create(&spec(2), &at(0)).await), Kind::Capacity);
    let spot = Candidate { market: Market::Spot, ..at(1) };
    assert!(fake.create(&spec(2), &spot).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_in_the_middle_is_no_list() {
    let fake = Fake::new(Options { page: 2, page_takes: SECOND, ..Options::default() });
    for n in 0..5 {
        fake.create(&spec(n), &at(0)).await.expect("made");
    }
    let begin = Instant::now();
    assert_eq!(fake.list().await.expect("whole").len(), 5);
    assert_eq!(begin.elapsed(), 3 * SECOND);
    fake.script_next(Operation::List, Fault::BreaksAfter(1));
    assert_eq!(kind(fake.list().await), Kind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_or_is_dropped_has_no_outcome() {
    let fake = Fake::new(Options::default());
    fake.script_next(Operation::Create, Fault::Hang);
    let made = tokio::time::timeout(SECOND, fake.create(&spec(1), &at(0))).await;
    assert!(made.is_err() && fake.vms().is_empty());
    assert!(fake.create(&spec(1), &at(0)).now_or_never().is_none());
    assert_eq!(fake.vms().len(), 1, "dropped after the effect, before the address");
    assert!(fake.calls().iter().all(|c| c.outcome.is_none()));
}

#[tokio::test(start_paused = true)]
async fn another_installations_machines_are_not_listed() {
    let fake = Fake::new(Options::default());
    let mut other = spec(1);
    other.tags.insert(tags::INSTALLATION.to_owned(), "other".to_owned());
    fake.plant(&other, &at(0)).expect("planted");
    assert!(fake.list().await.expect("list").is_empty());
    assert_eq!(fake.vms().len(), 1);
}
