use super::*;
use crate::shutdown::Shutdown;
use crate::status::{StatusError, page};

#[derive(Debug)]
struct Fixed(Now);

#[async_trait]
impl Insight for Fixed {
    async fn now(&self) -> Now {
        self.0.clone()
    }
}

struct Served {
    port: u16,
    readiness: Readiness,
    shutdown: Shutdown,
}

async fn served(now: Now) -> Served {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let (readiness, shutdown) = (Readiness::new(), Shutdown::new());
    let pages = Pages {
        about: Arc::new(About { node: "worker-1".to_owned(), ..About::default() }),
        readiness: readiness.clone(),
        metrics: Arc::new(Metrics::new()),
        insight: Arc::new(Fixed(now)),
    };
    shutdown.tracker().spawn("admin", serve(listener, pages, shutdown.token()));
    Served { port, readiness, shutdown }
}

#[tokio::test]
async fn ready_is_the_absence_of_guards_and_the_body_names_them() {
    let served = served(Now::default()).await;
    assert_eq!(page(served.port, "/readyz").await.expect("answer"), (200, "ok\n".to_owned()));
    let relay = served.readiness.guard("relay");
    let provider = served.readiness.guard("provider");
    let (code, body) = page(served.port, "/readyz").await.expect("answer");
    assert_eq!((code, body.as_str()), (503, "not ready, missing: provider, relay\n"));
    drop(relay);
    let (_, body) = page(served.port, "/readyz").await.expect("answer");
    assert_eq!(body, "not ready, missing: provider\n");
    drop(provider);
    assert_eq!(page(served.port, "/readyz").await.expect("answer").0, 200);
}

#[tokio::test]
async fn two_guards_of_one_name_are_both_waited_for() {
    let readiness = Readiness::new();
    let (one, two) = (readiness.guard("relay"), readiness.guard("relay"));
    drop(one);
    assert_eq!(readiness.missing().len(), 1);
    drop(two);
    assert!(readiness.missing().is_empty());
}

#[tokio::test]
async fn started_stays_whatever_is_missing_later() {
    let served = served(Now::default()).await;
    assert_eq!(page(served.port, "/startup").await.expect("answer").0, 503);
    served.readiness.serving();
    let _missing = served.readiness.guard("relay");
    assert_eq!(page(served.port, "/startup").await.expect("answer").0, 200);
    assert_eq!(page(served.port, "/healthz").await.expect("answer").0, 200);
}

#[tokio::test]
async fn status_and_metrics_tell_of_the_relay() {
    let held = crate::relay::Held {
        sandbox: "s1".to_owned(),
        state: "connected".to_owned(),
        target: "10.0.0.2:15150".to_owned(),
        ..Default::default()
    };
    let served = served(Now { relay: Some(vec![held]), ..Now::default() }).await;
    let report = crate::status::ask(served.port).await.expect("a report");
    assert!(report.relay && report.links["s1"].target == "10.0.0.2:15150");
    assert_eq!(report.process.node, "worker-1");
    let (code, text) = page(served.port, "/metrics").await.expect("answer");
    assert_eq!(code, 200);
    assert!(text.contains("kata_peerpodd_relay_connected 1"), "{text}");
    assert_eq!(page(served.port, "/elsewhere").await.expect("answer").0, 404);
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_setting() {
    let served = served(Now::default()).await;
    let error = bind(served.port).await.expect_err("taken").to_string();
    assert!(error.contains("--probe-port (PROBE_PORT)") && error.contains("taken"), "{error}");
}

#[tokio::test]
async fn the_server_ends_when_it_is_told_to() {
    let served = served(Now::default()).await;
    assert!(served.shutdown.drain(Duration::from_secs(30)).await.is_empty());
    let error = page(served.port, "/healthz").await.expect_err("nobody");
    assert!(matches!(error, StatusError::NotRunning { .. }), "{error}");
}

/// Connections that say half a request and nothing more.
async fn slow(port: u16, count: usize) -> Vec<tokio::net::TcpStream> {
    use tokio::io::AsyncWriteExt;
    let mut all = Vec::new();
    for _ in 0..count {
        let mut tcp =
            tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("in");
        tcp.write_all(b"GET /healthz HTTP/1.1\r\nx: ").await.expect("written");
        all.push(tcp);
    }
    all
}

#[tokio::test]
async fn connections_that_hold_on_do_not_keep_a_probe_from_its_answer() {
    use tokio::io::AsyncReadExt;
    let served = served(Now::default()).await;
    let mut held = slow(served.port, 3 * serve::CONNECTIONS).await;
    assert_eq!(page(served.port, "/healthz").await.expect("answer").0, 200);
    // The first of them made room.
    let end = held.first_mut().expect("some").read(&mut [0; 256]).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}
