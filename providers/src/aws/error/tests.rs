//! The table of providers.md 3.6.

use super::*;

fn refusal(status: u16, code: &str, message: &str) -> Refusal {
    Refusal {
        status,
        code: code.into(),
        message: message.into(),
        request: "r-1".into(),
        after: None,
    }
}

#[test]
fn each_code_has_its_kind() {
    let table = [
        (Kind::NotFound, &["InvalidInstanceID.NotFound", "InvalidVolume.NotFound"][..]),
        (Kind::Denied, &["UnauthorizedOperation", "AuthFailure", "ExpiredToken", "OptInRequired"]),
        (
            Kind::Invalid,
            &["InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidSubnetID.NotFound"],
        ),
        (Kind::Invalid, &["InvalidInstanceID.Malformed", "InvalidParameterValue", "Unsupported"]),
        (Kind::Invalid, &["InvalidParameterCombination", "IdempotentParameterMismatch"]),
        (Kind::Quota, &["VcpuLimitExceeded", "InstanceLimitExceeded", "AddressLimitExceeded"]),
        (Kind::Capacity, &["InsufficientInstanceCapacity", "InsufficientFreeAddressesInSubnet"]),
        (Kind::Capacity, &["SpotMaxPriceTooLow", "UnfulfillableCapacity"]),
        (Kind::Throttled(None), &["RequestLimitExceeded", "Throttling", "EC2ThrottledException"]),
        (Kind::Unavailable, &["InternalError", "Unavailable", "ServiceUnavailable"]),
        (Kind::Other, &["SomethingNew"]),
    ];
    for (kind, codes) in table {
        for code in codes {
            assert_eq!(refusal(400, code, "").kind(), kind, "{code}");
        }
    }
}

#[test]
fn what_is_no_answer_of_ec2s_leaves_the_effect_unknown() {
    for status in [0, 200, 500, 502, 503] {
        assert_eq!(refusal(status, "", "<html>").kind(), Kind::Unavailable, "{status}");
    }
}

#[test]
fn a_code_that_says_two_things_is_told_apart_by_its_text() {
    let text = "Your requested instance type (m6a.large) is not supported in your requested \
                Availability Zone (eu-west-1c).";
    assert_eq!(refusal(400, "Unsupported", text).kind(), Kind::Capacity);
}

#[test]
fn a_full_subnet_is_about_the_zone_and_a_quota_about_the_family() {
    let scope = |code: &str| refusal(400, code, "").error("create", "RunInstances").scope;
    assert_eq!(scope("InsufficientFreeAddressesInSubnet"), Some(Scope::Zone));
    assert_eq!(scope("InsufficientInstanceCapacity"), Some(Scope::Place));
    assert_eq!(scope("VcpuLimitExceeded"), Some(Scope::Family));
}

#[test]
fn a_create_is_never_not_found_and_says_no_encoded_message() {
    let text = "You are not authorized. Encoded authorization failure message: c2VjcmV0";
    let error = refusal(403, "UnauthorizedOperation", text).error("create", "RunInstances");
    assert!(error.kind == Kind::Denied && !error.message.contains("c2VjcmV0"), "{error}");
    let error = refusal(400, "InvalidVolume.NotFound", "").error("create", "AttachVolume");
    assert_eq!(error.kind, Kind::Invalid);
}
