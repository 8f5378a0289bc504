//! Pods with disks: the real daemon finds out whose they are, the real program in the VM mounts them, on
//! real block devices (loop) with a real file system.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use peerpod_it::{Bed, root};
use peerpod_standin::lab::{DaemonOptions, Mode};
use peerpod_standin::shim::{Container, PodSpec, Profile, Shim};
use serde_json::json;

/// A file as a disk; goes with the test.
struct Disk {
    device: String,
    _file: tempfile::NamedTempFile,
}

impl Disk {
    /// `None`, after saying SKIP, where the machine has no loop devices.
    fn new(test: &str) -> Option<Self> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(32 << 20).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output();
        match made {
            Ok(made) if made.status.success() => {
                let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
                Some(Self { device, _file: file })
            }
            other => {
                println!("SKIP {test}: no loop device to be had: {other:?}");
                None
            }
        }
    }

    /// What stands in a file on it, once nobody uses it any more.
    fn read(&self, name: &str) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let script = "mount -o ro \"$1\" \"$2\" && cat \"$2/$3\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh", &self.device]);
        let out = command.arg(dir.path()).arg(name).output().unwrap();
        out.status.success().then(|| String::from_utf8(out.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// What a kubelet and a CSI driver leave on the node for a pod: target path of its volume.
fn write_down(bed: &Bed, uid: &str, disk: &str) -> String {
    let target = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/pvc/mount");
    let dir = bed.lab.dir().direct_volumes().join(URL_SAFE.encode(&target));
    std::fs::create_dir_all(&dir).unwrap();
    let info = json!({
        "volume-type": "block", "device": "/dev/not-this", "fstype": "ext4", "options": ["rw"],
        "metadata": {"cloud-volume-path": disk, "fsGroup": "2000"},
    });
    std::fs::write(dir.join("mountInfo.json"), info.to_string()).unwrap();
    target
}

/// What containerd leaves for a sandbox.
fn bundle(bed: &Bed, spec: &PodSpec, uid: &str) {
    let dir = bed.lab.dir().bundles().join(&spec.sandbox);
    std::fs::create_dir_all(&dir).unwrap();
    let annotations = json!({
        "io.kubernetes.cri.sandbox-id": spec.sandbox, "io.kubernetes.cri.sandbox-name": spec.name,
        "io.kubernetes.cri.sandbox-namespace": spec.namespace, "io.kubernetes.cri.sandbox-uid": uid,
    });
    let config = json!({"ociVersion": "1.2.0", "annotations": annotations});
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

fn with_volume(id: &str, uid: &str, target: &str) -> Container {
    let mut container = Container::tool(id, &["sleep"]);
    container.mounts = vec![("/data".to_owned(), target.to_owned())];
    let uid_key = "io.kubernetes.cri.sandbox-uid".to_owned();
    container.annotations.insert(uid_key, uid.to_owned());
    container
}

async fn sh(shim: &Shim, exec: &str, script: &str) -> String {
    let args = ["/bin/sh", "-c", script];
    let exec = shim.agent().unwrap().exec(&shim.spec().sandbox, exec, &args).await.unwrap();
    let output = exec.output().await.unwrap();
    assert!(output.stderr.is_empty(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

const UIDS: [&str; 2] =
    ["11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"];

#[tokio::test(flavor = "multi_thread")]
async fn two_pods_of_a_node_have_their_own_disks_over_a_restart_and_the_data_stay() {
    let test = "two_pods_of_a_node_have_their_own_disks_over_a_restart_and_the_data_stay";
    if !root(test) {
        return;
    }
    let (Some(a), Some(b)) = (Disk::new(test), Disk::new(test)) else { return };
    let mut bed =
        Bed::with(DaemonOptions { mode: Mode::Separate, ..Bed::options(&[]) }).await.unwrap();
    let disks = [&a, &b];
    let mut targets = Vec::new();
    for (disk, uid) in disks.iter().zip(UIDS) {
        targets.push(write_down(&bed, uid, &disk.device));
    }
    let mut shims = Vec::new();
    for (number, profile) in [(1, Profile::GoLike), (2, Profile::RsLike)] {
        let (net, spec) = bed.pod(number).await.unwrap();
        bundle(&bed, &spec, UIDS[usize::from(number) - 1]);
        let shim = Shim::create(profile, &bed.lab.dir().socket(), spec).await.unwrap();
        shims.push((net, shim));
    }
    // Between CreateVM and StartVM the records' origin goes; what was found out is on disk.
    std::fs::remove_dir_all(bed.lab.dir().direct_volumes()).unwrap();
    std::fs::remove_dir_all(bed.lab.dir().bundles()).unwrap();
    bed.daemon.kill_node().await.unwrap();
    bed.daemon.start_node(None).await.unwrap();
    for (_, shim) in &mut shims {
        shim.start_vm().await.map_err(|e| format!("{e}\n{}", bed.daemon.log_tail())).unwrap();
        shim.connect().await.unwrap();
        shim.start_sandbox().await.unwrap();
    }
    // And between StartVM and CreateContainer.
    bed.daemon.kill_node().await.unwrap();
    bed.daemon.start_node(None).await.unwrap();
    for (n, (_, shim)) in shims.iter_mut().enumerate() {
        let foreign = with_volume("foreign", UIDS[1 - n], &targets[1 - n]);
        let refused = shim.run_container(&foreign).await.expect_err("another pod's volume");
        assert!(refused.to_string().contains(UIDS[n]), "{refused}");
        let own = with_volume("own", UIDS[n], &targets[n]);
        let made = shim.run_container(&own).await;
        made.map_err(|e| format!("{e}\n{}", bed.daemon.log_tail())).unwrap();
        let seen = shim.agent().unwrap().dump().await.unwrap().containers["own"].clone();
        let (point, bind) = ("/run/cloud-volumes/vol-0".to_owned(), "bind".to_owned());
        assert_eq!(seen.mounts, [("/data".to_owned(), point, bind)], "what the agent is told");
        let annotation = &seen.annotations["io.confidentialcontainers.org.cloud_volumes"];
        assert!(annotation.contains(&disks[n].device), "{annotation}");
        assert!(!annotation.contains(&disks[1 - n].device), "{annotation}");
        let script =
            format!("cd /run/cloud-volumes/vol-0 && ls && echo pod-{n} >mine && stat -c %g:%a .");
        assert_eq!(sh(shim, "write", &script).await, "lost+found\n2000:2775");
    }
    let vms: Vec<String> = bed.podvm_commands();
    for disk in disks {
        let with = vms.iter().filter(|command| command.contains(&disk.device)).count();
        assert_eq!(with, 1, "each disk is one VM's: {vms:?}");
    }
    for (_, shim) in shims {
        shim.stop().await.unwrap();
    }
    bed.end().await.unwrap();
    for (n, disk) in disks.iter().enumerate() {
        assert_eq!(disk.read("mine"), Some(format!("pod-{n}")), "a volume outlives its VM");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_uid_is_not_known_gets_no_disk_and_is_told_why() {
    let test = "a_pod_whose_uid_is_not_known_gets_no_disk_and_is_told_why";
    if !root(test) {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    let target = write_down(&bed, UIDS[0], "/dev/loop0");
    let (_net, mut shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    assert!(bed.podvm_commands().iter().all(|command| !command.contains("--disk")));
    let status = bed.status(&shim.spec().sandbox).await.unwrap().unwrap();
    let timeline = status["timeline"].to_string();
    assert!(timeline.contains("no volume is attached: the pod's UID is not known"), "{timeline}");
    let refused = shim.run_container(&with_volume("c", UIDS[0], &target)).await;
    let refused = refused.expect_err("it would write into nothing").to_string();
    assert!(refused.contains(&target) && refused.contains("not attached"), "{refused}");
    shim.run_container(&Container::tool("plain", &["sleep"])).await.expect("needs no disk");
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_cannot_be_attached_or_read_fails_the_start_by_name_and_leaves_nothing() {
    let test = "a_disk_that_cannot_be_attached_or_read_fails_the_start_by_name_and_leaves_nothing";
    if !root(test) {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    let target = write_down(&bed, UIDS[0], "/dev/null");
    let (_net, spec) = bed.pod(1).await.unwrap();
    bundle(&bed, &spec, UIDS[0]);
    let socket = bed.lab.dir().socket();
    let error = Shim::boot(Profile::GoLike, &socket, spec.clone()).await.expect_err("no disk");
    assert!(error.to_string().contains("\"/dev/null\" is no block device"), "{error}");
    let record = bed.lab.dir().direct_volumes().join(URL_SAFE.encode(&target));
    std::fs::write(record.join("mountInfo.json"), "{").unwrap();
    let (_net, spec) = bed.pod(2).await.unwrap();
    bundle(&bed, &spec, UIDS[0]);
    let error = Shim::boot(Profile::RsLike, &socket, spec).await.expect_err("no record");
    assert!(error.to_string().contains(&target), "{error}");
    bed.end().await.unwrap();
    assert!(Path::new("/dev/null").exists());
}
