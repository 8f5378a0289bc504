//! What Google's refusals mean (providers.md 5.5): one table, by the reason of an answer or the code of an
//! operation.
//!
//! ```text
//!   an answer     {"error": {"code", "message", "errors": [{"reason"}], "details": [{"reason"}]}}
//!   an operation  {"error": {"errors": [{"code", "message"}]}, "httpErrorStatusCode"}
//! ```
//! `errors[].reason` is what the Compute API has always said; `details[]` (`google.rpc.ErrorInfo`) is what
//! newer parts of it and the Resource Manager say, with it or instead of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::NAME;
use crate::error::Scope;
use crate::{Error, Kind};

/// A refusal as Google words it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// HTTP status of the answer it came with.
    pub(super) status: u16,
    /// Every reason and code that it gives, the first one first.
    pub(super) codes: Vec<String>,
    pub(super) message: String,
    /// `Retry-After`.
    pub(super) after: Option<Duration>,
}

const DENIED: &[&str] = &[
    "accessNotConfigured",
    "authError",
    "conditionNotMet",
    "forbidden",
    "insufficientPermissions",
    "required",
    "ACCESS_TOKEN_EXPIRED",
    "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
    "BILLING_DISABLED",
    "CONDITION_NOT_MET",
    "FORBIDDEN",
    "IAM_PERMISSION_DENIED",
    "PERMISSIONS_ERROR",
    "SERVICE_DISABLED",
];
const INVALID: &[&str] = &[
    "badRequest",
    "invalid",
    "invalidParameter",
    "parseError",
    "resourceInUseByAnotherResource",
    "INVALID_FIELD_VALUE",
    "INVALID_USAGE",
    "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE",
    "RESOURCE_NOT_FOUND",
    "UNSUPPORTED_OPERATION",
];
const QUOTA: &[&str] = &[
    "limitExceeded",
    "quotaExceeded",
    "LIMIT_EXCEEDED",
    "QUOTA_EXCEEDED",
    "RESOURCE_QUOTA_EXCEEDED",
];
const CAPACITY: &[&str] = &[
    "RESOURCE_POOL_EXHAUSTED",
    "STOCKOUT",
    "ZONE_RESOURCE_POOL_EXHAUSTED",
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
];
const FULL_SUBNET: &[&str] = &["IP_SPACE_EXHAUSTED", "IP_SPACE_EXHAUSTED_WITH_DETAILS"];
const THROTTLED: &[&str] =
    &["rateLimitExceeded", "tooManyRequests", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED"];
const UNAVAILABLE: &[&str] = &[
    "backendError",
    "internalError",
    "operationInProgress",
    "resourceNotReady",
    "INTERNAL_ERROR",
    "OPERATION_CANCELED_BY_USER",
    "RESOURCE_NOT_READY",
];

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn each<'a>(value: &'a Value, pointer: &str, key: &'a str) -> impl Iterator<Item = String> + 'a {
    let all = value.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    all.map(move |item| text(item, key)).filter(|code| !code.is_empty())
}

impl Refusal {
    /// What the body of an answer says; whatever is not Google's form has no code.
    pub(super) fn read(status: u16, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let codes = each(&body, "/error/errors", "reason");
        let codes = codes.chain(each(&body, "/error/details", "reason")).collect();
        let error = body.get("error").unwrap_or(&Value::Null);
        Self { status, codes, message: text(error, "message"), after: None }
    }

    /// Of the errors inside an operation; `None` if it has none.
    pub(super) fn inside(operation: &Value) -> Option<Self> {
        let status = operation.get("httpErrorStatusCode").and_then(Value::as_u64);
        let status = status.and_then(|s| u16::try_from(s).ok()).unwrap_or(0);
        let codes: Vec<String> = each(operation, "/error/errors", "code").collect();
        if codes.is_empty() && status < 400 {
            return None;
        }
        let message = operation.pointer("/error/errors/0").map(|error| text(error, "message"));
        let message = message.unwrap_or_else(|| text(operation, "httpErrorMessage"));
        Some(Self { status, codes, message, after: None })
    }

    fn has(&self, codes: &[&str]) -> bool {
        self.codes.iter().any(|code| codes.contains(&code.as_str()))
    }

    /// The table.
    pub(super) fn kind(&self) -> Kind {
        match self.status {
            _ if self.has(THROTTLED) => Kind::Throttled(Some(self.wait())),
            _ if self.has(QUOTA) => Kind::Quota,
            _ if self.has(CAPACITY) || self.has(FULL_SUBNET) => Kind::Capacity,
            _ if self.has(UNAVAILABLE) => Kind::Unavailable,
            429 => Kind::Throttled(Some(self.wait())),
            _ if self.has(DENIED) => Kind::Denied,
            _ if self.has(INVALID) => Kind::Invalid,
            404 => Kind::NotFound,
            401 | 403 | 412 => Kind::Denied,
            400 | 405 | 409 | 411..=413 => Kind::Invalid,
            408 | 500..=599 => Kind::Unavailable,
            _ => Kind::Other,
        }
    }

    fn wait(&self) -> Duration {
        self.after.unwrap_or_else(next_minute)
    }

    /// The error of an operation; `what` is what was asked of whom.
    pub(super) fn error(&self, operation: &'static str, what: &str) -> Error {
        let Self { status, codes, message, .. } = self;
        let kind = self.kind();
        // It may be a whole page.
        let words: String = message.chars().filter(|c| !c.is_control()).take(500).collect();
        let code = codes.first().map_or("no reason", String::as_str);
        let mut text = format!("{what}: {code}: {words} (HTTP {status})");
        if *status == 401 {
            text.push_str("; a clock that is wrong makes good credentials bad, too");
        }
        tracing::debug!(status, ?codes, kind = kind.as_str(), what, "Google refuses");
        let error = Error::new(NAME, operation, kind, text);
        if self.has(FULL_SUBNET) { error.about(Scope::Zone) } else { error }
    }
}

/// Google refills its quotas at the full minute and seldom says so.
fn next_minute() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(60 - now.as_secs() % 60)
}

#[cfg(test)]
mod tests;
