//! What may stand in a state or run directory that no daemon of ours has put there: it is refused by
//! name, nothing is written to what it leads to, and running pods go on.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use peerpod_it::bed::PATIENCE;
use peerpod_it::{Bed, Stream, root};
use peerpod_standin::lab::wait_for;
use peerpod_standin::shim::Profile;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// Runs a subcommand that must end by itself and not be content; all that it says.
async fn refuses(bed: &Bed, what: &str) -> String {
    let output = tokio::time::timeout(PATIENCE, bed.daemon.peerpodd(&[what])).await;
    said(what, &output.expect("ends by itself").expect("starts"))
}

fn said(what: &str, output: &std::process::Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    let text = format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err));
    assert!(!output.status.success(), "{what} must not be content: {text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_place_of_our_files_are_named_and_not_followed() {
    if !root("links_in_place_of_our_files_are_named_and_not_followed") {
        return;
    }
    let mut bed = Bed::separate(&[]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let stream = Stream::start(&shim, "lines").await.unwrap();
    bed.daemon.kill_node().await.unwrap();
    let (state, run) = (bed.lab.dir().state(), bed.lab.dir().run());
    let elsewhere = bed.lab.dir().path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let precious = elsewhere.join("precious");
    fs::write(&precious, "precious").unwrap();
    let (files, directories) = (&precious, &elsewhere);
    let all: [(&str, PathBuf, &PathBuf); 11] = [
        ("node", state.join("node.lock"), files),
        ("node", state.join("installation-id"), files),
        ("node", state.join("pods"), directories),
        ("node", state.join("broken"), directories),
        ("node", state.join("pki"), directories),
        ("node", state.join("pki/ca.pem"), files),
        ("node", state.join("pki/ca.key"), files),
        ("node", state.join("pki/client.pem"), files),
        ("node", state.join("pki/client.key"), files),
        ("node", run.join("node.sock"), files),
        ("run", run.join("run.lock"), files),
    ];
    for (what, path, target) in all {
        let aside = path.with_added_extension("aside");
        let there = fs::symlink_metadata(&path).is_ok();
        if there {
            fs::rename(&path, &aside).unwrap();
        }
        symlink(target, &path).unwrap();
        let text = refuses(&bed, what).await;
        assert!(text.contains(path.to_str().unwrap()), "{}: {text}", path.display());
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious", "{}", path.display());
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1, "{}", path.display());
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink(), "it is left for people");
        fs::remove_file(&path).unwrap();
        if there {
            fs::rename(&aside, &path).unwrap();
        }
    }
    // A probe that was cut short is nobody's: what stands in its way goes, and is not written to.
    symlink(&precious, state.join(".probe")).unwrap();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    fs::remove_dir_all(&elsewhere).unwrap();
    assert_eq!(bed.status(&shim.spec().sandbox).await.unwrap().unwrap()["phase"], "running");
    stream.moves(stream.seen()).await.unwrap();
    stream.finish().await.unwrap();
    shim.stop().await.ok();
    bed.end().await.unwrap();
}

/// The record of a sandbox, changed.
fn changed(path: &Path, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    serde_json::to_vec(&value).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_reaches_beyond_its_pod_is_set_aside_and_nothing_it_names_is_touched() {
    if !root("a_record_that_reaches_beyond_its_pod_is_set_aside_and_nothing_it_names_is_touched") {
        return;
    }
    let mut bed = Bed::separate(&["--sweep-interval=1s", "--sweep-grace=0s"]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    let stream = Stream::start(&shim, "lines").await.unwrap();
    bed.daemon.kill_node().await.unwrap();
    let pods = bed.lab.dir().state().join("pods");
    let own = pods.join(&shim.spec().sandbox).join("record.json");
    let victim = bed.lab.dir().path().join("victim.sock");
    fs::write(&victim, "precious").unwrap();
    let agent = shim.agent_path().display().to_string();
    type Change<'a> = Box<dyn Fn(&mut Value) + 'a>;
    let cases: [(&str, Change<'_>, &str); 5] = [
        ("up", Box::new(|r| r["sandbox"] = json!("../up")), "another sandbox"),
        ("socket", Box::new(|r| r["link"]["socket"] = json!(victim)), "link.socket"),
        // Of the pod that runs: closing it would end that pod.
        ("others", Box::new(|r| r["link"]["socket"] = json!(agent)), "link.socket"),
        (
            "netns",
            Box::new(|r| r["network"]["netns"] = json!("/run/../proc/1/ns/net")),
            "network.netns",
        ),
        (
            "name",
            Box::new(|r| r["machine"]["spec"]["name"] = json!("../../victim")),
            "machine.spec.name",
        ),
    ];
    for (sandbox, change, _) in &cases {
        fs::create_dir(pods.join(sandbox)).unwrap();
        let bytes = changed(&own, |r| {
            r["sandbox"] = json!(sandbox);
            r["machine"]["spec"]["sandbox"] = json!(sandbox);
            let directory = bed.lab.dir().pods().join(sandbox);
            r["link"]["socket"] = json!(directory.join("agent.ttrpc"));
            change(r);
        });
        fs::write(pods.join(sandbox).join("record.json"), bytes).unwrap();
    }
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    let told = bed.pods().await.unwrap();
    for (sandbox, _, field) in &cases {
        let status = told.iter().find(|s| s["sandbox"] == *sandbox).unwrap();
        assert_eq!(status["phase"], "broken", "{status}");
        assert!(status["reason"].as_str().unwrap().contains(field), "{status}");
        assert!(!pods.join(sandbox).exists(), "it is set aside");
    }
    let broken = bed.lab.dir().state().join("broken");
    assert_eq!(fs::read_dir(&broken).unwrap().count(), cases.len(), "and kept for people");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(bed.status(&shim.spec().sandbox).await.unwrap().unwrap()["phase"], "running");
    stream.moves(stream.seen()).await.unwrap();
    stream.finish().await.unwrap();
    shim.stop().await.unwrap();
    fs::remove_dir_all(&broken).unwrap();
    fs::remove_file(&victim).unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_whose_record_cannot_be_believed_goes_on_until_it_is_stopped() {
    if !root("a_running_pod_whose_record_cannot_be_believed_goes_on_until_it_is_stopped") {
        return;
    }
    let mut bed = Bed::separate(&["--sweep-interval=1s", "--sweep-grace=0s"]).await.unwrap();
    let (net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    let stream = Stream::start(&shim, "lines").await.unwrap();
    bed.daemon.kill_node().await.unwrap();
    let pods = bed.lab.dir().state().join("pods");
    let own = pods.join(&shim.spec().sandbox).join("record.json");
    let bytes = changed(&own, |r| r["link"]["socket"] = json!("/etc/passwd"));
    fs::write(&own, bytes).unwrap();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    assert_eq!(bed.status(&shim.spec().sandbox).await.unwrap().unwrap()["phase"], "broken");
    // As long as the relay holds its connections its VM is not taken for nobody's.
    bed.two_sweeps().await.unwrap();
    stream.moves(stream.seen()).await.unwrap();
    bed.vm_dir().unwrap();
    stream.finish().await.unwrap();
    shim.stop().await.unwrap();
    fs::remove_dir_all(bed.lab.dir().state().join("broken")).unwrap();
    bed.lab.network().remove_pod(&net).unwrap();
    // Now it is: the sweep finds the VM that no record knows. What the worker's filter still has of
    // it goes with the next start of a node process.
    let swept = || async { Ok((bed.metric("sweep_deleted_total").await? >= 1.0).then_some(())) };
    wait_for("the VM to be swept, to the end", PATIENCE, swept).await.unwrap();
    bed.daemon.kill_node().await.unwrap();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_in_a_running_pods_record_end_nothing_and_lose_no_vm() {
    if !root("flipped_bits_in_a_running_pods_record_end_nothing_and_lose_no_vm") {
        return;
    }
    let mut bed = Bed::separate(&["--sweep-interval=1s", "--sweep-grace=0s"]).await.unwrap();
    let (net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let (_net, other) = bed.boot(Profile::GoLike, 2).await.unwrap();
    let stream = Stream::start(&shim, "lines").await.unwrap();
    let pod = bed.lab.dir().state().join("pods").join(&shim.spec().sandbox);
    let (file, broken) = (pod.join("record.json"), bed.lab.dir().state().join("broken"));
    let whole = fs::read(&file).unwrap();
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..6 {
        bed.daemon.kill_node().await.unwrap();
        let mut bytes = whole.clone();
        // Behind the name of the checksum, so that it is always found.
        let at = random.random_range(8..bytes.len());
        bytes[at] ^= 1 << random.random_range(0..8);
        fs::create_dir_all(&pod).unwrap();
        fs::write(&file, &bytes).unwrap();
        let _ = fs::remove_dir_all(&broken);
        bed.daemon.start_node(None).await.unwrap();
        bed.daemon.ready().await.unwrap();
        let status = bed.status(&shim.spec().sandbox).await.unwrap().unwrap();
        assert_eq!(status["phase"], "broken", "seed {seed} round {round}: {status}");
        assert_eq!(fs::read_dir(&broken).unwrap().count(), 1, "seed {seed}: kept for people");
        assert_eq!(bed.status(&other.spec().sandbox).await.unwrap().unwrap()["phase"], "running");
        stream.moves(stream.seen()).await.unwrap();
    }
    bed.two_sweeps().await.unwrap();
    stream.moves(stream.seen()).await.unwrap();
    stream.finish().await.unwrap();
    shim.stop().await.unwrap();
    bed.lab.network().remove_pod(&net).unwrap();
    // The VM that no record knows is found once nothing hangs on it.
    let swept = || async { Ok((bed.metric("sweep_deleted_total").await? >= 1.0).then_some(())) };
    wait_for("the VM to be swept, to the end", PATIENCE, swept).await.unwrap();
    assert!(other.agent().unwrap().check().await.unwrap());
    other.stop().await.unwrap();
    fs::remove_dir_all(&broken).unwrap();
    bed.daemon.kill_node().await.unwrap();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_without_working_locks_is_refused() {
    if !root("a_state_directory_without_working_locks_is_refused") {
        return;
    }
    let mut bed = Bed::separate(&[]).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let agent = bed.lab.binaries().agent.clone();
    let state = bed.lab.dir().state().display().to_string();
    // Beside a node process that holds the lock, and where nobody does.
    for alone in [false, true] {
        if alone {
            bed.daemon.kill_node().await.unwrap();
        }
        let lock = bed.lab.dir().state().join("node.lock");
        let before = (fs::read(&lock).unwrap(), fs::metadata(&lock).unwrap().ino());
        // Everybody gets the lock; flock(2) fails with ENOLCK.
        for (errno, words) in [("0", "does not keep locks"), ("37", "No locks available")] {
            let arguments = ["no-locks", "--errno", errno];
            let through = bed.daemon.through(&agent, &arguments, "node");
            let output = tokio::time::timeout(PATIENCE, through).await.expect("ends by itself");
            let text = said("node", &output.unwrap());
            assert!(text.contains(words) && text.contains(&state), "{text}");
        }
        assert_eq!((fs::read(&lock).unwrap(), fs::metadata(&lock).unwrap().ino()), before);
    }
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    assert!(shim.agent().unwrap().check().await.unwrap());
    shim.stop().await.ok();
    bed.end().await.unwrap();
}
