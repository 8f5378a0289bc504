//! What has room in a cloud's user data, and what follows over the link.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use podvm::apf::ToFollow;
use podvm::contract::{AUTH, INITDATA};

use super::*;

/// With so many bytes of policy that hardly get smaller.
fn initdata(bytes: usize) -> Initdata {
    let mixed = (0_u64..).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    let policy = STANDARD.encode(mixed.take(bytes / 4 * 3).collect::<Vec<_>>());
    let text = format!("algorithm = \"sha256\"\n[data]\n\"policy.rego\" = \"{policy}\"\n");
    Initdata::from_toml(&text).expect("toml")
}

fn limited(size: usize, base64: bool) -> PlanRules {
    PlanRules { user_data_limit: Some(UserDataLimit { size, base64 }), ..rules() }
}

#[test]
fn the_largest_that_may_follow_does_so_as_soon_as_a_byte_has_no_room() {
    let request = PodRequest { initdata: Some(initdata(20_000)), ..request() };
    let auth = Secret::new("x".repeat(5_000));
    let make = |rules: &PlanRules| make_with(&request, rules, Some(&issued()), Some(&auth));
    let whole = make(&rules()).expect("no limit");
    let size = whole.spec.user_data.0.len();
    assert_eq!(make(&limited(size, false)).expect("fits"), whole);
    assert_eq!(make(&limited(size.div_ceil(3) * 4, true)).expect("fits as base64"), whole);

    let plan = make(&limited(size - 1, false)).expect("initdata follow");
    let text = request.initdata.as_ref().expect("initdata").encode();
    assert_eq!(plan.follow.len(), 1);
    assert_eq!((plan.follow[0].path.as_str(), plan.follow[0].content.expose()), (INITDATA, &*text));
    assert_eq!(
        apf(&plan).to_follow().expect("promised"),
        [ToFollow::of(INITDATA, text.as_bytes())]
    );
    assert_eq!(files(&plan).keys().collect::<Vec<_>>(), [contract::APF, AUTH]);
    let note = format!("/run/peerpod/initdata has no room in the user data ({} bytes)", text.len());
    assert!(plan.notes[0].starts_with(&note), "{:?}", plan.notes);
    let kept = serde_json::to_string(&plan).expect("json");
    assert_eq!(serde_json::from_str::<Plan>(&kept).expect("json"), plan, "it survives a record");
    assert!(!format!("{plan:?}").contains(&text[..40]));

    let plan = make(&limited(4_000, false)).expect("both follow");
    let paths: Vec<_> = plan.follow.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, [INITDATA, AUTH]);
    assert_eq!(apf(&plan).to_follow().expect("promised").len(), 2);
}

#[test]
fn without_tls_nothing_can_follow_and_size_limit_and_largest_part_are_named() {
    let auth = Secret::new("x".repeat(12_000));
    let size = |base64, size| make_with(&request(), &limited(size, base64), None, Some(&auth));
    let raw = size(false, 1 << 20).expect("fits").spec.user_data.0.len();
    let encoded = raw.div_ceil(3) * 4;
    size(false, raw).expect("fits exactly");
    size(true, encoded).expect("fits exactly");
    let error = size(false, raw - 1).expect_err("a byte too much").to_string();
    for part in [format!("{raw} bytes"), format!("limit is {}", raw - 1), AUTH.into()] {
        assert!(error.contains(&part), "{part}: {error}");
    }
    assert!(error.contains("12000 bytes"), "{error}");
    let error = size(true, encoded - 1).expect_err("a character too much").to_string();
    assert!(error.contains(&format!("{encoded} characters of base64")), "{error}");
}

#[test]
fn what_even_alone_has_no_room_and_what_is_too_large_to_follow_are_refused_by_name() {
    let error = make(&request(), &limited(100, false)).expect_err("apf.json cannot follow");
    assert!(error.to_string().contains("the largest part is /run/peerpod/apf.json"), "{error}");
    let request = PodRequest { initdata: Some(initdata(1_000_000)), ..request() };
    let error = make(&request, &rules()).expect_err("too large").to_string();
    assert!(error.starts_with("/run/peerpod/initdata: "), "{error}");
    assert!(error.ends_with("at most 786432 follow over the link"), "{error}");
}

#[test]
fn what_our_own_vm_would_not_read_as_user_data_follows() {
    let request = PodRequest { initdata: Some(initdata(600_000)), ..request() };
    let plan = make(&request, &rules()).expect("plan");
    assert!(plan.follow[0].content.expose().len() > contract::USER_DATA_LIMIT);
    assert!(plan.spec.user_data.0.len() < 16 << 10);
}
