use std::collections::BTreeMap;
use std::sync::Arc;

use peerpod_providers::fake::{Fake, Fault, Operation, Options};
use peerpod_providers::{Candidate, Kind, Market, Provider, VmName, VmSpec};

use super::*;

fn site(state: &std::path::Path) -> Site {
    Site {
        installation: "test".to_owned(),
        node: "node-1".to_owned(),
        gone: None,
        copies: false,
        grace: Duration::from_secs(600),
        state_dir: state.to_owned(),
    }
}

/// VMs that were made an hour ago, each of a sandbox on a node.
async fn cloud(vms: &[(&str, &str)]) -> Arc<Fake> {
    cloud_of(vms, &[]).await
}

/// The same, with more tags.
async fn cloud_of(vms: &[(&str, &str)], more: &[(&str, &str)]) -> Arc<Fake> {
    let began = SystemTime::now() - Duration::from_secs(3600);
    let fake = Arc::new(Fake::new(Options { began, ..Options::default() }));
    let (instance_type, market) = ("small".to_owned(), Market::OnDemand);
    let place = Candidate { number: 0, instance_type, zone: None, market };
    for (sandbox, node) in vms {
        let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut all = BTreeMap::from([tag(tags::INSTALLATION, "test"), tag(tags::NODE, node)]);
        all.extend(more.iter().map(|(key, value)| tag(key, value)));
        let spec =
            VmSpec { tags: all, ..VmSpec::new(VmName::first_form("pod", sandbox), *sandbox) };
        fake.create(&spec, &place).await.expect("made");
    }
    fake
}

fn known(state: &std::path::Path, sandbox: &str) {
    std::fs::create_dir_all(state.join("pods").join(sandbox)).expect("directory");
}

async fn leaks(fake: &Arc<Fake>, site: &Site, form: Form) -> (Vec<serde_json::Value>, u8) {
    let provider: TheProvider = fake.clone();
    let answer = ask(&provider, site, Form { json: true, ..form }).await.expect("answered");
    (serde_json::from_str(&answer.text).expect("JSON"), answer.code)
}

const LIST: Form = Form { json: true, all: false, delete: false };

#[tokio::test(start_paused = true)]
async fn only_what_is_this_nodes_has_no_record_and_is_old_is_left_over() {
    let state = tempfile::tempdir().expect("directory");
    known(state.path(), "used");
    let fake = cloud(&[("used", "node-1"), ("lost", "node-1"), ("theirs", "node-2")]).await;
    let (rows, _) = leaks(&fake, &site(state.path()), LIST).await;
    let sandboxes: Vec<&str> = rows.iter().filter_map(|r| r["sandbox"].as_str()).collect();
    assert_eq!(sandboxes, ["lost"]);
    let (rows, _) = leaks(&fake, &site(state.path()), Form { all: true, ..LIST }).await;
    let standing = |row: &serde_json::Value| {
        let text = |key| row[key].as_str().unwrap_or_default().to_owned();
        (text("sandbox"), text("standing"))
    };
    let standings: BTreeMap<String, String> = rows.iter().map(standing).collect();
    let expected = [("lost", "left-over"), ("theirs", "another-node"), ("used", "in-use")];
    assert_eq!(standings, expected.map(|(a, b)| (a.to_owned(), b.to_owned())).into());
    let patient = Site { grace: Duration::from_secs(7200), ..site(state.path()) };
    assert!(leaks(&fake, &patient, LIST).await.0.is_empty(), "too young");
}

#[tokio::test(start_paused = true)]
async fn delete_takes_what_is_left_over_and_nothing_else() {
    let state = tempfile::tempdir().expect("directory");
    known(state.path(), "used");
    let fake = cloud(&[("used", "node-1"), ("lost", "node-1"), ("theirs", "node-2")]).await;
    let (rows, code) = leaks(&fake, &site(state.path()), Form { delete: true, ..LIST }).await;
    assert_eq!((rows.len(), rows[0]["deleted"].as_str(), code), (1, Some("yes"), 0));
    assert_eq!(fake.vms().len(), 2);
    let gone = Site { gone: Some("node-2".to_owned()), ..site(state.path()) };
    leaks(&fake, &gone, Form { delete: true, ..LIST }).await;
    assert_eq!(fake.vms().len(), 1, "a node that is gone needs none");
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_fails_is_told_and_is_the_exit_code() {
    let state = tempfile::tempdir().expect("directory");
    let fake = cloud(&[("lost", "node-1")]).await;
    fake.script_always(Operation::Delete, Fault::Fail(Kind::Denied));
    let (rows, code) = leaks(&fake, &site(state.path()), Form { delete: true, ..LIST }).await;
    assert_eq!(code, 1);
    assert!(rows[0]["deleted"].as_str().is_some_and(|d| d.contains("denied")), "{rows:?}");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_fails_is_no_empty_list() {
    let state = tempfile::tempdir().expect("directory");
    let fake = cloud(&[]).await;
    let provider: TheProvider = fake.clone();
    let empty = ask(&provider, &site(state.path()), Form { json: false, ..LIST }).await;
    assert_eq!(empty.expect("answered").text, "nothing is left over\n");
    fake.script_next(Operation::List, Fault::Fail(Kind::Unavailable));
    assert!(ask(&provider, &site(state.path()), LIST).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_another_copy_of_the_state_directory_has_made_is_left_alone_unless_told() {
    let state = tempfile::tempdir().expect("directory");
    Epochs::begin(state.path(), 1_000).expect("begun");
    let fake = cloud_of(&[("copys", "node-1")], &[(tags::EPOCH, "2000")]).await;
    let (rows, _) = leaks(&fake, &site(state.path()), Form { delete: true, ..LIST }).await;
    assert_eq!((rows.len(), fake.vms().len()), (0, 1));
    let (rows, _) = leaks(&fake, &site(state.path()), Form { all: true, ..LIST }).await;
    assert_eq!(rows[0]["standing"], "another-copy");
    let told = Site { copies: true, ..site(state.path()) };
    leaks(&fake, &told, Form { delete: true, ..LIST }).await;
    assert_eq!(fake.vms().len(), 0);
}
