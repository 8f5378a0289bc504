//! Keys: what is missing, wrong or contradictory.

use super::*;

fn context(tags: &[(&str, &str)]) -> Context {
    Context {
        installation: "test".to_owned(),
        program: "/nowhere/peerpodd".into(),
        search: String::new(),
        tags: tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        forwarder_port: 15150,
        vxlan_port: 9000,
    }
}

/// As the users' guide has them, and the image that its Job fills in.
fn values(changes: &[(&str, &str)]) -> Values {
    let mut values: Values = [
        ("gcp-project-id", "pods-123456"),
        ("zone", "europe-west1-b"),
        ("network", "default"),
        ("machine-type", "e2-medium"),
        ("disable-cvm", "true"),
        ("root-volume-size", "6"),
        ("image-name", "podvm-image-0-0-0"),
    ]
    .into_iter()
    .collect();
    for (flag, value) in changes {
        values.set(*flag, *value);
    }
    values
}

fn read(changes: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    Settings::from_values(&values(changes), &context(&[]))
}

#[test]
fn the_guides_keys_are_enough_and_the_defaults_its_own() {
    let tags = [("key1", "value1"), ("key2", "value2")];
    let settings = Settings::from_values(&values(&[]), &context(&tags)).expect("fine");
    assert_eq!(settings.image, "projects/pods-123456/global/images/podvm-image-0-0-0");
    assert_eq!(settings.network, "global/networks/default");
    assert_eq!((settings.confidential, settings.disk_type.as_str()), (None, "pd-standard"));
    assert_eq!(settings.manager_tags["pods-123456/key1"], "value1");
    assert_eq!(settings.manager, "https://cloudresourcemanager.googleapis.com");
    assert_eq!(settings.common.disk_gib, 6);
}

#[test]
fn all_that_is_missing_is_named_at_once_and_a_placeholder_is_missing() {
    let values: Values =
        [("gcp-project-id", "<project_id>"), ("zone", "<gcp_zone>"), ("network", "<gcp_network>")]
            .into_iter()
            .collect();
    let error = Settings::from_values(&values, &context(&[])).expect_err("missing").to_string();
    for key in
        ["GCP_PROJECT_ID", "GCP_ZONE", "GCP_NETWORK", "PODVM_IMAGE_NAME", "GCP_CONFIDENTIAL_TYPE"]
    {
        assert!(error.contains(&format!("{key} (--")), "{key}: {error}");
    }
    assert!(error.contains("\"<gcp_zone>\" is a placeholder"), "{error}");
}

#[test]
fn each_bad_value_is_named_with_its_key() {
    for (flag, value, says) in [
        ("gcp-project-id", "Pods", "GCP_PROJECT_ID"),
        ("zone", "europe-west1-b,here", "GCP_ZONE"),
        ("network", "a b", "GCP_NETWORK"),
        ("subnetwork", "a/b", "GCP_SUBNETWORK"),
        ("image-name", "projects/p/x", "PODVM_IMAGE_NAME"),
        ("machine-type", "e2 medium", "GCP_MACHINE_TYPE"),
        ("machine-types", "n2-*,?", "GCP_INSTANCE_TYPES"),
        ("gcp-machine-types", "N2", "GCP_MACHINE_TYPES"),
        ("accelerator-type", "T4", "GCP_ACCELERATOR_TYPE"),
        ("disk-type", "PD", "GCP_DISK_TYPE"),
        ("gcp-labels", "Team=blue", "GCP_LABELS"),
        ("gcp-labels", "team", "GCP_LABELS"),
        ("gcp-labels", "peerpodd-pod=x", "GCP_LABELS"),
        ("gcp-labels", "google=x", "GCP_LABELS"),
        ("gcp-compute-endpoint", "http://compute.googleapis.com", "GCP_COMPUTE_ENDPOINT"),
        ("gcp-compute-endpoint", "ftp://127.0.0.1", "GCP_COMPUTE_ENDPOINT"),
        ("gcp-credentials", "{}", "GCP_CREDENTIALS"),
        ("api-rate-insert", "0", "API_RATE_INSERT"),
        ("disable-cvm", "maybe", "DISABLECVM"),
    ] {
        let error = read(&[(flag, value)]).expect_err(flag).to_string();
        assert!(error.contains(&format!("{says} (--")), "{flag}={value}: {error}");
    }
}

#[test]
fn a_confidential_vm_needs_a_kind_and_a_machine_that_can_be_so() {
    let confidential = |kind: &str, machine: &str| {
        read(&[("disable-cvm", "false"), ("confidential-type", kind), ("machine-type", machine)])
    };
    let settings = confidential("sev_snp", "n2d-standard-2").expect("fine");
    assert_eq!(settings.confidential.as_deref(), Some("SEV_SNP"));
    for (kind, machine, says) in [
        ("", "n2d-standard-2", "GCP_CONFIDENTIAL_TYPE"),
        ("yes", "n2d-standard-2", "GCP_CONFIDENTIAL_TYPE"),
        ("SEV", "e2-medium", "GCP_MACHINE_TYPE"),
        ("TDX", "n2d-standard-2", "GCP_MACHINE_TYPE"),
    ] {
        let error = confidential(kind, machine).expect_err("refused").to_string();
        assert!(error.contains(says), "{kind} {machine}: {error}");
    }
}

#[test]
fn both_names_of_the_permitted_types_count() {
    let lists = [("machine-types", "n2-standard-2,e2-*"), ("gcp-machine-types", "n1-*, e2-*")];
    let settings = read(&lists).expect("fine");
    assert_eq!(settings.machine_types, ["n2-standard-2", "e2-*", "n1-*"]);
}

#[test]
fn tags_are_names_in_the_project_or_numbers() {
    let tags = |tags: &[(&str, &str)]| Settings::from_values(&values(&[]), &context(tags));
    let fine = tags(&[("42/team", "blue"), ("tagKeys/1", "tagValues/2"), ("env", "prod")]);
    let keys: Vec<String> = fine.expect("fine").manager_tags.into_keys().collect();
    assert_eq!(keys, ["42/team", "pods-123456/env", "tagKeys/1"]);
    for (key, value) in [("tagKeys/1", "blue"), ("team", "tagValues/2"), ("team", ""), ("a", "b'c")]
    {
        let error = tags(&[(key, value)]).expect_err("refused").to_string();
        assert!(error.contains("TAGS") && error.contains(key), "{error}");
    }
}

#[test]
fn a_key_shows_nowhere() {
    let key = r#"{"client_email": "me@x", "private_key": "hunter2"}"#;
    let settings = read(&[("gcp-credentials", key)]).expect("fine");
    assert!(!format!("{settings:?}").contains("hunter2"));
    let error = read(&[("gcp-credentials", r#"{"private_key": "hunter2"}"#)]).expect_err("refused");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn a_label_of_a_pod_becomes_one_that_google_takes() {
    let settings = read(&[("gcp-labels", "team=blue")]).expect("fine");
    let (room, mut tags) = (tag_room(&settings), BTreeMap::new());
    for (label, value, tag, bent) in [
        ("app.kubernetes.io/Part-Of", "Front.End_1", "app-kubernetes-io-part-of", "front-end_1"),
        ("1st", "", "st", ""),
    ] {
        assert_eq!(room.add(&mut tags, label, value).as_deref(), Ok(tag));
        assert_eq!(tags[tag], bent);
    }
    let long = room.add(&mut tags, &"K".repeat(300), &"v".repeat(300)).expect("cut");
    assert_eq!((long.len(), tags[&long].len()), (63, 63));
    assert_eq!(tags::check(&tags, &LABEL_RULES), Vec::<String>::new());
    for (label, why) in [("Team", "\"team\" already"), ("google.x", "no key of a tag for Google")] {
        let error = room.add(&mut tags, label, "x").expect_err(label);
        assert!(error.contains(why), "{label}: {error}");
    }
    for n in tags.len() + 1..64 {
        room.add(&mut tags, &format!("k{n}"), "").expect("room");
    }
    let error = room.add(&mut tags, "more", "x").expect_err("full");
    assert!(error.contains("Google Cloud takes 64 tags"), "{error}");
}
