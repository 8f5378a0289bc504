//! How sockets come to be, and who may use them.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::relay::sockets::{Bound, SocketError};

#[tokio::test]
async fn a_socket_left_by_the_dead_is_replaced_and_ours_removed_at_the_end() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("hypervisor.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket of the dead"));
    std::fs::write(dir.path().join(".new"), "left by a crash").expect("write");
    let bench = Bench::start_in(dir).await;
    bench.hypervisor().await;
    let mode = |p: &Path| std::fs::metadata(p).expect("metadata").mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    let node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    let agent = bench.agent_path("s1");
    assert_eq!(mode(&agent), 0o600);
    assert_eq!(mode(agent.parent().expect("parent")), 0o700);
    let _dir = bench.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn a_socket_of_the_living_is_an_error_with_path_and_process() {
    let me = format!("process {}", std::process::id());
    let dir = tempfile::tempdir().expect("tempdir");
    let stranger = UnixListener::bind(dir.path().join("control.sock")).expect("bind");
    let second = crate::relay::Relay::bind(options(dir.path())).await;
    let error = second.expect_err("somebody lives there").to_string();
    assert!(error.contains(&me) && error.contains("control.sock"), "{error}");
    drop(stranger);

    let bench = Bench::start_in(dir).await;
    let node = bench.node().await;
    // A stranger on an agent socket is told to the node.
    let path = bench.agent_path("s1");
    std::fs::create_dir_all(path.parent().expect("parent")).expect("directory");
    let _stranger = UnixListener::bind(&path).expect("bind");
    let opened = node.client.open("s1", &path, &[]).await;
    let Err(ControlError::Refused(why)) = opened else { panic!("{opened:?}") };
    assert!(why.contains(&me), "{why}");
}

#[tokio::test]
async fn links_and_other_files_are_not_replaced() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("x.sock");
    std::fs::write(&path, "data").expect("write");
    assert!(matches!(Bound::bind(&path).await, Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read(&path).expect("it is still there"), b"data");
    std::fs::remove_file(&path).expect("remove");
    std::os::unix::fs::symlink(dir.path().join("target"), &path).expect("link");
    assert!(matches!(Bound::bind(&path).await, Err(SocketError::Symlink(_))));
    let elsewhere = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &elsewhere).expect("link");
    let through = Bound::bind(&elsewhere.join("y.sock")).await;
    assert!(matches!(through, Err(SocketError::NotADirectory(_))), "{through:?}");
    let long = dir.path().join("a".repeat(120));
    assert!(matches!(Bound::bind(&long).await, Err(SocketError::TooLong(_))));
}

#[tokio::test]
async fn a_successors_socket_is_not_removed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("x.sock");
    let old = Bound::bind(&path).await.expect("bind");
    std::fs::remove_file(&path).expect("remove");
    let _new = Bound::bind(&path).await.expect("bind");
    drop(old);
    assert!(path.exists());
}

/// Does it as nobody, in a thread of its own.
fn as_nobody<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        // SAFETY: takes three integers; without the C library's wrapper it is this thread only, and
        // the thread ends here.
        let done = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(done, 0, "setresuid");
        work()
    });
    thread.join().expect("thread")
}

/// Whether a connection of nobody's is closed.
fn closed_for_nobody(path: PathBuf) -> std::io::Result<bool> {
    as_nobody(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(std::io::Read::read(&mut stream, &mut [0])? == 0)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_another_user_is_turned_away() {
    if !nix::unistd::geteuid().is_root() {
        println!(
            "SKIP relay::tests::sockets::a_process_of_another_user_is_turned_away: needs root"
        );
        return;
    }
    let bench = Bench::start().await;
    let node = bench.node().await;
    bench.open(&node, "s1", &[]).await;
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    let agent = bench.agent_path("s1");
    open(bench.dir.path(), 0o755);
    open(agent.parent().expect("parent"), 0o755);
    let others = ["hypervisor.sock", "control.sock", "relay.sock"];
    for path in others.map(|name| bench.dir.path().join(name)).into_iter().chain([agent]) {
        let denied = closed_for_nobody(path.clone()).expect_err("the mode alone keeps them out");
        assert_eq!(denied.kind(), std::io::ErrorKind::PermissionDenied);
        open(&path, 0o666);
        assert!(closed_for_nobody(path).expect("connect"), "the connection is not closed");
    }
    assert_eq!(node.client.totals().await.expect("totals").peers_refused, 4);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_over_from_a_process_of_another_user() {
    if !nix::unistd::geteuid().is_root() {
        println!(
            "SKIP relay::tests::sockets::nothing_is_taken_over_from_a_process_of_another_user: needs \
             root"
        );
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("chmod");
    let path = dir.path().join("relay.sock");
    let _stranger = as_nobody(move || std::os::unix::net::UnixListener::bind(path).expect("bind"));
    let error = crate::relay::Relay::bind(options(dir.path())).await.expect_err("not ours");
    assert!(error.to_string().ends_with("relay.sock is served by user 65534"), "{error}");
}

#[tokio::test]
async fn what_a_killed_relay_has_left_of_a_sandbox_goes_with_its_close() {
    let bench = Bench::start().await;
    let node = bench.node().await;
    let agent = bench.agent_path("dead");
    let directory = agent.parent().expect("parent").to_owned();
    std::fs::create_dir_all(&directory).expect("made");
    drop(std::os::unix::net::UnixListener::bind(&agent).expect("bind"));
    assert!(!node.client.close("dead", "over").await.expect("close"), "it is not this relay's");
    assert!(!directory.exists(), "socket and directory are gone");
    // A relay that is being replaced still serves its own.
    let agent = bench.agent_path("alive");
    let directory = agent.parent().expect("parent").to_owned();
    std::fs::create_dir_all(&directory).expect("made");
    let _other = std::os::unix::net::UnixListener::bind(&agent).expect("bind");
    std::fs::write(directory.join("file"), "precious").expect("written");
    assert!(!node.client.close("alive", "over").await.expect("close"));
    assert!(agent.exists() && directory.join("file").exists());
    for hostile in ["..", "../pods", "a/b", ""] {
        let _ = node.client.close(hostile, "over").await;
    }
    assert!(bench.dir.path().join("control.sock").exists());
}
