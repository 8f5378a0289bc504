//! Which labels of a pod are known, and what is made of hostile bundles.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::pod::samples;

fn request() -> PodRequest {
    samples::request("s1")
}

/// As CRI-O leaves it for a sandbox of a kubelet's.
fn crio(labels: &str) -> Value {
    json!({
        "io.kubernetes.cri-o.SandboxID": "s1", "io.kubernetes.cri-o.Namespace": "shop",
        "io.kubernetes.cri-o.KubeName": "web", "io.kubernetes.cri-o.ContainerType": "sandbox",
        "io.kubernetes.cri-o.Labels": labels,
    })
}

async fn read(dir: &Path, file: &str, annotations: &Value) -> PodLabels {
    let path = dir.join("s1").join(file);
    fs::create_dir_all(path.parent().expect("a parent")).expect("dir");
    fs::write(path, json!({"annotations": annotations}).to_string()).expect("config.json");
    Bundles(vec![dir.to_owned()]).of(&request()).await
}

#[tokio::test]
async fn crio_writes_a_pods_labels_down() {
    let dir = tempfile::tempdir().expect("dir");
    let labels = json!({
        "app": "web", "team": "", "io.kubernetes.pod.uid": "11111111-2222-3333-4444-555555555555",
        "example.com/cost-center": "A.1_b", "io.kubernetes.container.name": "POD",
        "hostile": "a\nb", "no key!": "x", "number": 7, "long": "x".repeat(64),
    });
    let found = read(dir.path(), "userdata/config.json", &crio(&labels.to_string())).await;
    assert_eq!(found.get("app"), Ok(Some("web")));
    assert_eq!(found.get("team"), Ok(Some("")));
    assert_eq!(found.get("example.com/cost-center"), Ok(Some("A.1_b")));
    let pod = found.pod.as_ref().expect("known");
    for none in ["hostile", "no key!", "number", "long"] {
        assert!(!pod.contains_key(none), "{none} is no label: {pod:?}");
    }
    let why = found.get("owner").expect_err("perhaps the namespace has it");
    assert!(why.contains("labels of namespaces"), "{why}");
}

#[tokio::test]
async fn containerd_writes_none_down_and_what_is_not_this_pods_does_not_count() {
    let dir = tempfile::tempdir().expect("dir");
    let containerd = json!({
        "io.kubernetes.cri.sandbox-id": "s1", "io.kubernetes.cri.sandbox-name": "web",
        "io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.container-type": "sandbox",
    });
    let why = read(dir.path(), "config.json", &containerd).await.pod.expect_err("none");
    assert!(why.contains("names no labels") && why.contains("s1/config.json"), "{why}");
    let good = json!({"app": "web"}).to_string();
    for (key, value) in [
        ("io.kubernetes.cri-o.SandboxID", "s2"),
        ("io.kubernetes.cri-o.Namespace", "other"),
        ("io.kubernetes.cri-o.KubeName", "other"),
        ("io.kubernetes.cri-o.Labels", "[]"),
        ("io.kubernetes.cri-o.Labels", "{"),
        ("io.kubernetes.cri-o.Labels", "{\"a\":\"b\",\"a\":"),
    ] {
        let mut annotations = crio(&good);
        annotations[key] = value.into();
        let dir = tempfile::tempdir().expect("dir");
        let found = read(dir.path(), "userdata/config.json", &annotations).await;
        let why = found.pod.expect_err(value);
        assert!(why.contains("s1/userdata/config.json"), "{key} {value}: {why}");
    }
    let nowhere = Bundles(vec!["/nowhere".into()]).of(&request()).await;
    assert!(nowhere.get("app").expect_err("none").contains("no bundle of this sandbox"));
}

#[test]
fn the_pods_label_goes_before_its_namespaces() {
    let labels = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let (pod, namespace) = (labels(&[("a", "pod")]), labels(&[("a", "ns"), ("b", "ns")]));
    let known = PodLabels { pod: Ok(pod), namespace: Ok(namespace) };
    assert_eq!((known.get("a"), known.get("b")), (Ok(Some("pod")), Ok(Some("ns"))));
    assert_eq!(known.get("c"), Ok(None));
    // It might have one of its own.
    let half = PodLabels { pod: Err("gone".to_owned()), ..known };
    assert_eq!(half.get("b"), Err("gone"));
}

#[test]
fn keys_and_values_are_those_that_kubernetes_takes() {
    let long = "x".repeat(63);
    let prefix = format!("{}/{long}", ["a"; 127].join("."));
    for key in ["a", "A.b-c_d", "1", "example.com/name", "a-b.c1/N", &long, &prefix] {
        assert!(label::is_key(key), "{key}");
    }
    let too_long = format!("{long}x");
    let prefixes = format!("{}/n", ["a"; 128].join("."));
    for key in [
        "", "/", "a/", "/a", "a/b/c", "-a", "a-", ".a", "a b", "\u{e4}", "A.b/c", "a..b/c", "-a/c",
        "a_b/c", "a\n", &too_long, &prefixes,
    ] {
        assert!(!label::is_key(key), "{key}");
    }
    for value in ["", "a", "A.1_b-c", &long] {
        assert!(label::is_value(value), "{value}");
    }
    for value in ["a/b", " ", "-", "a\n", "\u{e4}", &too_long] {
        assert!(!label::is_value(value), "{value}");
    }
}
