//! Volumes: real block devices (loop), a real file system, and podvm in a mount namespace of its own.

mod encrypted;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bytes::BytesMut;
use nix::sys::signal::Signal;
use peerpod_tunnel::link::frame::{Frame, FrameReader, Request, Response};
use peerpod_tunnel::link::wire;
use podvm::cloud_volumes::{ANNOTATION, TARGETS};
use podvm::edit::{Call, Container};
use prost::Message;
use tokio::net::UnixListener;

use crate::calls::{message, request};
use crate::lab::{Lab, PATIENCE, Podvm, until};
use crate::standin::Agent;

/// A file as a disk.
struct Disk {
    device: String,
    file: tempfile::NamedTempFile,
}

impl Disk {
    fn new() -> Option<Self> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(32 << 20).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output();
        let made = made.ok().filter(|made| made.status.success())?;
        let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        Some(Self { device, file })
    }

    fn bytes(&self) -> Vec<u8> {
        // Past the page cache of the device, which is not that of the file.
        let synced = Command::new("blockdev").args(["--flushbufs", &self.device]).status().unwrap();
        assert!(synced.success());
        std::fs::read(self.file.path()).unwrap()
    }

    fn is_empty(&self) -> bool {
        self.bytes().iter().all(|b| *b == 0)
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        use std::io::{Seek, SeekFrom, Write};
        let mut device = std::fs::OpenOptions::new().write(true).open(&self.device).unwrap();
        device.seek(SeekFrom::Start(at)).unwrap();
        device.write_all(bytes).unwrap();
        device.sync_all().unwrap();
    }

    fn format(&self) {
        let made = Command::new("mkfs.ext4").args(["-q", &self.device]).status().unwrap();
        assert!(made.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// A VM with two disks.
struct Bench {
    lab: Lab,
    agent: Agent,
    a: Disk,
    b: Disk,
}

impl Bench {
    /// `None`, after saying SKIP, where there can be none.
    fn new(test: &str) -> Option<Self> {
        let lacking = |what: &str| {
            println!("SKIP {test}: {what}");
            None
        };
        if !nix::unistd::geteuid().is_root() {
            return lacking("needs root for loop devices and mounts");
        }
        if Command::new("mkfs.ext4").arg("-V").output().is_err() {
            return lacking("needs mkfs.ext4, of e2fsprogs");
        }
        let (Some(a), Some(b)) = (Disk::new(), Disk::new()) else {
            return lacking("no loop devices to be had");
        };
        let lab = Lab::new();
        let agent = Agent::start(&lab.agent_socket());
        Some(Self { lab, agent, a, b })
    }

    fn base(&self) -> PathBuf {
        self.lab.path("volumes")
    }

    fn point(&self, name: &str) -> String {
        self.base().join(name).display().to_string()
    }

    /// `podvm run` with both disks.
    async fn run(&self, more: &[&str]) -> Podvm {
        let mut args = vec!["run".to_owned()];
        args.extend(self.lab.places());
        args.extend(self.lab.serving());
        args.push(format!("--volume-dir={}", self.base().display()));
        args.push(format!("--cdh-socket={}", self.lab.path("cdh.sock").display()));
        args.extend([
            format!("--disk=disk-a={}", self.a.device),
            format!("--disk=disk-b={}", self.b.device),
        ]);
        args.extend(more.iter().map(|a| (*a).to_owned()));
        let mut command = tokio::process::Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", env!("CARGO_BIN_EXE_podvm")])
            .args(args);
        let podvm = Podvm::start(command);
        podvm.line("forwarder serves").await;
        podvm
    }

    fn containers(&self) -> Vec<Container> {
        let requests =
            self.agent.frames().into_iter().map(|f| podvm::edit::call(&f.payload).unwrap());
        let only =
            |call| if let Call::Container(container) = call { Some(container) } else { None };
        requests.filter_map(only).collect()
    }
}

fn volume(disk: &str, more: &[(&str, &str)]) -> String {
    let all = [("mount_point", "/data"), ("fs_type", "ext4"), ("lun", "0"), ("disk_id", disk)];
    let all: BTreeMap<&str, &str> = all.iter().chain(more).copied().collect();
    serde_json::json!({ "vol-0": all }).to_string()
}

fn entry(key: &str, value: &str) -> Vec<u8> {
    message(&[(1, key.as_bytes()), (2, value.as_bytes())])
}

fn mount(destination: &str, source: &str) -> Vec<u8> {
    message(&[(1, destination.as_bytes()), (2, source.as_bytes()), (3, b"bind"), (4, b"rbind")])
}

/// CreateContainer with that annotation and one mount at /data.
fn create(stream: u32, annotation: &str) -> Frame {
    let (entry, mount) = (entry(ANNOTATION, annotation), mount("/data", "/csi/target"));
    let spec = message(&[(5, &mount), (7, &entry), (8, b"")]);
    container(stream, spec)
}

/// CreateContainer whose caller waits as long as it takes.
fn container(stream: u32, spec: Vec<u8>) -> Frame {
    let request = Request {
        service: "grpc.AgentService".to_owned(),
        method: "CreateContainer".to_owned(),
        payload: message(&[(1, b"id"), (6, &spec)]).into(),
        ..Request::default()
    };
    request.frame(stream, 0)
}

/// google.rpc code and words; 0 is fine.
fn status(frame: Frame) -> (i32, String) {
    let status = Response::decode(frame.payload).unwrap().status.unwrap_or_default();
    (status.code, status.message)
}

/// A command in podvm's mount namespace.
fn inside(podvm: &Podvm, command: &[&str]) -> Output {
    let pid = podvm.pid().to_string();
    Command::new("nsenter").args(["--mount", "--target", &pid]).args(command).output().unwrap()
}

fn mounted(podvm: &Podvm, point: &str) -> bool {
    inside(podvm, &["mountpoint", "--quiet", point]).status.success()
}

fn said(podvm: &Podvm, command: &[&str]) -> String {
    let out = inside(podvm, command);
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

#[tokio::test]
async fn an_empty_disk_is_formatted_once_and_every_container_and_process_finds_it_again() {
    let test =
        "volumes::an_empty_disk_is_formatted_once_and_every_container_and_process_finds_it_again";
    let Some(bench) = Bench::new(test) else { return };
    let podvm = bench.run(&[]).await;
    let mut worker = bench.lab.connect(&podvm).await;
    let point = bench.point("vol-0");
    let annotation = volume("disk-a", &[("fs_group", "2000")]);
    for stream in [1, 3] {
        assert_eq!(status(worker.call(&create(stream, &annotation)).await), (0, String::new()));
    }
    for container in bench.containers() {
        let [data] = &container.mounts[..] else { panic!("{container:?}") };
        assert_eq!((&*data.destination, &data.source, &*data.kind), ("/data", &point, "bind"));
        assert_eq!(container.annotations[ANNOTATION], annotation, "it is the policy's to read");
    }
    assert_eq!(said(&podvm, &["stat", "-c", "%g:%a", &point]), "2000:2775");
    assert_eq!(said(&podvm, &["stat", "-f", "-c", "%T", &point]), "ext2/ext3");
    said(&podvm, &["sh", "-c", &format!("echo kept >{point}/file")]);
    assert!(bench.b.is_empty(), "the other disk is not touched");

    // The pod's end: away, and the agent still hears of it.
    let mut bytes = BytesMut::new();
    request(5, "DestroySandbox", vec![]).put(&mut bytes);
    worker.send(&bytes).await;
    assert_eq!(worker.next().await, None, "the agent ends");
    assert!(!mounted(&podvm, &point));
    podvm.line("unmounted").await;

    // The next process finds a file system and leaves it as it is; SIGTERM writes it out.
    podvm.kill().await;
    let mut podvm = bench.run(&[]).await;
    let mut worker = bench.lab.connect(&podvm).await;
    assert_eq!(status(worker.call(&create(1, &annotation)).await).0, 0);
    assert_eq!(said(&podvm, &["cat", &format!("{point}/file")]), "kept");
    podvm.signal(Signal::SIGTERM);
    assert!(podvm.exit().await.success(), "{}", podvm.log());
    assert!(podvm.log().contains("unmounted"), "{}", podvm.log());
}

#[tokio::test]
async fn a_worker_that_is_gone_leaves_no_volume_mounted() {
    let Some(bench) = Bench::new("volumes::a_worker_that_is_gone_leaves_no_volume_mounted") else {
        return;
    };
    let podvm = bench.run(&[]).await;
    let point = bench.point("vol-0");
    let mut worker = bench.lab.connect(&podvm).await;
    let mut other = bench.lab.connect(&podvm).await;
    other.call(&request(1, "Ping", vec![])).await;
    assert_eq!(status(worker.call(&create(1, &volume("disk-a", &[]))).await).0, 0);
    drop(worker);
    other.call(&request(3, "Ping", vec![])).await;
    assert!(mounted(&podvm, &point), "somebody is still there");
    drop(other);
    let gone = until("no mount", || (!mounted(&podvm, &point)).then_some(())).await;
    gone.unwrap_or_else(|| panic!("{}", podvm.log()));
    let mut worker = bench.lab.connect(&podvm).await;
    assert_eq!(
        status(worker.call(&create(1, &volume("disk-a", &[]))).await).0,
        0,
        "and comes again"
    );
    assert!(mounted(&podvm, &point));
}

/// A process that has a volume bound to a place of its own, in a mount namespace of its own, as a container
/// has.
struct Keeper(std::process::Child);

impl Keeper {
    async fn new(podvm: &Podvm, point: &str, place: &str) -> Self {
        std::fs::create_dir(place).unwrap();
        let pid = podvm.pid().to_string();
        let bind = "mount --bind \"$0\" \"$1\" && exec sleep 600";
        let child = Command::new("nsenter")
            .args(["--mount", "--target", &pid, "unshare", "--mount", "--propagation", "private"])
            .args(["sh", "-c", bind, point, place])
            .spawn()
            .unwrap();
        let mounts = format!("/proc/{}/mountinfo", child.id());
        let bound = || std::fs::read_to_string(&mounts).ok().filter(|text| text.contains(place));
        until("a bound volume", bound).await.expect("it is bound");
        Self(child)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_volume_that_a_container_still_holds_is_mounted_for_the_next_one() {
    let test = "volumes::a_volume_that_a_container_still_holds_is_mounted_for_the_next_one";
    let Some(bench) = Bench::new(test) else { return };
    let podvm = bench.run(&[]).await;
    let point = bench.point("vol-0");
    let mut worker = bench.lab.connect(&podvm).await;
    assert_eq!(status(worker.call(&create(1, &volume("disk-a", &[]))).await).0, 0);
    said(&podvm, &["sh", "-c", &format!("echo kept >{point}/file")]);
    let keeper = Keeper::new(&podvm, &point, &bench.lab.path("data").display().to_string()).await;
    drop(worker);
    until("no mount", || (!mounted(&podvm, &point)).then_some(())).await.expect("unmounted");
    let mut worker = bench.lab.connect(&podvm).await;
    let answer = status(worker.call(&create(1, &volume("disk-a", &[]))).await);
    assert_eq!(answer, (0, String::new()), "{}", podvm.log());
    assert_eq!(said(&podvm, &["cat", &format!("{point}/file")]), "kept");
    drop(keeper);
}

#[tokio::test]
async fn a_confidential_vm_formats_nothing_on_the_word_of_an_annotation() {
    let test = "volumes::a_confidential_vm_formats_nothing_on_the_word_of_an_annotation";
    let Some(bench) = Bench::new(test) else { return };
    let podvm = bench.run(&["--confidential=yes"]).await;
    let mut worker = bench.lab.connect(&podvm).await;
    let (code, words) = status(worker.call(&create(1, &volume("disk-a", &[]))).await);
    assert_eq!((code, words.contains("nothing that was measured")), (9, true), "{words}");
    assert!(bench.a.is_empty() && bench.containers().is_empty());
    bench.b.format();
    assert_eq!(status(worker.call(&create(3, &volume("disk-b", &[]))).await).0, 0, "it holds one");
}

#[tokio::test]
async fn hostile_annotations_and_disks_reach_no_agent_and_no_disk() {
    let Some(bench) =
        Bench::new("volumes::hostile_annotations_and_disks_reach_no_agent_and_no_disk")
    else {
        return;
    };
    let podvm = bench.run(&["--disk-wait=0"]).await;
    let mut worker = bench.lab.connect(&podvm).await;
    let one = volume("disk-a", &[]);
    let named = |name: &str| one.replace("vol-0", name);
    let two = r#"{"a":{"mount_point":"/data","lun":"0","disk_id":"disk-a"},"b":{"mount_point":"/x","lun":"1","disk_id":"disk-a"}}"#;
    let mut stream = 1;
    for (annotation, code, words) in [
        ("{".to_owned(), 3, "EOF"),
        ("[]".to_owned(), 3, "cloud_volumes"),
        (named("../../etc"), 3, "plain file name"),
        (named("/etc"), 3, "plain file name"),
        (volume("disk-a", &[("mount_point", "data")]), 3, "mount_point"),
        (volume("disk-a", &[("lun", "one")]), 3, "lun"),
        (volume("disk-a", &[("fs_type", "ext4 -o x")]), 3, "fs_type"),
        (volume("disk-a", &[("fs_group", "-1")]), 3, "fs_group"),
        (volume("disk-a", &[("encrypt_type", "luks")]), 3, "key_id"),
        (volume("disk-c", &[]), 4, "no such disk"),
        (volume("", &[]), 4, "no such disk"),
        (volume(&bench.a.device, &[]), 4, "no such disk"),
        (volume("../disk-a", &[]), 4, "no such disk"),
        // One disk under two names.
        (two.to_owned(), 13, "volume b"),
    ] {
        let (got, said) = status(worker.call(&create(stream, &annotation)).await);
        assert_eq!((got, said.contains(words)), (code, true), "{annotation}: {said}");
        stream += 2;
    }
    assert!(bench.containers().is_empty(), "none of them was made");
    assert!(bench.b.is_empty());
    bench.b.write(5000, b"somebody's data");
    let before = bench.b.bytes();
    let (code, said) = status(worker.call(&create(101, &volume("disk-b", &[]))).await);
    assert_eq!((code, said.contains("not empty")), (9, true), "{said}");
    bench.b.write(0, b"LUKS\xba\xbe");
    let (code, said) = status(worker.call(&create(103, &volume("disk-b", &[]))).await);
    assert_eq!((code, said.contains("no key is named")), (9, true), "{said}");
    bench.b.write(0, &[0; 6]);
    assert!(bench.b.bytes() == before, "nothing was written to it");
    let answer = worker.call(&request(105, "Ping", vec![])).await;
    assert_eq!(answer.stream, 105, "the connection goes on");
}

#[tokio::test]
async fn other_calls_pass_a_container_that_waits_for_its_disk() {
    let Some(bench) = Bench::new("volumes::other_calls_pass_a_container_that_waits_for_its_disk")
    else {
        return;
    };
    let podvm = bench.run(&["--disk-wait=2"]).await;
    let mut worker = bench.lab.connect(&podvm).await;
    let mut bytes = BytesMut::new();
    create(1, &volume("disk-c", &[])).put(&mut bytes);
    request(3, "Ping", vec![7; 1 << 20]).put(&mut bytes);
    create(5, &volume("disk-a", &[])).put(&mut bytes);
    worker.send(&bytes).await;
    let mut answers = BTreeMap::new();
    let mut order = Vec::new();
    for _ in 0..3 {
        let answer = worker.next().await.expect("an answer");
        order.push(answer.stream);
        answers.insert(answer.stream, answer);
    }
    assert_eq!(order, [3, 5, 1]);
    let (code, said) = status(answers.remove(&1).expect("answered"));
    assert_eq!((code, said.contains("\"disk-c\"")), (4, true), "{said}");
    // Who has no time is told so at once.
    let short = Request { timeout_nano: 5, ..Request::parse(&create(7, "").payload).unwrap() };
    let annotation = entry(ANNOTATION, &volume("disk-c", &[]));
    let spec = message(&[(7, &annotation), (8, b"")]);
    let short = Request { payload: message(&[(6, &spec)]).into(), ..short };
    let (code, said) = status(worker.call(&short.frame(7, 0)).await);
    assert_eq!((code, said.contains("after 0ns")), (4, true), "not after the disk's time: {said}");
}

#[tokio::test]
async fn a_disk_that_somebody_uses_is_left_alone() {
    let Some(bench) = Bench::new("volumes::a_disk_that_somebody_uses_is_left_alone") else {
        return;
    };
    bench.a.format();
    let podvm = bench.run(&[]).await;
    let elsewhere = bench.lab.path("elsewhere").display().to_string();
    std::fs::create_dir(&elsewhere).unwrap();
    said(&podvm, &["mount", &bench.a.device, &elsewhere]);
    let mut worker = bench.lab.connect(&podvm).await;
    let (code, words) = status(worker.call(&create(1, &volume("disk-a", &[]))).await);
    assert_eq!((code, words.contains("busy")), (13, true), "{words}");
    said(&podvm, &["umount", &elsewhere]);
    assert_eq!(status(worker.call(&create(3, &volume("disk-a", &[]))).await).0, 0);
}

#[tokio::test]
async fn missing_sources_are_made_and_mount_points_of_the_older_kind_waited_for() {
    let test = "volumes::missing_sources_are_made_and_mount_points_of_the_older_kind_waited_for";
    let Some(bench) = Bench::new(test) else { return };
    let podvm = bench.run(&[]).await;
    let mut worker = bench.lab.connect(&podvm).await;
    let path = |name: &str| bench.lab.path(name).display().to_string();
    let (made, target) = (path("made/deep"), path("target"));
    let spec = message(&[
        (5, &mount("/made", &made)),
        (5, &mount("/odd", "/proc/no/such")),
        (5, &mount("/up", &format!("{}/../up", path("x")))),
        (5, &mount("/target", &target)),
        (7, &entry(TARGETS, &format!(",{target},"))),
        (8, b""),
    ]);
    let mut bytes = BytesMut::new();
    container(1, spec).put(&mut bytes);
    request(3, "Ping", vec![]).put(&mut bytes);
    worker.send(&bytes).await;
    assert_eq!(worker.next().await.expect("an answer").stream, 3);
    until("the sources", || Path::new(&target).is_dir().then_some(())).await.expect("made");
    assert!(Path::new(&made).is_dir() && !bench.lab.path("up").exists());
    assert!(bench.containers().is_empty(), "it waits");
    said(&podvm, &["mount", "-t", "tmpfs", "none", &target]);
    assert_eq!(worker.next().await.expect("an answer").stream, 1);
    let [container] = &bench.containers()[..] else { panic!("{:?}", bench.containers()) };
    assert!(container.mounts.iter().any(|m| m.source == target), "{container:?}");
}
