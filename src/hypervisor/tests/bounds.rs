//! How much a caller may hold, and what becomes of more.

use super::*;

#[tokio::test]
async fn requests_of_a_connection_are_bounded() {
    let mut edge = Edge::new(Limits { requests: 2, ..Limits::default() });
    let mut raw = edge.raw().await;
    for stream in [1, 3] {
        raw.start(stream, "hang", 0).await;
        edge.event().await;
    }
    raw.stop(5, "c1", 0).await;
    assert_eq!(raw.code().await, Some((5, 8)));
    edge.lives().await;
    edge.scripted.go.notify_waiters();
    let mut answered = [raw.code().await, raw.code().await];
    answered.sort();
    assert_eq!(answered, [Some((1, 0)), Some((3, 0))]);
    raw.stop(7, "c1", 0).await;
    assert_eq!(raw.code().await, Some((7, 0)), "there is room again");
}

#[tokio::test]
async fn connections_are_bounded_and_their_places_come_back() {
    let edge = Edge::new(Limits { connections: 1, ..Limits::default() });
    let mut first = edge.caller().await;
    version(&mut first).await.expect("the first has the place");
    version(&mut edge.caller().await).await.expect_err("no place for a second");
    version(&mut first).await.expect("the first goes on");
    drop(first);
    let again = async { while version(&mut edge.caller().await).await.is_err() {} };
    soon(again).await;
}

#[tokio::test]
async fn a_peer_that_takes_no_answers_is_let_go() {
    let limits = Limits { stall: Duration::from_millis(50), ..Limits::default() };
    let mut edge = Edge::new(limits);
    let mut raw = edge.raw().await;
    for stream in [1, 3, 5] {
        let create = CreateVmRequest { id: "1000000".into(), ..CreateVmRequest::default() };
        raw.send(stream, "CreateVM", &create, 0).await;
    }
    edge.event().await;
    let gone = async {
        while edge.tracker.running().contains_key("hypervisor connection") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(gone).await;
    edge.lives().await;
}

#[tokio::test]
async fn bytes_of_unanswered_requests_are_bounded() {
    let mut edge = Edge::new(Limits { bytes: 4000, ..Limits::default() });
    let mut raw = edge.raw().await;
    let long = format!("hang{}", "x".repeat(3000));
    raw.start(1, &long, 0).await;
    edge.event().await;
    raw.start(3, &long, 0).await;
    assert_eq!(raw.code().await, Some((3, 8)));
    raw.stop(5, "c1", 0).await;
    assert_eq!(raw.code().await, Some((5, 0)), "a short one has room");
    edge.scripted.go.notify_waiters();
    assert_eq!(raw.code().await, Some((1, 0)));
    raw.start(7, &"x".repeat(3000), 0).await;
    assert_eq!(raw.code().await, Some((7, 0)), "there is room again");
}

#[tokio::test]
async fn who_says_nothing_makes_room_and_who_has_asked_stays() {
    let edge = Edge::new(Limits { silent: 2, ..Limits::default() });
    let mut known = edge.caller().await;
    version(&mut known).await.expect("served");
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(edge.stream().await);
        edge.lives().await;
    }
    assert_eq!(soon(silent[0].read(&mut [0])).await.expect("closed"), 0);
    version(&mut known).await.expect("it is no stranger");
}

#[tokio::test]
async fn annotations_without_number_are_refused_before_they_are_decoded() {
    let edge = Edge::new(Limits::default());
    let mut raw = edge.raw().await;
    let annotations = (0..5000).map(|n| (n.to_string(), String::new())).collect();
    let create = CreateVmRequest { id: "c1".into(), annotations, ..CreateVmRequest::default() };
    raw.send(1, "CreateVM", &create, 0).await;
    let (stream, code, words) = raw.answer().await.expect("an answer");
    assert_eq!((stream, code), (1, 3));
    assert!(words.contains("annotations: 5000"), "{words}");
}
