//! What the real processes may still do, seen from outside: what /proc says of every thread, and what
//! happens when one of them is made to try.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use peerpod_it::bed::PATIENCE;
use peerpod_it::{Bed, root, top};
use peerpod_standin::lab::{Binaries, Mode, processes, wait_for};
use peerpod_standin::shim::Profile;
use peerpod_tunnel::privilege::{Capabilities, names};

/// One status file, field by field.
fn status(path: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

/// Those of all threads, by thread id.
fn threads(pid: i32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let ids = tasks.map(|t| t.expect("thread").file_name().to_string_lossy().into_owned());
    ids.map(|tid| status(&format!("/proc/{pid}/task/{tid}/status"))).collect()
}

fn capabilities(status: &BTreeMap<String, String>, which: &str) -> Capabilities {
    let bits = u64::from_str_radix(&status[which], 16).expect("a mask");
    Capabilities::from_bits_retain(bits)
}

/// Second column of the table in deploy/README.md.
fn acts_with(process: &str) -> Capabilities {
    let text = fs::read_to_string(top().join("deploy/README.md")).expect("deploy/README.md");
    let row = text.lines().find(|l| l.starts_with(&format!("| `{process}`")));
    let cell = row.and_then(|r| r.split('|').nth(2)).unwrap_or_else(|| panic!("no row {process}"));
    let all = Capabilities::all().iter_names();
    all.filter(|(name, _)| cell.contains(&format!("`CAP_{name}`")))
        .fold(Capabilities::empty(), |all, (_, one)| all | one)
}

async fn pids(bed: &Bed) -> BTreeMap<&'static str, i32> {
    let podvm = bed.in_vm("podvm").expect("podvm");
    let hand = processes::children(podvm).into_iter().find(|p| p.has("volume-hand"));
    BTreeMap::from([
        ("run", bed.daemon.run_pid().expect("run")),
        ("node", bed.daemon.node_pid().expect("node")),
        ("relay", bed.daemon.relay_pid().expect("relay")),
        ("podvm", podvm),
        ("podvm volume-hand", hand.expect("podvm's second process").pid),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_thread_of_each_process_holds_what_the_table_says_and_no_more() {
    if !root("every_thread_of_each_process_holds_what_the_table_says_and_no_more") {
        return;
    }
    let mut options = Bed::options(&[]);
    options.environment.push(("AWS_SECRET_ACCESS_KEY".into(), "planted".into()));
    let bed = Bed::with(options).await.unwrap();
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let pids = pids(&bed).await;
    let knows = |process| {
        let environment = fs::read(format!("/proc/{}/environ", pids[process])).unwrap();
        String::from_utf8_lossy(&environment).contains("AWS_SECRET_ACCESS_KEY")
    };
    assert!(knows("node") && !knows("relay") && !knows("podvm"), "a cloud's credentials");
    let mut seen = 0;
    for (process, pid) in &pids {
        let wanted = acts_with(process);
        for thread in threads(*pid) {
            let of = |which| capabilities(&thread, which);
            let shown = format!("{process}: {thread:?}");
            assert_eq!(names(of("CapEff")), names(wanted), "{shown}");
            assert!(of("CapInh").is_empty() && of("CapAmb").is_empty(), "{shown}");
            assert_eq!(of("CapBnd"), of("CapPrm"), "{shown}");
            assert_eq!(thread["NoNewPrivs"], "1", "{shown}");
            assert_eq!(thread["Seccomp"], "2", "{shown}");
            let never = [Capabilities::SYS_PTRACE, Capabilities::SYS_MODULE, Capabilities::BPF];
            assert!(never.iter().all(|c| !of("CapBnd").contains(*c)), "{shown}");
            if *process == "relay" || *process == "podvm" {
                assert_eq!(of("CapPrm"), wanted, "{shown}");
            }
            seen += 1;
        }
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let core = limits.lines().find(|l| l.starts_with("Max core file size")).expect("a line");
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{process}: {core}");
    }
    // The kernel shows its environment to no process of the same user, unless it may trace any.
    let less = ["sys_ptrace", "perfmon", "sys_admin"];
    let environment = |pid: u32| {
        let mut cat = Command::new("cat");
        cat.arg(format!("/proc/{pid}/environ"));
        lacking(&less, &cat).output().expect("setpriv, of util-linux")
    };
    for (process, pid) in &pids {
        let tried = environment(u32::try_from(*pid).unwrap());
        let words = String::from_utf8_lossy(&tried.stderr).into_owned();
        assert!(words.contains("Permission denied"), "{process}: {words}");
    }
    let mut sleep = Command::new("sleep");
    sleep.arg("60");
    let mut sleeper = lacking(&less, &sleep).env("SEEN", "yes").spawn().unwrap();
    let pid = sleeper.id();
    let comm = || async {
        Ok((fs::read_to_string(format!("/proc/{pid}/comm"))? == "sleep\n").then_some(()))
    };
    wait_for("sleep", PATIENCE, comm).await.unwrap();
    let shown = environment(pid).stdout;
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(String::from_utf8_lossy(&shown).contains("SEEN=yes"), "of another process it does");
    let (_, page) = bed.daemon.get("/status").await.unwrap();
    assert!(page.contains("capabilities CAP_NET_ADMIN,CAP_SYS_ADMIN; for its programs"), "{page}");
    let log = fs::read_to_string(bed.lab.dir().logs().join("run.log")).unwrap();
    for process in ["run", "node", "relay"] {
        let line = format!("process=\"{process}\" held=\"capabilities ");
        assert!(log.contains(&line), "{process} says what it holds\n{log}");
    }
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
    println!("privileges: {seen} threads of {} processes hold what the table says", pids.len());
}

/// A program as root that lacks some capabilities.
fn lacking(less: &[&str], command: &Command) -> Command {
    let minus: Vec<_> = less.iter().map(|c| format!("-{c}")).collect();
    let mut program = Command::new("setpriv");
    program.arg(format!("--bounding-set={}", minus.join(","))).arg("--inh-caps=-all");
    program.arg("--").arg(command.get_program()).args(command.get_args()).env_clear();
    program.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    program
}

fn peerpodd(role: &str, dir: &Path) -> Command {
    let mut command = Command::new(Binaries::find().unwrap().peerpodd);
    let at = |name: &str| dir.join(name).display().to_string();
    command.arg(role).args(["--allow-volatile-state"]);
    for flag in ["run-dir", "state-dir", "pods-dir"] {
        command.arg(format!("--{flag}")).arg(at(flag));
    }
    command.arg("--socket").arg(at("h.sock"));
    command
}

#[test]
fn a_missing_capability_is_named_with_what_it_is_for() {
    if !root("a_missing_capability_is_named_with_what_it_is_for") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (less, words) in [
        (&["net_admin"][..], "lacks CAP_NET_ADMIN (to make tunnels and their filters)"),
        (&["sys_admin"], "lacks CAP_SYS_ADMIN (to enter the pods' network namespaces)"),
        (&["net_admin", "sys_admin"], "(to make tunnels and their filters) and CAP_SYS_ADMIN"),
    ] {
        let mut node = peerpodd("node", dir.path());
        node.args(["--probe-port", "18271"]);
        let done = lacking(less, &node).output().expect("setpriv, of util-linux");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_taken_away_fails_when_a_process_is_made_to_try() {
    let name = "a_call_that_was_taken_away_fails_when_a_process_is_made_to_try";
    if !root(name) {
        return;
    }
    if cfg!(not(target_arch = "x86_64")) {
        println!("SKIP {name}: knows the registers of x86_64 only");
        return;
    }
    let bed = Bed::with(peerpod_standin::lab::DaemonOptions {
        mode: Mode::Separate,
        ..Bed::options(&[])
    });
    let bed = bed.await.unwrap();
    let (_net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    let pids = BTreeMap::from([
        ("node", bed.daemon.node_pid().unwrap()),
        ("relay", bed.daemon.relay_pid().unwrap()),
        ("podvm", bed.in_vm("podvm").unwrap()),
    ]);
    let made = tokio::task::spawn_blocking(move || force::all(&pids)).await.unwrap();
    println!("privileges: {made} forbidden calls tried inside the processes, each refused");
    // It was only made to try: the pod goes on.
    let exec = shim.exec_tool("e1", &["say", "still", "here"]).await.unwrap();
    let output = exec.output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "still here");
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

/// Makes a thread of another process do a system call, and gives what came back.
#[cfg(target_arch = "x86_64")]
mod force {
    use std::collections::BTreeMap;

    use nix::libc::{self, c_long};
    use nix::sys::ptrace;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    const ENOSYS: i64 = libc::ENOSYS as i64;
    const EPERM: i64 = libc::EPERM as i64;
    const EACCES: i64 = libc::EACCES as i64;
    const NETLINK: u64 = 16;
    const HIGHEST: u64 = -20i64 as u64;

    /// Process, call, its arguments, the error that must come.
    const TRIES: &[(&str, c_long, [u64; 3], i64)] = &[
        ("relay", libc::SYS_execve, [0; 3], ENOSYS),
        ("relay", libc::SYS_socket, [NETLINK, 3, 0], ENOSYS),
        ("relay", libc::SYS_ptrace, [16, 1, 0], ENOSYS),
        ("relay", libc::SYS_mount, [0; 3], ENOSYS),
        ("relay", libc::SYS_setns, [0; 3], ENOSYS),
        ("relay", libc::SYS_unshare, [0; 3], ENOSYS),
        ("relay", libc::SYS_kill, [1, 0, 0], ENOSYS),
        ("relay", libc::SYS_fork, [0; 3], ENOSYS),
        ("relay", libc::SYS_chown, [0; 3], ENOSYS),
        ("node", libc::SYS_ptrace, [16, 1, 0], EPERM),
        ("node", libc::SYS_process_vm_readv, [1, 0, 0], EPERM),
        ("node", libc::SYS_finit_module, [0; 3], EPERM),
        ("node", libc::SYS_bpf, [0; 3], EPERM),
        ("node", libc::SYS_clock_settime, [0; 3], EPERM),
        // This it may try; it lacks the capability.
        ("node", libc::SYS_setpriority, [0, 0, HIGHEST], EACCES),
        ("podvm", libc::SYS_execve, [0; 3], EPERM),
        ("podvm", libc::SYS_ptrace, [16, 1, 0], EPERM),
        ("podvm", libc::SYS_setpriority, [0, 0, HIGHEST], EACCES),
    ];

    pub(super) fn all(pids: &BTreeMap<&'static str, i32>) -> usize {
        for (process, call, arguments, error) in TRIES {
            let got = one(Pid::from_raw(pids[process]), *call, *arguments);
            assert_eq!(got, -error, "{process} made to do call {call} {arguments:?}");
        }
        // And one that it needs, so that it is not the way of asking that fails.
        let own = one(Pid::from_raw(pids["relay"]), libc::SYS_getpid, [0; 3]);
        assert_eq!(own, i64::from(pids["relay"]));
        TRIES.len()
    }

    /// The main thread waits in a system call, so the instruction before its position is `syscall`.
    fn one(pid: Pid, call: c_long, arguments: [u64; 3]) -> i64 {
        ptrace::seize(pid, ptrace::Options::empty()).expect("seize");
        ptrace::interrupt(pid).expect("interrupt");
        stopped(pid);
        let before = ptrace::getregs(pid).expect("registers");
        let mut forced = before;
        forced.rip -= 2;
        forced.rax = u64::try_from(call).expect("a number");
        // No call is under way any more that the kernel would begin again.
        forced.orig_rax = u64::MAX;
        [forced.rdi, forced.rsi, forced.rdx] = arguments;
        ptrace::setregs(pid, forced).expect("set registers");
        ptrace::step(pid, None).expect("one instruction");
        stopped(pid);
        let after = ptrace::getregs(pid).expect("registers");
        ptrace::setregs(pid, before).expect("set registers back");
        ptrace::detach(pid, None).expect("let go");
        after.rax as i64
    }

    fn stopped(pid: Pid) {
        match waitpid(pid, None).expect("wait") {
            WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod force {
    pub(super) fn all(_: &std::collections::BTreeMap<&'static str, i32>) -> usize {
        0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_given_nothing_serves_all_the_same() {
    if !root("a_relay_that_is_given_nothing_serves_all_the_same") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let command = peerpodd("relay", dir.path());
    let log = fs::File::create(dir.path().join("log")).unwrap();
    let mut relay = lacking(&["all"], &command).stderr(log).spawn().unwrap();
    let socket = dir.path().join("h.sock");
    let look = || async { Ok(std::os::unix::net::UnixStream::connect(&socket).ok()) };
    let served = wait_for("its socket", PATIENCE, look).await;
    let said = fs::read_to_string(dir.path().join("log")).unwrap();
    relay.kill().unwrap();
    relay.wait().unwrap();
    served.unwrap_or_else(|e| panic!("{e:#}\n{said}"));
    assert!(said.contains("held=\"capabilities none; new privileges never; dumps no"), "{said}");
}
