//! Peers of the node process: whoever comes to the probes' port or to its socket, and agents that
//! answer its own probe.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;

use peerpod_it::bed::Bed;
use peerpod_it::root;
use peerpod_standin::lab::{DaemonOptions, Mode};
use peerpod_standin::shim::{Profile, Shim};
use peerpod_tunnel::link::call::Caller;
use peerpod_tunnel::link::frame::Kind;
use peerpodd::proto::hypervisor;

use crate::strangers::{FLOOD, LINES, of_another_user, open_to_all};
use crate::{KNOWN, STRANGER, STRANGERS, WITH_FRAME, almost, connect, crowd, each, memory};

fn node(bed: &Bed) -> i32 {
    bed.daemon.node_pid().unwrap()
}

fn node_socket(bed: &Bed) -> PathBuf {
    bed.lab.dir().run().join("node.sock")
}

/// A node process of which nobody has wanted anything.
async fn anew(bed: &mut Bed) {
    bed.daemon.kill_node().await.unwrap();
    bed.daemon.start_node(None).await.unwrap();
    bed.daemon.ready().await.unwrap();
}

/// The node process answers; by then what came before has been read, too.
async fn is_served(bed: &Bed) {
    let (code, text) = bed.daemon.get("/readyz").await.unwrap();
    assert_eq!(code, 200, "{text}");
}

/// The same at its socket.
async fn answers(bed: &Bed) {
    let mut caller = Caller::new(connect(&node_socket(bed)).await);
    caller.call(hypervisor::SERVICE, "Version", bytes::Bytes::new()).await.unwrap();
}

/// So many connections to the probes' port that say the same.
fn probes(bed: &Bed, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let connect = || -> Result<TcpStream, peerpod_netlink::Error> {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, 8000)).expect("connect"))
    };
    let one = |_| {
        let mut tcp = bed.lab.network().worker().run(connect).unwrap();
        // Who has been sent away cannot write.
        let _ = tcp.write_all(bytes);
        tcp
    };
    (0..count).map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_costs_the_node_process_less_than_a_mebibyte() {
    if !root("a_stranger_costs_the_node_process_less_than_a_mebibyte") {
        return;
    }
    crate::many_files();
    let mut bed = Bed::separate(&[]).await.unwrap();
    let headers = [&b"GET /status HTTP/1.1\r\n"[..], &b"x: y\r\n".repeat(2500)].concat();
    let kinds: [(&str, &[u8]); 3] =
        [("silent", b""), ("half a request", b"GET /sta"), ("15 KiB of headers", &headers)];
    for (kind, bytes) in kinds {
        is_served(&bed).await;
        let before = memory(node(&bed));
        let _all = probes(&bed, STRANGERS, bytes);
        is_served(&bed).await;
        let who = format!("strangers at the probes' port, {kind}");
        each(&who, node(&bed), before, STRANGERS, STRANGER);
        anew(&mut bed).await;
    }
    let long = almost(Kind::Request, &[]);
    let kinds: [(&str, &[u8]); 3] = [
        ("silent", b""),
        ("half a header", &[0, 0, 0, 9]),
        ("60 KiB of a frame of 4 MiB", &long[..60 << 10]),
    ];
    for (kind, bytes) in kinds {
        let before = memory(node(&bed));
        let _all = crowd(&node_socket(&bed), STRANGERS, bytes).await;
        answers(&bed).await;
        let who = format!("strangers at node.sock, {kind}");
        each(&who, node(&bed), before, STRANGERS, STRANGER);
        anew(&mut bed).await;
    }
    let before = memory(node(&bed));
    let all = crowd(&node_socket(&bed), KNOWN, &long).await;
    let who = "callers of node.sock with a frame that is never whole";
    each(who, node(&bed), before, KNOWN, WITH_FRAME);
    drop(all);
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_shut_nobody_out_of_the_node_process_and_do_not_fill_its_log() {
    if !root("floods_shut_nobody_out_of_the_node_process_and_do_not_fill_its_log") {
        return;
    }
    crate::many_files();
    let bed = Bed::separate(&[]).await.unwrap();
    for path in [bed.lab.dir().path(), &bed.lab.dir().run(), &node_socket(&bed)] {
        open_to_all(path);
    }
    let before = memory(node(&bed));
    let socket = node_socket(&bed);
    let others = tokio::task::spawn_blocking(move || of_another_user(socket, FLOOD)).await.unwrap();
    let own = crowd(&node_socket(&bed), FLOOD, b"").await;
    let probes = probes(&bed, FLOOD, b"GET");
    is_served(&bed).await;
    answers(&bed).await;
    each("connections of three floods", node(&bed), before, 3 * FLOOD, STRANGER);
    // A pod starts meanwhile.
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    shim.stop().await.unwrap();
    let log = std::fs::read_to_string(bed.lab.dir().logs().join("node.log")).unwrap();
    assert!(log.contains("others came") && log.contains("connection refused"), "{log}");
    assert!(log.lines().count() < 2 * LINES, "{log}");
    drop((others, own, probes));
    bed.end().await.unwrap();
}

/// An agent that begins the longest answer there is to whatever is said to it, and does not end it.
const ENDLESS: &str = "import os, socket, struct, threading\n\
    p = '/run/kata-containers/agent.sock'\n\
    os.makedirs(os.path.dirname(p), exist_ok=True)\n\
    def answer(c):\n    \
        try:\n        \
            c.recv(1 << 16)\n        \
            c.sendall(struct.pack('>IIBB', 4 << 20, 1, 2, 0) + bytes((4 << 20) - 1))\n        \
            c.recv(1)\n    \
        except OSError: pass\n\
    s = socket.socket(socket.AF_UNIX)\ns.bind(p)\ns.listen(9)\n\
    while True:\n    \
        c, _ = s.accept()\n    \
        threading.Thread(target=answer, args=(c,)).start()\n";

/// A VM that begins the longest handshake message that TLS here takes, and does not end it.
const HANDSHAKE: &str = "import socket, struct, threading\n\
    message = b'\\x02\\x00\\xff\\xff\\x03\\x03' + bytes(0xffff - 106)\n\
    records = [message[i:i + 16384] for i in range(0, len(message), 16384)]\n\
    said = b''.join(b'\\x16\\x03\\x03' + struct.pack('>H', len(r)) + r for r in records)\n\
    def answer(c):\n    \
        try:\n        \
            c.sendall(said)\n        \
            while c.recv(1 << 16): pass\n    \
        except OSError: pass\n\
    s = socket.socket()\ns.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
    s.bind(('', 15150))\ns.listen(9)\n\
    while True:\n    \
        c, _ = s.accept()\n    \
        threading.Thread(target=answer, args=(c,)).start()\n";

/// Starts pods with that program in their VMs, which must not succeed; what each costs the node
/// process at most, in KiB, all that a start needs included.
async fn starts(variable: &str, script: &str, words: &str) -> u64 {
    const PODS: u8 = 4;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    let program = (variable.to_owned(), format!("/usr/bin/env python3 {}", file.path().display()));
    let options = DaemonOptions {
        mode: Mode::Separate,
        environment: vec![program],
        ..Bed::options(&["--start-timeout=5s"])
    };
    let bed = Bed::with(options).await.unwrap();
    let pid = node(&bed);
    let before = memory(pid);
    let mut starts = tokio::task::JoinSet::new();
    for n in 1..=PODS {
        let (_net, spec) = bed.pod(n).await.unwrap();
        let socket = bed.lab.dir().socket();
        starts.spawn(async move { Shim::boot(Profile::GoLike, &socket, spec).await });
    }
    let mut most = before;
    let mut look = tokio::time::interval(std::time::Duration::from_millis(20));
    while !starts.is_empty() {
        tokio::select! {
            Some(start) = starts.join_next() => {
                let error = start.unwrap().expect_err("such a VM starts no pod").to_string();
                assert!(error.contains(words), "{error}");
            }
            _ = look.tick() => most = most.max(memory(pid)),
        }
    }
    let log = std::fs::read_to_string(bed.lab.dir().logs().join("node.log")).unwrap();
    assert!(log.lines().count() < 2 * LINES, "{log}");
    bed.end().await.unwrap();
    (most - before) / u64::from(PODS)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_never_ends_what_it_says_costs_the_node_process_little() {
    if !root("a_vm_that_never_ends_what_it_says_costs_the_node_process_little") {
        return;
    }
    for (who, variable, script, words) in [
        ("an answer of the agent", "LOCAL_AGENT", ENDLESS, "agent"),
        ("a handshake", "LOCAL_PODVM", HANDSHAKE, "TLS"),
    ] {
        let each = starts(variable, script, words).await;
        println!("bounds: 4 VMs at the node process, {who} without an end: {each} KiB each");
        assert!(each < 2 * STRANGER, "{who}: {each} KiB each");
    }
}
