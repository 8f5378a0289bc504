//! The rival's programs, seen from here: orders and answers of `rival/daemon.go` and
//! `rival/client.go`.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, bail};
use peerpod_netlink::Netns;
use serde::{Deserialize, Serialize};

use crate::program::{Program, Start};

/// A tunnel as the rival makes it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Tunnel {
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) remote: String,
    pub(crate) netns: String,
    pub(crate) interface: String,
}

/// What the daemon is asked.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Order<'a> {
    pub(crate) op: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tunnel: Option<Tunnel>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) fill: Vec<Tunnel>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) park: &'a str,
}

/// What it says. Times in nanoseconds.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) wall: f64,
    pub(crate) cpu: f64,
    pub(crate) launches: u64,
    /// CLOCK_MONOTONIC.
    pub(crate) at: f64,
    pub(crate) issued: Option<Issued>,
    #[serde(default)]
    error: String,
}

/// Certificate, key and anchor for a VM, PEM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Issued {
    pub(crate) cert: String,
    pub(crate) key: String,
    pub(crate) client_ca: String,
}

#[derive(Deserialize)]
struct Ready {
    ready: bool,
}

/// The rival's daemon.
#[derive(Debug)]
pub(crate) struct Daemon(pub(crate) Program);

impl Daemon {
    pub(crate) fn start(program: &Path, dir: &Path, netns: Option<&Netns>) -> anyhow::Result<Self> {
        let start = Start { program, log: dir.join("rival-daemon.log"), netns };
        let mut daemon = start.with(["daemon"])?;
        wait_ready(&mut daemon)?;
        Ok(Self(daemon))
    }

    pub(crate) fn ask(&mut self, order: &Order<'_>) -> anyhow::Result<Answer> {
        self.0.tell(order)?;
        self.hear().with_context(|| format!("rival: {} {}", order.op, order.id))
    }

    pub(crate) fn hear(&mut self) -> anyhow::Result<Answer> {
        let answer: Answer = self.0.hear()?;
        if !answer.error.is_empty() {
            bail!("{}", answer.error);
        }
        Ok(answer)
    }
}

/// A client with one standing connection.
#[derive(Debug)]
pub(crate) struct Client(Program);

/// What a client is asked: `count` calls of `size` bytes, `in_flight` at a time.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Load {
    /// `write`, `read` or `check`.
    pub(crate) kind: &'static str,
    pub(crate) size: usize,
    pub(crate) count: usize,
    pub(crate) in_flight: usize,
}

/// Times in nanoseconds.
#[derive(Debug, Deserialize)]
pub(crate) struct Timing {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) wall: f64,
    pub(crate) bytes: f64,
    #[serde(default)]
    error: String,
}

impl Client {
    pub(crate) fn connect(program: &Path, log: &Path, socket: &Path) -> anyhow::Result<Self> {
        let start = Start { program, log: log.to_owned(), netns: None };
        let socket = socket.to_str().context("socket path is not UTF-8")?;
        let mut client = start.with(["client", "-socket", socket])?;
        wait_ready(&mut client)?;
        Ok(Self(client))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    pub(crate) fn run(&mut self, load: &Load) -> anyhow::Result<Timing> {
        let timing: Timing = self.0.ask(load)?;
        if !timing.error.is_empty() {
            bail!("{load:?}: {}", timing.error);
        }
        Ok(timing)
    }
}

fn wait_ready(program: &mut Program) -> anyhow::Result<()> {
    let ready: Ready = program.hear()?;
    if !ready.ready {
        bail!("the rival says that it is not ready");
    }
    Ok(())
}
