//! Peers that break the protocol lose their connection; nobody else notices.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::calls::request;
use crate::lab::Lab;
use crate::standin::Agent;

#[tokio::test]
async fn a_broken_frame_costs_its_connection_only() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&["--frame-stall=1"]).await;
    let mut bystander = lab.connect(&podvm).await;
    let cases: [(&[u8], &str); 4] = [
        (&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0], "the limit is 4194304"),
        (&[0, 0, 0, 0, 0, 0, 0, 1, 9, 0], "unknown type 9"),
        (&[0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "stream 0"),
        (&[0, 0, 0], "did not come within"),
    ];
    for (n, (bytes, reason)) in cases.into_iter().enumerate() {
        let mut worker = lab.connect(&podvm).await;
        worker.send(bytes).await;
        assert_eq!(worker.next().await, None, "{reason}");
        podvm.line(reason).await;
        let stream = 2 * u32::try_from(n).unwrap() + 1;
        assert_eq!(bystander.call(&request(stream, "Ping", vec![])).await.stream, stream);
    }
}

#[tokio::test]
async fn what_is_no_tls_is_refused_and_half_a_frame_at_the_end_too() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&[]).await;
    let mut plain = TcpStream::connect(podvm.address()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut back = Vec::new();
    let _ = plain.read_to_end(&mut back).await;
    podvm.line("TLS handshake").await;
    let mut cut = lab.connect(&podvm).await;
    cut.call(&request(1, "Ping", vec![])).await;
    cut.send(&[0, 0, 0, 9, 0, 0, 0, 1, 1, 0, 7]).await;
    cut.writer.shutdown().await.unwrap();
    assert_eq!(cut.next().await, None);
    podvm.line("closed after").await;
    lab.connect(&podvm).await.call(&request(1, "Ping", vec![])).await;
}

#[tokio::test]
async fn more_silent_peers_than_handshakes_do_not_lock_the_worker_out() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&[]).await;
    let mut silent = Vec::new();
    for _ in 0..70 {
        silent.push(TcpStream::connect(podvm.address()).await.unwrap());
    }
    lab.connect(&podvm).await.call(&request(1, "Ping", vec![])).await;
}
