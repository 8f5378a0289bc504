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
