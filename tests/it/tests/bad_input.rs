//! What a person or a shim can get wrong gets a clear error, and nothing is lost or left.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use peerpod_it::bed::{PATIENCE, signal};
use peerpod_it::{Bed, root};
use peerpod_netlink::{Handle, Netns};
use peerpod_standin::lab::{Binaries, Daemon, DaemonOptions, Lab, wait_for};
use peerpod_standin::shim::{PodSpec, Profile, Shim};

const INVALID: Option<i32> = Some(3);
const EXHAUSTED: Option<i32> = Some(8);

/// The refusal of a CreateVM: code and words.
async fn refused(bed: &Bed, spec: PodSpec) -> (Option<i32>, String) {
    let shim = Shim::create(Profile::GoLike, &bed.lab.dir().socket(), spec).await;
    let error = shim.expect_err("refused");
    (error.code(), error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_createvm_names_what_is_wrong_and_leaves_nothing() {
    if !root("a_bad_createvm_names_what_is_wrong_and_leaves_nothing") {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    let (_net, good) = bed.pod(1).await.unwrap();
    let with = |change: &dyn Fn(&mut PodSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        spec
    };
    let cases: [(PodSpec, &[&str]); 8] = [
        (with(&|s| s.sandbox = String::new()), &["id"]),
        (with(&|s| s.sandbox = "x".repeat(300)), &["id"]),
        (with(&|s| s.sandbox = "../../etc".to_owned()), &["id"]),
        (with(&|s| s.sandbox = "a/b".to_owned()), &["id"]),
        (with(&|s| s.name = String::new()), &["sandbox-name"]),
        (with(&|s| s.namespace = String::new()), &["sandbox-namespace"]),
        (with(&|s| s.netns = PathBuf::new()), &["networkNamespacePath", "hostNetwork"]),
        (with(&|s| s.netns = "/nonexistent/netns".into()), &["/nonexistent/netns"]),
    ];
    for (spec, words) in cases {
        let (code, text) = refused(&bed, spec).await;
        assert_eq!(code, INVALID, "{text}");
        for word in words {
            assert!(text.contains(word), "{text} does not name {word}");
        }
    }
    let (code, text) = refused(&bed, with(&|s| s.initdata = "algorithm = \"md5\"".into())).await;
    assert_eq!(code, INVALID, "{text}");
    assert!(text.contains("md5"), "{text}");
    let (code, text) = refused(&bed, with(&|s| s.machine_type = "no-such-type".into())).await;
    assert_eq!(code, INVALID, "{text}");
    assert!(text.contains("requested instance type (\"no-such-type\")"), "{text}");
    bed.until_nothing_left().await.unwrap();
    // The good one still goes, so nothing was used up.
    let shim = Shim::boot(Profile::GoLike, &bed.lab.dir().socket(), good).await.unwrap();
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_without_address_or_route_is_named() {
    if !root("a_namespace_without_address_or_route_is_named") {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    let (_net, mut spec) = bed.pod(1).await.unwrap();
    let empty = Netns::create().unwrap();
    empty.run(|| Handle::here()?.set_up("lo", true)).unwrap();
    let path = bed.lab.dir().net().join("empty");
    empty.persist(&path).unwrap();
    spec.netns = path.clone();
    let (code, text) = refused(&bed, spec).await;
    Netns::unpersist(&path).unwrap();
    assert_eq!(code, INVALID, "{text}");
    assert!(text.contains("no default route") && text.contains("empty"), "{text}");
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pod_more_than_the_limit_is_refused() {
    if !root("one_pod_more_than_the_limit_is_refused") {
        return;
    }
    let bed = Bed::new(&["--peerpods-limit-per-node=1"]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    let (_net, spec) = bed.pod(2).await.unwrap();
    let (code, text) = refused(&bed, spec.clone()).await;
    assert_eq!(code, EXHAUSTED, "{text}");
    assert!(text.contains('1') && text.contains("limit"), "{text}");
    shim.stop().await.unwrap();
    let shim = Shim::boot(Profile::GoLike, &bed.lab.dir().socket(), spec).await.unwrap();
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_new_pods_and_keeps_running_ones() {
    if !root("a_full_disk_refuses_new_pods_and_keeps_running_ones") {
        return;
    }
    let lab = Lab::new(Binaries::find().unwrap()).await.unwrap();
    let state = lab.dir().state();
    std::fs::create_dir_all(&state).unwrap();
    let size = Some("size=512k,mode=0700");
    mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), size).unwrap();
    let daemon = lab.start(DaemonOptions::default()).await.unwrap();
    let bed = Bed { lab, daemon };
    let (_net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    let filler = state.join("filler");
    let chunk = vec![0; 4096];
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
    let (_net, spec) = bed.pod(2).await.unwrap();
    let (code, text) = refused(&bed, spec).await;
    assert_eq!(code, EXHAUSTED, "{text}");
    assert!(text.contains("No space left"), "{text}");
    assert!(shim.agent().unwrap().check().await.unwrap(), "the running pod goes on");
    std::fs::remove_file(&filler).unwrap();
    drop(file);
    let (_net, second) = bed.boot(Profile::GoLike, 3).await.unwrap();
    second.stop().await.unwrap();
    shim.stop().await.unwrap();
    // The lab takes the mount along.
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_record_is_set_aside_and_stops_nobody() {
    if !root("an_unreadable_record_is_set_aside_and_stops_nobody") {
        return;
    }
    let mut bed = Bed::separate(&[]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    bed.daemon.kill_node().await.unwrap();
    let torn = bed.lab.dir().state().join("pods/torn");
    std::fs::create_dir(&torn).unwrap();
    std::fs::write(torn.join("record.json"), "{\"version\": 1, \"sand").unwrap();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    assert_eq!(bed.status(&shim.spec().sandbox).await.unwrap().unwrap()["phase"], "running");
    let broken = bed.lab.dir().state().join("broken");
    assert_eq!(std::fs::read_dir(&broken).unwrap().count(), 1, "it is kept aside");
    let told = bed.pods().await.unwrap();
    assert!(told.iter().any(|p| p["phase"] == "broken"), "{told:?}");
    shim.stop().await.unwrap();
    std::fs::remove_dir_all(&broken).unwrap();
    bed.end().await.unwrap();
}

/// Runs a subcommand that must end by itself.
async fn ends(daemon: &Daemon, words: &[&str]) -> (Option<i32>, String) {
    let output: Output = tokio::time::timeout(PATIENCE, daemon.peerpodd(words))
        .await
        .expect("ends by itself")
        .expect("starts");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_and_state_of_another_daemon_are_not_taken() {
    if !root("sockets_and_state_of_another_daemon_are_not_taken") {
        return;
    }
    let mut bed = Bed::separate(&[]).await.unwrap();
    bed.daemon.kill_relay().await.unwrap();
    let socket = bed.lab.dir().socket();
    std::fs::remove_file(&socket).unwrap();
    let stranger = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (code, text) = ends(&bed.daemon, &["relay"]).await;
    assert_ne!(code, Some(0), "{text}");
    let pid = std::process::id().to_string();
    assert!(text.contains(".sock: served by process") && text.contains(&pid), "{text}");
    drop(stranger);
    bed.daemon.start_relay().await.unwrap();
    bed.daemon.ready().await.unwrap();
    let (code, text) = ends(&bed.daemon, &["node"]).await;
    assert_ne!(code, Some(0), "{text}");
    let node = bed.daemon.node_pid().unwrap().to_string();
    assert!(text.contains("--state-dir") && text.contains(&node), "{text}");
    let (_net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_left_by_the_dead_is_replaced_and_a_link_in_its_place_is_not_followed() {
    if !root("a_socket_left_by_the_dead_is_replaced_and_a_link_in_its_place_is_not_followed") {
        return;
    }
    let mut bed = Bed::separate(&[]).await.unwrap();
    bed.daemon.kill_relay().await.unwrap();
    assert!(bed.lab.dir().socket().exists(), "kill -9 leaves the socket");
    bed.daemon.start_relay().await.unwrap();
    bed.daemon.ready().await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    shim.stop().await.unwrap();
    bed.until_nothing_left().await.unwrap();
    bed.daemon.kill_relay().await.unwrap();
    let socket = bed.lab.dir().socket();
    std::fs::remove_file(&socket).unwrap();
    let elsewhere = bed.lab.dir().path().join("elsewhere");
    std::fs::write(&elsewhere, "precious").unwrap();
    symlink(&elsewhere, &socket).unwrap();
    let (code, text) = ends(&bed.daemon, &["relay"]).await;
    assert_ne!(code, Some(0), "{text}");
    assert!(text.contains(socket.to_str().unwrap()), "{text}");
    assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "precious");
}

/// A daemon whose VM never gets so far; the message of its failed start.
async fn failed_start(change: impl FnOnce(&Path) -> Vec<(String, String)>) -> String {
    let lab = Lab::new(Binaries::find().unwrap()).await.unwrap();
    let environment = change(lab.dir().path());
    let arguments = vec!["--start-timeout=6s".to_owned()];
    let options = DaemonOptions { arguments, environment, ..Default::default() };
    let daemon = lab.start(options).await.unwrap();
    let bed = Bed { lab, daemon };
    let (_net, spec) = bed.pod(1).await.unwrap();
    let shim = Shim::boot(Profile::GoLike, &bed.lab.dir().socket(), spec).await;
    let text = shim.expect_err("cannot start").to_string();
    bed.end().await.unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_says_how_far_it_came() {
    if !root("a_failed_start_says_how_far_it_came") {
        return;
    }
    let booting = failed_start(|_| vec![("LOCAL_BOOT_DELAY".to_owned(), "1h".to_owned())]).await;
    assert!(booting.contains("refused") || booting.contains("unreachable"), "{booting}");
    // An agent that never listens: the forwarder stands, calls to it wait.
    let silent = failed_start(|_| vec![("LOCAL_AGENT".to_owned(), "sleep 3600".to_owned())]).await;
    assert!(silent.contains("agent"), "{silent}");
    assert!(silent.contains("pod-1") && silent.contains("default"), "{silent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_answers_garbage_fails_the_start_with_that_stage() {
    if !root("an_agent_that_answers_garbage_fails_the_start_with_that_stage") {
        return;
    }
    let text = failed_start(|dir| {
        let script = dir.join("garbage.py");
        let body = "import os, socket\np = '/run/kata-containers/agent.sock'\n\
                    os.makedirs(os.path.dirname(p), exist_ok=True)\n\
                    s = socket.socket(socket.AF_UNIX)\ns.bind(p)\ns.listen(9)\n\
                    while True:\n    c, _ = s.accept()\n    c.send(b'\\xff' * 64)\n    c.close()\n";
        std::fs::write(&script, body).unwrap();
        vec![("LOCAL_AGENT".to_owned(), format!("python3 {}", script.display()))]
    })
    .await;
    assert!(text.contains("agent"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_daemon_and_not_the_pods() {
    if !root("sigterm_ends_the_daemon_and_not_the_pods") {
        return;
    }
    let mut bed = Bed::separate(&[]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let vm = bed.vm_init().unwrap();
    let node = bed.daemon.node_pid().unwrap();
    signal(node, nix::sys::signal::Signal::SIGTERM).unwrap();
    bed.daemon.kill_node().await.ok();
    assert_eq!(bed.vm_init().unwrap(), vm);
    assert!(shim.agent().unwrap().check().await.unwrap(), "the pod goes on without a node process");
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), shim.stop()).await.unwrap().unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_ends_the_pods_with_the_daemon_and_nothing_is_left_of_them() {
    if !root("sigint_ends_the_pods_with_the_daemon_and_nothing_is_left_of_them") {
        return;
    }
    let mut bed = Bed::new(&["--orphan-grace=1s"]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    signal(bed.daemon.run_pid().unwrap(), nix::sys::signal::Signal::SIGINT).unwrap();
    let ended = || async { Ok(bed.daemon.relay_pid().is_none().then_some(())) };
    wait_for("the relay's end", PATIENCE, ended).await.unwrap();
    bed.daemon.kill_run().await.unwrap();
    // From now on whoever is their parent.
    assert_eq!((bed.daemon.node_pid(), bed.daemon.relay_pid()), (None, None));
    drop(shim);
    bed.daemon.start_run().await.unwrap();
    bed.daemon.ready().await.unwrap();
    bed.end().await.unwrap();
}
