//! The local provider in network namespaces of the tests' own.
//!
//! ```text
//!   eth0 (primary, 192.0.2.1)   peerpod0 (172.31.0.1) ══ VMs      one namespace per test
//! ```
#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{INSTALLATION, ask, fact, here, net, ref_to, runtime, settings, spec, wire};
use peerpod_netlink::{Error as Netlink, Handle, Netns, NewLink};
use peerpod_providers::local::{Local, Settings};
use peerpod_providers::report::State;
use peerpod_providers::{Deletion, Kind, Provider, VmRef, VmSpec};

const CIDR: &str = "172.31.0.0/24";
const HELPER: &str = env!("CARGO_BIN_EXE_peerpod-providers-test-helper");

struct Lab {
    dir: tempfile::TempDir,
    cidr: &'static str,
}

impl Lab {
    fn settings(&self) -> Settings {
        settings(self.dir.path(), self.cidr)
    }

    /// The provider of a daemon that has just been started.
    fn provider(&self) -> Local {
        Local::new(self.settings(), INSTALLATION)
    }

    fn vm_dir(&self, spec: &VmSpec) -> PathBuf {
        self.dir.path().join("state").join(spec.name.as_str())
    }

    fn console(&self, spec: &VmSpec) -> String {
        std::fs::read_to_string(self.vm_dir(spec).join("console.log")).unwrap()
    }
}

/// A test that fails leaves no VM running.
impl Drop for Lab {
    fn drop(&mut self) {
        let vms = std::fs::read_dir(self.dir.path().join("state")).into_iter().flatten();
        for vm in vms.filter_map(Result::ok) {
            let init = std::fs::read_to_string(vm.path().join("init.json")).unwrap_or_default();
            let init: serde_json::Value = serde_json::from_str(&init).unwrap_or_default();
            if let Some(pid) = init["pid"].as_i64().and_then(|p| i32::try_from(p).ok()) {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
}

/// A directory that everybody may enter, with the programs in it.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::copy(HELPER, dir.path().join("helper")).unwrap();
    for name in ["podvm", "agent"] {
        std::fs::hard_link(dir.path().join("helper"), dir.path().join(name)).unwrap();
    }
    dir
}

/// Runs a test in a network namespace with these addresses; only as root.
fn lab<F: Future<Output = ()>>(
    test: &str,
    cidr: &'static str,
    primary: &[&str],
    run: impl FnOnce(Lab) -> F + Send,
) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {test}: needs root to make network namespaces");
        return;
    }
    let netns = Netns::create().unwrap();
    let done: Result<(), Netlink> = netns.run(|| {
        wire(primary)?;
        runtime().block_on(run(Lab { dir: directory(), cidr }));
        Ok(())
    });
    done.unwrap();
}

async fn create(provider: &Local, spec: &VmSpec) -> IpAddr {
    let vm = provider.create(spec, &here()).await.unwrap();
    *vm.addresses.first().unwrap()
}

async fn delete(provider: &Local, spec: &VmSpec) {
    assert_eq!(provider.delete(&ref_to(spec)).await.unwrap(), Deletion::Gone);
}

async fn running(provider: &Local) -> Vec<Option<bool>> {
    provider.list().await.unwrap().into_iter().map(|r| r.running).collect()
}

fn links() -> BTreeSet<String> {
    Handle::here().unwrap().links().unwrap().into_iter().map(|l| l.name).collect()
}

fn only(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

/// Waits for what will be seen sooner or later.
async fn until(what: &str, mut seen: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !seen().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn a_vm_has_namespaces_user_data_and_an_agent_of_its_own() {
    let test = "a_vm_has_namespaces_user_data_and_an_agent_of_its_own";
    lab(test, CIDR, &["192.0.2.1/24"], async |lab| {
        let (provider, spec) = (lab.provider(), spec(1));
        let begin = Instant::now();
        let vm = create(&provider, &spec).await;
        let created = begin.elapsed();
        assert_eq!(vm.to_string(), "172.31.0.2");
        assert_eq!(fact(vm, "host"), spec.name.as_str());
        println!("created in {created:?}, answered in {:?}", begin.elapsed());
        assert_eq!(fact(vm, "user-data"), "#cloud-config\\n# secret of 1");
        assert_eq!((fact(vm, "mode"), fact(vm, "writable")), ("600".into(), "false".into()));
        assert_eq!(fact(vm, "links"), "lo,eth0");
        assert_eq!(fact(vm, "parent"), "1");
        until("the agent stands", async || fact(vm, "agent").parse().is_ok_and(|p: u32| p > 1))
            .await;
        assert!(lab.console(&spec).contains("podvm says hello"));
        let console = provider.console(&ref_to(&spec)).await.unwrap();
        assert!(console.is_some_and(|text| text.contains("podvm says hello")));
        let others = VmRef { sandbox: "another".to_owned(), ..ref_to(&spec) };
        assert_eq!(provider.console(&others).await.unwrap(), None);
        let record = std::fs::read_to_string(lab.vm_dir(&spec).join("vm.json")).unwrap();
        assert!(!record.contains("secret of"), "{record}");
        let taken = lab.vm_dir(&spec).join("media/cidata/user-data");
        assert!(!taken.exists(), "the guest has read its key and taken it off the worker's disk");
        for (file, mode) in [("", 0o700), ("vm.json", 0o600), ("media/cidata", 0o700)] {
            let meta = std::fs::metadata(lab.vm_dir(&spec).join(file)).unwrap();
            assert_eq!(meta.permissions().mode() & 0o777, mode, "{file}");
        }
        delete(&provider, &spec).await;
        assert_eq!(links(), only(&["lo", "eth0"]));
        assert!(!lab.vm_dir(&spec).exists());
        until("all have ended", async || processes(lab.dir.path()) == 0).await;
    });
}

#[test]
fn what_the_worker_sends_bears_its_primary_address() {
    let test = "what_the_worker_sends_bears_its_primary_address";
    lab(test, CIDR, &["192.0.2.1/24"], async |lab| {
        let provider = lab.provider();
        let vm = create(&provider, &spec(1)).await;
        assert_eq!(fact(vm, "peer"), "192.0.2.1");
        let handle = Handle::here().unwrap();
        handle.delete_address("eth0", net("192.0.2.1/24")).unwrap();
        handle.add_address("eth0", net("192.0.2.9/24")).unwrap();
        handle.add_route(&peerpod_netlink::Route::via(net("0.0.0.0/0"), None, "eth0")).unwrap();
        let second = create(&provider, &spec(2)).await;
        assert_eq!(fact(second, "peer"), "192.0.2.9", "mended by the next create");
        for n in [1, 2] {
            delete(&provider, &spec(n)).await;
        }
    });
}

#[test]
fn without_a_default_route_the_bridge_speaks_for_the_worker() {
    let test = "without_a_default_route_the_bridge_speaks_for_the_worker";
    lab(test, CIDR, &[], async |lab| {
        let provider = lab.provider();
        let vm = create(&provider, &spec(1)).await;
        assert_eq!(fact(vm, "peer"), "172.31.0.1");
        delete(&provider, &spec(1)).await;
    });
}

#[test]
fn an_ipv6_network_works_as_well() {
    let test = "an_ipv6_network_works_as_well";
    lab(test, "fd00:31::/64", &["192.0.2.1/24", "2001:db8::1/64"], async |lab| {
        let provider = lab.provider();
        let vm = create(&provider, &spec(1)).await;
        assert_eq!(vm.to_string(), "fd00:31::2");
        assert_eq!(fact(vm, "peer"), "2001:db8::1");
        delete(&provider, &spec(1)).await;
        assert_eq!(links(), only(&["lo", "eth0"]));
    });
}

#[test]
fn a_vm_outlives_the_daemon_and_the_next_one_finds_it() {
    let test = "a_vm_outlives_the_daemon_and_the_next_one_finds_it";
    lab(test, CIDR, &["192.0.2.1/24"], async |lab| {
        let dir = lab.dir.path();
        let mut daemon = Command::new(dir.join("helper"));
        let died = daemon.arg("create-and-die").arg(dir).status().unwrap();
        assert!(!died.success());
        let provider = lab.provider();
        assert_eq!(running(&provider).await, [Some(true)]);
        let vm = create(&provider, &spec(1)).await;
        assert_eq!(fact(vm, "host"), spec(1).name.as_str());
        assert_eq!(lab.console(&spec(1)).matches("podvm says hello").count(), 1, "the same VM");
        delete(&lab.provider(), &spec(1)).await;
        assert!(running(&provider).await.is_empty());
        assert_eq!(links(), only(&["lo", "eth0"]));
    });
}

#[test]
fn a_vm_whose_podvm_has_ended_is_off_and_starts_again_at_its_address() {
    let test = "a_vm_whose_podvm_has_ended_is_off_and_starts_again_at_its_address";
    lab(test, CIDR, &["192.0.2.1/24"], async |lab| {
        let provider = lab.provider();
        let vm = create(&provider, &spec(1)).await;
        ask(vm, "exit");
        until("it is off", async || running(&provider).await == [Some(false)]).await;
        assert!(lab.console(&spec(1)).contains("podvm has ended with 3"));
        assert_eq!(create(&provider, &spec(1)).await, vm);
        assert_eq!(fact(vm, "host"), spec(1).name.as_str());
        delete(&provider, &spec(1)).await;
    });
}

#[test]
fn a_create_that_died_between_any_two_steps_is_completed_or_deleted() {
    let test = "a_create_that_died_between_any_two_steps_is_completed_or_deleted";
    lab(test, CIDR, &["192.0.2.1/24"], async |lab| {
        let spec = spec(1);
        let dir = lab.vm_dir(&spec);
        let broken = Settings { guest_program: vec!["/bin/false".into()], ..lab.settings() };
        let broken = Local::new(broken, INSTALLATION);
        // The whole directory as a start leaves it that dies before it has done anything.
        let half_made = async || {
            let error = broken.create(&spec, &here()).await.unwrap_err();
            assert_eq!(error.kind, Kind::Other, "{error}");
        };
        let remove = |file: &'static str| std::fs::remove_file(dir.join(file)).unwrap();
        let port = || {
            // As a guest leaves it that was killed after it had made the port.
            let name = links().into_iter().find(|l| l.starts_with("ppl"));
            assert_eq!(name, None, "ports go with their VM");
        };
        for step in 0..4 {
            for complete in [true, false] {
                match step {
                    0 => std::fs::create_dir_all(&dir).unwrap(),
                    1 => {
                        half_made().await;
                        remove("boot.json");
                        remove("media/cidata/user-data");
                    }
                    2 => half_made().await,
                    _ => {
                        half_made().await;
                        std::fs::write(dir.join("init.json.new"), "{").unwrap();
                    }
                }
                port();
                let provider = lab.provider();
                assert!(running(&provider).await.iter().all(|r| *r == Some(false)));
                if complete {
                    let vm = create(&provider, &spec).await;
                    assert_eq!(fact(vm, "host"), spec.name.as_str());
                }
                delete(&provider, &spec).await;
                assert!(!dir.exists());
                // Nobody's directory tells nothing of a bridge, but the last to go takes it.
                assert_eq!(links(), only(&["lo", "eth0"]), "step {step}");
            }
        }
    });
}

#[test]
fn a_start_that_fails_tells_its_last_words() {
    let test = "a_start_that_fails_tells_its_last_words";
    lab(test, CIDR, &["192.0.2.1/24"], async |lab| {
        let mut wrong = lab.settings();
        wrong.guest_program.push("surplus".into());
        let provider = Local::new(wrong, INSTALLATION);
        let error = provider.create(&spec(1), &here()).await.unwrap_err();
        assert!(error.to_string().contains("did not start: takes no arguments"), "{error}");
        delete(&provider, &spec(1)).await;
    });
}

#[test]
fn a_bridge_that_a_dying_daemon_left_goes_with_the_next_delete() {
    let test = "a_bridge_that_a_dying_daemon_left_goes_with_the_next_delete";
    lab(test, CIDR, &["192.0.2.1/24"], async |lab| {
        let handle = Handle::here().unwrap();
        handle.add_link(&NewLink::Bridge { name: "peerpod0" }).unwrap();
        let veth = NewLink::Veth { name: "port", peer: "other", peer_netns: None };
        handle.add_link(&veth).unwrap();
        handle.set_master("port", "peerpod0").unwrap();
        delete(&lab.provider(), &spec(1)).await;
        assert!(links().contains("peerpod0"), "it has a port: somebody else's VM");
        handle.delete_link("port").unwrap();
        delete(&lab.provider(), &spec(1)).await;
        assert_eq!(links(), only(&["lo", "eth0"]));
    });
}

#[test]
fn a_delete_that_stops_halfway_is_found_by_the_list_and_leaves_no_bridge() {
    let test = "a_delete_that_stops_halfway_is_found_by_the_list_and_leaves_no_bridge";
    lab(test, CIDR, &["192.0.2.1/24"], async |lab| {
        let (provider, spec) = (lab.provider(), spec(1));
        create(&provider, &spec).await;
        // A mount point cannot be removed, wherever in the order it comes.
        let held = lab.vm_dir(&spec).join("media/held");
        std::fs::create_dir(&held).unwrap();
        let mounted = Mounted::tmpfs(&held);
        provider.delete(&ref_to(&spec)).await.unwrap_err();
        // The daemon dies now, and no record of a pod names the VM.
        let provider = lab.provider();
        assert_eq!(running(&provider).await, [Some(false)], "a sweep finds it");
        assert_eq!(links(), only(&["lo", "eth0"]), "the bridge waits for nobody");
        drop(mounted);
        delete(&provider, &spec).await;
        // What dies at the very last step leaves a directory that tells nothing, not even of a VM.
        let nobodys = lab.vm_dir(&spec);
        std::fs::create_dir(&nobodys).unwrap();
        delete(&provider, &self::spec(2)).await;
        assert!(!nobodys.exists());
        assert_eq!(running(&provider).await, []);
    });
}

struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path) -> Self {
        let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
        nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), flags, none).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount(&self.0).unwrap();
    }
}

/// Shows cgroup v2 at its usual place to this thread; false if there is none to write to.
fn unified_cgroup() -> bool {
    use nix::mount::{MsFlags, mount};
    use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
    let none = None::<&str>;
    let is_v2 = |at: &str| statfs(at).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let (usual, hybrid) = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified");
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    if !is_v2(usual) && is_v2(hybrid) {
        mount(Some(hybrid), usual, none, MsFlags::MS_BIND, none).unwrap();
    }
    let probe = Path::new(usual).join("peerpod-probe");
    is_v2(usual) && std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).is_ok()
}

#[test]
fn a_vm_has_a_control_group_of_its_own_where_that_is_possible() {
    let test = "a_vm_has_a_control_group_of_its_own_where_that_is_possible";
    lab(test, CIDR, &["192.0.2.1/24"], async |lab| {
        if !unified_cgroup() {
            println!("SKIP {test}: no writable cgroup v2 here");
            return;
        }
        let (provider, spec) = (lab.provider(), spec(1));
        create(&provider, &spec).await;
        let group = Path::new("/sys/fs/cgroup/peerpod-local").join(spec.name.as_str());
        let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert!(members.lines().count() >= 1, "{members}");
        std::fs::create_dir(group.join("as-an-agent-would")).unwrap();
        delete(&provider, &spec).await;
        assert!(!group.exists());
    });
}

/// Processes of this lab's programs, zombies left out.
fn processes(dir: &Path) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let exe = all.filter_map(|p| std::fs::read_link(p.path().join("exe")).ok());
    exe.filter(|exe| exe.starts_with(dir)).count()
}

#[test]
fn a_start_that_is_killed_at_any_moment_leaves_nothing_behind() {
    let test = "a_start_that_is_killed_at_any_moment_leaves_nothing_behind";
    lab(test, CIDR, &["192.0.2.1/24"], async |lab| {
        let spec = spec(1);
        for tenths in (5..250).step_by(5) {
            // `timeout` kills the start, not the daemon's wait for it.
            let mut killed = lab.settings();
            let limit = format!("0.0{tenths:03}");
            let words = ["timeout", "--signal=KILL", &limit].map(Into::into);
            killed.guest_program.splice(0..0, words);
            let killed = Local::new(killed, INSTALLATION);
            let _ = killed.create(&spec, &here()).await;
            let provider = lab.provider();
            if tenths % 2 == 0 {
                let vm = create(&provider, &spec).await;
                assert_eq!(fact(vm, "host"), spec.name.as_str());
            }
            delete(&provider, &spec).await;
            assert_eq!(links(), only(&["lo", "eth0"]));
            until("all have ended", async || processes(lab.dir.path()) == 0).await;
        }
    });
}

#[test]
fn many_vms_at_once_have_addresses_of_their_own_and_the_last_takes_the_bridge() {
    let test = "many_vms_at_once_have_addresses_of_their_own_and_the_last_takes_the_bridge";
    lab(test, "172.31.0.0/29", &["192.0.2.1/24"], async |lab| {
        let provider = lab.provider();
        let specs: Vec<VmSpec> = (0..5).map(spec).collect();
        let vms = futures_util::future::join_all(specs.iter().map(|s| create(&provider, s))).await;
        let different: BTreeSet<IpAddr> = vms.iter().copied().collect();
        assert_eq!(different.len(), 5);
        let error = provider.create(&spec(9), &here()).await.unwrap_err();
        assert_eq!(error.kind, Kind::Capacity);
        assert!(error.to_string().contains("LOCAL_CIDR"), "{error}");
        delete(&provider, &spec(9)).await;
        let bridge = || Handle::here().unwrap().link("peerpod0").unwrap().mac.unwrap();
        let before = bridge();
        for (spec, vm) in specs.iter().zip(&vms) {
            assert_eq!(fact(*vm, "host"), spec.name.as_str());
            assert_eq!(bridge(), before, "a VM that remembers it must not lose the worker");
            delete(&provider, spec).await;
        }
        assert_eq!(links(), only(&["lo", "eth0"]));
    });
}

#[test]
fn a_start_that_was_dropped_is_waited_for_and_taken_away() {
    let test = "a_start_that_was_dropped_is_waited_for_and_taken_away";
    lab(test, CIDR, &["192.0.2.1/24"], async |lab| {
        let provider = lab.provider();
        let spec = spec(1);
        for pause in [0, 1, 2, 4, 8, 16, 32] {
            let pause = Duration::from_millis(pause);
            let _ = tokio::time::timeout(pause, provider.create(&spec, &here())).await;
            delete(&lab.provider(), &spec).await;
            assert!(running(&provider).await.is_empty());
            assert!(!lab.vm_dir(&spec).exists());
            assert_eq!(links(), only(&["lo", "eth0"]));
        }
    });
}

#[test]
fn a_network_that_overlaps_the_machines_own_is_refused_by_key() {
    let test = "a_network_that_overlaps_the_machines_own_is_refused_by_key";
    lab(test, "192.0.2.128/25", &["192.0.2.1/24"], async |lab| {
        let provider = lab.provider();
        let error = provider.create(&spec(1), &here()).await.unwrap_err();
        assert_eq!(error.kind, Kind::Invalid);
        let expected = "LOCAL_CIDR 192.0.2.128/25: overlaps the address 192.0.2.1/24";
        assert!(error.to_string().contains(expected), "{error}");
        let problems = provider.check().await.unwrap().problems();
        assert!(problems.as_ref().is_some_and(|p| p.contains(expected)), "{problems:?}");
        delete(&provider, &spec(1)).await;
    });
}

#[test]
fn an_interface_in_the_bridges_place_is_left_alone() {
    let test = "an_interface_in_the_bridges_place_is_left_alone";
    lab(test, CIDR, &["192.0.2.1/24"], async |lab| {
        let veth = NewLink::Veth { name: "peerpod0", peer: "other", peer_netns: None };
        Handle::here().unwrap().add_link(&veth).unwrap();
        let provider = lab.provider();
        let error = provider.create(&spec(1), &here()).await.unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{error}");
        delete(&provider, &spec(1)).await;
        assert!(links().contains("other"), "a veth is no bridge");
    });
}

#[test]
fn check_says_that_it_isolates_nothing_and_names_what_is_missing() {
    let dir = directory();
    let missing = Settings {
        podvm: vec![dir.path().join("nowhere").into()],
        agent: vec!["/run/agent".into()],
        state_dir: dir.path().join("helper"),
        ..settings(dir.path(), CIDR)
    };
    let report = runtime().block_on(Local::new(missing, INSTALLATION).check()).unwrap();
    assert!(report.in_state(State::Warning).any(|w| w.text.contains("isolates nothing")));
    let problems = report.problems().unwrap_or_default();
    for key in ["LOCAL_PODVM", "LOCAL_AGENT /run/agent: lies where", "LOCAL_STATE_DIR"] {
        assert!(problems.contains(key), "{key}: {problems}");
    }
    assert!(report.types.first().is_some_and(|t| t.vcpus > 0 && t.memory_mib > 0));
    assert!(!dir.path().join("state").exists(), "check changes nothing");
}

#[test]
fn an_ordinary_user_can_do_it_all_in_namespaces_of_its_own() {
    let test = "an_ordinary_user_can_do_it_all_in_namespaces_of_its_own";
    let dir = directory();
    let helper = dir.path().join("helper");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    if !nix::unistd::geteuid().is_root() {
        command = Command::new("env");
    }
    command.args(["unshare", "--map-root-user", "--user", "--net", "--mount"]);
    if !Command::new("unshare").args(["-Urn", "true"]).status().is_ok_and(|s| s.success()) {
        println!("SKIP {test}: this machine gives ordinary users no namespaces");
        return;
    }
    let own = Path::new("/tmp").join(format!("peerpod-local-{}", std::process::id()));
    std::fs::create_dir(&own).unwrap();
    for name in ["helper", "podvm", "agent"] {
        std::fs::copy(&helper, own.join(name)).unwrap();
    }
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o777)).unwrap();
    let done = command.arg(own.join("helper")).arg("cycle").arg(&own).output().unwrap();
    std::fs::remove_dir_all(&own).unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("a whole life"), "{said}");
}
