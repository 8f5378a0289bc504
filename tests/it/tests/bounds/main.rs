//! What peers of the relay and of the node process cost, in the real processes: memory (PSS) with many of
//! them, less that before, divided by their number. Who has not shown who it is may cost 1 MiB; a shim
//! or a VM may cost what it has a right to. And what they cannot do: lock others out, fill the log.
//! The same for podvm is in podvm/tests/black_box/bounds.rs.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod lab;
mod node;
mod shims;
mod strangers;
mod vms;

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use peerpod_standin::lab::wait_for;
use peerpod_tunnel::link::frame::{HEADER, Header, Kind, MAX_PAYLOAD};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// How long anything that must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long is written to somebody who takes nothing more.
const WRITE: Duration = Duration::from_secs(1);
/// Strangers of each kind.
const STRANGERS: usize = 200;
/// What one may cost, in KiB.
const STRANGER: u64 = 1024;
/// Those that are known, of each kind.
const KNOWN: usize = 8;
/// What one may cost with a frame of the longest kind, in KiB: a buffer of twice that, and TLS.
const WITH_FRAME: u64 = 2 * (MAX_PAYLOAD as u64 >> 10) + 1024;

/// Proportional set size without files, in KiB: their share depends on who else runs the program.
fn memory(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss_Anon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What each of so many costs more than before; says it, and that it is not more than it may be.
fn each(who: &str, pid: i32, before: u64, count: usize, most: u64) {
    let each = memory(pid).saturating_sub(before) / count as u64;
    println!("bounds: {count} {who}: {each} KiB each");
    assert!(each < most, "{who}: {each} KiB each");
}

fn many_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(8192), most).unwrap();
}

/// A frame of the longest kind, all but its last byte.
fn almost(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Header { length: MAX_PAYLOAD, stream: 1, kind, flags: 0 }.bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes.resize(HEADER + MAX_PAYLOAD - 1, 8);
    bytes
}

/// So many connections that say the same.
async fn crowd(socket: &Path, count: usize, bytes: &[u8]) -> Vec<UnixStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(connect(socket).await);
    }
    for stream in &mut all {
        // Who has been sent away cannot write.
        let _ = tokio::time::timeout(WRITE, stream.write_all(bytes)).await;
    }
    for stream in &all {
        read_by_peer(stream).await;
    }
    all
}

/// One connection, though many others wait to be accepted.
async fn connect(socket: &Path) -> UnixStream {
    wait_for("a connection", PATIENCE, async || Ok(UnixStream::connect(socket).await.ok()))
        .await
        .unwrap()
}

/// The peer has read everything, or has closed.
async fn read_by_peer(stream: &UnixStream) {
    wait_for("the peer to read", PATIENCE, async || {
        let mut left: nix::libc::c_int = 0;
        // SAFETY: TIOCOUTQ writes one int, which lives here.
        let done = unsafe {
            nix::libc::ioctl(stream.as_fd().as_raw_fd(), nix::libc::TIOCOUTQ, &raw mut left)
        };
        Ok((done != 0 || left == 0).then_some(()))
    })
    .await
    .unwrap();
}
