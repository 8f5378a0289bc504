//! Both shim profiles against a daemon that only records, and the stand-in agent.
#![allow(missing_docs, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use peerpod_standin::agent::{Agent, Options};
use peerpod_standin::messages::hypervisor::{CreateVmRequest, CreateVmResponse};
use peerpod_standin::shim::{Container, KEYS, PodSpec, Profile, Shim};
use peerpod_tunnel::link::frame::{FrameReader, Request, Response};
use prost::Message;
use tokio::net::UnixListener;

/// Connection, stream id, method, deadline in seconds.
type Seen = (u64, u32, String, i64);

#[derive(Default)]
struct Daemon {
    seen: Mutex<Vec<Seen>>,
    created: Mutex<Option<CreateVmRequest>>,
    closed: Mutex<u64>,
}

impl Daemon {
    async fn serve(self: Arc<Self>, listener: UnixListener, agent: PathBuf) {
        let mut number = 0;
        while let Ok((stream, _)) = listener.accept().await {
            number += 1;
            let (daemon, agent) = (self.clone(), agent.clone());
            tokio::spawn(async move {
                let (reader, mut writer) = stream.into_split();
                let mut reader = FrameReader::new(reader, None);
                while let Ok(Some(frame)) = reader.next().await {
                    let request = Request::parse(&frame.payload).expect("request");
                    let payload = daemon.answer(number, frame.stream, &request, &agent);
                    let response = Response { status: None, payload: payload.into() };
                    response.frame(frame.stream).write(&mut writer).await.expect("answer");
                }
                *daemon.closed.lock().expect("lock") += 1;
            });
        }
    }

    fn answer(&self, number: u64, stream: u32, request: &Request, agent: &Path) -> Vec<u8> {
        let seconds = request.timeout_nano / 1_000_000_000;
        let seen = (number, stream, request.method.clone(), seconds);
        self.seen.lock().expect("lock").push(seen);
        if request.method != "CreateVM" {
            return Vec::new();
        }
        let created = CreateVmRequest::decode(request.payload.clone()).expect("CreateVM");
        *self.created.lock().expect("lock") = Some(created);
        CreateVmResponse { agent_socket_path: agent.display().to_string() }.encode_to_vec()
    }

    fn calls(&self) -> Vec<Seen> {
        self.seen.lock().expect("lock").clone()
    }
}

struct Lab {
    dir: tempfile::TempDir,
    daemon: Arc<Daemon>,
    agent: Arc<Agent>,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let listen = dir.path().join("kata-containers/agent.sock");
        let executable = Some(PathBuf::from(env!("CARGO_BIN_EXE_standin-agent")));
        let options = Options { listen: listen.clone(), executable, ..Options::default() };
        let agent = Arc::new(Agent::bind(options).expect("listen"));
        let serving = agent.clone();
        tokio::spawn(async move { serving.serve().await });
        let daemon = Arc::new(Daemon::default());
        let listener = UnixListener::bind(dir.path().join("hypervisor.sock")).expect("listen");
        tokio::spawn(daemon.clone().serve(listener, listen));
        Self { dir, daemon, agent }
    }

    async fn boot(&self, profile: Profile) -> Shim {
        let pod = PodSpec {
            sandbox: "s1".into(),
            name: "pod-1".into(),
            namespace: "default".into(),
            netns: "/run/netns/x".into(),
            ..PodSpec::default()
        };
        let socket = self.dir.path().join("hypervisor.sock");
        Shim::boot(profile, &socket, pod).await.expect("boot")
    }

    /// Methods of the agent in the order of their first call; those that blocked are in it, too.
    fn agent_calls(&self) -> Vec<String> {
        self.agent.dump().calls.into_iter().map(|c| c.method).collect()
    }
}

fn call(connection: u64, stream: u32, method: &str, seconds: i64) -> Seen {
    (connection, stream, method.to_owned(), seconds)
}

#[tokio::test]
async fn the_go_like_shim_dials_anew_for_each_call_and_destroys_the_sandbox() {
    let lab = Lab::new();
    let shim = lab.boot(Profile::GoLike).await;
    assert_eq!(lab.agent.dump().connections, 1);
    assert_eq!(lab.agent.dump().counts["Check"], 1);
    shim.stop().await.expect("stop");
    let wanted = [call(1, 1, "CreateVM", 0), call(2, 1, "StartVM", 600), call(3, 1, "StopVM", 0)];
    assert_eq!(lab.daemon.calls(), wanted);
    assert!(lab.agent_calls().contains(&"DestroySandbox".to_owned()));
    let created = lab.daemon.created.lock().expect("lock").clone().expect("created");
    assert_eq!(created.annotations.len(), KEYS.len());
    assert!(KEYS.iter().all(|k| created.annotations.contains_key(*k)));
}

#[tokio::test]
async fn the_rs_like_shim_keeps_one_connection_and_stops_three_times() {
    let lab = Lab::new();
    let mut shim = lab.boot(Profile::RsLike).await;
    shim.run_container(&Container::tool("c1", &["cat"])).await.expect("container");
    let dump = lab.agent.dump();
    assert_eq!((dump.connections, dump.spoken), (2, 1), "the second stays silent");
    assert_eq!(dump.counts.get("Check"), None);
    let first: Vec<_> = lab.agent_calls().into_iter().take(2).collect();
    assert_eq!(first, ["CreateSandbox", "GetGuestDetails"]);
    shim.stop().await.expect("stop");
    let mut wanted = vec![call(1, 1, "CreateVM", 0), call(1, 3, "StartVM", 10_000)];
    wanted.extend([5, 7, 9].map(|stream| call(1, stream, "StopVM", 1)));
    assert_eq!(lab.daemon.calls(), wanted);
    assert!(!lab.agent_calls().contains(&"DestroySandbox".to_owned()));
}

#[tokio::test]
async fn a_crash_of_the_go_like_shim_is_create_again_and_stop() {
    let lab = Lab::new();
    let shim = lab.boot(Profile::GoLike).await;
    shim.crash().await.expect("crash");
    let methods: Vec<_> = lab.daemon.calls().into_iter().map(|c| c.2).collect();
    assert_eq!(methods, ["CreateVM", "StartVM", "CreateVM", "StopVM"]);
}

#[tokio::test]
async fn a_crash_of_the_rs_like_shim_closes_everything_and_says_nothing() {
    let lab = Lab::new();
    let shim = lab.boot(Profile::RsLike).await;
    shim.crash().await.expect("crash");
    while *lab.daemon.closed.lock().expect("lock") == 0 {
        tokio::task::yield_now().await;
    }
    let methods: Vec<_> = lab.daemon.calls().into_iter().map(|c| c.2).collect();
    assert_eq!(methods, ["CreateVM", "StartVM"]);
}

#[tokio::test]
async fn the_rs_like_shim_notices_eof_at_once_and_stops_the_vm() {
    let lab = Lab::new();
    let shim = lab.boot(Profile::RsLike).await;
    let rules = [peerpod_standin::agent::Rule::once("Check", peerpod_standin::agent::Effect::Eof)];
    lab.agent.set_faults(rules.to_vec());
    let _ = shim.agent().expect("agent").check().await;
    let health = shim.died().await;
    assert!(
        matches!(health, peerpod_standin::shim::Health::Dead { stop_sent: true, .. }),
        "{health:?}"
    );
    assert_eq!(lab.daemon.calls().iter().filter(|c| c.2 == "StopVM").count(), 3);
}
