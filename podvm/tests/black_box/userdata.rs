//! User data from every source, and what becomes of them.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use podvm::cloud_config::{self, File};
use podvm::contract;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::calls::request;
use crate::lab::{Lab, Podvm, connect};
use crate::standin::Agent;

fn provision(lab: &Lab, more: &[&str]) -> Podvm {
    let mut args = vec!["process-user-data".to_owned(), "provision-files".to_owned()];
    args.extend(lab.places());
    args.extend(more.iter().map(|&a| a.to_owned()));
    Podvm::spawn(&args)
}

fn file(path: &str, content: &str) -> File {
    File { path: path.to_owned(), content: content.to_owned() }
}

fn mode(lab: &Lab, name: &str) -> u32 {
    lab.path(name).metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn files_are_written_with_their_modes_and_forbidden_ones_are_skipped_and_counted() {
    let lab = Lab::new();
    lab.user_data(&[
        lab.apf(None),
        file(contract::AUTH, "{}"),
        file("/run/peerpod/cdh.toml", "c"),
        file("/etc/shadow", "x"),
        file("/run/peerpod/../evil", "x"),
    ]);
    let mut podvm = provision(&lab, &[]);
    assert!(podvm.exit().await.success(), "{}", podvm.log());
    assert!(podvm.line("user data").await.contains("files=3 skipped=2"), "{}", podvm.log());
    assert_eq!((mode(&lab, "run/apf.json"), mode(&lab, "run/auth.json")), (0o600, 0o600));
    assert_eq!((mode(&lab, "run/cdh.toml"), mode(&lab, "run")), (0o644, 0o755));
    assert!(lab.path("run/aa.toml").exists() && lab.path("run/initdata.digest").exists());
    assert!(!lab.path("evil").exists() && !lab.path("run/shadow").exists());
}

#[tokio::test]
async fn broken_user_data_are_tried_until_the_time_is_over_and_write_nothing() {
    let twice =
        "#cloud-config\nwrite_files:\n- path: /run/peerpod/aa.toml\n- path: /run/peerpod/aa.toml\n";
    for (text, reason) in [
        ("#!/bin/sh\n", "#cloud-config"),
        ("#cloud-config\nwrite_files: [\n", "user data"),
        ("#cloud-config\nruncmd: []\nwrite_files: []\n", "runcmd"),
        (twice, "twice"),
    ] {
        let lab = Lab::new();
        std::fs::write(lab.path("user-data"), text).unwrap();
        let mut podvm = provision(&lab, &["-t", "1"]);
        assert_eq!(podvm.exit().await.code(), Some(1), "{text}");
        podvm.line("no user data within 1s").await;
        assert!(podvm.log().contains(reason), "{text}: {}", podvm.log());
        assert!(!lab.path("run").exists(), "{text}");
    }
}

#[tokio::test]
async fn user_data_that_come_late_are_waited_for() {
    let lab = Lab::new();
    std::fs::remove_file(lab.path("user-data")).unwrap();
    let mut podvm = provision(&lab, &["--source=file"]);
    podvm.line("again_in").await;
    lab.user_data(&[lab.apf(None)]);
    assert!(podvm.exit().await.success(), "{}", podvm.log());
    assert!(lab.path("run/apf.json").exists());
}

/// Comes while there are no user data, and is answered when they are there.
async fn comes_early(lab: &Lab, podvm: &Podvm, address: SocketAddr) {
    let tls = lab.certs.client();
    let early = connect(address, &tls);
    tokio::pin!(early);
    let waits = tokio::select! {
        _ = &mut early => false,
        _ = podvm.line("again_in") => true,
    };
    assert!(waits, "who has no certificate yet has answered");
    lab.user_data(&[lab.apf(None)]);
    early.await.unwrap().call(&request(1, "Ping", vec![])).await;
}

fn without_user_data(lab: &Lab) -> Vec<String> {
    std::fs::remove_file(lab.path("user-data")).unwrap();
    let args = ["run".to_owned(), "--source=file".to_owned()];
    [&args[..], &lab.places(), &lab.serving()].concat()
}

#[tokio::test]
async fn a_worker_that_comes_before_the_user_data_is_answered_when_they_are_there() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let podvm = Podvm::spawn(&without_user_data(&lab));
    let line = podvm.line("listening").await;
    let address = line.split("address=").nth(1).unwrap().trim().parse().unwrap();
    comes_early(&lab, &podvm, address).await;
}

#[tokio::test]
async fn the_service_managers_socket_is_taken() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab.agent_socket());
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // By the protocol: descriptor 3, and who is meant.
    let given = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", given, "sh", env!("CARGO_BIN_EXE_podvm")]).args(without_user_data(&lab));
    command.stdin(std::os::fd::OwnedFd::from(socket));
    comes_early(&lab, &Podvm::start_reading(command), address).await;
}

#[tokio::test]
async fn broken_initdata_end_it_at_once() {
    let lab = Lab::new();
    lab.user_data(&[file(contract::INITDATA, "%%%")]);
    let mut podvm = provision(&lab, &[]);
    assert_eq!(podvm.exit().await.code(), Some(1));
    podvm.line("initdata: not base64").await;
    assert!(!lab.path("run/aa.toml").exists());
}

/// A metadata service: answers what `answer` makes of a request's lines, and 404 for `None`.
async fn metadata(answer: fn(&[String], &str) -> Option<String>, user_data: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                match line.trim_end() {
                    "" => break,
                    text => lines.push(text.to_ascii_lowercase()),
                }
            }
            let (status, body) = match answer(&lines, &user_data) {
                Some(body) => ("200 OK", body),
                None => ("404 Not Found", String::new()),
            };
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(text.as_bytes()).await.unwrap();
        }
    });
    address
}

fn aws(request: &[String], text: &str) -> Option<String> {
    let has = |header: &str| request.iter().any(|l| l == header);
    match request.first()?.as_str() {
        "put /latest/api/token http/1.1" if has("x-aws-ec2-metadata-token-ttl-seconds: 60") => {
            Some("t0ken".to_owned())
        }
        "get /latest/user-data http/1.1" if has("x-aws-ec2-metadata-token: t0ken") => {
            Some(text.to_owned())
        }
        _ => None,
    }
}

fn azure(request: &[String], text: &str) -> Option<String> {
    let line =
        "get /metadata/instance/compute/userdata?api-version=2021-01-01&format=text http/1.1";
    let fine = request.first()? == line && request.iter().any(|l| l == "metadata: true");
    fine.then(|| STANDARD.encode(text))
}

fn gcp(request: &[String], text: &str) -> Option<String> {
    let line = "get /computemetadata/v1/instance/attributes/user-data http/1.1";
    let fine = request.first()? == line && request.iter().any(|l| l == "metadata-flavor: google");
    fine.then(|| STANDARD.encode(text) + "\n")
}

#[tokio::test]
async fn every_cloud_is_asked_in_its_own_way() {
    type Answer = fn(&[String], &str) -> Option<String>;
    let clouds: [(&str, Answer); 3] = [("aws", aws), ("azure", azure), ("gcp", gcp)];
    for (cloud, answer) in clouds {
        let lab = Lab::new();
        let text = cloud_config::render(&[lab.apf(None)]).unwrap();
        let address = metadata(answer, text).await;
        let source = format!("--source={cloud}");
        let mut podvm = provision(&lab, &[&source, &format!("--metadata-address={address}")]);
        assert!(podvm.exit().await.success(), "{cloud}: {}", podvm.log());
        assert!(lab.path("run/apf.json").exists(), "{cloud}");
    }
}

#[tokio::test]
async fn a_service_that_refuses_or_says_too_much_is_named() {
    let lab = Lab::new();
    let address = metadata(|_, _| None, String::new()).await;
    let at = format!("--metadata-address={address}");
    let mut podvm = provision(&lab, &["--source=aws", &at, "-t1"]);
    assert_eq!(podvm.exit().await.code(), Some(1));
    podvm.line("404").await;
    let address = metadata(|_, text| Some(text.repeat(500_000)), "x".to_owned()).await;
    let at = format!("--metadata-address={address}");
    let mut podvm = provision(&lab, &["--source=gcp", &at, "-t1"]);
    assert_eq!(podvm.exit().await.code(), Some(1));
    podvm.line("more than").await;
}
