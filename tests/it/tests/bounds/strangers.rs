//! Who connects to a socket of the relay's and does not say who it is, or is somebody else.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::lab::Relay;
use crate::{PATIENCE, STRANGER, STRANGERS, almost, connect, crowd, each};
use peerpod_tunnel::link::frame::Kind;

/// A user that has no business here.
const OTHER: libc::uid_t = 65_534;
/// Connections in one flood; more than there are places at any socket.
pub(crate) const FLOOD: usize = 600;
/// How many lines a flood may cause.
pub(crate) const LINES: usize = 100;

/// How HTTP/2 begins.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// HTTP/2 up to a header block of the longest kind, of which little comes.
fn half_http2() -> Vec<u8> {
    let mut bytes = HTTP2.to_vec();
    // HEADERS of 16 KiB without their end, and a second one.
    for _ in 0..2 {
        bytes.extend_from_slice(&[0, 0x40, 0, 1, 0, 0, 0, 0, 1]);
        bytes.resize(bytes.len() + (16 << 10) - 100, 0x82);
    }
    bytes
}

/// Another one has an answer; by then those that came before it were accepted.
async fn comes_through(relay: &Relay, socket: &str) {
    if socket == "hypervisor.sock" {
        drop(relay.shim().await);
        return;
    }
    let mut stream = connect(&relay.path(socket)).await;
    // Only the control socket listens to that; the other one says no, as to everybody who is no relay.
    let _ = stream.write_all(HTTP2).await;
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
    assert_eq!(read.expect("an answer").unwrap(), 1, "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_at_a_socket_of_the_relays_costs_less_than_a_mebibyte() {
    let long = almost(Kind::Request, &[]);
    let part = &long[..60 << 10];
    let http2 = half_http2();
    let kinds: [(&str, &str, &[u8]); 10] = [
        ("hypervisor.sock", "silent", b""),
        ("hypervisor.sock", "half a header", &[0, 0, 0, 9]),
        ("hypervisor.sock", "60 KiB of a frame of 4 MiB", part),
        ("run/control.sock", "silent", b""),
        ("run/control.sock", "half a preface", b"PRI * HTTP/2.0"),
        ("run/control.sock", "half a header block", &http2),
        ("run/relay.sock", "silent", b""),
        ("run/relay.sock", "half a header", &[0, 0]),
        ("run/relay.sock", "a giant length", &[0xff; 5]),
        ("run/relay.sock", "60 KiB", part),
    ];
    for (socket, kind, bytes) in kinds {
        let relay = Relay::start().await;
        relay.is_served().await;
        let before = relay.memory();
        let _all = crowd(&relay.path(socket), STRANGERS, bytes).await;
        comes_through(&relay, socket).await;
        each(&format!("strangers at {socket}, {kind}"), relay.pid(), before, STRANGERS, STRANGER);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_shut_nobody_out_of_the_relay_and_do_not_fill_its_log() {
    let relay = Relay::start().await;
    let mut standing = relay.shim().await;
    for (round, socket) in [(1, "hypervisor.sock"), (2, "run/control.sock"), (3, "run/relay.sock")]
    {
        let mut held = crowd(&relay.path(socket), FLOOD, b"").await;
        // The right ones come through: the one that stands, a new one, the node process.
        relay.answers(&mut standing, 2 * round + 1).await;
        relay.shim().await;
        relay.is_served().await;
        // The first one was sent away.
        let end = tokio::time::timeout(PATIENCE, held[0].read_to_end(&mut Vec::new())).await;
        end.unwrap_or_else(|_| panic!("{socket} holds {FLOOD}\n{}", relay.log())).ok();
    }
    relay.says("others came").await;
    let lines = relay.log().lines().count();
    assert!(lines < LINES, "{lines} lines:\n{}", relay.log());
}

/// Connections of another user.
pub(crate) fn of_another_user(socket: PathBuf, count: usize) -> Vec<UnixStream> {
    let connected = std::thread::spawn(move || {
        // SAFETY: the bare system call changes the ids of this thread alone, and it ends here.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, OTHER, OTHER, OTHER) };
        assert_eq!(done, 0);
        let connect = |_| std::os::unix::net::UnixStream::connect(&socket).expect("connect");
        (0..count).map(connect).collect::<Vec<_>>()
    });
    let all = connected.join().expect("connected");
    let own = |stream: std::os::unix::net::UnixStream| {
        stream.set_nonblocking(true).expect("nonblocking");
        UnixStream::from_std(stream).expect("stream")
    };
    all.into_iter().map(own).collect()
}

pub(crate) fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_costs_the_relay_nothing_and_few_lines() {
    if !peerpod_it::root("another_user_costs_the_relay_nothing_and_few_lines") {
        return;
    }
    let relay = Relay::start().await;
    relay.open("s1", &[]).await;
    let sockets = ["hypervisor.sock", "run/control.sock", "run/relay.sock", "pods/s1/agent.ttrpc"];
    for path in ["", "run", "pods", "pods/s1"].iter().chain(&sockets) {
        open_to_all(&relay.path(path));
    }
    let before = relay.memory();
    for socket in sockets {
        let path = relay.path(socket);
        let all = tokio::task::spawn_blocking(move || of_another_user(path, FLOOD)).await.unwrap();
        for mut stream in all {
            let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
            assert!(matches!(read, Ok(Ok(0) | Err(_))), "{socket}: {read:?}");
        }
    }
    each("connections of another user", relay.pid(), before, FLOOD * sockets.len(), STRANGER);
    relay.is_served().await;
    relay.says("turned away").await;
    let lines = relay.log().lines().count();
    assert!(lines < LINES, "{lines} lines:\n{}", relay.log());
}
