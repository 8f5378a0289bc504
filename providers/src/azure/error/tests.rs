//! The table, and forms of answers.

use serde_json::json;

use super::*;

fn kind(status: u16, code: &str, message: &str) -> Kind {
    let body = json!({"error": {"code": code, "message": message}}).to_string();
    Refusal::read(status, body.as_bytes()).kind()
}

#[test]
fn each_code_is_what_the_table_says() {
    for (status, code, wanted) in [
        (404, "ResourceNotFound", Kind::NotFound),
        (404, "NotFound", Kind::NotFound),
        (401, "", Kind::Denied),
        (403, "Unheard", Kind::Denied),
        (409, "skunotavailable", Kind::Capacity),
        (401, "ExpiredAuthenticationToken", Kind::Denied),
        (403, "AuthorizationFailed", Kind::Denied),
        (403, "LinkedAuthorizationFailed", Kind::Denied),
        (403, "RequestDisallowedByPolicy", Kind::Denied),
        (400, "InvalidParameter", Kind::Invalid),
        (400, "InvalidTemplate", Kind::Invalid),
        (404, "ResourceGroupNotFound", Kind::Invalid),
        (404, "SubnetNotFound", Kind::Invalid),
        (412, "PreconditionFailed", Kind::Invalid),
        (409, "QuotaExceeded", Kind::Quota),
        (400, "PublicIPCountLimitReached", Kind::Quota),
        (409, "SkuNotAvailable", Kind::Capacity),
        (200, "ZonalAllocationFailed", Kind::Capacity),
        (200, "OverconstrainedAllocationRequest", Kind::Capacity),
        (200, "OperationPreempted", Kind::Capacity),
        (400, "SubnetIsFull", Kind::Capacity),
        (429, "", Kind::Throttled(None)),
        (429, "SubscriptionRequestsThrottled", Kind::Throttled(None)),
        (408, "", Kind::Unavailable),
        (409, "AnotherOperationInProgress", Kind::Unavailable),
        (429, "RetryableError", Kind::Unavailable),
        (500, "InternalServerError", Kind::Unavailable),
        (503, "", Kind::Unavailable),
        (409, "Unheard", Kind::Other),
        (200, "Unheard", Kind::Other),
    ] {
        assert_eq!(kind(status, code, ""), wanted, "{status} {code}");
    }
}

#[test]
fn only_the_cores_quota_is_known_by_its_text() {
    let text = "results in exceeding approved standardDCASv5Family Cores quota";
    assert_eq!(kind(409, "OperationNotAllowed", text), Kind::Quota);
    let limit = "Operation could not be completed as it results in exceeding the Core Limit";
    assert_eq!(kind(409, "OperationNotAllowed", limit), Kind::Quota);
    assert_eq!(kind(409, "OperationNotAllowed", "the VM is busy"), Kind::Other);
    assert_eq!(kind(409, "Conflict", text), Kind::Other);
}

#[test]
fn a_vague_code_gives_way_to_what_stands_below_it() {
    let body = json!({"error": {"code": "DeploymentFailed", "message": "at least one",
        "details": [{"code": "SkuNotAvailable", "message": "no"}]}});
    assert_eq!(Refusal::inside(&body).kind(), Kind::Capacity);
    let body = json!({"error": {"code": "QuotaExceeded", "message": "cores",
        "details": [{"code": "SkuNotAvailable", "message": "no"}]}});
    assert_eq!(Refusal::inside(&body).kind(), Kind::Quota, "a code that says something stays");
}

#[test]
fn a_throttle_keeps_its_time_and_words_stay_short() {
    let after = Some(Duration::from_secs(7));
    for (status, code) in [(429, ""), (409, "TooManyRequests")] {
        let refusal = Refusal { status, code: code.to_owned(), after, ..Refusal::default() };
        assert_eq!(refusal.kind(), Kind::Throttled(after), "{status} {code}");
    }
    let long = Refusal { status: 500, message: "x".repeat(9000), ..Refusal::default() };
    assert!(long.error("create", "VM x").message.len() < 700);
    let code = "ExpiredAuthenticationToken".to_owned();
    let expired = Refusal { status: 401, code, ..Refusal::default() };
    assert!(expired.error("list", "VMs").message.contains("a clock that is wrong"));
}

#[test]
fn whatever_is_no_answer_of_azures_goes_by_its_status() {
    for body in ["", "<html>", "{\"error\": {\"co", "[]", "{\"error\": 7}", "null"] {
        assert_eq!(Refusal::read(502, body.as_bytes()).kind(), Kind::Unavailable, "{body}");
        assert_eq!(Refusal::read(404, body.as_bytes()).kind(), Kind::NotFound, "{body}");
        assert_eq!(Refusal::read(418, body.as_bytes()).kind(), Kind::Other, "{body}");
    }
}

#[test]
fn an_error_keeps_code_status_and_request_and_says_for_want_of_what() {
    let refusal = Refusal {
        status: 400,
        code: "SubnetIsFull".to_owned(),
        message: "pods\n has no address".to_owned(),
        request: "r-1".to_owned(),
        after: None,
    };
    let error = refusal.error("create", "VM x");
    assert_eq!(error.scope, Some(Scope::Zone));
    let text = error.to_string();
    for says in ["SubnetIsFull", "HTTP 400", "r-1", "VM x", "pods has no address"] {
        assert!(text.contains(says), "{says}: {text}");
    }
    let missing = Refusal { code: "ResourceNotFound".to_owned(), ..Refusal::default() };
    assert_eq!(missing.error("create", "VM x").kind, Kind::Invalid);
    assert_eq!(missing.error("delete", "VM x").kind, Kind::NotFound);
}
