//! What EC2's refusals mean (providers.md 3.6): one table, by code.

use std::time::Duration;

use super::NAME;
use crate::error::Scope;
use crate::{Error, Kind};

/// A refusal as EC2 words it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// HTTP status; 0 when no answer came.
    pub(super) status: u16,
    /// Empty when the answer was none of EC2's.
    pub(super) code: String,
    pub(super) message: String,
    pub(super) request: String,
    /// How long it asks to wait. EC2 promises no such header; a proxy or a later EC2 may send one.
    pub(super) after: Option<Duration>,
}

/// What a dry run that would have worked is refused with.
pub(super) const DRY_RUN: &str = "DryRunOperation";
/// A code of our own: there is nothing to sign requests with.
pub(super) const NO_CREDENTIALS: &str = "NoCredentials";

const NOT_FOUND: &[&str] = &[
    "InvalidInstanceID.NotFound",
    "InvalidVolume.NotFound",
    "InvalidNetworkInterfaceID.NotFound",
    "InvalidAllocationID.NotFound",
];
const DENIED: &[&str] = &[
    "UnauthorizedOperation",
    "AuthFailure",
    "OptInRequired",
    "PendingVerification",
    "ExpiredToken",
    "InvalidClientTokenId",
    "Blocked",
    NO_CREDENTIALS,
    // An access key's clock and signature, as the query protocol has them for all services.
    "RequestExpired",
    "SignatureDoesNotMatch",
];
const INVALID: &[&str] = &[
    "InvalidSubnetID.NotFound",
    "InvalidGroup.NotFound",
    "InvalidKeyPair.NotFound",
    "InvalidLaunchTemplateName.NotFoundException",
    "InvalidInstanceType",
    "InvalidUserData.Malformed",
    "TagLimitExceeded",
    "IdempotentParameterMismatch",
    "MissingParameter",
    "UnknownParameter",
    "UnsupportedOperation",
];
const QUOTA: &[&str] = &[
    "InstanceLimitExceeded",
    "VcpuLimitExceeded",
    "MaxSpotInstanceCountExceeded",
    "AddressLimitExceeded",
    "VolumeLimitExceeded",
];
const CAPACITY: &[&str] = &[
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientReservedInstanceCapacity",
    "UnfulfillableCapacity",
    "SpotMaxPriceTooLow",
];
const FULL_SUBNET: &str = "InsufficientFreeAddressesInSubnet";
const THROTTLED: &[&str] =
    &["RequestLimitExceeded", "Throttling", "ThrottlingException", "EC2ThrottledException"];
const UNAVAILABLE: &[&str] =
    &["InternalError", "InternalFailure", "Unavailable", "ServiceUnavailable"];

impl Refusal {
    pub(super) fn kind(&self) -> Kind {
        let code = self.code.as_str();
        let malformed = code.starts_with("Invalid") && code.ends_with(".Malformed");
        let starts = |prefix: &str| code.starts_with(prefix);
        match self.status {
            _ if THROTTLED.contains(&code) => Kind::Throttled(self.after),
            _ if UNAVAILABLE.contains(&code) => Kind::Unavailable,
            _ if CAPACITY.contains(&code) || code == FULL_SUBNET => Kind::Capacity,
            _ if QUOTA.contains(&code) => Kind::Quota,
            _ if DENIED.contains(&code) => Kind::Denied,
            _ if NOT_FOUND.contains(&code) => Kind::NotFound,
            _ if INVALID.contains(&code) || malformed => Kind::Invalid,
            _ if starts("InvalidAMIID.") || starts("InvalidParameter") => Kind::Invalid,
            _ if code == "Unsupported" => self.unsupported(),
            // No answer, an answer that is none of EC2's, or its own failure: the effect is unknown.
            429 => Kind::Throttled(self.after),
            0 | 200..=299 | 500..=599 => Kind::Unavailable,
            _ => Kind::Other,
        }
    }

    /// The one text that is looked at: this code says "not here" and "never" alike.
    fn unsupported(&self) -> Kind {
        if self.message.contains("requested Availability Zone") {
            Kind::Capacity
        } else {
            Kind::Invalid
        }
    }

    /// The error of an operation; `what` is what was asked of whom.
    pub(super) fn error(&self, operation: &'static str, what: &str) -> Error {
        let Self { status, code, message, request, .. } = self;
        // What EC2 encodes about a refused right is long and for nobody's eyes but its own tool's.
        let message = message.split("Encoded authorization failure message").next();
        let words: String =
            message.unwrap_or_default().chars().filter(|c| !c.is_control()).take(500).collect();
        let code = if code.is_empty() { "no code" } else { code };
        let mut text = format!("{what}: {code}: {words} (HTTP {status}, request {request:?})");
        let mut kind = self.kind();
        if operation == "create" && kind == Kind::NotFound {
            // What a request names is not there: it can never work.
            kind = Kind::Invalid;
        }
        if ["AuthFailure", "RequestExpired", "SignatureDoesNotMatch"].contains(&code) {
            text.push_str("; a clock that is wrong makes good credentials bad, too");
        }
        tracing::debug!(status, code, request, kind = kind.as_str(), what, "EC2 refuses");
        let error = Error::new(NAME, operation, kind, text);
        if self.code == FULL_SUBNET { error.about(Scope::Zone) } else { error }
    }
}

#[cfg(test)]
mod tests;
