//! What Azure's refusals mean (providers.md 4.6): one table, by code, for answers and for what stands
//! inside an operation.

use std::time::Duration;

use serde_json::Value;

use super::NAME;
use crate::error::Scope;
use crate::{Error, Kind};

/// A refusal as Azure words it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// HTTP status of the answer it came with.
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) message: String,
    /// `Retry-After`.
    pub(super) after: Option<Duration>,
    /// `x-ms-request-id`.
    pub(super) request: String,
}

const DENIED: &[&str] = &[
    "AuthorizationFailed",
    "AuthenticationFailed",
    "ExpiredAuthenticationToken",
    "InvalidAuthenticationToken",
    "InvalidAuthenticationTokenTenant",
    "LinkedAuthorizationFailed",
    "RequestDisallowedByPolicy",
    "RequestDisallowedByAzure",
    "ReadOnlyDisabledSubscription",
    "SubscriptionNotRegistered",
    "MissingSubscriptionRegistration",
    "ScopeLocked",
];
const INVALID: &[&str] = &[
    "BadRequest",
    "BadArgument",
    "DiskImageNotFound",
    "GalleryImageNotFound",
    "ImageNotFound",
    "InvalidApiVersionParameter",
    "InvalidParameter",
    "InvalidParameterValue",
    "InvalidRequestContent",
    "InvalidRequestFormat",
    "InvalidResourceReference",
    "InvalidSubscriptionId",
    "InvalidTemplate",
    "LinkedInvalidPropertyId",
    "LocationNotAvailableForResourceType",
    "NetworkSecurityGroupNotFound",
    "NoRegisteredProviderFound",
    "ParameterValueTooLarge",
    "PropertyChangeNotAllowed",
    "ResourceGroupNotFound",
    "SubnetNotFound",
    "SubscriptionNotFound",
    "VMImageNotFound",
    "AttachDiskWhileBeingDetached",
    "DiskAttachedToAnotherVM",
    "ResourceNotInSameLocation",
];
const QUOTA: &[&str] = &[
    "PublicIPCountLimitReached",
    "PublicIpAddressCountLimitReached",
    "QuotaExceeded",
    "QuotaExceededError",
    "ResourceQuotaExceeded",
    "NetworkInterfaceCountLimitReached",
];
const CAPACITY: &[&str] = &[
    "AllocationFailed",
    "OperationPreempted",
    "OverconstrainedAllocationRequest",
    "OverconstrainedZonalAllocationRequest",
    "SkuNotAvailable",
    "ZonalAllocationFailed",
];
const FULL_SUBNET: &[&str] = &["SubnetIsFull", "InsufficientIpAddresses"];
const THROTTLED: &[&str] = &[
    "TooManyRequests",
    "OperationThrottled",
    "SubscriptionRequestsThrottled",
    "ResourceRequestsThrottled",
];
const UNAVAILABLE: &[&str] = &[
    "AnotherOperationInProgress",
    "InternalServerError",
    "InternalExecutionError",
    "InternalOperationError",
    "NetworkingInternalOperationError",
    "RetryableError",
    "RetryableErrorDueToAnotherOperation",
    "ServerBusy",
    "ServiceUnavailable",
    "GatewayTimeout",
    "OperationTimedOut",
    "VMStartTimedOut",
    // For three minutes after a failed create Azure keeps the interface for that VM.
    "NicReservedForAnotherVm",
];
const NOT_FOUND: &[&str] = &["NotFound", "ResourceNotFound"];

impl Refusal {
    /// What the body of an answer says; whatever is not Azure's form has no code.
    pub(super) fn read(status: u16, body: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        Self { status, ..Self::inside(&value) }
    }

    /// `{"error": {"code", "message", "details"}}`, of an answer or of an operation.
    pub(super) fn inside(value: &Value) -> Self {
        let error = value.get("error").unwrap_or(value);
        let text = |value: &Value, key: &str| {
            value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let mut refusal =
            Self { code: text(error, "code"), message: text(error, "message"), ..Self::default() };
        // The outer code may only say that something failed; the first one below says what.
        let vague = ["", "DeploymentFailed", "ResourceDeploymentFailure", "Conflict", "BadRequest"];
        let inner =
            error.pointer("/details/0").map(|inner| (text(inner, "code"), text(inner, "message")));
        if let Some((code, message)) = inner.filter(|(code, _)| !code.is_empty())
            && vague.contains(&refusal.code.as_str())
        {
            (refusal.code, refusal.message) = (code, message);
        }
        refusal
    }

    pub(super) fn kind(&self) -> Kind {
        let code = self.code.as_str();
        let has = |codes: &[&str]| codes.iter().any(|c| c.eq_ignore_ascii_case(code));
        match self.status {
            // The one text that is looked at: this code says quotas and everything else alike.
            _ if code.eq_ignore_ascii_case("OperationNotAllowed") => self.not_allowed(),
            _ if has(THROTTLED) => Kind::Throttled(self.after),
            _ if has(UNAVAILABLE) => Kind::Unavailable,
            _ if has(CAPACITY) || has(FULL_SUBNET) => Kind::Capacity,
            _ if has(QUOTA) => Kind::Quota,
            _ if has(DENIED) => Kind::Denied,
            _ if has(INVALID) => Kind::Invalid,
            _ if has(NOT_FOUND) => Kind::NotFound,
            429 => Kind::Throttled(self.after),
            401 | 403 => Kind::Denied,
            404 => Kind::NotFound,
            412 => Kind::Invalid,
            408 | 500..=599 => Kind::Unavailable,
            _ => Kind::Other,
        }
    }

    fn not_allowed(&self) -> Kind {
        let text = self.message.to_ascii_lowercase();
        if text.contains("quota") || text.contains("core limit") {
            Kind::Quota
        } else {
            Kind::Other
        }
    }

    /// The error of an operation; `what` is what was asked of whom.
    pub(super) fn error(&self, operation: &'static str, what: &str) -> Error {
        let Self { status, code, message, request, .. } = self;
        let words: String = message.chars().filter(|c| !c.is_control()).take(500).collect();
        let code = if code.is_empty() { "no code" } else { code };
        let mut text = format!("{what}: {code}: {words} (HTTP {status}, request {request:?})");
        let mut kind = self.kind();
        if operation == "create" && kind == Kind::NotFound {
            // What a request names is not there: it can never work.
            kind = Kind::Invalid;
        }
        if kind == Kind::Denied && code.contains("AuthenticationToken") {
            text.push_str("; a clock that is wrong makes good tokens bad, too");
        }
        tracing::debug!(status, code, request, kind = kind.as_str(), what, "Azure refuses");
        let error = Error::new(NAME, operation, kind, text);
        let full = FULL_SUBNET.iter().any(|c| c.eq_ignore_ascii_case(&self.code));
        if full { error.about(Scope::Zone) } else { error }
    }
}

#[cfg(test)]
mod tests;
