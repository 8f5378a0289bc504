//! The word that the cloud takes the VM back: who hears it, when, and that it is not lost.

use super::ends::{KEEP, connect, sessions};
use super::*;

fn word(kind: &str) -> Interruption {
    Interruption { kind: kind.to_owned(), deadline_ms: 1_700_000_000_000, source: "aws".to_owned() }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it takes too long")
}

#[tokio::test]
async fn whoever_has_asked_is_told_once_and_whoever_asks_later_too() {
    let sessions = sessions();
    let [early, silent, late] = [(); 3].map(|()| Link::worker("test", KEEP));
    let _ends = [&early, &silent, &late].map(|link| connect(link, &sessions));
    within(early.joined()).await.expect("joined");
    early.watch();
    within(sessions.watched()).await;
    sessions.interrupt(word("terminate"));
    assert_eq!(within(early.interrupted(None)).await, word("terminate"));
    late.watch();
    assert_eq!(within(late.interrupted(None)).await, word("terminate"));
    // Its first word to the VM after all that; a notice would have come before the answer.
    let mut stream = silent.open().expect("open");
    super::ends::echo(&mut stream, b"x").await;
    assert_eq!(silent.interruption(), None);
    early.watch();
    let mut stream = early.open().expect("open");
    super::ends::echo(&mut stream, b"x").await;
    let known = word("terminate");
    let again = tokio::time::timeout(Duration::ZERO, early.interrupted(Some(&known))).await;
    assert!(again.is_err(), "it is no news: {again:?}");
}

#[tokio::test]
async fn a_cut_and_another_process_lose_nothing_of_it() {
    let (sessions, link) = (sessions(), Link::worker("test", KEEP));
    let ends = connect(&link, &sessions);
    within(link.joined()).await.expect("joined");
    link.watch();
    within(sessions.watched()).await;
    ends.cut().await;
    sessions.interrupt(word("preempt"));
    let other = Link::import(&link.export().expect("export")).expect("import");
    let _ends = connect(&other, &sessions);
    assert_eq!(within(other.interrupted(None)).await, word("preempt"));
}

#[test]
fn a_vms_words_are_cut_to_what_a_cloud_would_say() {
    let Interruption { kind, deadline_ms, source } = Interruption {
        kind: "a\nb\u{7f}\u{1f600}".to_owned() + &"x".repeat(60_000),
        deadline_ms: u64::MAX,
        source: String::new(),
    }
    .bounded();
    assert_eq!((kind.len(), &kind[..3], deadline_ms), (32, "abx", u64::MAX));
    assert_eq!(source, "");
}
