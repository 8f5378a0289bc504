//! Keys: what is missing, wrong or contradictory.

use std::collections::BTreeMap;

use super::*;

const SUBSCRIPTION_ID: &str = "00000000-0000-0000-0000-000000000001";

fn group() -> String {
    format!("/subscriptions/{SUBSCRIPTION_ID}/resourceGroups/pods/providers")
}

/// As the users' guide has them.
fn values(changes: &[(&str, &str)]) -> Values {
    let (subnet, image) = (
        format!("{}/Microsoft.Network/virtualNetworks/net/subnets/pods", group()),
        format!("{}/Microsoft.Compute/galleries/g/images/podvm/versions/1.0.0", group()),
    );
    let mut values: Values = [
        ("subscriptionid", SUBSCRIPTION_ID),
        ("region", "eastus"),
        ("resourcegroup", "pods"),
        ("subnetid", &subnet),
        ("imageid", &image),
    ]
    .into_iter()
    .collect();
    for (flag, value) in changes {
        values.set(*flag, *value);
    }
    values
}

fn read(changes: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    Settings::from_values(&values(changes), &BTreeMap::new())
}

#[test]
fn the_guides_keys_are_enough_and_the_defaults_its_own() {
    let settings = read(&[]).expect("fine");
    assert_eq!(settings.size, "Standard_DC2as_v5");
    assert_eq!(settings.ssh_user, "peerpod");
    assert_eq!(settings.identity, Identity::Managed { client: None });
    assert!(settings.ssh_key.starts_with("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI"));
    assert_eq!(settings.ssh_key, read(&[]).expect("fine").ssh_key, "one key per process");
    assert_eq!(settings.arm, "https://management.azure.com");
}

#[test]
fn what_is_given_arrives_where_it_belongs() {
    let nsg = format!("{}/Microsoft.Network/networkSecurityGroups/pods", group());
    let all = [
        ("securitygroupid", nsg.as_str()),
        ("instance-sizes", "Standard_D2s_v5,Standard_D4s_v5"),
        ("zone", "1,2"),
        ("ssh-username", "core"),
        ("enable-secure-boot", "true"),
        ("disable-cvm", "false"),
        ("clientid", SUBSCRIPTION_ID),
        ("azure-arm-endpoint", "https://management.azure.example"),
        ("azure-authority-host", "https://login.azure.example"),
    ];
    let settings = read(&all).expect("fine");
    assert_eq!(settings.nsg.as_deref(), Some(nsg.as_str()));
    assert_eq!(settings.sizes, ["Standard_D2s_v5", "Standard_D4s_v5"]);
    assert_eq!(settings.zones, ["1", "2"]);
    assert_eq!(settings.ssh_user, "core");
    assert!(settings.secure_boot && !settings.common.disable_cvm);
    assert_eq!(settings.identity, Identity::Managed { client: Some(SUBSCRIPTION_ID.to_owned()) });
    assert_eq!(settings.arm, "https://management.azure.example");
    assert_eq!(settings.authority, "https://login.azure.example");
    assert!(settings.image.ends_with("/images/podvm/versions/1.0.0"), "{}", settings.image);
}

#[test]
fn all_that_is_missing_is_named_at_once_and_a_placeholder_is_missing() {
    let values: Values = [("region", "<azure_region>")].into_iter().collect();
    let error = Settings::from_values(&values, &BTreeMap::new()).expect_err("missing").to_string();
    for key in [
        "AZURE_SUBSCRIPTION_ID",
        "AZURE_REGION",
        "AZURE_RESOURCE_GROUP",
        "AZURE_SUBNET_ID",
        "AZURE_IMAGE_ID",
    ] {
        assert!(error.contains(&format!("{key} (--")), "{key}: {error}");
    }
    assert!(error.contains("\"<azure_region>\" is a placeholder"), "{error}");
}

#[test]
fn each_bad_value_is_named_with_its_key() {
    for (flag, value, says) in [
        ("subscriptionid", "mine", "AZURE_SUBSCRIPTION_ID"),
        ("region", "East US", "AZURE_REGION"),
        ("resourcegroup", "a/b", "AZURE_RESOURCE_GROUP"),
        ("subnetid", "pods", "AZURE_SUBNET_ID"),
        ("securitygroupid", "/subscriptions/x", "AZURE_NSG_ID"),
        ("imageid", "/CommunityGalleries/g", "AZURE_IMAGE_ID"),
        ("instance-size", "Standard D2", "AZURE_INSTANCE_SIZE"),
        ("instance-sizes", "Standard_D*,?", "AZURE_INSTANCE_SIZES"),
        ("zone", "1,4", "AZURE_ZONES"),
        ("ssh-key-path", "/nowhere/key", "--ssh-key-path"),
        ("ssh-username", "root", "SSH_USERNAME"),
        ("azure-arm-endpoint", "http://management.azure.com", "AZURE_ARM_ENDPOINT"),
        ("azure-arm-endpoint", "http://localhost:1", "AZURE_ARM_ENDPOINT"),
        ("azure-authority-host", "ftp://x", "AZURE_AUTHORITY_HOST"),
        ("api-rate-vm-put", "0", "API_RATE_VM_PUT"),
        ("disable-cvm", "maybe", "DISABLECVM"),
        ("clientid", "x", "AZURE_CLIENT_ID"),
    ] {
        let error = read(&[(flag, value)]).expect_err(flag).to_string();
        assert!(error.contains(says), "{flag}={value}: {error}");
    }
}

#[test]
fn what_contradicts_is_refused() {
    let error = read(&[("enable-secure-boot", "true"), ("disable-cvm", "true")]);
    assert!(error.expect_err("refused").to_string().contains("ENABLE_SECURE_BOOT"));
    let error = read(&[("secret", "hunter2")]).expect_err("refused").to_string();
    assert!(error.contains("AZURE_CLIENT_ID") && error.contains("AZURE_TENANT_ID"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn a_secret_wins_over_a_workload_identity_and_shows_nowhere() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("text");
    let ids = [("clientid", SUBSCRIPTION_ID), ("tenantid", SUBSCRIPTION_ID)];
    let workload = read(&[ids[0], ids[1], ("federated-token-file", path)]).expect("fine");
    assert!(matches!(workload.identity, Identity::Workload { .. }));
    let all = [ids[0], ids[1], ("federated-token-file", path), ("secret", "hunter2")];
    let secret = read(&all).expect("fine");
    assert!(matches!(secret.identity, Identity::Secret { .. }));
    assert!(!format!("{secret:?}").contains("hunter2"));
    let gone = read(&[ids[0], ids[1], ("federated-token-file", "/nowhere")]);
    assert!(gone.expect_err("refused").to_string().contains("AZURE_FEDERATED_TOKEN_FILE"));
}

#[test]
fn a_bad_tag_is_told_with_the_other_mistakes() {
    let tags = BTreeMap::from([("a/b".to_owned(), "x".to_owned())]);
    let error = Settings::from_values(&values(&[("region", "?")]), &tags).expect_err("refused");
    let error = error.to_string();
    assert!(error.contains("TAGS") && error.contains("AZURE_REGION"), "{error}");
}

#[test]
fn a_key_file_must_be_its_owners_alone_and_hold_a_key() {
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("text");
    let mode = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(file.path(), permissions).expect("chmod");
    };
    std::fs::write(file.path(), crate::azure::ssh::nobodys()).expect("written");
    mode(0o644);
    let error = read(&[("ssh-key-path", path)]).expect_err("refused").to_string();
    assert!(error.contains("mode 0644"), "{error}");
    mode(0o600);
    assert!(read(&[("ssh-key-path", path)]).is_ok());
    std::fs::write(file.path(), "ssh-ed25519 AAAA me").expect("written");
    assert!(read(&[("ssh-key-path", path)]).is_err());
}

#[test]
fn a_label_becomes_a_cost_tag_that_azure_takes() {
    let mut tags = BTreeMap::new();
    let room = tag_room();
    for (label, tag) in [
        ("app.kubernetes.io/part-of", "app.kubernetes.io-part-of"),
        ("Team", "Team"),
        ("a<b>%&\\?c", "a-b-----c"),
    ] {
        assert_eq!(room.add(&mut tags, label, "Front.End_1").as_deref(), Ok(tag));
        assert_eq!(tags[tag], "Front.End_1");
    }
    assert_eq!(tags::check(&tags, &TAGS), Vec::<String>::new());
    // To Azure keys that differ in their case are the same.
    for (label, why) in [
        ("TEAM", "there is a tag \"Team\" already"),
        ("azure.workload", "no key of a tag for Azure"),
        ("Microsoft-x", "no key of a tag for Azure"),
        ("windows", "no key of a tag for Azure"),
    ] {
        let error = room.add(&mut tags, label, "x").expect_err(label);
        assert!(error.contains(why), "{label}: {error}");
    }
    for n in 0..7 {
        room.add(&mut tags, &format!("long{n}"), &"v".repeat(300)).expect("room");
    }
    let error = room.add(&mut tags, "long7", &"v".repeat(300)).expect_err("too much");
    assert!(error.contains("2048 characters"), "{error}");
    assert!(room.add(&mut tags, "short", "x").is_ok());
}
