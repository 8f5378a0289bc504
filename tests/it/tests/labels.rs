//! Labels of pods that become tags of their VMs: the real daemon reads them from the sandbox's bundle, and
//! what it has read stands in its records.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use peerpod_it::{Bed, root};
use peerpod_standin::lab::{DaemonOptions, Mode};
use peerpod_standin::shim::{PodSpec, Profile, Shim};
use serde_json::{Value, json};

/// Wanted by the most wanted first; a namespace would have the last.
const WANTED: &str = "--cost-tag-labels=team,example.com/Cost.Center=cost,tier,owner";

/// What `local` has written down of the only VM.
fn tags(bed: &Bed) -> Value {
    let text = std::fs::read_to_string(bed.vm_dir().unwrap().join("vm.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["tags"].clone()
}

async fn timeline(bed: &Bed, spec: &PodSpec) -> String {
    bed.status(&spec.sandbox).await.unwrap().unwrap()["timeline"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_labels_are_tags_of_its_vm_also_when_the_daemon_dies_before_there_is_one() {
    let test = "a_pods_labels_are_tags_of_its_vm_also_when_the_daemon_dies_before_there_is_one";
    if !root(test) {
        return;
    }
    let arguments = [WANTED, "--tags=tier=gold"];
    let options = DaemonOptions { mode: Mode::Separate, ..Bed::options(&arguments) };
    let mut bed = Bed::with(options).await.unwrap();
    let (_net, spec) = bed.pod(1).await.unwrap();
    let labels =
        json!({"team": "Blue.1", "example.com/Cost.Center": "42", "tier": "tin", "app": "x"});
    bed.crio_bundle(&spec, &labels).unwrap();
    let mut shim =
        Shim::create(Profile::RsLike, &bed.lab.dir().socket(), spec.clone()).await.unwrap();
    // What was read is on disk; nobody reads it again.
    std::fs::remove_dir_all(bed.lab.dir().bundles()).unwrap();
    bed.daemon.kill_node().await.unwrap();
    bed.daemon.start_node(None).await.unwrap();
    let started = shim.start_vm().await;
    started.map_err(|e| format!("{e}\n{}", bed.daemon.log_tail())).unwrap();
    let tags = tags(&bed);
    assert_eq!((&tags["team"], &tags["cost"]), (&json!("Blue.1"), &json!("42")), "{tags}");
    assert_eq!(tags["tier"], "gold", "the user's own: {tags}");
    assert_eq!(tags["peerpodd-sandbox"], spec.sandbox.as_str());
    for absent in ["app", "owner", "example.com/Cost.Center"] {
        assert_eq!(tags[absent], Value::Null, "{absent}: {tags}");
    }
    let timeline = timeline(&bed, &spec).await;
    for said in [
        "cost tags: team=Blue.1, cost=42",
        "no cost tag from tier (there is a tag",
        "no cost tag from owner: not known (the pod has none, and labels of namespaces",
    ] {
        assert!(timeline.contains(said), "{said}: {timeline}");
    }
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_labels_are_not_known_starts_without_cost_tags_and_says_why() {
    let test = "a_pod_whose_labels_are_not_known_starts_without_cost_tags_and_says_why";
    if !root(test) {
        return;
    }
    let bed = Bed::new(&[WANTED]).await.unwrap();
    let (_net, spec) = bed.pod(1).await.unwrap();
    // Another pod's bundle in its place.
    bed.crio_bundle(&PodSpec { name: "other".to_owned(), ..spec.clone() }, &json!({"team": "x"}))
        .unwrap();
    let shim = Shim::boot(Profile::GoLike, &bed.lab.dir().socket(), spec.clone()).await.unwrap();
    let tags = tags(&bed);
    assert_eq!(tags["team"], Value::Null, "{tags}");
    let timeline = timeline(&bed, &spec).await;
    let said = "no cost tag from team, example.com/Cost.Center, tier, owner: not known (";
    assert!(timeline.contains(said) && timeline.contains("is another one's"), "{timeline}");
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}
