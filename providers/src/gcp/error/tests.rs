//! The table, and forms of answers.

use serde_json::json;

use super::*;

/// As an answer that gives its reason the old way, the new way, and inside an operation.
fn kinds(status: u16, code: &str) -> Vec<Kind> {
    let old = json!({"error": {"code": status, "message": "no", "errors": [{"reason": code}]}});
    let new = json!({"error": {"code": status, "message": "no",
        "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code}]}});
    let inside = json!({"status": "DONE", "httpErrorStatusCode": status,
        "error": {"errors": [{"code": code, "message": "no"}]}});
    let read = |body: Value| Refusal::read(status, body.to_string().as_bytes()).kind();
    vec![read(old), read(new), Refusal::inside(&inside).expect("an error").kind()]
}

#[test]
fn each_reason_is_what_the_table_says_wherever_it_stands() {
    for (status, code, wanted) in [
        (404, "notFound", Kind::NotFound),
        (401, "authError", Kind::Denied),
        (403, "forbidden", Kind::Denied),
        (403, "accessNotConfigured", Kind::Denied),
        (403, "IAM_PERMISSION_DENIED", Kind::Denied),
        (403, "SERVICE_DISABLED", Kind::Denied),
        (412, "conditionNotMet", Kind::Denied),
        (400, "invalid", Kind::Invalid),
        (400, "badRequest", Kind::Invalid),
        (400, "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", Kind::Invalid),
        (403, "quotaExceeded", Kind::Quota),
        (403, "QUOTA_EXCEEDED", Kind::Quota),
        (403, "RESOURCE_QUOTA_EXCEEDED", Kind::Quota),
        (503, "ZONE_RESOURCE_POOL_EXHAUSTED", Kind::Capacity),
        (503, "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", Kind::Capacity),
        (503, "STOCKOUT", Kind::Capacity),
        (400, "IP_SPACE_EXHAUSTED", Kind::Capacity),
        (503, "backendError", Kind::Unavailable),
        (400, "resourceNotReady", Kind::Unavailable),
        (500, "unheard", Kind::Unavailable),
        (418, "unheard", Kind::Other),
    ] {
        assert_eq!(kinds(status, code), vec![wanted; 3], "{status} {code}");
    }
    for (status, code) in [
        (403, "rateLimitExceeded"),
        (403, "userRateLimitExceeded"),
        (403, "RATE_LIMIT_EXCEEDED"),
        (429, "unheard"),
    ] {
        for kind in kinds(status, code) {
            let Kind::Throttled(Some(wait)) = kind else { panic!("{status} {code}: {kind:?}") };
            assert!(wait <= Duration::from_secs(60), "to the next full minute");
        }
    }
}

#[test]
fn a_reason_that_says_more_wins_over_one_that_says_less() {
    let body = json!({"error": {"code": 403, "errors": [{"reason": "forbidden"}],
        "details": [{"@type": "type.googleapis.com/google.rpc.Help"},
                    {"reason": "RATE_LIMIT_EXCEEDED"}]}});
    let mut refusal = Refusal::read(403, body.to_string().as_bytes());
    assert!(matches!(refusal.kind(), Kind::Throttled(_)));
    refusal.after = Some(Duration::from_secs(7));
    assert_eq!(refusal.kind(), Kind::Throttled(Some(Duration::from_secs(7))));
}

#[test]
fn whatever_is_no_answer_of_googles_goes_by_its_status() {
    for body in ["", "<html>", "{\"error\": {\"co", "[]", "{\"error\": 7}", "null"] {
        for (status, kind) in [
            (502, Kind::Unavailable),
            (408, Kind::Unavailable),
            (404, Kind::NotFound),
            (403, Kind::Denied),
            (418, Kind::Other),
        ] {
            assert_eq!(Refusal::read(status, body.as_bytes()).kind(), kind, "{body} {status}");
        }
    }
}

#[test]
fn an_operation_may_fail_without_saying_why() {
    assert_eq!(Refusal::inside(&json!({"status": "DONE"})), None);
    let bare = json!({"status": "DONE", "httpErrorStatusCode": 503, "httpErrorMessage": "down"});
    let refusal = Refusal::inside(&bare).expect("an error");
    assert_eq!((refusal.kind(), refusal.message.as_str()), (Kind::Unavailable, "down"));
}

#[test]
fn an_error_keeps_reason_and_status_and_says_for_want_of_what() {
    let refusal = |status, code: &str| Refusal {
        status,
        codes: vec![code.to_owned()],
        message: "no\n address".to_owned(),
        after: None,
    };
    let error = refusal(400, "IP_SPACE_EXHAUSTED").error("create", "VM x");
    assert_eq!(error.scope, Some(Scope::Zone));
    let text = error.to_string();
    for says in ["IP_SPACE_EXHAUSTED", "HTTP 400", "VM x", "no address"] {
        assert!(text.contains(says), "{says}: {text}");
    }
    assert!(refusal(401, "authError").error("list", "").message.contains("clock"));
}
