//! Keys: what is missing, wrong or contradictory.

use super::*;

fn read(changes: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let mut values: Values = [("imageid", "ami-0123456789abcdef0")].into_iter().collect();
    for (flag, value) in changes {
        values.set(*flag, *value);
    }
    Settings::from_values(&values, &BTreeMap::new())
}

#[test]
fn the_image_is_enough_and_the_defaults_are_the_guides() {
    let settings = read(&[]).expect("fine");
    assert_eq!((settings.instance_type.as_str(), settings.common.disk_gib), ("m6a.large", 6));
    assert_eq!((settings.identity, settings.region), (Identity::Chain, None));
    assert!(settings.encrypted && settings.volume_type == "gp3" && settings.subnets.is_empty());
}

#[test]
fn all_that_is_wrong_is_in_one_message() {
    let error = read(&[
        ("imageid", "<ami>"),
        ("aws-region", "<region>"),
        ("instance-type", "m6a"),
        ("instance-types", "m6a.*,M"),
        ("subnetid", "subnet-01234567,subnet-x"),
        ("securitygroupids", "<groups>"),
        ("aws-root-volume-type", "st1"),
        ("aws-root-volume-encrypted", "maybe"),
        ("aws-endpoint-url-ec2", "nowhere"),
        ("aws-secret-key", "hidden"),
        ("api-rate-run-instances", "0"),
    ]);
    let text = error.expect_err("refused").to_string();
    for says in [
        "PODVM_AMI_ID (--imageid) is required, and \"<ami>\" is a placeholder",
        "AWS_REGION (--aws-region) is required, and \"<region>\"",
        "PODVM_INSTANCE_TYPE (--instance-type) \"m6a\" is not",
        "PODVM_INSTANCE_TYPES (--instance-types) \"M\" is not",
        "AWS_SUBNET_ID (--subnetid) \"subnet-x\" is not",
        "AWS_SG_IDS (--securitygroupids) is a placeholder",
        "AWS_ROOT_VOLUME_TYPE (--aws-root-volume-type) \"st1\" is none",
        "AWS_ROOT_VOLUME_ENCRYPTED (--aws-root-volume-encrypted) \"maybe\" is neither",
        "AWS_ENDPOINT_URL_EC2 (--aws-endpoint-url-ec2) \"nowhere\" is not a URL",
        "AWS_ACCESS_KEY_ID (--aws-access-key-id) is required with",
        "API_RATE_RUN_INSTANCES",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    assert!(!text.contains("hidden"), "{text}");
}

#[test]
fn a_launch_template_needs_no_image_and_excludes_a_public_address() {
    let values = [("use-lt", "true")].into_iter().collect();
    let settings = Settings::from_values(&values, &BTreeMap::new()).expect("fine");
    assert_eq!((settings.image, settings.launch_template), (None, Some("kata".to_owned())));
    let error = read(&[("use-lt", "1"), ("use-public-ip", "1")]).expect_err("refused").to_string();
    assert!(error.contains("USE_PUBLIC_IP") && error.contains("exclude"), "{error}");
}

#[test]
fn the_key_goes_before_the_profile_and_no_secret_shows() {
    let keys = [("aws-access-key-id", "AKIA"), ("aws-secret-key", "hidden"), ("aws-profile", "p")];
    let settings = read(&keys).expect("fine");
    assert!(matches!(settings.identity, Identity::Static { .. }));
    assert!(!format!("{settings:?}").contains("hidden"));
    assert_eq!(
        read(&[("aws-profile", "p")]).expect("fine").identity,
        Identity::Profile("p".into())
    );
}

#[test]
fn tags_that_ec2_refuses_are_named() {
    let tags = [("aws:x".to_owned(), "y".to_owned())].into_iter().collect();
    let values = [("imageid", "ami-0123456789abcdef0")].into_iter().collect();
    let error = Settings::from_values(&values, &tags).expect_err("refused").to_string();
    assert!(error.contains("aws:x"), "{error}");
}

#[test]
fn a_label_becomes_a_cost_tag_that_every_launch_takes() {
    let mut tags = BTreeMap::new();
    let room = tag_room();
    // No slash: a launch template may show tags in the VM's metadata.
    for (label, tag) in [
        ("app.kubernetes.io/part-of", "app.kubernetes.io-part-of"),
        ("Team", "Team"),
        ("1/\u{e4}x", "x"),
    ] {
        assert_eq!(room.add(&mut tags, label, "Front.End_1").as_deref(), Ok(tag));
        assert_eq!(tags[tag], "Front.End_1");
    }
    let long = room.add(&mut tags, &"k".repeat(300), &"v".repeat(300)).expect("cut");
    assert_eq!((long.len(), tags[&long].len()), (128, 256));
    assert_eq!(tags::check(&tags, &TAGS), Vec::<String>::new());
    for (label, why) in [("AWS:x", "no key of a tag for AWS"), ("name", "\"Name\" already")] {
        let error = room.add(&mut tags, label, "x").expect_err(label);
        assert!(error.contains(why), "{label}: {error}");
    }
    // Name is the provider's own.
    let full = |tags: &BTreeMap<String, String>| tags.len() + 1;
    for n in full(&tags)..50 {
        room.add(&mut tags, &format!("k{n}"), "").expect("room");
    }
    assert!(room.add(&mut tags, "more", "x").expect_err("full").contains("AWS takes 50 tags"));
}
