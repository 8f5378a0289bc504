use std::cell::Cell;

use proptest::prelude::*;

use super::*;

fn failed(kind: Kind) -> Error {
    Error::new("test", "create", kind, "no")
}

const POLICY: Policy = Policy {
    base: Duration::from_millis(200),
    cap: Duration::from_secs(30),
    attempts: 8,
    limit: Duration::from_secs(3600),
};

#[tokio::test(start_paused = true)]
async fn a_call_is_repeated_until_it_succeeds() {
    let calls = Cell::new(0);
    let result = retry(POLICY, || async {
        calls.set(calls.get() + 1);
        if calls.get() < 4 { Err(failed(Kind::Unavailable)) } else { Ok(calls.get()) }
    });
    assert_eq!(result.await.expect("the fourth"), 4);
}

#[tokio::test(start_paused = true)]
async fn giving_up_tells_how_often_and_how_long() {
    let policy = Policy { attempts: 3, ..POLICY };
    let hint = Some(Duration::from_secs(5));
    let result = retry(policy, || async { Err::<(), _>(failed(Kind::Throttled(hint))) }).await;
    let error = result.expect_err("three failures");
    assert_eq!((error.attempts, error.elapsed.as_secs()), (3, 10));
    assert!(error.to_string().starts_with("gave up after 3 attempts in 1000"), "{error}");
    assert_eq!(error.last.kind, Kind::Throttled(hint));
}

#[tokio::test(start_paused = true)]
async fn what_no_repetition_helps_is_not_repeated() {
    for kind in [Kind::Denied, Kind::Invalid, Kind::NotFound, Kind::Capacity, Kind::Quota] {
        let begin = Instant::now();
        let result = retry(POLICY, || async { Err::<(), _>(failed(kind)) }).await;
        let error = result.expect_err("a failure");
        assert_eq!((error.attempts, begin.elapsed()), (1, Duration::ZERO), "{kind:?}");
    }
}

#[test]
fn a_failure_nobody_has_mapped_is_repeated_less_often() {
    let mut backoff = Backoff::new(POLICY);
    let waits = (0..10).map_while(|_| backoff.after(Kind::Other, Duration::ZERO, 0.5));
    assert_eq!(waits.count(), UNMAPPED_ATTEMPTS as usize - 1);
}

#[test]
fn no_wait_is_begun_that_would_end_too_late() {
    let hour = Duration::from_secs(3600);
    let mut backoff = Backoff::new(POLICY);
    let late = hour - Duration::from_millis(1);
    assert_eq!(backoff.after(Kind::Unavailable, late, 0.9), None);
    let mut backoff = Backoff::new(POLICY);
    assert_eq!(backoff.after(Kind::Throttled(Some(hour)), Duration::ZERO, 0.9), Some(hour));
    assert_eq!(backoff.after(Kind::Throttled(Some(hour)), late, 0.9), None);
}

proptest! {
    #[test]
    fn waits_stay_below_the_doubled_base_and_the_cap(
        random in prop::collection::vec(0.0..1.0_f64, 1..40),
    ) {
        let policy = Policy { attempts: u32::MAX, limit: Duration::MAX, ..POLICY };
        let mut backoff = Backoff::new(policy);
        for (n, random) in random.into_iter().enumerate() {
            let wait = backoff.after(Kind::Unavailable, Duration::ZERO, random);
            let ceiling = policy.base.saturating_mul(1 << n.min(20)).min(policy.cap);
            prop_assert!(wait.is_some_and(|w| w <= ceiling), "{n}: {wait:?}");
        }
    }
}
