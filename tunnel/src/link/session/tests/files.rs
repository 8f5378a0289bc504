//! Files on the control stream: what is whole is given on, once, and its sender is told.

use super::ends::{KEEP, connect, sessions};
use super::*;

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it takes too long")
}

fn wanted(files: &[(&str, &[u8])]) -> Vec<(String, usize)> {
    files.iter().map(|(path, content)| ((*path).to_owned(), content.len())).collect()
}

/// A VM that waits for the files and a worker that has sent them, to the moment before the answer.
async fn sent(
    sessions: &Arc<Sessions>,
    files: &'static [(&'static str, &'static [u8])],
) -> (super::ends::Ends, tokio::task::JoinHandle<Result<(), DeliverError>>) {
    let link = Link::worker("test", KEEP);
    let ends = connect(&link, sessions);
    (ends, tokio::spawn(async move { link.deliver(files).await }))
}

const LARGE: &[u8] = &[7; MAX_PIECE * 5 + 1];
const FILES: &[(&str, &[u8])] = &[("/a", LARGE), ("/b", b"")];
const STRANGE: &[(&str, &[u8])] = &[("/c", b"x")];
const LONG: &[(&str, &[u8])] = &[("/b", b"x")];

#[tokio::test]
async fn files_come_whole_and_their_sender_hears_when_they_are_taken() {
    let sessions = sessions();
    sessions.want(wanted(FILES));
    let (_ends, delivered) = sent(&sessions, FILES).await;
    let files = within(sessions.files()).await;
    assert_eq!(files, FILES.iter().map(|(p, c)| ((*p).to_owned(), c.to_vec())).collect());
    assert!(!delivered.is_finished(), "nobody has said that they are taken");
    sessions.taken();
    assert_eq!(within(delivered).await.expect("task"), Ok(()));
    // A worker that has forgotten that sends them again, and one file is as good as all.
    let (_ends, again) = sent(&sessions, &[("/b", b"")]).await;
    assert_eq!(within(again).await.expect("task"), Ok(()));
}

#[tokio::test]
async fn what_is_refused_is_waited_for_again() {
    let sessions = sessions();
    sessions.want(wanted(FILES));
    for problem in ["sha256", "toml"] {
        let (_ends, delivered) = sent(&sessions, FILES).await;
        within(sessions.files()).await;
        sessions.refused(problem.to_owned());
        let refused = Err(DeliverError::Refused(problem.to_owned()));
        assert_eq!(within(delivered).await.expect("task"), refused);
    }
    let (_ends, delivered) = sent(&sessions, FILES).await;
    within(sessions.files()).await;
    sessions.taken();
    assert_eq!(within(delivered).await.expect("task"), Ok(()));
}

#[tokio::test]
async fn a_half_that_broke_off_is_no_part_of_what_comes_next() {
    let sessions = sessions();
    sessions.want(wanted(FILES));
    let half: &[(&str, &[u8])] = &[("/a", b"half")];
    let (ends, delivered) = sent(&sessions, half).await;
    // Nothing tells that it came; whether it did makes no difference.
    ends.cut().await;
    delivered.abort();
    let (_ends, delivered) = sent(&sessions, FILES).await;
    assert_eq!(within(sessions.files()).await["/a"], LARGE);
    sessions.taken();
    assert_eq!(within(delivered).await.expect("task"), Ok(()));
}

#[tokio::test]
async fn files_that_nobody_waits_for_or_that_are_too_long_are_refused() {
    for (files, why) in [(STRANGE, "not waited for"), (LONG, "after 0 of 0 bytes")] {
        let sessions = sessions();
        sessions.want(wanted(FILES));
        let (_ends, delivered) = sent(&sessions, files).await;
        let refused = within(delivered).await.expect("task");
        let named =
            matches!(&refused, Err(DeliverError::Refused(problem)) if problem.contains(why));
        assert!(named, "{refused:?}");
        // They have cost nobody else anything.
        let (_ends, delivered) = sent(&sessions, FILES).await;
        within(sessions.files()).await;
        sessions.taken();
        assert_eq!(within(delivered).await.expect("task"), Ok(()));
    }
    let large = vec![0; MAX_FILES + 1];
    let link = Link::worker("test", KEEP);
    let too_large = link.deliver(&[("/a", &large)]).await;
    assert_eq!(too_large, Err(DeliverError::TooLarge(MAX_FILES + 1)));
}

#[test]
fn as_much_as_may_go_goes_at_once() {
    let (mut worker, mut vm) = pair();
    let count = MAX_FILES / MAX_PIECE;
    for number in 0..count {
        let content = bytes::Bytes::from(vec![1; MAX_PIECE]);
        let offset = (number * MAX_PIECE) as u64;
        let piece = Message::Piece(Piece { path: "/a".repeat(20), offset, content });
        assert!(worker.tell(&piece), "piece {number}");
    }
    tell(&mut worker, &mut vm).expect("all of it");
    let mut came = 0;
    while let Some(event) = vm.event() {
        came += usize::from(matches!(event, Event::Told(Message::Piece(_))));
    }
    assert_eq!(came, count);
}

#[tokio::test]
async fn an_older_vm_is_sent_nothing() {
    let (mut worker, mut vm) = pair();
    let about = About { build: "podvm\n0.0.9".to_owned(), pid: 1, takes_files: false };
    vm.tell(&Message::About(about));
    tell(&mut vm, &mut worker).expect("tell");
    let link = Link::with(worker);
    link.0.lock().settle();
    let delivered = within(link.deliver(FILES)).await;
    assert_eq!(delivered, Err(DeliverError::Unknown("podvm0.0.9".to_owned())));
}

#[tokio::test]
async fn however_often_they_come_one_set_is_kept() {
    let sessions = sessions();
    sessions.want(wanted(FILES));
    let mut senders = Vec::new();
    for _ in 0..3 {
        senders.push(sent(&sessions, FILES).await);
        let asked =
            || sessions.links().iter().filter(|link| link.0.lock().asks_for_answer()).count();
        while asked() < senders.len() {
            tokio::task::yield_now().await;
        }
    }
    within(sessions.files()).await;
    let another = tokio::time::timeout(Duration::ZERO, sessions.files()).await;
    assert!(another.is_err(), "one is looked at for all of them");
    sessions.taken();
    for (_ends, delivered) in senders {
        assert_eq!(within(delivered).await.expect("task"), Ok(()));
    }
}
