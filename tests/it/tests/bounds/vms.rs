//! VMs as peers of the relay, which is their client: before TLS is done, and after.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::frame::Kind;
use peerpod_tunnel::link::session::{ALPN, Owner, Sessions};
use peerpod_tunnel::link::tls::{ClientTls, ServerTls};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::lab::Relay;
use crate::{KNOWN, PATIENCE, STRANGER, WITH_FRAME, WRITE, almost, connect, each, memory};

const NAME: &str = "podvm-web-12345678";
/// Pods whose VM is not who it should be.
const PODS: usize = 100;
/// Streams that nobody reads.
const STREAMS: usize = 100;

struct Certificates {
    client: ClientTls,
    server: ServerTls,
}

fn certificates() -> Certificates {
    let named = |names: Vec<String>, usage| {
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![usage];
        params
    };
    let server = ExtendedKeyUsagePurpose::ServerAuth;
    let mut ca = named(vec![], server.clone());
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (ca_key, key, own_key) =
        (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);
    let cert = named(vec![NAME.to_owned()], server).signed_by(&key, &issuer).unwrap();
    let own = named(vec![], ExtendedKeyUsagePurpose::ClientAuth).self_signed(&own_key).unwrap();
    Certificates {
        client: ClientTls {
            server_name: NAME.to_owned(),
            ca_pem,
            client_cert_pem: own.pem(),
            client_key_pem: Secret::new(own_key.serialize_pem()),
            ..ClientTls::default()
        },
        server: ServerTls {
            cert_pem: cert.pem(),
            key_pem: Secret::new(key.serialize_pem()),
            client_ca_pem: own.pem(),
            ..ServerTls::default()
        },
    }
}

/// Says the same to everybody, and holds on.
async fn says(bytes: Vec<u8>) -> (SocketAddr, mpsc::UnboundedReceiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, said) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let (bytes, sender) = (bytes.clone(), sender.clone());
            tokio::spawn(async move {
                let _ = tokio::time::timeout(WRITE, tcp.write_all(&bytes)).await;
                let _ = sender.send(tcp);
            });
        }
    });
    (address, said)
}

/// Records of a handshake message of the longest kind that TLS here takes, all but its end.
fn giant_hello() -> Vec<u8> {
    let mut message = vec![2, 0, 0xff, 0xff, 3, 3];
    message.resize(0xffff - 100, 7);
    let records = message.chunks(16 << 10).map(|part| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[22, 3, 3, length[0], length[1]], part].concat()
    });
    records.collect::<Vec<_>>().concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_costs_less_than_a_mebibyte_before_tls_is_done() {
    let kinds: [(&str, Vec<u8>); 4] = [
        ("silent", Vec::new()),
        ("half a ServerHello", [&[22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3][..], &[7; 40]].concat()),
        ("a giant length", vec![22, 3, 3, 0x40, 0, 2, 0xff, 0xff, 0xff]),
        ("64 KiB of a handshake message", giant_hello()),
    ];
    let tls = certificates().client;
    for (kind, bytes) in kinds {
        let (address, mut said) = says(bytes).await;
        let relay = Relay::start().await;
        let sandboxes: Vec<String> = (0..PODS).map(|n| format!("s{n}")).collect();
        for sandbox in &sandboxes {
            relay.open(sandbox, &[]).await;
        }
        let (before, pid) = (relay.memory(), relay.pid());
        let most = async {
            let mut most = 0;
            let mut held = Vec::new();
            while held.len() < PODS {
                held.push(said.recv().await.unwrap());
                most = most.max(memory(pid));
            }
            // Until the relay has given up the first one.
            let _ = held[0].readable().await;
            most.max(memory(pid))
        };
        let dials = sandboxes.iter().map(|sandbox| relay.connect(sandbox, address, Some(&tls)));
        let (most, dialled) = tokio::join!(most, join_all(dials));
        assert!(dialled.iter().all(Result::is_err), "{kind}: {dialled:?}");
        let each = most.saturating_sub(before) / PODS as u64;
        println!("bounds: {PODS} VMs that the relay dials, {kind}: {each} KiB each");
        assert!(each < STRANGER, "{kind}: {each} KiB each");
        relay.is_served().await;
    }
}

/// A shim's connection, its first bytes sent.
async fn speaks(relay: &Relay, sandbox: &str) -> tokio::net::UnixStream {
    let mut shim = connect(&relay.agent_socket(sandbox)).await;
    shim.write_all(&[0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0]).await.unwrap();
    shim
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_a_vm_that_are_never_whole_are_bounded() {
    // With requests to edit frames are put together; without, bytes go by.
    for (edit, most) in [(&["CreateContainer"][..], WITH_FRAME), (&[], STRANGER)] {
        let relay = Relay::start().await;
        let (address, mut said) = says(almost(Kind::Response, &[])).await;
        relay.open("s1", edit).await;
        relay.connect("s1", address, None).await.unwrap();
        let before = relay.memory();
        let mut held = Vec::new();
        for _ in 0..KNOWN {
            let shim = speaks(&relay, "s1").await;
            held.push((shim, said.recv().await.unwrap()));
        }
        relay.is_served().await;
        let who = format!("VMs with a frame that is never whole, {} calls edited", edit.len());
        each(&who, relay.pid(), before, KNOWN, most);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_vm_that_nobody_reads_are_bounded() {
    // 8 MiB for all streams, 32 KiB for each beyond that, and what is on its way to the shims.
    const MOST: u64 = (8 << 10) + STREAMS as u64 * (32 + 64) + 1024;
    let relay = Relay::start().await;
    let (vm, _serving) = session_vm().await;
    relay.open("s1", &[]).await;
    relay.connect("s1", vm.0, Some(&vm.1)).await.unwrap();
    let before = relay.memory();
    let mut shims = Vec::new();
    for _ in 0..STREAMS {
        shims.push(speaks(&relay, "s1").await);
    }
    let mut stuck = vm.2;
    for _ in 0..STREAMS {
        tokio::time::timeout(PATIENCE, stuck.recv()).await.unwrap().unwrap();
    }
    relay.is_served().await;
    each(&format!("VM with {STREAMS} streams that nobody reads"), relay.pid(), before, 1, MOST);
}

type SessionVm = (SocketAddr, ClientTls, mpsc::UnboundedReceiver<()>);

/// Sends on every stream as much as is taken, and tells when that is all.
async fn session_vm() -> (SessionVm, tokio::task::JoinHandle<()>) {
    let Certificates { client, server } = certificates();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(server.config_offering(&[ALPN]).unwrap());
    let sessions = Arc::new(Sessions::new("test VM"));
    let (sender, stuck) = mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(tls) = acceptor.accept(tcp).await else { continue };
            let (sessions, sender) = (sessions.clone(), sender.clone());
            tokio::spawn(async move {
                let flood = move |mut stream: peerpod_tunnel::link::session::Stream| {
                    let sender = sender.clone();
                    tokio::spawn(async move {
                        let chunk = vec![7; 16 << 10];
                        while let Ok(Ok(())) =
                            tokio::time::timeout(WRITE, stream.write_all(&chunk)).await
                        {
                        }
                        let _ = sender.send(());
                        // It stays open.
                        std::future::pending::<()>().await;
                    });
                };
                sessions.serve(tls, &Owner::of(None), flood).await;
            });
        }
    });
    ((address, client, stuck), serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_breaks_off_for_ever_is_dialled_less_and_less_often() {
    let relay = Relay::start().await;
    let Certificates { client, server } = certificates();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(server.config_offering(&[ALPN]).unwrap());
    let sessions = Arc::new(Sessions::new("test VM"));
    let (sender, mut broken) = mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(tls) = acceptor.accept(tcp).await else { continue };
            // It greets, and is gone.
            let owner = Owner::of(None);
            let serve = sessions.serve(tls, &owner, drop);
            let _ = tokio::time::timeout(Duration::from_millis(20), serve).await;
            let _ = sender.send(std::time::Instant::now());
        }
    });
    relay.open("s1", &[]).await;
    relay.connect("s1", address, Some(&client)).await.unwrap();
    let _shim = speaks(&relay, "s1").await;
    let mut when = Vec::new();
    while when.len() < 7 {
        when.push(tokio::time::timeout(PATIENCE, broken.recv()).await.unwrap().unwrap());
    }
    // Pauses of 0.1 s, doubled up to 1 s; a busy machine only makes them longer.
    let took = when[6] - when[1];
    assert!(took > Duration::from_millis(1500), "five more breaks within {took:?}");
    relay.is_served().await;
    assert!(relay.log().lines().count() < crate::strangers::LINES, "{}", relay.log());
    serving.abort();
}
