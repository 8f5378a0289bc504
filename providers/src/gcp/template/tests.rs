//! Bodies of create requests.

use serde_json::json;

use super::*;
use crate::{UserData, VmName, Volume};

const ZONE: &str = "europe-west1-b";

fn template() -> Template {
    Template {
        project: "pods-123456".to_owned(),
        network: "global/networks/default".to_owned(),
        subnetwork: None,
        image: "projects/pods-123456/global/images/podvm".to_owned(),
        image_gib: 8,
        disk_type: "pd-standard".to_owned(),
        confidential: None,
        public_ip: false,
        accelerator: None,
        labels: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
        manager_tags: BTreeMap::new(),
        user_tags: vec!["key1".to_owned()],
    }
}

fn spec() -> VmSpec {
    let sandbox = "ab".repeat(32);
    let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    VmSpec {
        tags: BTreeMap::from([
            tag(tags::INSTALLATION, "cluster-1"),
            tag(tags::SANDBOX, &sandbox),
            tag(tags::POD, "My.Pod"),
            tag("key1", "value1"),
            tag("app-kubernetes-io-name", "shop"),
        ]),
        user_data: UserData("#cloud-config\n".to_owned()),
        disk_gib: 6,
        ..VmSpec::new(VmName::first_form("pod", &sandbox), sandbox)
    }
}

fn at(instance_type: &str, market: Market) -> Candidate {
    let instance_type = instance_type.to_owned();
    Candidate { number: 0, instance_type, zone: Some(ZONE.to_owned()), market }
}

fn body(template: &Template, spec: &VmSpec, at: &Candidate) -> Value {
    template.body(spec, at, ZONE).expect("a body")
}

fn has(body: &Value, expected: &[(&str, Value)]) {
    for (pointer, value) in expected {
        assert_eq!(body.pointer(pointer).unwrap_or(&Value::Null), value, "{pointer}: {body:#}");
    }
}

#[test]
fn a_vm_takes_its_disk_along_and_both_say_whose_they_are() {
    let body = body(&template(), &spec(), &at("e2-medium", Market::OnDemand));
    let root = "/disks/0/initializeParams";
    let sandbox = "ab".repeat(32);
    has(
        &body,
        &[
            ("/machineType", json!("zones/europe-west1-b/machineTypes/e2-medium")),
            ("/description", json!(sandbox)),
            ("/labels/peerpodd-sandbox", json!(&sandbox[..63])),
            ("/labels/peerpodd-installation", json!("cluster-1")),
            ("/labels/peerpodd-pod", json!("my-pod")),
            ("/labels/team", json!("blue")),
            ("/labels/app-kubernetes-io-name", json!("shop")),
            ("/labels/key1", Value::Null),
            ("/disks/0/boot", json!(true)),
            ("/disks/0/autoDelete", json!(true)),
            ("/disks/0/type", json!("PERSISTENT")),
            (&format!("{root}/labels/peerpodd-installation"), json!("cluster-1")),
            (&format!("{root}/description"), json!(sandbox)),
            (&format!("{root}/diskSizeGb"), json!("8")),
            (&format!("{root}/diskType"), json!("zones/europe-west1-b/diskTypes/pd-standard")),
            (&format!("{root}/sourceImage"), json!("projects/pods-123456/global/images/podvm")),
            ("/metadata/items/0", json!({"key": "user-data", "value": "I2Nsb3VkLWNvbmZpZwo="})),
            ("/metadata/items/1", json!({"key": "user-data-encoding", "value": "base64"})),
            ("/networkInterfaces/0/stackType", json!("IPV4_ONLY")),
            ("/networkInterfaces/0/accessConfigs", Value::Null),
            ("/scheduling", json!({"automaticRestart": false})),
            ("/serviceAccounts", Value::Null),
            ("/guestAccelerators", Value::Null),
            ("/params", Value::Null),
        ],
    );
}

#[test]
fn the_same_plan_gives_the_same_bytes() {
    let bytes = || body(&template(), &spec(), &at("e2-medium", Market::OnDemand)).to_string();
    let first = bytes();
    assert!((0..20).all(|_| bytes() == first));
}

#[test]
fn a_confidential_spot_vm_with_a_public_address_and_tags() {
    let manager_tags = BTreeMap::from([("tagKeys/1".to_owned(), "tagValues/2".to_owned())]);
    let template = Template {
        confidential: Some("SEV_SNP".to_owned()),
        public_ip: true,
        network: "projects/host-1/global/networks/pods".to_owned(),
        subnetwork: Some("pods".to_owned()),
        manager_tags,
        ..template()
    };
    let body = body(&template, &spec(), &at("n2d-standard-2", Market::Spot));
    has(
        &body,
        &[
            ("/confidentialInstanceConfig/confidentialInstanceType", json!("SEV_SNP")),
            ("/confidentialInstanceConfig/enableConfidentialCompute", json!(true)),
            ("/scheduling/onHostMaintenance", json!("TERMINATE")),
            ("/scheduling/provisioningModel", json!("SPOT")),
            ("/scheduling/instanceTerminationAction", json!("DELETE")),
            (
                "/networkInterfaces/0/subnetwork",
                json!("projects/host-1/regions/europe-west1/subnetworks/pods"),
            ),
            ("/networkInterfaces/0/accessConfigs/0/type", json!("ONE_TO_ONE_NAT")),
            ("/networkInterfaces/0/accessConfigs/0/networkTier", json!("STANDARD")),
            ("/params/resourceManagerTags", json!({"tagKeys/1": "tagValues/2"})),
            ("/disks/0/initializeParams/resourceManagerTags", json!({"tagKeys/1": "tagValues/2"})),
        ],
    );
}

#[test]
fn accelerators_are_attached_where_the_machine_has_none_of_its_own() {
    let spec = VmSpec { gpus: 2, ..spec() };
    let template = Template { accelerator: Some("nvidia-tesla-t4".to_owned()), ..template() };
    let n1 = body(&template, &spec, &at("n1-standard-4", Market::OnDemand));
    let kind = "zones/europe-west1-b/acceleratorTypes/nvidia-tesla-t4";
    has(
        &n1,
        &[
            ("/guestAccelerators", json!([{"acceleratorCount": 2, "acceleratorType": kind}])),
            ("/scheduling/onHostMaintenance", json!("TERMINATE")),
        ],
    );
    for spec in [spec.clone(), VmSpec { gpus: 0, ..spec.clone() }] {
        let g2 = body(&template, &spec, &at("g2-standard-4", Market::OnDemand));
        has(
            &g2,
            &[
                ("/guestAccelerators", Value::Null),
                ("/scheduling/onHostMaintenance", json!("TERMINATE")),
            ],
        );
    }
    let none = Template { accelerator: None, ..template };
    let error = none.body(&spec, &at("n1-standard-4", Market::OnDemand), ZONE).expect_err("no");
    assert!(error.message.contains("GCP_ACCELERATOR_TYPE"), "{error}");
}

#[test]
fn a_disk_is_never_smaller_than_its_image() {
    let size = |image_gib, disk_gib, image: Option<&str>| {
        let spec = VmSpec { disk_gib, image: image.map(str::to_owned), ..spec() };
        let template = Template { image_gib, ..template() };
        let body = body(&template, &spec, &at("e2-medium", Market::OnDemand));
        body.pointer("/disks/0/initializeParams/diskSizeGb").cloned().unwrap_or_default()
    };
    assert_eq!(size(30, 6, None), json!("30"));
    assert_eq!(size(30, 40, None), json!("40"));
    assert_eq!(size(30, 0, None), Value::Null);
    assert_eq!(size(30, 6, Some("own")), Value::Null);
    assert_eq!(size(30, 40, Some("own")), json!("40"));
    assert_eq!(size(0, 6, None), Value::Null);
}

#[test]
fn volumes_and_images_that_are_none_are_refused_by_name() {
    let at = at("e2-medium", Market::OnDemand);
    let volume = |disk: &str| vec![Volume::new(disk, 0)];
    let spec = VmSpec { volumes: volume("data-1"), ..spec() };
    let whole = "projects/pods-123456/zones/europe-west1-b/disks/data-1";
    has(
        &body(&template(), &spec, &at),
        &[("/disks/1", json!({"source": whole, "autoDelete": false, "deviceName": "data-1"}))],
    );
    let read = Volume { read_only: true, ..Volume::new("data-1", 0) };
    let read = VmSpec { volumes: vec![read], ..spec.clone() };
    has(&body(&template(), &read, &at), &[("/disks/1/mode", json!("READ_ONLY"))]);
    for bad in ["", "Data 1", "projects/p/"] {
        let spec = VmSpec { volumes: volume(bad), ..spec.clone() };
        let error = template().body(&spec, &at, ZONE).expect_err("refused");
        assert!(error.kind == Kind::Invalid && error.message.contains("volume"), "{error}");
    }
    let spec = VmSpec { image: Some("ami 1".to_owned()), ..spec };
    let error = template().body(&spec, &at, ZONE).expect_err("refused");
    assert!(error.message.contains("\"ami 1\""), "{error}");
}

#[test]
fn a_template_is_read_back_as_written_and_nothing_else_is() {
    let written = serde_json::to_string(&template()).expect("JSON");
    assert_eq!(Template::read(&written).expect("read"), template());
    let hostile = Template { network: "../../x".to_owned(), ..template() };
    let hostile = serde_json::to_string(&hostile).expect("JSON");
    for bad in ["", "{}", "null", &written.replace("network", "net"), &hostile] {
        let error = Template::read(bad).expect_err("refused");
        assert!(error.kind == Kind::Invalid && error.message.contains("template"), "{error}");
    }
}
