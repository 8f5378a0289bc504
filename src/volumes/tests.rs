//! Whose volumes a pod gets, and what is made of hostile files.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::pod::samples;

const UID: &str = "11111111-2222-3333-4444-555555555555";
const OTHER: &str = "99999999-2222-3333-4444-555555555555";

struct Node {
    dir: tempfile::TempDir,
    places: Places,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let bundles = ["containerd", "crio"].map(|name| dir.path().join(name)).to_vec();
        let places = Places { records: dir.path().join("direct-volumes"), bundles };
        Self { dir, places }
    }

    fn volume(&self, uid: &str, name: &str, info: &str) {
        let dir = self.places.records.join(records::directory(&target(uid, name)));
        fs::create_dir_all(&dir).expect("dir");
        fs::write(dir.join("mountInfo.json"), info).expect("record");
    }

    fn bundle(&self, path: &str, annotations: &serde_json::Value) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("dir");
        fs::write(path, json!({"annotations": annotations}).to_string()).expect("config.json");
    }

    fn contained(&self) {
        self.bundle("containerd/s1/config.json", &containerd(UID));
    }

    fn look(&self) -> Result<PodVolumes, VolumesError> {
        self.places.look(&request())
    }

    fn unknown(&self) -> String {
        let found = self.look().expect("no error");
        assert_eq!((&found.attached[..], &found.uid), (&[][..], &None));
        found.unknown.expect("it says why").reason
    }
}

fn target(uid: &str, name: &str) -> String {
    format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/{name}/mount")
}

fn containerd(uid: &str) -> serde_json::Value {
    json!({
        "io.kubernetes.cri.sandbox-id": "s1", "io.kubernetes.cri.sandbox-name": "web",
        "io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-uid": uid,
    })
}

fn request() -> PodRequest {
    samples::request("s1")
}

#[test]
fn a_pod_gets_its_own_volumes_in_order_and_nobody_elses() {
    let node = Node::new();
    assert_eq!(node.look().expect("nothing there"), PodVolumes::default());
    node.volume(OTHER, "pvc-0", r#"{"device":"disk-of-another"}"#);
    node.volume(OTHER, "pvc-1", "broken, and not even opened");
    node.volume(UID, "pvc-b", r#"{"device":"d","fstype":"xfs","options":["rw"],"metadata":{"cloud-volume-path":"disk-b","fsGroup":"2000"}}"#);
    node.volume(UID, "pvc-a", r#"{"device":"disk-a","volume-type":"block","options":["ro","noatime"],"metadata":{"encrypt-type":"luks2","kbs-key-id":"default/key/1","odd":7}}"#);
    node.contained();
    let found = node.look().expect("found");
    assert_eq!((found.uid.as_deref(), &found.unknown), (Some(UID), &None));
    let [a, b] = &found.attached[..] else { panic!("{found:?}") };
    assert_eq!((&*a.disk, a.number, &*a.fs, a.read_only), ("disk-a", 0, "ext4", true));
    assert_eq!((&*a.encrypt_type, &*a.key_id), ("luks2", "default/key/1"));
    assert_eq!((&*b.disk, b.number, &*b.fs, b.fs_group), ("disk-b", 1, "xfs", Some(2000)));
    let specs: Vec<_> = found.attached.iter().map(PodVolume::spec).collect();
    assert_eq!((&*specs[1].disk, specs[1].lun, specs[0].read_only), ("disk-b", 1, true));
    assert_eq!(b.target, target(UID, "pvc-b"));
}

#[test]
fn the_uid_comes_from_containerds_bundle_from_crios_or_from_the_name() {
    let node = Node::new();
    node.volume(UID, "pvc", r#"{"device":"d"}"#);
    assert!(node.unknown().contains("no bundle of this sandbox"), "{}", node.unknown());
    let labels = json!({"io.kubernetes.pod.uid": UID, "app": "web"}).to_string();
    node.bundle(
        "crio/s1/userdata/config.json",
        &json!({
            "io.kubernetes.cri-o.SandboxID": "s1", "io.kubernetes.cri-o.Labels": labels,
            "io.kubernetes.cri-o.Namespace": "shop", "io.kubernetes.cri-o.KubeName": "web",
        }),
    );
    assert_eq!(node.look().expect("found").attached.len(), 1);
    let named = |uid: &str| PodRequest { pod_uid: Some(uid.to_owned()), ..request() };
    assert_eq!(node.places.look(&named(UID)).expect("found").attached.len(), 1);
    let odd = node.places.look(&named(OTHER)).expect("no error").unknown.expect("why").reason;
    assert!(odd.contains(UID) && odd.contains(OTHER), "{odd}");
    fs::remove_dir_all(node.dir.path().join("crio")).expect("removed");
    let by_name = node.places.look(&named(UID)).expect("found");
    assert_eq!(by_name.attached.len(), 1, "the name alone");
}

#[test]
fn an_annotation_of_the_pods_own_does_not_make_it_another_one() {
    let node = Node::new();
    node.volume(UID, "pvc", r#"{"device":"own"}"#);
    node.volume(OTHER, "pvc", r#"{"device":"of-another"}"#);
    // As CRI-O writes it: its own, over them the pod's annotations, over them the labels.
    let mut annotations = json!({
        "io.kubernetes.cri-o.SandboxID": "s1", "io.kubernetes.cri-o.Namespace": "shop",
        "io.kubernetes.cri-o.KubeName": "web",
        "io.kubernetes.cri-o.Labels": json!({"io.kubernetes.pod.uid": OTHER}).to_string(),
        "io.kubernetes.pod.uid": UID,
    });
    for (key, value) in containerd(OTHER).as_object().expect("an object") {
        annotations[key] = value.clone();
    }
    node.bundle("crio/s1/userdata/config.json", &annotations);
    let found = node.look().expect("found");
    assert_eq!(found.uid.as_deref(), Some(UID));
    assert_eq!(found.attached.iter().map(|v| &*v.disk).collect::<Vec<_>>(), ["own"]);
}

#[test]
fn a_bundle_that_is_not_this_sandboxs_is_not_believed() {
    for (key, value) in [
        ("io.kubernetes.cri.sandbox-id", "s2"),
        ("io.kubernetes.cri.sandbox-id", ""),
        ("io.kubernetes.cri.sandbox-namespace", "other"),
        ("io.kubernetes.cri.sandbox-name", "other"),
        ("io.kubernetes.cri.sandbox-uid", "../.."),
        ("io.kubernetes.cri.sandbox-uid", ""),
    ] {
        let node = Node::new();
        node.volume(UID, "pvc", r#"{"device":"d"}"#);
        let mut annotations = containerd(UID);
        annotations[key] = value.into();
        node.bundle("containerd/s1/config.json", &annotations);
        let why = node.unknown();
        assert!(why.contains("containerd/s1/config.json"), "{key} {value:?}: {why}");
    }
}

#[test]
fn files_that_are_none_or_have_no_end_are_not_read() {
    let node = Node::new();
    node.volume(UID, "pvc", r#"{"device":"d"}"#);
    let dir = node.dir.path().join("containerd/s1");
    fs::create_dir_all(&dir).expect("dir");
    let config = dir.join("config.json");
    std::os::unix::fs::symlink("/dev/zero", &config).expect("link");
    node.unknown();
    fs::remove_file(&config).expect("removed");
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRWXU).expect("pipe");
    assert!(node.unknown().contains("no plain file"), "{}", node.unknown());
    fs::remove_file(&config).expect("removed");
    fs::File::create(&config).and_then(|f| f.set_len(1 << 30)).expect("a long file");
    assert!(node.unknown().contains("longer than"), "{}", node.unknown());
    for text in ["", "[]", "{\"annotations\":[]}", "nonsense", "{}"] {
        fs::write(&config, text).expect("written");
        node.unknown();
    }
}

#[test]
fn a_record_of_the_pods_own_that_cannot_be_used_refuses_the_pod_by_name() {
    for info in [
        "",
        "[]",
        "{}",
        r#"{"device":""}"#,
        r#"{"device":7}"#,
        r#"{"device":"a\nb"}"#,
        r#"{"device":"d","fstype":"btrfs"}"#,
        r#"{"device":"d","fstype":"ext4 --help"}"#,
        r#"{"device":"d","metadata":{"encrypt-type":"rot13","kbs-key-id":"k"}}"#,
        r#"{"device":"d","metadata":{"encrypt-type":"luks"}}"#,
        r#"{"device":"d","metadata":{"encrypt-type":"luks","kbs-key-id":"a/../b"}}"#,
        r#"{"device":"d","metadata":{"fsGroup":"-1"}}"#,
    ] {
        let node = Node::new();
        node.volume(UID, "pvc", info);
        node.contained();
        let error = node.look().expect_err(info).to_string();
        assert!(error.contains("kubernetes.io~csi/pvc/mount"), "{info}: {error}");
    }
    let node = Node::new();
    node.contained();
    for name in ["a", "b"] {
        node.volume(UID, name, r#"{"device":"the-same"}"#);
    }
    assert!(node.look().expect_err("twice").to_string().contains("the-same"));
    let node = Node::new();
    node.contained();
    for n in 0..=cloud_volumes::MOST {
        node.volume(UID, &format!("pvc-{n}"), &format!(r#"{{"device":"d{n}"}}"#));
    }
    assert!(matches!(node.look(), Err(VolumesError::Many(65))));
}

#[test]
fn a_path_belongs_to_one_pod_or_to_none() {
    assert_eq!(records::owner(&target(UID, "pvc")), Some(UID));
    for path in [
        "",
        "/",
        "relative/pods/u/volumes/kubernetes.io~csi/x",
        "/pods/u/volumes/kubernetes.io~csi",
        "/pods//volumes/kubernetes.io~csi/x",
        "/pods/../volumes/kubernetes.io~csi/x",
        "/k/pods/u/volumes/kubernetes.io~csi/x/../../y",
        "/k/pods/u/volumes/kubernetes.io~csi/pods/v/volumes/kubernetes.io~csi/y",
        "/k/pods/u/volumes/kubernetes.io~secret/x",
        "/k/pods/u/volumes/kubernetes.io~csi/x\n",
        "/k/pods/u u/volumes/kubernetes.io~csi/x",
    ] {
        assert_eq!(records::owner(path), None, "{path}");
    }
}

#[test]
fn what_is_no_record_is_passed_over() {
    let node = Node::new();
    let root = &node.places.records;
    fs::create_dir_all(root.join("not base64!")).expect("dir");
    fs::create_dir_all(root.join(records::directory("/some/other/path"))).expect("dir");
    fs::write(root.join(records::directory(&target(UID, "file"))), "no directory").expect("file");
    let link = root.join(records::directory(&target(UID, "link")));
    std::os::unix::fs::symlink("/etc", link).expect("link");
    assert_eq!(node.look().expect("nothing"), PodVolumes::default());
    let strange =
        Places { records: Path::new("/proc/self/status").to_owned(), ..node.places.clone() };
    assert!(matches!(strange.look(&request()), Err(VolumesError::Read { .. })));
}
