//! The texts as they are, for both architectures; `PEERPODD_GOLDEN=write` writes them anew.

use std::path::Path;

use super::*;

fn text(arch: &str, tags: &BTreeMap<String, String>, volumes: &[PodDisk]) -> String {
    let z = arch == "s390x";
    Domain {
        name: "podvm-web-01234567",
        uuid: Token::new("installation", "sandbox", 0).uuid(),
        mac: mac(&Token::new("installation", "sandbox", 0)),
        tags,
        domain_type: if z { "kvm" } else { "qemu" },
        arch,
        machine: if z { "s390-ccw-virtio-7.2" } else { "pc-q35-7.2" },
        firmware: "/usr/share/OVMF/OVMF_CODE_4M.fd",
        vcpus: 2,
        memory_mib: 8192,
        cpuset: if z { "" } else { "0-3,^2" },
        network: "default",
        root: "/pool/root.qcow2",
        cidata: "/pool/cloudinit.iso",
        volumes,
        console: "/pool/console.log",
    }
    .xml()
}

fn tags(value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("peerpodd-pod".to_owned(), value.to_owned())])
}

fn disk(path: &str, block: bool) -> PodDisk {
    PodDisk { path: path.to_owned(), block, lun: 7 }
}

fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/libvirt/domain").join(name);
    if std::env::var_os("PEERPODD_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::write(&path, text).expect("written");
    }
    assert_eq!(text, std::fs::read_to_string(&path).expect("golden"), "{name}");
}

#[test]
fn the_text_for_each_architecture_is_as_it_was() {
    golden("x86_64.xml", &text("x86_64", &tags("web"), &[disk("/dev/sdq", true)]));
    golden("s390x.xml", &text("s390x", &tags("web"), &[disk("/pool/data", false)]));
}

#[test]
fn z_has_no_cd_drive_no_firmware_and_an_iommu_everywhere() {
    let z = text("s390x", &tags("web"), &[]);
    for absent in ["cdrom", "pflash", "acpi", "scsi"] {
        assert!(!z.contains(absent), "{absent}: {z}");
    }
    // Two disks, interface, balloon.
    assert_eq!(z.matches("iommu='on'").count(), 4, "{z}");
    assert!(!text("x86_64", &tags("web"), &[]).contains("host-model"), "emulated");
}

#[test]
fn a_cost_tag_stands_with_the_others_under_its_own_key() {
    let mut all = tags("web");
    let key = crate::libvirt::settings::tag_room().add(&mut all, "app.kubernetes.io/name", "Shop");
    assert_eq!(key.as_deref(), Ok("app.kubernetes.io/name"));
    let xml = text("x86_64", &all, &[]);
    assert!(xml.contains("<p:tag key='app.kubernetes.io/name'>Shop</p:tag>"), "{xml}");
}

#[test]
fn nothing_from_elsewhere_gets_out_of_its_place() {
    let hostile = "a</p:tag><x y='\"&\u{0}\u{1b}\u{ffff}ä";
    let xml = text("x86_64", &tags(hostile), &[disk("/dev/x'/><y>", true)]);
    let document = roxmltree::Document::parse(&xml).expect("well-formed");
    let tag = document.descendants().find(|n| n.tag_name().name() == "tag").expect("a tag");
    assert_eq!(tag.text(), Some("a</p:tag><x y='\"&???ä"));
    assert!(!document.descendants().any(|n| ["x", "y"].contains(&n.tag_name().name())));
}
