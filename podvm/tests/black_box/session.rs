//! A worker that speaks `peerpod-link/1`: its streams reach the agent as connections do, and outlive
//! the connection they run over.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use nix::sys::signal::Signal;
use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::frame::{Frame, FrameReader, Request, Response};
use peerpod_tunnel::link::session::{ALPN, Ended, Link, Machine, Over, Refusal, Stream};
use peerpod_tunnel::link::tls::ClientTls;
use podvm::apf::Apf;
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::calls::{message, request};
use crate::certs::{self, Certs};
use crate::lab::{Lab, PATIENCE};
use crate::standin::Agent;

pub(crate) const KEEP: Duration = Duration::from_secs(60);

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// One connection of a session, driven in the background; ending the task cuts it.
pub(crate) async fn connect(at: SocketAddr, tls: &ClientTls, link: &Link) -> JoinHandle<Ended> {
    let tcp = TcpStream::connect(at).await.unwrap();
    let connector = TlsConnector::from(tls.config_offering(&[ALPN]).unwrap());
    let stream = connector.connect(tls.name().unwrap(), tcp).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(ALPN), "podvm chooses the session");
    let link = link.clone();
    tokio::spawn(async move { link.run(stream).await })
}

pub(crate) async fn call(stream: &mut Stream, frame: &Frame) -> Frame {
    let mut bytes = BytesMut::new();
    frame.put(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    let mut reader = FrameReader::new(stream, None);
    within(reader.next()).await.unwrap().expect("an answer")
}

pub(crate) async fn cut(connection: JoinHandle<Ended>) {
    connection.abort();
    let _ = connection.await;
}

#[tokio::test]
async fn every_stream_has_its_own_way_to_the_agent_and_outlives_the_connection() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&[]).await;
    let link = Link::worker("test", KEEP);
    let connection = connect(podvm.address(), &lab.certs.client(), &link).await;
    within(link.joined()).await.unwrap();
    let mut streams: Vec<_> = (0..3).map(|_| link.open().expect("open")).collect();
    for stream in &mut streams {
        assert_eq!(call(stream, &request(1, "Ping", vec![])).await.stream, 1);
    }
    assert_eq!(agent.connections(), 3);
    cut(connection).await;
    let _connection = connect(podvm.address(), &lab.certs.client(), &link).await;
    for stream in &mut streams {
        assert_eq!(call(stream, &request(3, "Ping", vec![])).await.stream, 3);
    }
    assert_eq!(agent.connections(), 3, "they are the same connections to the agent");
    // The two edited calls are edited here, too.
    let spec = message(&[(8, &message(&[(5, b"/cgroup")]))]);
    let create = request(5, "CreateContainer", message(&[(1, b"id"), (6, &spec)]));
    call(&mut streams[0], &create).await;
    let seen = agent.frames().into_iter().find(|f| f.stream == 5).expect("it arrived");
    let seen = Request::parse(&seen.payload).unwrap().payload;
    let podns = lab.path("podns").display().to_string();
    assert!(seen.windows(podns.len()).any(|w| w == podns.as_bytes()), "it names the namespace");
    let about = link.peer().expect("podvm says who it is");
    assert!(about.build.starts_with("podvm "), "{about:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_call_that_is_cut_in_the_middle_arrives_whole() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&["--frame-stall=1"]).await;
    let link = Link::worker("test", KEEP);
    let mut connection = connect(podvm.address(), &lab.certs.client(), &link).await;
    let mut stream = link.open().expect("open");
    let long: Vec<u8> = (0..3_000_000u32).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
    let mut bytes = BytesMut::new();
    request(1, "Ping", long.clone()).put(&mut bytes);
    let (half, rest) = bytes.split_at(1_500_000);
    stream.write_all(half).await.unwrap();
    cut(connection).await;
    // Longer than a frame may stand still on a connection of its own.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    connection = connect(podvm.address(), &lab.certs.client(), &link).await;
    let (from, mut to) = tokio::io::split(stream);
    let writing = async { to.write_all(rest).await.unwrap() };
    let mut reader = FrameReader::new(from, None);
    let ((), answer) = within(async { tokio::join!(writing, reader.next()) }).await;
    let payload = Response::decode(answer.unwrap().expect("an answer").payload).unwrap().payload;
    let back = Request::parse(&payload).unwrap().payload;
    assert!(back == long, "{} bytes came back", back.len());
    cut(connection).await;
}

#[tokio::test]
async fn a_podvm_that_was_started_again_has_lost_the_session_and_says_so() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&[]).await;
    let link = Link::worker("test", KEEP);
    let connection = connect(podvm.address(), &lab.certs.client(), &link).await;
    let mut stream = link.open().expect("open");
    call(&mut stream, &request(1, "Ping", vec![])).await;
    podvm.kill().await;
    assert!(matches!(within(connection).await.unwrap(), Ended::Broken(_)));
    let podvm = lab.run(&[]).await;
    let connection = connect(podvm.address(), &lab.certs.client(), &link).await;
    let lost = Over::Refused(Refusal::Unknown);
    assert_eq!(within(connection).await.unwrap(), Ended::Over(lost.clone()));
    let error = stream.write_all(b"x").await.expect_err("it is over");
    assert_eq!(Stream::lost(&error), Some(&lost));
}

#[tokio::test]
async fn another_certificate_that_podvm_accepts_does_not_get_the_session() {
    let lab = Lab::new();
    let other = Certs::with_client(certs::client(false));
    let apf = Apf {
        pod_name: "nginx".to_owned(),
        tls_server_key: Secret::new(lab.certs.server_key.clone()),
        tls_server_cert: lab.certs.server_cert.clone(),
        // Both are let in.
        tls_client_ca: format!("{}{}", lab.certs.client_cert, other.client_cert),
        ..Apf::default()
    };
    let path = podvm::contract::APF.to_owned();
    lab.user_data(&[podvm::cloud_config::File { path, content: apf.render().unwrap() }]);
    let _agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&[]).await;
    let ours = lab.certs.client();
    let link = Link::worker("test", KEEP);
    let connection = connect(podvm.address(), &ours, &link).await;
    let mut stream = link.open().expect("open");
    call(&mut stream, &request(1, "Ping", vec![])).await;
    cut(connection).await;

    // The thief has the whole state of the session, its id included.
    let state = link.export().expect("export");
    let thief = Link::import(&state).expect("import");
    let mut wrong = ours.clone();
    wrong.client_cert_pem = other.client_cert.clone();
    wrong.client_key_pem = Secret::new(other.client_key.clone());
    let theft = connect(podvm.address(), &wrong, &thief).await;
    let refused = Ended::Over(Over::Refused(Refusal::Unknown));
    assert_eq!(within(theft).await.unwrap(), refused);
    podvm.line("session refused").await;

    assert!(Machine::import(&state).is_ok());
    let link = Link::import(&state).expect("import");
    let mut stream = link.stream(stream.id()).expect("stream");
    let _connection = connect(podvm.address(), &ours, &link).await;
    assert_eq!(call(&mut stream, &request(3, "Ping", vec![])).await.stream, 3);
}

#[tokio::test]
async fn at_sigterm_a_session_is_ended_with_a_word() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let mut podvm = lab.run(&[]).await;
    let link = Link::worker("test", KEEP);
    let connection = connect(podvm.address(), &lab.certs.client(), &link).await;
    let mut stream = link.open().expect("open");
    call(&mut stream, &request(1, "Ping", vec![])).await;
    podvm.signal(Signal::SIGTERM);
    let mut reader = FrameReader::new(&mut stream, None);
    assert!(!matches!(within(reader.next()).await, Ok(Some(_))), "the stream ends");
    drop(stream);
    let Ended::Over(Over::Closed(why)) = within(connection).await.unwrap() else {
        panic!("it is told that the session is over");
    };
    assert!(why.contains("stops"), "{why}");
    assert!(podvm.exit().await.success());
}
