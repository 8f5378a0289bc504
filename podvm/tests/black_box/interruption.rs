//! A spot VM's end, as each cloud's metadata service says it ahead: asked for only once a worker wants to
//! know, and told to it.

use std::sync::Arc;
use std::time::Duration;

use peerpod_tunnel::link::session::{Interruption, Link};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::lab::{Lab, PATIENCE};
use crate::session::{KEEP, connect, cut, within};
use crate::standin::Agent;

/// What a service does with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// As a cloud that takes nothing back.
    Well,
    TakesBack,
    Fails,
    /// Answers without end.
    Endless,
    /// Answers what that cloud never says.
    Garbage,
}

/// Status, headers and body, or `None` to hold the question back.
type Answer = Option<(u16, String)>;

type Double = fn(&[String], Mood) -> Answer;

struct Service {
    address: String,
    mood: watch::Sender<Mood>,
    /// First lines of the questions.
    asked: watch::Receiver<Vec<String>>,
}

impl Service {
    async fn start(cloud: Double) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (mood, moods) = watch::channel(Mood::Well);
        let (asks, asked) = watch::channel(Vec::new());
        let asks = Arc::new(asks);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, moods.clone(), asks.clone(), cloud));
            }
        });
        Self { address, mood, asked }
    }

    fn be(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Waits for so many questions with that in the first line.
    async fn until_asked(&self, what: &str, times: usize) {
        let mut asked = self.asked.clone();
        let enough = |all: &Vec<String>| all.iter().filter(|l| l.contains(what)).count() >= times;
        within(asked.wait_for(enough)).await.unwrap();
    }

    fn asked(&self) -> Vec<String> {
        self.asked.borrow().clone()
    }
}

async fn answer(
    stream: TcpStream,
    mut moods: watch::Receiver<Mood>,
    asks: Arc<watch::Sender<Vec<String>>>,
    cloud: Double,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        match line.trim_end() {
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    asks.send_modify(|all| all.push(lines[0].clone()));
    let (status, rest) = loop {
        let mood = *moods.borrow_and_update();
        match mood {
            Mood::Endless => {
                stream.write_all(b"HTTP/1.1 200 -\r\n\r\n").await?;
                loop {
                    stream.write_all(&[b' '; 4096]).await?;
                }
            }
            Mood::Garbage => break (200, "\r\n<html>".to_owned()),
            mood => {
                if let Some(answer) = cloud(&lines, mood) {
                    break answer;
                }
            }
        }
        let mut nothing = [0];
        tokio::select! {
            _ = moods.changed() => {}
            _ = stream.read(&mut nothing) => return Ok(()),
        }
    };
    let text = format!("HTTP/1.1 {status} -\r\nconnection: close\r\n{rest}");
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

fn has(lines: &[String], header: &str) -> bool {
    lines.iter().any(|line| line.eq_ignore_ascii_case(header))
}

fn plain(status: u16, body: impl std::fmt::Display) -> Answer {
    Some((status, format!("\r\n{body}")))
}

fn aws(lines: &[String], mood: Mood) -> Answer {
    let action = r#"{"action": "terminate", "time": "2026-11-26T08:22:00Z"}"#;
    match lines[0].as_str() {
        _ if mood == Mood::Fails => plain(503, ""),
        "PUT /latest/api/token HTTP/1.1"
            if has(lines, "x-aws-ec2-metadata-token-ttl-seconds: 21600") =>
        {
            plain(200, "t0ken")
        }
        "GET /latest/meta-data/spot/instance-action HTTP/1.1"
            if has(lines, "x-aws-ec2-metadata-token: t0ken") =>
        {
            if mood == Mood::TakesBack {
                plain(200, action)
            } else {
                plain(404, "")
            }
        }
        _ => plain(401, ""),
    }
}

fn azure(lines: &[String], mood: Mood) -> Answer {
    let event = |resource: &str| {
        format!(
            r#"{{"EventId": "1", "EventStatus": "Scheduled", "EventType": "Preempt",
            "ResourceType": "VirtualMachine", "Resources": ["{resource}"],
            "NotBefore": "Thu, 26 Nov 2026 08:22:00 GMT", "EventSource": "Platform"}}"#
        )
    };
    // That of another VM is always in the list.
    let mut events = vec![event("another")];
    events.extend((mood == Mood::TakesBack).then(|| event("podvm-nginx")));
    let document = format!(r#"{{"DocumentIncarnation": 1, "Events": [{}]}}"#, events.join(", "));
    match lines[0].as_str() {
        _ if mood == Mood::Fails => plain(500, ""),
        _ if !has(lines, "metadata: true") => plain(400, ""),
        "GET /metadata/instance/compute/name?api-version=2021-01-01&format=text HTTP/1.1" => {
            plain(200, "podvm-nginx")
        }
        "GET /metadata/scheduledevents?api-version=2020-07-01 HTTP/1.1" => plain(200, document),
        _ => plain(404, ""),
    }
}

fn gcp(lines: &[String], mood: Mood) -> Answer {
    let (tag, word) = if mood == Mood::TakesBack { ("b2", "TRUE") } else { ("a1", "FALSE") };
    let path = "/computeMetadata/v1/instance/preempted";
    let held = format!("GET {path}?wait_for_change=true&timeout_sec=60&last_etag={tag} HTTP/1.1");
    match &lines[0] {
        _ if mood == Mood::Fails => plain(503, ""),
        _ if !has(lines, "metadata-flavor: Google") => plain(403, ""),
        line if *line == held => None,
        line if line.starts_with(&format!("GET {path}")) => {
            Some((200, format!("etag: {tag}\r\n\r\n{word}")))
        }
        _ => plain(404, ""),
    }
}

/// Name, double, a part of the question's first line, what is told.
const CLOUDS: [(&str, Double, &str, (&str, u64)); 3] = [
    ("aws", aws, "instance-action", ("terminate", 1_795_681_320_000)),
    ("azure", azure, "scheduledevents", ("preempt", 1_795_681_320_000)),
    ("gcp", gcp, "preempted", ("preempt", 0)),
];

fn words((kind, deadline_ms): (&str, u64), source: &str) -> Interruption {
    Interruption { kind: kind.to_owned(), deadline_ms, source: source.to_owned() }
}

fn flags(cloud: &str, service: &Service) -> [String; 2] {
    [format!("--spot-notice={cloud}"), format!("--spot-notice-address={}", service.address)]
}

#[tokio::test]
async fn each_clouds_notice_reaches_the_worker_over_a_cut_and_whoever_asks_later() {
    for (cloud, double, question, told) in CLOUDS {
        let (lab, service) = (Lab::new(), Service::start(double).await);
        let _agent = Agent::start(&lab.agent_socket());
        let [source, address] = flags(cloud, &service);
        let podvm = lab.run(&[&source, &address]).await;
        let link = Link::worker("test", KEEP);
        let connection = connect(podvm.address(), &lab.certs.client(), &link).await;
        within(link.joined()).await.unwrap();
        link.watch();
        // Google's second question is held back, the others come again and again.
        service.until_asked(question, 2).await;
        assert_eq!(link.interruption(), None, "{cloud}");
        cut(connection).await;
        service.be(Mood::TakesBack);
        podvm.line("the cloud takes the VM back").await;
        let _connection = connect(podvm.address(), &lab.certs.client(), &link).await;
        assert_eq!(within(link.interrupted(None)).await, words(told, cloud));
        let later = Link::worker("test", KEEP);
        let _other = connect(podvm.address(), &lab.certs.client(), &later).await;
        later.watch();
        assert_eq!(within(later.interrupted(None)).await, words(told, cloud));
    }
}

#[tokio::test]
async fn nothing_is_asked_in_a_vm_that_is_no_spot_vm() {
    let (lab, service) = (Lab::new(), Service::start(aws).await);
    let _agent = Agent::start(&lab.agent_socket());
    service.be(Mood::TakesBack);
    let [source, address] = flags("aws", &service);
    let podvm = lab.run(&[&source, &address]).await;
    let link = Link::worker("test", KEEP);
    let _connection = connect(podvm.address(), &lab.certs.client(), &link).await;
    within(link.joined()).await.unwrap();
    // Had it been told by itself, it would have come before this answer.
    let mut stream = link.open().expect("open");
    crate::session::call(&mut stream, &crate::calls::request(1, "Ping", vec![])).await;
    assert_eq!((service.asked(), link.interruption()), (Vec::<String>::new(), None));
    // And then it is.
    link.watch();
    within(link.interrupted(None)).await;
}

#[tokio::test]
async fn a_service_that_fails_or_talks_nonsense_is_asked_again() {
    for (cloud, double, _, told) in CLOUDS {
        let (lab, service) = (Lab::new(), Service::start(double).await);
        let _agent = Agent::start(&lab.agent_socket());
        let [source, address] = flags(cloud, &service);
        let podvm = lab.run(&[&source, &address]).await;
        let link = Link::worker("test", KEEP);
        let _connection = connect(podvm.address(), &lab.certs.client(), &link).await;
        link.watch();
        for mood in [Mood::Fails, Mood::Garbage, Mood::Endless] {
            service.be(mood);
            let before = service.asked().len();
            service.until_asked("", before + 1).await;
        }
        podvm.line("asking whether the VM is taken back").await;
        service.be(Mood::TakesBack);
        let said = tokio::time::timeout(PATIENCE, link.interrupted(None)).await;
        assert_eq!(
            said.unwrap_or_else(|_| panic!("{cloud}:\n{}", podvm.log())),
            words(told, cloud)
        );
    }
}

#[tokio::test]
async fn without_a_cloud_the_wish_is_answered_by_nothing_and_does_no_harm() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.agent_socket());
    let podvm = lab.run(&["--spot-notice=none"]).await;
    let link = Link::worker("test", Duration::from_secs(60));
    let _connection = connect(podvm.address(), &lab.certs.client(), &link).await;
    link.watch();
    podvm.line("no cloud is known here").await;
    let mut stream = link.open().expect("open");
    crate::session::call(&mut stream, &crate::calls::request(1, "Ping", vec![])).await;
    assert_eq!((agent.connections(), link.interruption()), (1, None));
}
