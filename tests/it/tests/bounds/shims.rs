//! Shims and callers of the relay's control that are who they should be, and ask for too much.

use peerpod_tunnel::link::frame::{Kind, MAX_PAYLOAD, Request};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixStream};

use crate::lab::Relay;
use crate::{KNOWN, WITH_FRAME, WRITE, almost, connect, crowd, each};

/// What may wait for one connection, in KiB: 8 MiB and a frame.
const WITH_QUEUE: u64 = (8 << 10) + WITH_FRAME;
/// What is tried to be sent.
const TRIED: usize = 40;

/// Requests of 1 MiB as long as they are taken; says how many were.
async fn requests(shim: &mut UnixStream, method: &str) -> usize {
    let payload = vec![7; MAX_PAYLOAD / 4].into();
    let request = Request { method: method.to_owned(), payload, ..Request::default() };
    for (sent, stream) in (1..).step_by(2).take(TRIED).enumerate() {
        let mut bytes = bytes::BytesMut::new();
        request.frame(stream, 0).put(&mut bytes);
        if tokio::time::timeout(WRITE, shim.write_all(&bytes)).await.is_err() {
            return sent;
        }
    }
    TRIED
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shims_frames_and_queues_are_bounded() {
    let relay = Relay::start().await;
    let before = relay.memory();
    let long = almost(Kind::Request, &[]);
    let _all = crowd(&relay.path("hypervisor.sock"), KNOWN, &long).await;
    each("shims with a frame that is never whole", relay.pid(), before, KNOWN, WITH_FRAME);

    let relay = Relay::start().await;
    let before = relay.memory();
    let mut all = Vec::new();
    for _ in 0..KNOWN {
        let mut shim = connect(&relay.path("hypervisor.sock")).await;
        let sent = requests(&mut shim, "CreateVM").await;
        assert!(sent < TRIED, "all {sent} requests of 1 MiB were taken in, none answered");
        all.push(shim);
    }
    each("shims with unanswered calls without end", relay.pid(), before, KNOWN, WITH_QUEUE);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_for_an_edit_are_bounded() {
    let relay = Relay::start().await;
    let vm = TcpListener::bind("127.0.0.1:0").await.unwrap();
    relay.open("s1", &["CreateContainer"]).await;
    relay.connect("s1", vm.local_addr().unwrap(), None).await.unwrap();
    let before = relay.memory();
    let mut all = Vec::new();
    for _ in 0..KNOWN {
        let mut shim = connect(&relay.agent_socket("s1")).await;
        // The node process does not answer.
        let sent = requests(&mut shim, "CreateContainer").await;
        assert!(sent < TRIED, "all {sent} requests of 1 MiB were taken in, none edited");
        all.push(shim);
    }
    each("shims with requests to edit without end", relay.pid(), before, KNOWN, WITH_QUEUE);
}
