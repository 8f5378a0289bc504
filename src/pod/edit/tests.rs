//! What containers of pods with GPUs or disks are told.

use proptest::prelude::*;

use super::*;
use crate::volumes::{PodVolume, Unknown};

const POD: &str = "11111111-2222-3333-4444-555555555555";

fn message(fields: &[(u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    fields.iter().for_each(|(number, content)| wire::put(&mut out, *number, content));
    out
}

fn entry(key: &str, value: &str) -> Vec<u8> {
    message(&[(KEY, key.as_bytes()), (VALUE, value.as_bytes())])
}

fn mount(destination: &str, source: &str) -> Vec<u8> {
    message(&[(DESTINATION, destination.as_bytes()), (SOURCE, source.as_bytes()), (3, b"bind")])
}

fn annotations_of(request: &[u8]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for field in wire::fields(request).expect("parses").iter().filter(|f| f.number == OCI) {
        let oci = wire::fields(field.content.expect("a message")).expect("parses");
        for entry in oci.iter().filter(|f| f.number == ANNOTATIONS) {
            let entry = entry.content.expect("a message");
            let text = |n| wire::text(entry, n).expect("text").to_owned();
            found.push((text(KEY), text(VALUE)));
        }
    }
    found
}

fn target(name: &str) -> String {
    format!("/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~csi/{name}/mount")
}

fn volumes(names: &[&str]) -> PodVolumes {
    let volume = |(number, name): (u32, &&str)| PodVolume {
        target: target(name),
        disk: format!("disk-{name}"),
        number,
        fs: "ext4".to_owned(),
        read_only: false,
        fs_group: (number == 1).then_some(2000),
        encrypt_type: String::new(),
        key_id: String::new(),
    };
    let attached = (0..).zip(names).map(volume).collect();
    PodVolumes { attached, uid: Some(POD.to_owned()), unknown: None }
}

const GPU: fn(&PodVolumes) -> Has<'_> = |volumes| Has { gpus: true, volumes };
const DISKS: fn(&PodVolumes) -> Has<'_> = |volumes| Has { gpus: false, volumes };

fn request(oci: &[(u32, &[u8])]) -> Bytes {
    message(&[(1, b"container"), (OCI, &message(oci)), (99, b"from a newer Kata")]).into()
}

#[test]
fn a_container_of_a_pod_with_gpus_gets_the_annotation_once() {
    let before = request(&[(1, b"1.0.2"), (ANNOTATIONS, &entry("a", "b"))]);
    let none = PodVolumes::default();
    let once = container(&before, &GPU(&none)).expect("edits");
    let wanted = [("a", "b"), (CDI_KEY, CDI_VALUE)].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(annotations_of(&once), wanted);
    assert_eq!(wire::without(&once, OCI), wire::without(&before, OCI));
    assert_eq!(container(&once, &GPU(&none)).expect("edits again"), once);
    assert_eq!(container(&before, &DISKS(&none)).expect("nothing to do"), before);
}

#[test]
fn a_container_is_told_of_the_volumes_it_mounts_under_the_numbers_of_the_disks() {
    let all = volumes(&["a", "b", "c"]);
    let before = request(&[
        (MOUNTS, &mount("/etc/hosts", "/run/hosts")),
        (MOUNTS, &mount("/data/c", &target("c"))),
        (ANNOTATIONS, &entry(UID, POD)),
        (MOUNTS, &mount("/data/b", &target("b"))),
        // A user may write what she likes there.
        (ANNOTATIONS, &entry(ANNOTATION, r#"{"vol-9":{"disk_id":"of another"}}"#)),
    ]);
    let once = container(&before, &DISKS(&all)).expect("edits");
    let found: BTreeMap<_, _> = annotations_of(&once).into_iter().collect();
    let wanted = r#"{"vol-1":{"mount_point":"/data/b","fs_type":"ext4","lun":"1","disk_id":"disk-b","fs_group":"2000"},"vol-2":{"mount_point":"/data/c","fs_type":"ext4","lun":"2","disk_id":"disk-c"}}"#;
    assert_eq!(found[ANNOTATION], wanted);
    assert_eq!(found[TARGETS], format!("{},{}", target("b"), target("c")));
    assert_eq!(annotations_of(&once).len(), 3, "one entry a key");
    assert_eq!(container(&once, &DISKS(&all)).expect("edits again"), once);
    let read = podvm::cloud_volumes::parse(&found[ANNOTATION]).expect("the VM reads it");
    assert_eq!((read[0].fs_group, read[1].disk.as_str()), (Some(2000), "disk-c"));
    let other = request(&[(MOUNTS, &mount("/data", "/other"))]);
    assert_eq!(container(&other, &DISKS(&all)).expect("none of them"), other);
}

#[test]
fn a_spec_in_pieces_is_looked_at_as_a_whole() {
    let all = volumes(&["a"]);
    let pieces = message(&[
        (OCI, &message(&[(ANNOTATIONS, &entry("x", "y"))])),
        (OCI, &message(&[(MOUNTS, &mount("/data", &target("a")))])),
    ]);
    let once = container(&pieces.into(), &DISKS(&all)).expect("edits");
    let keys: Vec<_> = annotations_of(&once).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["x", ANNOTATION, TARGETS]);
}

#[test]
fn a_container_of_another_pod_or_with_an_unknown_disk_is_refused() {
    let foreign = request(&[(ANNOTATIONS, &entry(UID, "another"))]);
    let error = container(&foreign, &DISKS(&volumes(&["a"]))).expect_err("foreign");
    assert!(error.to_string().contains(POD), "{error}");
    let (reason, targets) = ("no bundle".to_owned(), vec![target("a")]);
    let unknown = Some(Unknown { reason, targets });
    let unknown = PodVolumes { unknown, ..PodVolumes::default() };
    let with = request(&[(MOUNTS, &mount("/data", &target("a")))]);
    let error = container(&with, &DISKS(&unknown)).expect_err("not attached").to_string();
    assert!(error.contains(&target("a")) && error.contains("no bundle"), "{error}");
    let fine = request(&[(MOUNTS, &mount("/data", "/other"))]);
    assert_eq!(container(&fine, &DISKS(&unknown)).expect("needs none"), fine);
}

#[test]
fn a_request_without_a_spec_stays_as_it_is() {
    let request: Bytes = message(&[(1, b"container")]).into();
    assert_eq!(container(&request, &GPU(&volumes(&["a"]))).expect("edits"), request);
}

proptest! {
    #[test]
    fn hostile_requests_never_panic(bytes: Vec<u8>) {
        let all = volumes(&["a"]);
        let _ = container(&bytes.clone().into(), &GPU(&all));
        let _ = container(&request(&[(MOUNTS, &bytes), (ANNOTATIONS, &bytes)]), &GPU(&all));
    }
}
