use std::collections::BTreeMap;

use super::*;
use crate::admin::{About, LinkStatus};

fn pod(namespace: &str, name: &str, sandbox: &str) -> PodStatus {
    serde_json::from_value(serde_json::json!({
        "sandbox": sandbox, "namespace": namespace, "pod": name, "phase": "running",
        "vm": "i-1", "vm_name": "podvm-web-0123", "addresses": ["10.0.0.2"],
        "instance_type": "small", "size_reason": "default", "vni": 555001,
        "socket": "/run/peerpod/pods/x/agent.ttrpc", "created_ms": 1_000_000, "since_ms": 1_060_000,
        "timeline": [
            {"at_ms": 1_000_100, "what": "prepared", "took_ms": 12},
            {"at_ms": 1_060_000, "what": "running\u{1b}[31m", "took_ms": null}
        ]
    }))
    .expect("a pod")
}

fn report() -> Report {
    let link = LinkStatus {
        state: "connected".to_owned(),
        target: "10.0.0.2:15150".to_owned(),
        elsewhere: 1,
        mode: "plain".to_owned(),
        ..LinkStatus::default()
    };
    Report {
        process: About { node: "worker-1".to_owned(), ..About::default() },
        relay: true,
        missing: vec![],
        pods: vec![pod("shop", "web", "0123abcd"), pod("blog", "web", "4567abcd")],
        links: BTreeMap::from([("0123abcd".to_owned(), link)]),
        ended: vec![],
    }
}

fn at(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

fn printed(wanted: Option<&str>) -> String {
    print(&report(), wanted, false, at(1_090_000)).expect("something to print")
}

#[test]
fn the_table_is_aligned_and_has_one_line_per_pod() {
    let text = printed(None);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("node worker-1"), "{text}");
    let column = lines[1].find("PHASE").expect("a head");
    for line in &lines[2..] {
        assert_eq!(line.find("running"), Some(column), "{text}");
    }
    for part in ["shop", "i-1", "10.0.0.2", "555001", "connected", "90s"] {
        assert!(lines[2].contains(part), "{part} in {}", lines[2]);
    }
    assert_eq!(lines.len(), 4, "{text}");
}

#[test]
fn one_pod_is_found_by_each_of_its_names_and_shown_with_its_timeline() {
    for wanted in ["shop/web", "0123"] {
        let text = printed(Some(wanted));
        assert!(text.starts_with("shop/web\n") && !text.contains("blog"), "{text}");
        assert!(text.contains("+0.100s prepared (12 ms)"), "{text}");
        assert!(text.contains("+60.000s running"), "{text}");
        assert!(text.contains("connected to 10.0.0.2:15150"), "{text}");
    }
    assert!(printed(Some("web")).contains("blog/web"));
    for wanted in ["shop/we", "89", "", "/"] {
        let error = print(&report(), Some(wanted), false, at(0)).expect_err(wanted);
        assert!(matches!(error, StatusError::Unknown(_)), "{wanted}");
    }
}

#[test]
fn pods_that_have_ended_by_themselves_are_told_with_their_reason() {
    let mut report = report();
    let gone = PodStatus {
        phase: "ended".to_owned(),
        reason: Some("no room anywhere".to_owned()),
        ..pod("shop", "till", "89abcdef")
    };
    report.ended = vec![gone];
    let text = print(&report, None, false, at(1_090_000)).expect("text");
    let line = text.lines().last().unwrap_or_default();
    assert!(line.contains("till") && line.ends_with("30s  no room anywhere"), "{text}");
    let text = print(&report, Some("shop/till"), false, at(1_090_000)).expect("text");
    assert!(text.contains("no room anywhere") && text.contains("+60.000s running"), "{text}");
}

#[test]
fn escapes_in_what_others_named_do_not_reach_the_terminal() {
    assert!(!printed(Some("0123")).contains('\u{1b}'));
}

#[test]
fn json_is_the_report_or_the_pods_meant() {
    let all = print(&report(), None, true, at(0)).expect("JSON");
    assert_eq!(serde_json::from_str::<Report>(&all).expect("a report"), report());
    let one = print(&report(), Some("4567"), true, at(0)).expect("JSON");
    let pods: Vec<PodStatus> = serde_json::from_str(&one).expect("pods");
    assert_eq!(pods, [pod("blog", "web", "4567abcd")]);
}

#[test]
fn what_is_wrong_with_the_daemon_stands_above_the_pods() {
    let mut report = report();
    report.relay = false;
    report.missing = vec!["provider".to_owned()];
    let text = print(&report, None, false, at(0)).expect("text");
    assert!(text.contains("the relay does not answer"), "{text}");
    assert!(text.contains("not ready, missing: provider"), "{text}");
}

#[tokio::test]
async fn a_daemon_that_does_not_run_is_said_to_be_so() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let error = ask(port).await.expect_err("nobody").to_string();
    assert!(
        error.contains(&format!("127.0.0.1:{port}")) && error.contains("--probe-port"),
        "{error}"
    );
}

#[tokio::test]
async fn an_answer_that_is_not_ours_is_an_error() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let router = axum::Router::new().route("/status", axum::routing::get(async || "hello"));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let error = ask(port).await.expect_err("no JSON").to_string();
    assert!(error.contains("not what peerpodd says"), "{error}");
    server.abort();
}
