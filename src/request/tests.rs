//! What reading requests promises, in the value forms of both shims.

use proptest::prelude::*;

use super::*;

const TOML: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"x\"\n";

/// What the Go shim sends for a pod that asks for nothing: all nine keys.
fn go() -> CreateVmRequest {
    request(&[(keys::VCPUS, "0"), (keys::MEMORY, "0"), (keys::GPUS, "0")])
}

/// The nine keys, empty but for name and namespace and those given.
fn request(given: &[(&str, &str)]) -> CreateVmRequest {
    let nine = [
        keys::NAME,
        keys::NAMESPACE,
        keys::MACHINE_TYPE,
        keys::IMAGE,
        keys::VCPUS,
        keys::MEMORY,
        keys::GPUS,
        keys::GPU_MODEL,
        keys::INITDATA,
    ];
    let empty = nine.iter().map(|key| (*key, ""));
    let all = empty.chain([(keys::NAME, "web-0"), (keys::NAMESPACE, "shop")]);
    CreateVmRequest {
        id: "0123456789abcdef".repeat(4),
        annotations: all
            .chain(given.iter().copied())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        network_namespace_path: "/var/run/netns/cni-1".into(),
    }
}

fn read(request: &CreateVmRequest) -> Result<PodRequest, RequestError> {
    parse(request, &RequestRules::default())
}

fn with(given: &[(&str, &str)]) -> Result<PodRequest, RequestError> {
    read(&request(given))
}

/// The refusal of one value, which names the key and the value.
fn refused(key: &str, value: &str) -> String {
    let error = with(&[(key, value)]).expect_err(value);
    let failure = Failure::from(error);
    assert_eq!(failure.kind, FailureKind::Invalid);
    assert!(failure.message.contains(key), "{}", failure.message);
    failure.message
}

#[test]
fn a_pod_that_asks_for_nothing_asks_for_nothing() {
    let pod = read(&go()).expect("parse");
    assert_eq!((pod.pod.as_str(), pod.namespace.as_str()), ("web-0", "shop"));
    assert_eq!(pod.netns, PathBuf::from("/var/run/netns/cni-1"));
    assert_eq!((pod.vcpus, pod.memory_mib, pod.gpus), (None, None, 0));
    assert_eq!((pod.machine_type, pod.image, pod.gpu_model), (None, None, None));
    assert_eq!((pod.pod_uid, pod.initdata), (None, None));
}

#[test]
fn everything_a_shim_can_say_arrives() {
    let pod = with(&[
        (keys::MACHINE_TYPE, "m6a.large"),
        (keys::IMAGE, "ami-0123"),
        (keys::VCPUS, "12.5"),
        (keys::MEMORY, "24105"),
        (keys::GPUS, "2"),
        (keys::GPU_MODEL, "h100"),
        (keys::INITDATA, TOML),
    ])
    .expect("parse");
    assert_eq!(pod.machine_type.as_deref(), Some("m6a.large"));
    assert_eq!(pod.image.as_deref(), Some("ami-0123"));
    assert_eq!((pod.vcpus, pod.memory_mib, pod.gpus), (Some(13), Some(24_105), 2));
    assert_eq!(pod.gpu_model.as_deref(), Some("h100"));
    assert_eq!(pod.initdata, Some(Initdata::from_toml(TOML).expect("toml")));
}

#[test]
fn only_name_and_namespace_are_needed() {
    let mut bare = go();
    bare.annotations.retain(|key, _| key == keys::NAME || key == keys::NAMESPACE);
    read(&bare).expect("absent keys count as empty");
    for key in [keys::NAME, keys::NAMESPACE] {
        assert!(refused(key, "").contains("missing"));
        let mut without = go();
        without.annotations.remove(key);
        assert!(matches!(read(&without), Err(RequestError::Missing { field }) if field == key));
    }
}

#[test]
fn other_annotations_are_left_alone() {
    let mut more = go();
    more.annotations.insert("io.kubernetes.cri.future".into(), "\0".into());
    assert_eq!(read(&more).expect("parse"), read(&go()).expect("parse"));
}

#[test]
fn cpus_are_decimal_and_rounded_up() {
    let cases = [
        ("", None),
        ("0", None),
        ("0.0", None),
        ("000", None),
        ("1", Some(1)),
        ("1.0", Some(1)),
        ("1.5", Some(2)),
        ("0.5", Some(1)),
        ("0.001", Some(1)),
        ("2.0000001", Some(3)),
        ("12.5", Some(13)),
        ("13", Some(13)),
        ("4096", Some(4096)),
    ];
    for (text, vcpus) in cases {
        assert_eq!(with(&[(keys::VCPUS, text)]).expect(text).vcpus, vcpus, "{text}");
    }
}

#[test]
fn numbers_that_are_none_are_named() {
    let garbage = [
        "-1",
        "+1",
        "1e3",
        "NaN",
        "nan",
        "inf",
        "Infinity",
        "two",
        "1,5",
        "1.",
        ".5",
        ".",
        "1.5.2",
        " 1",
        "1 ",
        "0x10",
        "１",
        "4096.5",
        "4097",
        "99999999999999999999999",
        "1\0",
    ];
    for text in garbage {
        let message = refused(keys::VCPUS, text);
        assert!(message.contains(&format!("{text:?}")), "{message}");
    }
    for text in ["-1", "1.5", "1Gi", "NaN", "67108865", "18446744073709551616", " 1"] {
        refused(keys::MEMORY, text);
    }
    for text in ["-1", "1.5", "all", "257"] {
        refused(keys::GPUS, text);
    }
    assert_eq!(with(&[(keys::MEMORY, "67108864")]).expect("64 TiB").memory_mib, Some(67_108_864));
}

#[test]
fn the_rust_shims_default_pair_is_unset_only_by_the_rule_and_only_exactly() {
    let rule = RequestRules { rs_default_pair_is_unset: true, default_initdata: None };
    let size = |rules: &RequestRules, given: &[(&str, &str)]| {
        let pod = parse(&request(given), rules).expect("parse");
        (pod.vcpus, pod.memory_mib)
    };
    let pair = [(keys::VCPUS, "1"), (keys::MEMORY, "2048")];
    assert_eq!(size(&rule, &pair), (None, None));
    assert_eq!(size(&RequestRules::default(), &pair), (Some(1), Some(2048)));
    let near = [(keys::VCPUS, "1"), (keys::MEMORY, "2049")];
    assert_eq!(size(&rule, &near), (Some(1), Some(2049)));
    let near = [(keys::VCPUS, "2"), (keys::MEMORY, "2048")];
    assert_eq!(size(&rule, &near), (Some(2), Some(2048)));
    let gpu = [pair[0], pair[1], (keys::GPUS, "1")];
    assert_eq!(size(&rule, &gpu), (Some(1), Some(2048)), "another size input");
}

#[test]
fn crio_names_carry_pod_and_uid() {
    let name = |value: &str| {
        let pod = with(&[(keys::NAME, value)]).expect(value);
        (pod.pod, pod.pod_uid)
    };
    let uid = "8e0f7f0e-9f5e-4f4c-8f42-2d0a6f3f8f11";
    let crio = format!("k8s_web-0_shop_{uid}_0");
    assert_eq!(name(&crio), ("web-0".into(), Some(uid.into())));
    assert_eq!(name("k8s_web_shop"), ("web".into(), None));
    assert_eq!(name("k8s_web_shop_u/id_0"), ("web".into(), None), "no UID");
    assert_eq!(name("web_k8s"), ("web_k8s".into(), None), "`ctr` takes any name");
    refused(keys::NAME, "k8s__shop_uid_0");
}

#[test]
fn lengths_are_bounded_and_control_characters_refused() {
    for key in [keys::MACHINE_TYPE, keys::IMAGE, keys::GPU_MODEL, keys::NAME, keys::NAMESPACE] {
        let message = refused(key, &"x".repeat(100_000));
        assert!(message.len() < 400, "{message}");
        refused(key, "a\nb");
        refused(key, "a\u{7f}");
    }
    refused(keys::NAME, &"x".repeat(254));
    assert!(with(&[(keys::NAME, &"x".repeat(253))]).is_ok());
}

#[test]
fn initdata_that_no_vm_could_use_are_refused_first() {
    for broken in ["not toml", "algorithm = \"md5\"", "[data]\n"] {
        let mut request = request(&[(keys::INITDATA, broken)]);
        request.annotations.remove(keys::NAME);
        let error = read(&request).expect_err(broken);
        assert!(matches!(error, RequestError::Initdata(_)), "{error}");
        let failure = Failure::from(error);
        assert!(failure.message.contains("cc_init_data: initdata: "), "{}", failure.message);
    }
}

#[test]
fn the_pods_initdata_win_over_the_default() {
    let default = Initdata::from_toml("algorithm = \"sha512\"").expect("toml");
    let rules =
        RequestRules { rs_default_pair_is_unset: false, default_initdata: Some(default.clone()) };
    assert_eq!(parse(&go(), &rules).expect("parse").initdata, Some(default));
    let own = parse(&request(&[(keys::INITDATA, TOML)]), &rules).expect("parse").initdata;
    assert_eq!(own, Some(Initdata::from_toml(TOML).expect("toml")));
}

#[test]
fn a_pod_without_a_namespace_of_its_own_is_refused_in_words() {
    for path in ["", "/proc/0/ns/net"] {
        let request = CreateVmRequest { network_namespace_path: path.into(), ..go() };
        let error = read(&request).expect_err(path);
        assert!(error.to_string().contains("hostNetwork"), "{error}");
    }
    for path in ["netns/x", "/run/netns/a\0b", &format!("/{}", "x".repeat(5000))] {
        let request = CreateVmRequest { network_namespace_path: path.into(), ..go() };
        assert!(matches!(read(&request), Err(RequestError::Netns { .. })), "{path}");
    }
}

#[test]
fn ids_that_are_no_file_names_are_refused() {
    let long = "x".repeat(77);
    let bad = ["..", ".", "a/b", "../x", "/", "a\0", "a\n", "a b", "ä", ".x", "-x", "a:b", &long];
    for id in bad {
        let request = CreateVmRequest { id: id.into(), ..go() };
        let error = read(&request).expect_err(id);
        assert!(matches!(error, RequestError::Id { .. }), "{error}");
        assert!(error.to_string().starts_with("id "), "{error}");
    }
    let empty = CreateVmRequest { id: String::new(), ..go() };
    assert!(matches!(read(&empty), Err(RequestError::Missing { field: "id" })));
    for id in ["c1", "a.b_c-D", &"x".repeat(76), &"0".repeat(64)] {
        let id = SandboxId::parse(id).expect(id);
        let path = format!("/run/peerpod/pods/{id}/agent.ttrpc");
        assert!(path.len() <= 107, "{path}");
    }
}

#[test]
fn ids_are_checked_again_when_a_record_is_read() {
    let id = SandboxId::parse("c1").expect("id");
    assert_eq!(serde_json::to_string(&id).expect("json"), "\"c1\"");
    assert_eq!(serde_json::from_str::<SandboxId>("\"c1\"").expect("json"), id);
    serde_json::from_str::<SandboxId>("\"../x\"").expect_err("not an id");
}

#[test]
fn a_request_survives_a_record_byte_for_byte_and_does_not_print_initdata() {
    let secret = TOML.replace("\"x\"", "\"s3cret\"");
    let pod = with(&[(keys::INITDATA, &secret), (keys::VCPUS, "1.5")]).expect("parse");
    let text = serde_json::to_string(&pod).expect("json");
    assert_eq!(serde_json::from_str::<PodRequest>(&text).expect("json"), pod);
    assert!(!format!("{pod:?}").contains("s3cret"));
    let plain = with(&[]).expect("parse");
    let text = serde_json::to_string(&plain).expect("json");
    assert_eq!(serde_json::from_str::<PodRequest>(&text).expect("json"), plain);
}

fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[0-9.eE+-]{0,30}",
        "k8s(_[a-z0-9/-]{0,5}){0,6}",
        Just(TOML.into())
    ]
}

proptest! {
    #[test]
    fn hostile_requests_never_panic_and_errors_stay_short(
        id in hostile(),
        path in hostile(),
        values in proptest::collection::vec(hostile(), 9),
        rs_default_pair_is_unset: bool,
    ) {
        let mut request = go();
        let keys: Vec<String> = request.annotations.keys().cloned().collect();
        request.annotations = keys.into_iter().zip(values).collect();
        let rules = RequestRules { rs_default_pair_is_unset, default_initdata: None };
        for (id, path) in [(id.as_str(), path.as_str()), ("c1", "/run/netns/x"), ("c1", &path)] {
            request.id = id.to_owned();
            request.network_namespace_path = path.to_owned();
            if let Err(error) = parse(&request, &rules) {
                prop_assert!(chain_length(&error) < 2048);
            }
        }
    }

    #[test]
    fn whole_and_half_cpus_round_up_as_arithmetic_does(whole in 0_u32..4096, tenth in 0_u32..10) {
        let text = format!("{whole}.{tenth}");
        let wanted = whole + u32::from(tenth > 0);
        let got = with(&[(keys::VCPUS, &text)]).expect("parse").vcpus;
        prop_assert_eq!(got.unwrap_or(0), wanted);
    }
}

fn chain_length(error: &RequestError) -> usize {
    crate::hypervisor::chain(error).len()
}
