//! The lab itself: namespaces, the survey, isolation. The daemon is not needed for any of it.
#![allow(missing_docs, clippy::expect_used)]

use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use peerpod_netlink::nft::{Batch, Family, Table};
use peerpod_netlink::{Handle, Netns, NewLink, Vxlan};
use peerpod_standin::lab::network::{GATEWAY, SERVICE, spawn_in};
use peerpod_standin::lab::survey::Kind;
use peerpod_standin::lab::{Binaries, Finding, Lab, wait_for};

const AGENT: &str = env!("CARGO_BIN_EXE_standin-agent");

fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP {test}: needs root to make network namespaces");
    }
    root
}

/// Programs that are there but never started.
fn binaries() -> Binaries {
    let agent = PathBuf::from(AGENT);
    Binaries { peerpodd: agent.clone(), podvm: agent.clone(), agent }
}

#[allow(clippy::disallowed_methods, reason = "a test that starts the program under test")]
fn agent(arguments: &[&str]) -> Command {
    let mut command = Command::new(AGENT);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The look of a process of its own, with a place for control groups in the lab.
fn survey(lab: &Path, daemon_runs: bool) -> Vec<Finding> {
    let groups = format!("{}/cgroups", lab.display());
    let mut command = agent(&["survey", "--cgroups", &groups, lab.to_str().expect("utf-8")]);
    if daemon_runs {
        command.arg("--daemon-runs");
    }
    let output = command.output().expect("survey runs");
    let found: Vec<Finding> = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(i32::from(!found.is_empty())));
    found
}

fn send(netns: &Netns, what: &str, to: SocketAddr) -> Output {
    let to = to.to_string();
    let mut command = agent(&["tool", what, &to, "20000", "7"]);
    let child = spawn_in(netns, &mut command).expect("start");
    child.wait_with_output().expect("ends")
}

#[tokio::test]
async fn pods_reach_their_gateway_each_other_and_the_service_behind_the_worker() {
    if !root("pods_reach_their_gateway_each_other_and_the_service_behind_the_worker") {
        return;
    }
    let lab = Lab::new(binaries()).await.expect("lab");
    let other = Lab::new(binaries()).await.expect("a second lab beside it");
    let (a, spec) = lab.add_pod(0).await.expect("pod");
    let (b, _) = lab.add_pod(1).await.expect("pod");
    other.add_pod(0).await.expect("the same number in another lab");
    lab.add_pod(1).await.expect_err("a number once");
    assert_eq!(spec.sandbox.len(), 64);
    for (netns, at) in [
        (lab.network().cluster(), SocketAddr::from((SERVICE, 7000))),
        (lab.network().worker(), SocketAddr::from((GATEWAY, 7000))),
        (&b.open().expect("pod"), SocketAddr::from((b.ip, 7000))),
    ] {
        for kind in ["tcp", "udp"] {
            let (echo, sender) = (format!("{kind}-echo"), format!("{kind}-send"));
            let mut command = agent(&["tool", &echo, &at.to_string()]);
            let mut server = spawn_in(netns, &mut command).expect("start");
            let up = || async {
                let output = send(&a.open().expect("pod"), &sender, at);
                Ok(output.status.success().then_some(output))
            };
            let output = wait_for(&echo, Duration::from_secs(10), up).await.expect("echo");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("\"ok\":true,\"bytes\":20000"), "{text}");
            server.kill().expect("kill");
            server.wait().expect("bury");
        }
    }
    let path = lab.dir().path().to_owned();
    lab.network().remove_pod(&b).expect("remove");
    b.open().expect_err("gone");
    drop(lab);
    assert!(!path.exists(), "a lab leaves nothing");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(path.to_str().expect("utf-8")), "no mounts either");
}

#[tokio::test]
async fn the_survey_finds_nothing_in_a_new_lab_and_each_thing_that_is_planted() {
    if !root("the_survey_finds_nothing_in_a_new_lab_and_each_thing_that_is_planted") {
        return;
    }
    let lab = Lab::new(binaries()).await.expect("lab");
    let (pod, spec) = lab.add_pod(3).await.expect("pod");
    let dir = lab.dir().path();
    assert_eq!(survey(dir, false), []);
    let make = |path: &str| std::fs::create_dir_all(dir.join(path)).expect("make");
    let only = |kind: Kind, text: &str| {
        let found = survey(dir, true);
        let fits = found.len() == 1 && found[0].kind == kind && found[0].what.contains(text);
        assert!(fits, "wanted {kind:?} {text}, found {found:?}");
    };
    for (kind, path) in [
        (Kind::Vm, "local/podvm-x-12345678"),
        (Kind::Record, "state/pods/s1"),
        (Kind::Record, "state/broken/s1-17"),
        (Kind::Socket, "pods/s1"),
        (Kind::Cgroup, &format!("cgroups/podvm-x-{}", &spec.sandbox[..8])),
    ] {
        make(path);
        only(kind, path);
        std::fs::remove_dir(dir.join(path)).expect("remove");
    }
    // Somebody else's control group is none of ours.
    make("cgroups/podvm-x-12345678");
    devices(&lab, &only, pod.open().expect("pod"));
    let socket = UnixListener::bind(lab.dir().socket()).expect("bind");
    assert_eq!(survey(dir, true), [], "a daemon that runs has sockets");
    assert_eq!(survey(dir, false)[0].kind, Kind::Socket);
    drop(socket);
    std::fs::remove_file(lab.dir().socket()).expect("remove");
    process(&lab, &only);
    assert_eq!(survey(dir, false), []);
}

fn devices(lab: &Lab, only: &dyn Fn(Kind, &str), pod: Netns) {
    let vxlan = Vxlan { vni: 700_001, remote: GATEWAY.into(), port: 9000 };
    for (netns, name, alias) in [
        (lab.network().worker(), "ppvx700001", "somebody"),
        (lab.network().worker(), "other", "peerpod:s1"),
        (&pod, "vxlan1", "somebody"),
    ] {
        let add = || Handle::here()?.add_link(&NewLink::Vxlan { name, vxlan, alias });
        netns.run(add).expect("add");
        only(Kind::Device, name);
        netns.run(|| Handle::here()?.delete_link(name)).expect("delete");
    }
    let bridge = || Handle::here()?.add_link(&NewLink::Bridge { name: "peerpod0" });
    lab.network().worker().run(bridge).expect("add");
    only(Kind::Device, "peerpod0 in worker");
    lab.network().worker().run(|| Handle::here()?.delete_link("peerpod0")).expect("delete");
    for (netns, family) in [(lab.network().worker(), Family::Inet), (&pod, Family::Netdev)] {
        let table = Table { family, name: "peerpod" };
        let change = |batch: Batch| netns.run(|| batch.send("test")).expect("nftables");
        change(Batch::new().table(table));
        only(Kind::Rule, "peerpod");
        change(Batch::new().delete_table(table));
    }
}

fn process(lab: &Lab, only: &dyn Fn(Kind, &str)) {
    let log = std::fs::File::create(lab.dir().local().join("console.log")).expect("log");
    let mut command = agent(&["tool", "sleep"]);
    command.stdout(log);
    let mut child = command.spawn().expect("start");
    only(Kind::Process, "tool sleep");
    child.kill().expect("kill");
    child.wait().expect("bury");
    std::fs::remove_file(lab.dir().local().join("console.log")).expect("remove");
    // Nor is the daemon's own process one as long as it runs.
    let mut command = agent(&["tool", "sleep"]);
    command.arg0("/bin/peerpodd").env("X", lab.dir().path());
    let mut child = command.spawn().expect("start");
    let named = || std::fs::read(format!("/proc/{}/cmdline", child.id())).expect("it lives");
    while !named().starts_with(b"/bin/peerpodd") {}
    assert_eq!(survey(lab.dir().path(), true), []);
    assert_eq!(survey(lab.dir().path(), false)[0].kind, Kind::Process);
    child.kill().expect("kill");
    child.wait().expect("bury");
}

#[tokio::test]
async fn a_dead_lab_is_cleaned_away_and_a_living_one_is_not() {
    if !root("a_dead_lab_is_cleaned_away_and_a_living_one_is_not") {
        return;
    }
    let living = Lab::new(binaries()).await.expect("lab");
    // What a killed lab looks like: a directory with a lock nobody holds, a bound namespace, and a
    // process that has something to do with it.
    let dead = tempfile::Builder::new().prefix("pplab.").tempdir_in("/tmp").expect("directory");
    let dead = dead.keep();
    std::fs::create_dir(dead.join("net")).expect("make");
    std::fs::write(dead.join("lock"), "").expect("lock");
    Netns::create().expect("namespace").persist(&dead.join("net/worker")).expect("bind");
    std::fs::create_dir(dead.join("state")).expect("make");
    let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
    nix::mount::mount(none, &dead.join("state"), Some("tmpfs"), flags, none).expect("mount");
    let mut command = agent(&["tool", "sleep"]);
    command.env("LAB", &dead);
    let mut child = command.spawn().expect("start");
    // And what a removal that was cut short has left: no lock any more.
    let half = tempfile::Builder::new().prefix("pplab.").tempdir_in("/tmp").expect("directory");
    let half = half.keep();
    std::fs::create_dir(half.join("local")).expect("make");
    for dir in [&dead, &half] {
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(60);
        let dir = std::fs::File::open(dir).expect("open");
        dir.set_modified(long_ago).expect("set the time");
    }
    let _next = Lab::new(binaries()).await.expect("lab");
    assert!(!dead.exists() && !half.exists() && living.dir().path().exists());
    let status = child.wait().expect("bury");
    assert!(!status.success(), "killed");
}

#[test]
fn an_ordinary_user_gets_a_lab_inside_namespaces_of_its_own() {
    // Root runs this as nobody; the program must be where nobody may read it.
    let dir = tempfile::tempdir_in("/tmp").expect("directory");
    let copy = dir.path().join("standin-agent");
    std::fs::copy(AGENT, &copy).expect("copy");
    let open = |path: &Path, mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).expect("permissions");
    };
    open(dir.path(), 0o755);
    open(&copy, 0o755);
    #[allow(clippy::disallowed_methods, reason = "a test that starts the program under test")]
    let mut command = Command::new(&copy);
    command.args(["isolated", "--", "standin-agent", "lab", "--pods", "2"]);
    command.env_clear().current_dir("/");
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let output = command.output().expect("runs");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.contains("uid 0"), "{out}");
    assert!(out.contains("2 pods in /run"), "{out}");
    let path = out.split("2 pods in ").nth(1).and_then(|t| t.split(',').next()).expect("a path");
    assert!(!Path::new(path).exists(), "{path} was only seen inside");
}
