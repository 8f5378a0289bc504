//! The stand-in agent as a shim sees it, over its own socket.
#![allow(missing_docs, clippy::expect_used)]

use std::path::PathBuf;
use std::time::Duration;

use peerpod_standin::agent::{Agent, Effect, Options, Rule};
use peerpod_standin::messages::agent::Empty;
use peerpod_standin::messages::code;
use peerpod_standin::shim::rpc::{CallError, Connection};
use peerpod_standin::shim::{AgentClient, Container, PodSpec, Profile};
use peerpod_standin::tool::Checker;
use tokio::task::JoinHandle;

struct Lab {
    dir: tempfile::TempDir,
    served: JoinHandle<()>,
    client: AgentClient,
}

impl Lab {
    async fn new(faults: Vec<Rule>) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let listen = dir.path().join("kata-containers/agent.sock");
        let options = Options {
            listen: listen.clone(),
            record: Some(dir.path().join("record.json")),
            control: Some(dir.path().join("control.json")),
            faults,
            executable: Some(PathBuf::from(env!("CARGO_BIN_EXE_standin-agent"))),
        };
        let agent = Agent::bind(options).expect("listen");
        let served = tokio::spawn(async move { agent.serve().await.expect("serve") });
        let client = AgentClient::connect(Profile::RsLike, &listen).await.expect("connect");
        Self { dir, served, client }
    }

    fn pod() -> PodSpec {
        let (sandbox, name) = ("s1".to_owned(), "pod-1".to_owned());
        PodSpec { sandbox, name, dns: vec!["nameserver 10.96.0.10".into()], ..PodSpec::default() }
    }

    async fn container(&self, id: &str, args: &[&str]) {
        let container = Container::tool(id, args);
        self.client.create_container(&Self::pod(), &container).await.expect("create");
        self.client.start_container(id).await.expect("start");
    }
}

#[tokio::test]
async fn a_container_runs_and_everybody_who_waits_learns_its_status() {
    let lab = Lab::new(Vec::new()).await;
    lab.client.create_sandbox(&Lab::pod()).await.expect("sandbox");
    lab.container("c1", &["cat"]).await;
    let process = lab.client.process("c1", "");
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let process = process.clone();
            tokio::spawn(async move { process.wait().await })
        })
        .collect();
    assert_eq!(process.write_stdin("hello ").await, Ok(6));
    assert_eq!(process.read_stdout().await.expect("read"), "hello ");
    assert_eq!(process.write_stdin("world").await, Ok(5));
    assert_eq!(process.read_stdout().await.expect("read"), "world");
    // Asked before the process can end: the first waiter that learns its status takes it away.
    let (end, closed) = tokio::join!(process.read_stdout(), process.close_stdin());
    closed.expect("close");
    assert_eq!(end.expect("the end"), "");
    for waiter in waiters {
        assert_eq!(waiter.await.expect("join"), Ok(0));
    }
    assert_eq!(process.wait().await.expect_err("forgotten").code(), Some(code::NOT_FOUND));
    let nobody = lab.client.wait("c2", "").await.expect_err("unknown");
    assert_eq!(nobody.code(), Some(code::INVALID_ARGUMENT));
    let dump = lab.client.dump().await.expect("dump");
    assert_eq!(dump.dns, ["nameserver 10.96.0.10"]);
    assert_eq!(dump.sandbox.as_deref(), Some("s1"));
    assert_eq!(dump.counts["ReadStdout"], 3);
    let file = std::fs::read(lab.dir.path().join("record.json")).expect("record");
    let file: peerpod_standin::agent::Dump = serde_json::from_slice(&file).expect("JSON");
    assert_eq!(file.sandbox, dump.sandbox);
}

#[tokio::test]
async fn execs_write_to_both_outputs_end_with_their_status_and_take_signals() {
    let lab = Lab::new(Vec::new()).await;
    lab.container("c1", &["sleep"]).await;
    let say = ["standin-agent", "tool", "say", "--status", "3", "to", "stdout"];
    let exec = lab.client.exec("c1", "e1", &say).await.expect("exec");
    let output = exec.output().await.expect("output");
    assert_eq!((output.status, &output.stdout[..]), (3, &b"to stdout\n"[..]));
    let say = ["standin-agent", "tool", "say", "--stderr", "to stderr"];
    let output = lab.client.exec("c1", "e2", &say).await.expect("exec").output().await;
    assert_eq!(output.expect("output").stderr, b"to stderr\n");
    let sleep = ["standin-agent", "tool", "sleep"];
    let exec = lab.client.exec("c1", "e3", &sleep).await.expect("exec");
    exec.signal(15).await.expect("signal");
    assert_eq!(exec.wait().await, Ok(15));
    let exec = lab.client.exec("c1", "e4", &sleep).await.expect("exec");
    lab.client.signal("c1", "", 9).await.expect("all of the container");
    assert_eq!(exec.wait().await, Ok(9));
    assert_eq!(lab.client.wait("c1", "").await, Ok(9));
    let nothing = lab.client.exec("c1", "e5", &["/no/such/program"]).await.expect("exec");
    assert_eq!(nothing.output().await.expect("output").status, 127);
    lab.client.remove_container("c1", 5).await.expect("remove");
    lab.client.remove_container("c1", 5).await.expect_err("gone");
}

#[tokio::test]
async fn many_calls_are_in_flight_and_none_waits_for_another() {
    let lab = Lab::new(Vec::new()).await;
    lab.container("c1", &["cat"]).await;
    let process = lab.client.process("c1", "");
    let blocked: Vec<_> = (0..20)
        .map(|_| {
            let process = process.clone();
            tokio::spawn(async move { process.wait().await })
        })
        .collect();
    let reader = process.clone();
    let read = tokio::spawn(async move { reader.read_stdout().await });
    assert_eq!(lab.client.check().await, Ok(true));
    assert_eq!(lab.client.version().await.expect("version").agent_version, "4.1.0");
    process.write_stdin("x").await.expect("write");
    assert_eq!(read.await.expect("join").expect("read"), "x");
    process.write_stdin("").await.expect("an empty write ends stdin");
    for waiter in blocked {
        assert_eq!(waiter.await.expect("join"), Ok(0));
    }
}

#[tokio::test]
async fn counting_both_ways_loses_nothing() {
    let lab = Lab::new(Vec::new()).await;
    lab.container("c1", &["sleep"]).await;
    let args = ["standin-agent", "tool", "count", "--interval", "1"];
    let exec = lab.client.exec("c1", "count", &args).await.expect("exec");
    let mut checker = Checker::default();
    while checker.seen().0 < 50 || checker.seen().1 < 50 {
        exec.write_stdin(checker.next_line()).await.expect("write");
        checker.take(&exec.read_stdout().await.expect("read")).expect("nothing lost");
    }
    exec.close_stdin().await.expect("close");
    let output = exec.output().await.expect("output");
    checker.take(&output.stdout).expect("nothing lost");
    checker.finish().expect("all there");
    assert_eq!(output.status, 0);
}

#[tokio::test]
async fn unknown_calls_are_unimplemented_and_recorded() {
    let lab = Lab::new(Vec::new()).await;
    let error = lab.client.call::<_, Empty>("CallOfKata9", &Empty {}).await.expect_err("unknown");
    assert_eq!(error.code(), Some(code::UNIMPLEMENTED));
    let raw = lab.client.rpc().raw(("grpc.Future", "Do"), vec![8, 1].into(), None).await;
    assert_eq!(raw.expect_err("unknown").code(), Some(code::UNIMPLEMENTED));
    let dump = lab.client.dump().await.expect("dump");
    assert_eq!(dump.unknown, ["grpc.AgentService/CallOfKata9", "grpc.Future/Do"]);
    let kept = dump.calls.iter().find(|c| c.method == "Do").expect("kept");
    assert_eq!(kept.bytes(), vec![8, 1]);
}

#[tokio::test]
async fn a_container_without_a_linux_part_is_refused() {
    let lab = Lab::new(Vec::new()).await;
    let request = peerpod_standin::messages::agent::CreateContainerRequest::default();
    let answer = lab.client.call::<_, Empty>("CreateContainer", &request).await;
    assert_eq!(answer.expect_err("refused").code(), Some(code::INTERNAL));
}

#[tokio::test]
async fn files_come_together_from_chunks_and_oom_events_from_the_test() {
    let lab = Lab::new(Vec::new()).await;
    let content = "x".repeat((1 << 20) + 5);
    lab.client.copy_file("/run/a", content.as_bytes()).await.expect("copy");
    lab.client.copy_file("/run/empty", b"").await.expect("copy");
    let (client, waiting) = (lab.client.clone(), lab.client.clone());
    let event = tokio::spawn(async move { waiting.oom_event().await });
    client.inject_oom("c7").await.expect("inject");
    assert_eq!(event.await.expect("join"), Ok("c7".to_owned()));
    let dump = client.dump().await.expect("dump");
    assert!(dump.files["/run/a"].complete && dump.files["/run/a"].text == content);
    assert!(dump.files["/run/empty"].complete);
}

#[tokio::test]
async fn destroy_sandbox_answers_and_then_the_agent_ends() {
    let lab = Lab::new(Vec::new()).await;
    lab.client.create_sandbox(&Lab::pod()).await.expect("sandbox");
    let path = lab.dir.path().join("kata-containers/agent.sock");
    assert!(path.parent().is_some_and(|p| p.is_dir()) && !path.exists(), "as the real one does");
    Connection::connect(&path).await.expect_err("new connections fail now");
    lab.client.destroy_sandbox().await.expect("answered");
    let ended = tokio::time::timeout(Duration::from_secs(10), lab.served).await;
    ended.expect("it ends soon").expect("in order");
    lab.client.rpc().closed().await;
}

#[tokio::test]
async fn faults_strike_as_told() {
    let rules = vec![
        Rule::always("Version", Effect::Hang),
        Rule::once("GetMetrics", Effect::OutOfOrder),
        Rule::once("GetGuestDetails", Effect::Large),
        Rule::always("SetPolicy", Effect::Refuse(code::PERMISSION_DENIED, "no".into())),
    ];
    let lab = Lab::new(rules).await;
    let limit = Some(Duration::from_millis(50));
    let hung = lab.client.rpc().raw(("grpc.Health", "Version"), Default::default(), limit).await;
    assert!(matches!(hung, Err(CallError::Deadline { .. })), "{hung:?}");
    let denied = lab.client.set_policy("package agent_policy").await.expect_err("denied");
    assert_eq!(denied.code(), Some(code::PERMISSION_DENIED));
    let held = {
        let client = lab.client.clone();
        tokio::spawn(async move { client.metrics().await })
    };
    while !lab.client.dump().await.expect("dump").counts.contains_key("GetMetrics") {}
    assert_eq!(lab.client.check().await, Ok(true));
    assert!(held.await.expect("join").expect("metrics").contains("kata_agent"));
    let details = lab.client.guest_details().await.expect("4 MiB of answer");
    assert_eq!(details.agent_details.expect("details").version, "4.1.0");
    lab.client.set_faults(&[Rule::once("Check", Effect::Eof)]).await.expect("faults");
    let cut = lab.client.check().await.expect_err("cut");
    assert_eq!(cut, CallError::Closed("Check".to_owned()));
}

#[tokio::test]
async fn a_control_file_changes_the_rules() {
    let lab = Lab::new(Vec::new()).await;
    assert_eq!(lab.client.check().await, Ok(true));
    let rules = vec![Rule::once("Check", Effect::Exit)];
    let text = serde_json::to_vec(&rules).expect("JSON");
    std::fs::write(lab.dir.path().join("control.json"), text).expect("write");
    lab.client.check().await.expect_err("exits");
    lab.served.await.expect("ended");
}
