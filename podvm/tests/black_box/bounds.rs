//! What peers cost: memory of the process with many of them, less that before, divided by their
//! number. A stranger may cost 1 MiB; who has shown a certificate may cost two frames of the longest
//! kind for each connection. And what they cannot do: lock the worker out, fill the log.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use peerpod_tunnel::link::frame::{HEADER, Header, Kind, MAX_PAYLOAD};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::ClientConnection;

use crate::calls::request;
use crate::lab::{Lab, Podvm};
use crate::standin::Agent;

/// Strangers of each kind.
const STRANGERS: usize = 200;
/// What one may cost, in KiB.
const STRANGER: u64 = 1024;
/// Connections of the right worker, each with a held frame that is never whole.
const WORKERS: usize = 8;
/// What one may cost, in KiB: a buffer of twice the longest frame, and TLS.
const WORKER: u64 = 2 * (MAX_PAYLOAD as u64 >> 10) + 1024;

/// Proportional set size, in KiB.
fn memory(podvm: &Podvm) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", podvm.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn many_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(8192), most).unwrap();
}

fn client_hello(lab: &Lab) -> Vec<u8> {
    let tls = lab.certs.client();
    let mut client = ClientConnection::new(tls.config().unwrap(), tls.name().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Records of a handshake message of the longest kind that TLS here takes, all but its end.
fn giant_hello() -> Vec<u8> {
    let mut message = vec![1, 0, 0xff, 0xff, 3, 3];
    message.resize(0xffff - 100, 7);
    let records = message.chunks(16 << 10).map(|part| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[22, 3, 1, length[0], length[1]], part].concat()
    });
    records.collect::<Vec<_>>().concat()
}

async fn strangers(podvm: &Podvm, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        let mut tcp = TcpStream::connect(podvm.address()).await.unwrap();
        // Who has been sent away cannot write.
        let _ = tokio::time::timeout(Duration::from_secs(1), tcp.write_all(bytes)).await;
        all.push(tcp);
    }
    all
}

/// The right worker is served; by then what came before it has been read, too.
async fn is_served(lab: &Lab, podvm: &Podvm) {
    lab.connect(podvm).await.call(&request(1, "Ping", vec![])).await;
}

#[tokio::test]
async fn a_stranger_costs_less_than_a_mebibyte() {
    many_files();
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let hello = client_hello(&lab);
    let half = hello.get(..hello.len() / 2).unwrap();
    let giant = giant_hello();
    let lying: &[u8] = &[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
    let kinds: [(&str, &[u8]); 5] = [
        ("silent", b""),
        ("half a ClientHello", half),
        ("a whole ClientHello and nothing more", &hello),
        ("a giant length", lying),
        ("64 KiB of a handshake message", &giant),
    ];
    for (kind, bytes) in kinds {
        let podvm = lab.run(&[]).await;
        is_served(&lab, &podvm).await;
        let before = memory(&podvm);
        let _all = strangers(&podvm, STRANGERS, bytes).await;
        is_served(&lab, &podvm).await;
        let each = memory(&podvm).saturating_sub(before) / STRANGERS as u64;
        println!("bounds: podvm, {STRANGERS} strangers, {kind}: {each} KiB each");
        assert!(each < STRANGER, "{kind}: {each} KiB each");
        podvm.kill().await;
        let _ = std::fs::remove_dir_all(lab.path("run"));
    }
}

#[tokio::test]
async fn half_handshakes_without_number_do_not_lock_the_worker_out() {
    many_files();
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&[]).await;
    let hello = client_hello(&lab);
    let half = hello.get(..hello.len() / 2).unwrap();
    let mut standing = lab.connect(&podvm).await;
    standing.call(&request(1, "Ping", vec![])).await;
    // Twice what there are places for, all at once and none of them ever done; three times over.
    let mut held = Vec::new();
    for _ in 0..3 {
        held.extend(strangers(&podvm, 600, half).await);
        is_served(&lab, &podvm).await;
    }
    standing.call(&request(3, "Ping", vec![])).await;
    // The first ones were sent away, and that was said a few times only.
    let gone = held.first_mut().unwrap().read(&mut [0]).await;
    assert!(matches!(gone, Ok(0) | Err(_)), "{gone:?}");
    podvm.line("others came").await;
    let lines = podvm.log().lines().count();
    assert!(lines < 100, "{lines} lines");
}

#[tokio::test]
async fn the_right_worker_is_bounded_too() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&["--frame-stall=60"]).await;
    is_served(&lab, &podvm).await;
    let before = memory(&podvm);
    let mut all = Vec::new();
    // CreateContainer is held until it is whole; made of the smallest fields there are.
    let mut payload = request(1, "CreateContainer", vec![8; 64]).payload.to_vec();
    if payload.len().is_multiple_of(2) {
        payload = request(1, "CreateContainer", vec![8; 65]).payload.to_vec();
    }
    payload.resize(MAX_PAYLOAD - 1, 8);
    for _ in 0..WORKERS {
        let mut worker = lab.connect(&podvm).await;
        let head = Header { length: MAX_PAYLOAD, stream: 1, kind: Kind::Request, flags: 0 };
        worker.send(&head.bytes()).await;
        worker.send(&payload).await;
        all.push(worker);
    }
    is_served(&lab, &podvm).await;
    let each = memory(&podvm).saturating_sub(before) / WORKERS as u64;
    println!(
        "bounds: podvm, {WORKERS} workers with a frame of {MAX_PAYLOAD} bytes that is never whole: {each} KiB each"
    );
    assert!(each < WORKER, "{each} KiB each");
    assert!(agent.frames().iter().all(|f| f.payload.len() + HEADER < 1000), "it was held");
    // Whole at last, and broken: answered here, with no more memory than its bytes.
    for worker in &mut all {
        worker.send(&[7]).await;
        assert_eq!(worker.next().await.unwrap().stream, 1);
    }
    let each = memory(&podvm).saturating_sub(before) / WORKERS as u64;
    assert!(each < WORKER, "{each} KiB each after all were answered");
}
