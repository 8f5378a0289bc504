//! Spot VMs over the local provider, with a metadata service that says on demand that the cloud takes the VM
//! back: the real podvm hears it, and what it says is not lost with node processes and relays.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use peerpod_it::bed::{PATIENCE, signal};
use peerpod_it::{Bed, root};
use peerpod_standin::lab::{Binaries, DaemonOptions, Mode, wait_for};
use peerpod_standin::shim::{Health, Profile};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Where the worker is in the VMs' network; AWS's own address would need a route in each VM.
const AT: &str = "172.31.0.1:8169";

/// AWS's metadata service, as far as a notice goes, on the worker.
struct Service {
    takes_back: watch::Sender<bool>,
    asked: watch::Receiver<usize>,
}

impl Service {
    async fn start(bed: &Bed) -> Self {
        let bind = || Ok::<_, anyhow::Error>(std::net::TcpListener::bind("0.0.0.0:8169")?);
        let listener = bed.lab.network().worker().run(bind).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let (takes_back, word) = watch::channel(false);
        let (asks, asked) = watch::channel(0);
        let asks = Arc::new(asks);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, *word.borrow(), asks.clone()));
            }
        });
        Self { takes_back, asked }
    }

    async fn until_asked(&self) {
        let mut asked = self.asked.clone();
        let now = *asked.borrow();
        let more = asked.wait_for(|n| *n > now + 1);
        tokio::time::timeout(PATIENCE, more).await.expect("podvm asks").unwrap();
    }
}

async fn answer(
    stream: TcpStream,
    takes_back: bool,
    asks: Arc<watch::Sender<usize>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = match head.lines().next().unwrap_or_default() {
        "PUT /latest/api/token HTTP/1.1" => (200, "t0ken"),
        "GET /latest/meta-data/spot/instance-action HTTP/1.1" if takes_back => {
            (200, r#"{"action": "terminate", "time": "2017-09-18T08:22:00Z"}"#)
        }
        _ => (404, ""),
    };
    let text = format!("HTTP/1.1 {status} -\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    asks.send_modify(|n| *n += 1);
    Ok(())
}

async fn bed(mode: Mode, policy: &str) -> Bed {
    let podvm = Binaries::find().unwrap().podvm;
    let flags = format!("--spot-notice=aws --spot-notice-address={AT}");
    let pair = |key: &str, value: String| (key.to_owned(), value);
    let environment = vec![
        pair("LOCAL_PODVM", format!("'{}' run {flags}", podvm.display())),
        pair("SPOT_POLICY", policy.to_owned()),
    ];
    Bed::with(DaemonOptions { mode, environment, ..DaemonOptions::default() }).await.unwrap()
}

/// Waits until the pod's status has the cloud's word; its lines of the timeline.
async fn until_told(bed: &Bed, sandbox: &str) -> Vec<String> {
    let look = || async move {
        let status = bed.status(sandbox).await.unwrap_or_default();
        Ok(status.filter(|s| s["interruption"]["source"] == "aws"))
    };
    let told = wait_for("the notice in the status", PATIENCE, look).await;
    let status = told.map_err(|e| e.context(bed.daemon.log_tail())).unwrap();
    assert_eq!(
        (&status["phase"], &status["spot"]),
        (&"running".into(), &true.into()),
        "{status:#}"
    );
    // A time that long ago is no cloud's.
    assert_eq!(status["interruption"]["deadline_ms"], serde_json::Value::Null, "{status:#}");
    let lines = status["timeline"].as_array().unwrap().iter().map(|m| m["what"].to_string());
    lines.filter(|what| what.contains("takes the VM back: terminate")).collect()
}

async fn metric(bed: &Bed, line: &str) -> bool {
    let (_, text) = bed.daemon.get("/metrics").await.unwrap();
    text.lines().any(|l| l == line)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spot_vms_notice_outlives_node_and_relay_and_names_the_pods_end() {
    let test = "a_spot_vms_notice_outlives_node_and_relay_and_names_the_pods_end";
    if !root(test) {
        return;
    }
    let mut bed = bed(Mode::Separate, "require").await;
    let service = Service::start(&bed).await;
    let (_net, shim) = bed.boot(Profile::GoLike, 1).await.unwrap();
    let sandbox = shim.spec().sandbox.clone();
    service.until_asked().await;
    bed.daemon.kill_node().await.unwrap();
    service.takes_back.send_replace(true);
    let log = bed.lab.dir().logs().join("relay.log");
    let heard = || async {
        let text = std::fs::read_to_string(&log)?;
        Ok(text.contains("the VM says it is taken back").then_some(()))
    };
    let heard = wait_for("the relay to hear it", PATIENCE, heard).await;
    heard.map_err(|e| e.context(bed.daemon.log_tail())).unwrap();
    bed.daemon.start_node(None).await.unwrap();
    assert_eq!(until_told(&bed, &sandbox).await.len(), 1);
    assert!(metric(&bed, "kata_peerpodd_interruptions_total{source=\"aws\"} 1").await);
    // The next relay has it from the one before, and the next node process from both: no news.
    let old = std::sync::Mutex::new(bed.daemon.succeed_relay().await.unwrap());
    let ended = || async { Ok(old.lock().unwrap().try_wait()?) };
    wait_for("the old relay's end", PATIENCE, ended).await.unwrap();
    bed.daemon.kill_node().await.unwrap();
    bed.daemon.start_node(None).await.unwrap();
    assert_eq!(until_told(&bed, &sandbox).await.len(), 1);
    signal(bed.vm_init().unwrap(), Signal::SIGKILL).unwrap();
    let died = tokio::time::timeout(Duration::from_secs(60), shim.died()).await.unwrap();
    assert!(matches!(died, Health::Dead { .. }), "{died:?}");
    drop(shim);
    bed.until_nothing_left().await.unwrap();
    let shown = bed.daemon.peerpodd(&["status", &sandbox]).await.unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let reason = "the spot VM was taken back by the cloud (terminate, notice of aws at 20";
    assert!(shown.contains(reason), "{shown}");
    assert!(metric(&bed, "kata_peerpodd_pods_lost_total{why=\"spot\"} 1").await);
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_vm_that_is_no_spot_vm_nobody_asks() {
    if !root("in_a_vm_that_is_no_spot_vm_nobody_asks") {
        return;
    }
    let bed = bed(Mode::Run, "off").await;
    let service = Service::start(&bed).await;
    service.takes_back.send_replace(true);
    let (_net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let output = shim.exec_tool("say", &["say", "hello"]).await.unwrap().output().await.unwrap();
    assert_eq!(output.stdout.trim_ascii(), b"hello");
    let status = bed.status(&shim.spec().sandbox).await.unwrap().unwrap();
    assert_eq!((&status["spot"], *service.asked.borrow()), (&false.into(), 0), "{status:#}");
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}
