//! What a worker and an agent see of each other.

use bytes::BytesMut;
use nix::sys::signal::Signal;
use peerpod_tunnel::link::frame::{Frame, Kind, MAX_PAYLOAD, Request, Response};
use peerpod_tunnel::link::wire;
use prost::Message;

use crate::certs::{self, Certs};
use crate::lab::{Lab, Podvm, connect, until};
use crate::standin::Agent;

pub(crate) fn request(stream: u32, method: &str, payload: Vec<u8>) -> Frame {
    let request = Request {
        service: "grpc.AgentService".to_owned(),
        method: method.to_owned(),
        payload: payload.into(),
        timeout_nano: 5,
        ..Request::default()
    };
    request.frame(stream, 0)
}

pub(crate) fn message(fields: &[(u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    fields.iter().for_each(|(number, content)| wire::put(&mut out, *number, content));
    out
}

fn unheard(stream: u32, length: usize) -> Frame {
    let request = Request {
        service: "grpc.Future".to_owned(),
        method: "Unheard".to_owned(),
        payload: vec![7; length].into(),
        ..Request::default()
    };
    let mut payload = request.encode_to_vec();
    wire::put(&mut payload, 99, b"a field of tomorrow");
    Frame { payload: payload.into(), ..request.frame(stream, 5) }
}

#[tokio::test]
async fn unknown_calls_and_fields_arrive_byte_for_byte() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&[]).await;
    let mut worker = lab.connect(&podvm).await;
    let data = Frame { kind: Kind::Data, ..unheard(1, 9) };
    let frames = [data, unheard(1, 10), unheard(3, 1 << 20), unheard(5, 0)];
    let mut bytes = BytesMut::new();
    frames.iter().for_each(|f| f.put(&mut bytes));
    let (mut answers, mut from) = (Vec::new(), 0);
    for end in [1, 5, 11, 40, 70_000, bytes.len()] {
        worker.send(&bytes[from..end]).await;
        from = end;
    }
    for _ in 0..3 {
        let answer = worker.next().await.expect("an answer");
        answers.push((answer.stream, Response::decode(answer.payload).unwrap().payload));
    }
    assert!(agent.bytes() == bytes, "what arrived is not what was sent");
    let sent = frames[1..].iter().map(|f| (f.stream, f.payload.clone()));
    assert!(answers.iter().cloned().eq(sent), "what came back is not what was answered");
}

#[tokio::test]
async fn a_container_is_put_into_the_pods_network() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&[]).await;
    let mut worker = lab.connect(&podvm).await;
    let spec = message(&[(8, &message(&[(5, b"/cgroup"), (99, b"l")])), (98, b"s")]);
    worker.call(&request(1, "CreateContainer", message(&[(1, b"id"), (6, &spec)]))).await;
    let seen = Request::parse(&agent.frames()[0].payload).unwrap();
    assert_eq!(seen.timeout_nano, 5);
    let podns = lab.path("podns").display().to_string();
    let entry = message(&[(1, b"network"), (2, podns.as_bytes())]);
    let linux = message(&[(5, b"/cgroup"), (99, b"l"), (6, &entry)]);
    let spec = message(&[(8, &linux), (98, b"s")]);
    assert_eq!(seen.payload, message(&[(1, b"id"), (6, &spec)]));
}

#[tokio::test]
async fn a_request_that_grows_too_long_is_answered_and_the_next_one_passes() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&[]).await;
    let mut worker = lab.connect(&podvm).await;
    let spec = message(&[(8, b"")]);
    let filler = vec![0; MAX_PAYLOAD - 80];
    let long = request(1, "CreateContainer", message(&[(6, &spec), (1, &filler)]));
    let answer = worker.call(&long).await;
    assert_eq!(answer.stream, 1);
    let status = Response::decode(answer.payload).unwrap().status.unwrap();
    assert_eq!(status.code, 8, "{}", status.message);
    assert_eq!(worker.call(&request(3, "Ping", vec![])).await.stream, 3);
    assert_eq!(agent.frames().len(), 1);
}

#[tokio::test]
async fn the_agent_is_reached_after_its_socket_is_gone_even_by_a_new_forwarder() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&[]).await;
    let mut worker = lab.connect(&podvm).await;
    let sandbox = message(&[(2, b"nameserver 1.2.3.4"), (5, b"id")]);
    worker.call(&request(1, "CreateSandbox", sandbox)).await;
    assert!(!lab.agent_socket().exists(), "the stand-in has deleted its tree");
    let seen = Request::parse(&agent.frames()[0].payload).unwrap();
    assert_eq!(seen.payload, message(&[(5, b"id")]), "dns is gone");
    for _ in 0..20 {
        lab.connect(&podvm).await.call(&request(1, "Ping", vec![])).await;
    }
    podvm.kill().await;
    let podvm = lab.run(&[]).await;
    lab.connect(&podvm).await.call(&request(1, "Ping", vec![])).await;
    assert_eq!(agent.connections(), 22);
}

#[tokio::test]
async fn only_the_workers_own_certificate_is_let_in() {
    let mut lab = Lab::new();
    let agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&[]).await;
    let right = lab.certs.client();
    let stranger = Certs::with_client(certs::client(false));
    let mut wrong = right.clone();
    wrong.client_cert_pem = stranger.client_cert.clone();
    wrong.client_key_pem = peerpod_tunnel::link::Secret::new(stranger.client_key.clone());
    let mut none = right.clone();
    none.client_cert_pem.clear();
    none.client_key_pem = peerpod_tunnel::link::Secret::default();
    for (who, tls) in [("wrong", wrong), ("none", none)] {
        assert!(!served(podvm.address(), &tls).await, "{who}");
    }
    assert!(served(podvm.address(), &right).await);
    podvm.kill().await;

    lab.certs = Certs::with_client(certs::client(true));
    lab.user_data(&[lab.apf(None)]);
    let podvm = lab.run(&[]).await;
    assert!(!served(podvm.address(), &lab.certs.client()).await, "expired");
    assert_eq!(agent.connections(), 1);
}

/// With TLS 1.3 a client learns only by reading that it was refused.
async fn served(at: std::net::SocketAddr, tls: &peerpod_tunnel::link::tls::ClientTls) -> bool {
    let Ok(mut worker) = connect(at, tls).await else { return false };
    let mut bytes = BytesMut::new();
    request(1, "Ping", vec![]).put(&mut bytes);
    use tokio::io::AsyncWriteExt;
    let _ = worker.writer.write_all(&bytes).await;
    let _ = worker.writer.flush().await;
    matches!(worker.try_next().await, Ok(Some(_)))
}

#[tokio::test]
async fn calls_wait_for_an_agent_that_comes_late_and_silence_is_not_dialled() {
    let lab = Lab::new();
    let podvm = lab.run(&[]).await;
    let _silent = lab.connect(&podvm).await;
    let mut worker = lab.connect(&podvm).await;
    let mut bytes = BytesMut::new();
    request(1, "Ping", vec![]).put(&mut bytes);
    worker.send(&bytes).await;
    let agent = Agent::start(&lab.agent_socket());
    assert_eq!(worker.next().await.expect("an answer").stream, 1);
    assert_eq!(agent.connections(), 1);
}

#[tokio::test]
async fn without_an_agent_the_connection_is_closed_in_the_end() {
    let lab = Lab::new();
    let podvm = lab.run(&["--agent-wait=1"]).await;
    let mut worker = lab.connect(&podvm).await;
    let mut bytes = BytesMut::new();
    request(1, "Ping", vec![]).put(&mut bytes);
    worker.send(&bytes).await;
    assert_eq!(worker.next().await, None);
    podvm.line("no agent on").await;
}

#[tokio::test]
async fn the_agents_end_is_the_connections_end() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&[]).await;
    let mut worker = lab.connect(&podvm).await;
    worker.call(&request(1, "Ping", vec![])).await;
    let mut bytes = BytesMut::new();
    request(3, "DestroySandbox", vec![]).put(&mut bytes);
    worker.send(&bytes).await;
    assert_eq!(worker.next().await, None, "close_notify, then the end");
}

#[tokio::test]
async fn sigterm_closes_quiet_connections_and_ends_well() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let mut podvm = lab.run(&[]).await;
    let mut worker = lab.connect(&podvm).await;
    worker.call(&request(1, "Ping", vec![])).await;
    podvm.signal(Signal::SIGTERM);
    assert_eq!(worker.next().await, None);
    assert!(podvm.exit().await.success(), "{}", podvm.log());
}

#[tokio::test]
async fn upstreams_forwarder_is_this_one_with_certificates_from_files() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.agent_socket());
    let file = |name: &str, text: &str| {
        std::fs::write(lab.path(name), text).unwrap();
        format!("-{}={}", name, lab.path(name).display())
    };
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_podvm"));
    command.arg0("/usr/local/bin/agent-protocol-forwarder");
    command.arg(file("config", "{\"pod-network\": null}"));
    command.arg(file("cert-file", &lab.certs.server_cert));
    command.arg(file("cert-key", &lab.certs.server_key));
    command.arg(file("ca-cert-file", &lab.certs.client_cert));
    command.args(["-listen", "127.0.0.1:0", "-kata-agent-socket"]).arg(lab.agent_socket());
    let podvm = Podvm::start(command);
    podvm.line("forwarder serves").await;
    assert!(served(podvm.address(), &lab.certs.client()).await);
    let mut none = lab.certs.client();
    none.client_cert_pem.clear();
    none.client_key_pem = peerpod_tunnel::link::Secret::default();
    assert!(!served(podvm.address(), &none).await);
    let seen = until("one connection", || (agent.connections() == 1).then_some(())).await;
    seen.expect("only the right one");
}

#[tokio::test]
async fn no_secret_stands_in_the_log() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&["--log-level=trace"]).await;
    let mut worker = lab.connect(&podvm).await;
    worker.call(&request(1, "SetPolicy", b"SECRET-POLICY".to_vec())).await;
    podvm.signal(Signal::SIGTERM);
    let mut podvm = podvm;
    podvm.exit().await;
    let key = lab.certs.server_key.lines().nth(1).unwrap();
    assert!(!podvm.log().contains(key) && !podvm.log().contains("SECRET-POLICY"));
}
