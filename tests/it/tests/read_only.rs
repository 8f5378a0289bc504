//! A disk that reports an error under a running daemon: its file system is read-only from then on, until
//! somebody replaces it.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use peerpod_it::{Bed, Stream, root};
use peerpod_standin::lab::{Binaries, DaemonOptions, Lab, Mode};
use peerpod_standin::shim::{Profile, Shim};

/// An ext4 file system of its own in the state directory; `None` where the machine has none to give.
struct Ext4 {
    state: PathBuf,
    device: String,
}

#[allow(clippy::disallowed_methods, reason = "tools of the system, as an administrator uses them")]
fn tool(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Ext4 {
    fn in_state_of(lab: &Lab) -> Result<Self, String> {
        let image = lab.dir().path().join("disk.img");
        let file = File::create(&image).and_then(|f| f.set_len(16 << 20));
        file.map_err(|e| e.to_string())?;
        let (state, text) = (lab.dir().state(), image.display().to_string());
        tool("mkfs.ext4", &["-q", &text])?;
        tool("mount", &["-o", "loop,errors=remount-ro", &text, &state.display().to_string()])?;
        let device = tool("findmnt", &["-no", "SOURCE", &state.display().to_string()]);
        let this = Self { state, device: device?.replace("/dev/", "") };
        let _ = std::fs::remove_dir(this.state.join("lost+found"));
        Ok(this)
    }

    /// What a disk that reports an error does to it.
    fn fail(&self) -> std::io::Result<()> {
        let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", self.device);
        std::fs::write(trigger, "a test\n")
    }

    /// Puts what it holds onto another disk, since the VMs' own mount namespaces hold on to this one.
    fn replace(&self) {
        let state = self.state.display().to_string();
        let saved = self.state.with_file_name("saved").display().to_string();
        tool("cp", &["-a", &state, &saved]).unwrap();
        tool("umount", &[&state]).unwrap();
        tool("cp", &["-a", &format!("{saved}/."), &state]).unwrap();
        std::fs::remove_dir_all(saved).unwrap();
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = tool("umount", &["-l", &self.state.display().to_string()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_becomes_read_only_for_good_ends_no_pod() {
    let name = "a_disk_that_becomes_read_only_for_good_ends_no_pod";
    if !root(name) {
        return;
    }
    let lab = Lab::new(Binaries::find().unwrap()).await.unwrap();
    let disk = match Ext4::in_state_of(&lab) {
        Ok(disk) => disk,
        Err(why) => return println!("SKIP {name}: no ext4 in a loop device: {why}"),
    };
    let daemon = lab.start(DaemonOptions { mode: Mode::Separate, ..DaemonOptions::default() });
    let daemon = daemon.await.unwrap();
    let mut bed = Bed { lab, daemon };
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let (_net, other) = bed.boot(Profile::GoLike, 2).await.unwrap();
    let stream = Stream::start(&shim, "count").await.unwrap();
    let mut seen = stream.moves((0, 0)).await.unwrap();
    disk.fail().unwrap();
    let (_net, spec) = bed.pod(3).await.unwrap();
    let refused = Shim::create(Profile::GoLike, &bed.lab.dir().socket(), spec).await;
    let text = refused.expect_err("nothing can be kept").to_string();
    assert!(text.contains("Read-only") && text.contains("record"), "{text}");
    seen = stream.moves(seen).await.unwrap();
    other.stop().await.unwrap();
    // A node process that ends now is not to be had again before the disk is; its relay goes on.
    bed.daemon.kill_node().await.unwrap();
    let output = bed.daemon.peerpodd(&["node"]).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("Read-only") && text.contains("--state-dir"), "{text}");
    assert_eq!(output.status.code(), Some(1), "2 would keep it from being tried again: {text}");
    seen = stream.moves(seen).await.unwrap();
    disk.replace();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
    assert_eq!(bed.status(&shim.spec().sandbox).await.unwrap().unwrap()["phase"], "running");
    stream.moves(seen).await.unwrap();
    stream.finish().await.unwrap();
    shim.stop().await.unwrap();
    // The record of the pod that was stopped meanwhile has come back with the disk.
    bed.end().await.unwrap();
}
