//! Bodies of create requests.

use super::*;
use crate::{UserData, VmName, Volume};

const GROUP: &str =
    "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/g/providers";

fn template() -> Template {
    Template {
        region: "eastus".to_owned(),
        subnet: format!("{GROUP}/Microsoft.Network/virtualNetworks/n/subnets/s"),
        nsg: None,
        image: "/CommunityGalleries/g/Images/podvm/Versions/1.0.0".to_owned(),
        image_gib: 0,
        ssh_key: "ssh-ed25519 AAAA x".to_owned(),
        ssh_user: "peerpod".to_owned(),
        confidential: true,
        secure_boot: true,
        public_ip: false,
    }
}

fn spec() -> VmSpec {
    let mut spec = VmSpec::new(VmName::first_form("pod", "sandbox-1"), "sandbox-1");
    spec.tags = BTreeMap::from([("team".to_owned(), "blue".to_owned())]);
    spec.user_data = UserData("#cloud-config\n".to_owned());
    spec
}

fn at(market: Market, zone: Option<&str>) -> Candidate {
    Candidate {
        number: 0,
        instance_type: "Standard_DC2as_v5".to_owned(),
        zone: zone.map(str::to_owned),
        market,
    }
}

fn body(template: &Template, spec: &VmSpec) -> Value {
    template.body(spec, &at(Market::OnDemand, Some("2"))).expect("a body")
}

fn get<'a>(body: &'a Value, pointer: &str) -> &'a Value {
    body.pointer(pointer).unwrap_or(&Value::Null)
}

#[test]
fn a_confidential_vm_is_deleted_with_all_its_parts_and_they_carry_its_tags() {
    let body = body(&template(), &spec());
    let disk = "/properties/storageProfile/osDisk";
    let nic = "/properties/networkProfile/networkInterfaceConfigurations/0";
    for (pointer, value) in [
        ("/zones".to_owned(), json!(["2"])),
        ("/tags/team".to_owned(), json!("blue")),
        (format!("{nic}/tags/team"), json!("blue")),
        (format!("{nic}/properties/deleteOption"), json!("Delete")),
        (format!("{disk}/deleteOption"), json!("Delete")),
        (format!("{disk}/name"), json!("podvm-pod-sandbox-disk")),
        (format!("{disk}/diskSizeGB"), Value::Null),
        (
            format!("{disk}/managedDisk/securityProfile/securityEncryptionType"),
            json!("VMGuestStateOnly"),
        ),
        ("/properties/securityProfile/securityType".to_owned(), json!("ConfidentialVM")),
        ("/properties/securityProfile/uefiSettings/secureBootEnabled".to_owned(), json!(true)),
        (
            "/properties/storageProfile/imageReference/communityGalleryImageId".to_owned(),
            json!("/CommunityGalleries/g/Images/podvm/Versions/1.0.0"),
        ),
        ("/properties/userData".to_owned(), json!("I2Nsb3VkLWNvbmZpZwo=")),
        ("/properties/priority".to_owned(), Value::Null),
    ] {
        assert_eq!(*get(&body, &pointer), value, "{pointer}");
    }
}

#[test]
fn an_ordinary_spot_vm_with_public_address_and_volumes() {
    let template = Template { confidential: false, public_ip: true, ..template() };
    let mut spec = spec();
    let disk = |name: &str| format!("{GROUP}/Microsoft.Compute/disks/{name}");
    spec.volumes = vec![Volume::new(disk("b"), 7), Volume::new(disk("a"), 3)];
    let body = template.body(&spec, &at(Market::Spot, None)).expect("a body");
    assert_eq!(*get(&body, "/properties/securityProfile"), Value::Null);
    assert_eq!(*get(&body, "/zones"), Value::Null);
    assert_eq!(*get(&body, "/properties/evictionPolicy"), json!("Delete"));
    assert_eq!(*get(&body, "/properties/billingProfile/maxPrice"), json!(-1.0));
    let disks = get(&body, "/properties/storageProfile/dataDisks");
    assert_eq!((get(disks, "/0/lun"), get(disks, "/1/lun")), (&json!(7), &json!(3)));
    assert_eq!(*get(disks, "/0/deleteOption"), json!("Detach"));
    let address = "/properties/networkProfile/networkInterfaceConfigurations/0/properties/\
                   ipConfigurations/0/properties/publicIPAddressConfiguration/properties/deleteOption";
    assert_eq!(*get(&body, address), json!("Delete"));
}

#[test]
fn a_disk_is_never_smaller_than_its_image() {
    let size = |image_gib, disk_gib| {
        let spec = VmSpec { disk_gib, ..spec() };
        let body = body(&Template { image_gib, ..template() }, &spec);
        get(&body, "/properties/storageProfile/osDisk/diskSizeGB").clone()
    };
    assert_eq!(size(30, 6), Value::Null);
    assert_eq!(size(30, 30), Value::Null);
    assert_eq!(size(30, 31), json!(31));
    assert_eq!(size(0, 6), Value::Null);
    assert_eq!(size(0, 40), json!(40));
}

#[test]
fn volumes_and_images_that_are_none_are_refused_by_name() {
    let disk = format!("{GROUP}/Microsoft.Compute/disks/a");
    let volume = |disk: &str, lun| Volume::new(disk, lun);
    for volumes in [
        vec![volume("disk-a", 0)],
        vec![volume(&disk, 64)],
        vec![volume(&disk, 1), volume(&disk, 1)],
    ] {
        let spec = VmSpec { volumes, ..spec() };
        let error = template().body(&spec, &at(Market::OnDemand, None)).expect_err("refused");
        assert_eq!(error.kind, Kind::Invalid);
        assert!(error.message.contains("volume"), "{error}");
    }
    let spec = VmSpec { image: Some("ami-1".to_owned()), ..spec() };
    let error = template().body(&spec, &at(Market::OnDemand, None)).expect_err("refused");
    assert!(error.message.contains("\"ami-1\""), "{error}");
}

#[test]
fn a_template_is_read_back_as_written_and_nothing_else_is() {
    let written = serde_json::to_string(&template()).expect("JSON");
    assert_eq!(Template::read(&written).expect("read"), template());
    let hostile = Template { subnet: "../../x".to_owned(), ..template() };
    let hostile = serde_json::to_string(&hostile).expect("JSON");
    for bad in ["", "{}", "null", &written.replace("region", "regio"), &hostile] {
        let error = Template::read(bad).expect_err("refused");
        assert!(error.kind == Kind::Invalid && error.message.contains("template"), "{error}");
    }
}
