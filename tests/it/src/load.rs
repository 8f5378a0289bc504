//! Pods that are busy in every way that a restart could disturb: an exec with lines both ways, numbered
//! datagrams and a numbered TCP connection through the tunnel; and pods that come and go beside them.

use std::io::{BufRead, BufReader};
use std::ops::RangeInclusive;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use peerpod_standin::lab::network::{SERVICE, spawn_in};
use peerpod_standin::lab::{Lab, blocking};
use peerpod_standin::shim::{Exec, Profile, Shim};
use peerpod_standin::tool::Tally;
use tokio::task::JoinHandle;

use crate::{Bed, Stream};

const UDP: u16 = 7001;
const TCP: u16 = 7002;

/// An echo server behind the worker.
#[derive(Debug)]
struct Echo(Child);

impl Echo {
    async fn start(lab: &Lab, tool: &'static str, port: u16) -> anyhow::Result<Self> {
        let (network, agent) = (lab.network().clone(), lab.binaries().agent.clone());
        blocking(move || {
            #[allow(clippy::disallowed_methods, reason = "an echo server for the test")]
            let mut command = Command::new(&agent);
            command.args(["tool", tool, &format!("{SERVICE}:{port}")]);
            command.stdin(Stdio::null()).stdout(Stdio::piped());
            let mut echo = Self(spawn_in(network.cluster(), &mut command)?);
            let stdout = echo.0.stdout.take().context("its stdout")?;
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).context("wait for the echo server")?;
            ensure!(line.starts_with("listening"), "the echo server says {line:?}");
            Ok(echo)
        })
        .await
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One busy pod.
#[derive(Debug)]
struct Busy {
    shim: Shim,
    stream: Stream,
    udp: Exec,
    tcp: Exec,
}

/// All of them.
#[derive(Debug)]
pub struct Load {
    pods: Vec<Busy>,
    _servers: [Echo; 2],
}

/// What went through, all of it once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Pods.
    pub pods: usize,
    /// Lines out of execs.
    pub lines_out: u64,
    /// Lines in, and back.
    pub lines_in: u64,
    /// Datagrams to the cluster and back.
    pub datagrams: u64,
    /// Numbers on TCP connections to the cluster and back.
    pub tcp_numbers: u64,
    /// Longest time in which no datagram came back to one of the pods, in milliseconds.
    pub silence_ms: u64,
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pods, lines_out, lines_in, datagrams, tcp_numbers, silence_ms } = self;
        write!(
            f,
            "{pods} pods, 0 ended; {lines_out} lines out, {lines_in} in and back, 0 lost or repeated; \
             {datagrams} datagrams there and back, 0 lost or repeated (longest silence {silence_ms} \
             ms); {tcp_numbers} numbers by TCP, 0 lost"
        )
    }
}

impl Load {
    /// Starts pods of these numbers; each sends a packet of either kind every `interval` ms.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn start(
        bed: &Bed,
        numbers: RangeInclusive<u8>,
        interval: u64,
    ) -> anyhow::Result<Self> {
        let udp = Echo::start(&bed.lab, "udp-echo", UDP).await?;
        let tcp = Echo::start(&bed.lab, "tcp-echo", TCP).await?;
        let mut pods = Vec::new();
        for number in numbers {
            let (_net, shim) = bed.boot(Profile::alternately(number.into()), number).await?;
            pods.push(Busy::start(shim, interval).await?);
        }
        Ok(Self { pods, _servers: [udp, tcp] })
    }

    /// Lines so far, of each pod.
    pub fn seen(&self) -> Vec<(u64, u64)> {
        self.pods.iter().map(|p| p.stream.seen()).collect()
    }

    /// Waits until every pod's exec has moved on in both directions since `before`.
    ///
    /// # Errors
    /// When one stands still or has ended.
    pub async fn moves(&self, before: &[(u64, u64)]) -> anyhow::Result<Vec<(u64, u64)>> {
        let moving = self.pods.iter().zip(before).map(|(p, before)| async move {
            let moved = p.stream.moves(*before).await;
            moved.with_context(|| format!("{} {:?}", p.shim.spec().name, p.shim.health()))
        });
        try_join_all(moving).await
    }

    /// The shims, in the order of their pods' numbers.
    pub fn shims(&self) -> impl Iterator<Item = &Shim> {
        self.pods.iter().map(|p| &p.shim)
    }

    /// Ends the traffic, checks every stream to its last byte and packet, and stops the pods.
    ///
    /// # Errors
    /// With the first thing that is lost, repeated or ended.
    pub async fn finish(self) -> anyhow::Result<Totals> {
        let Self { pods, _servers } = self;
        let done = try_join_all(pods.into_iter().map(Busy::finish)).await?;
        let add = |sum: Totals, one: Totals| Totals {
            pods: sum.pods + one.pods,
            lines_out: sum.lines_out + one.lines_out,
            lines_in: sum.lines_in + one.lines_in,
            datagrams: sum.datagrams + one.datagrams,
            tcp_numbers: sum.tcp_numbers + one.tcp_numbers,
            silence_ms: sum.silence_ms.max(one.silence_ms),
        };
        Ok(done.into_iter().fold(Totals::default(), add))
    }
}

impl Busy {
    async fn start(shim: Shim, interval: u64) -> anyhow::Result<Self> {
        let interval = interval.to_string();
        let stream = Stream::start(&shim, "lines").await?;
        let to = |port| format!("{SERVICE}:{port}");
        let udp =
            shim.exec_tool("datagrams", &["udp-count", &to(UDP), "--interval", &interval]).await?;
        let tcp = shim.exec_tool("tcp", &["tcp-count", &to(TCP), "--interval", &interval]).await?;
        Ok(Self { shim, stream, udp, tcp })
    }

    async fn finish(self) -> anyhow::Result<Totals> {
        let pod = self.shim.spec().name.clone();
        let (lines_out, lines_in) = self.stream.finish().await.with_context(|| pod.clone())?;
        let (udp, tcp) = tokio::join!(tally(&self.udp), tally(&self.tcp));
        let (udp, tcp) = (
            udp.with_context(|| format!("{pod}: datagrams"))?,
            tcp.with_context(|| format!("{pod}: TCP"))?,
        );
        let patient = self.shim.profile() == Profile::GoLike;
        // The Rust shim waits for a second and goes; its StopVM stays with the relay. Whether it
        // came through shows when a look is taken at what is left.
        match self.shim.stop().await {
            Err(error) if patient => return Err(error).context(pod),
            _ => {}
        }
        let (datagrams, tcp_numbers) = (udp.back, tcp.back);
        let silence_ms = udp.silence_ms;
        Ok(Totals { pods: 1, lines_out, lines_in, datagrams, tcp_numbers, silence_ms })
    }
}

async fn tally(exec: &Exec) -> anyhow::Result<Tally> {
    exec.close_stdin().await.context("CloseStdin")?;
    let output = exec.output().await?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let tally: Tally =
        serde_json::from_str(out.trim()).with_context(|| format!("not a tally: {out} {err}"))?;
    ensure!(tally.is_whole(), "{tally:?}");
    Ok(tally)
}

/// Pods that come and go; every start must go through.
#[derive(Debug)]
pub struct Churn {
    lanes: Vec<JoinHandle<anyhow::Result<()>>>,
    over: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Churn {
    /// Starts and stops pods in so many lanes at once until it is finished.
    pub fn start(lab: &Lab, lanes: u8) -> Self {
        let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let lane = |n| tokio::spawn(churn(lab.clone(), n, lanes, over.clone(), done.clone()));
        Self { lanes: (0..lanes).map(lane).collect(), over, done }
    }

    /// Pods started and stopped so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Lets the last ones end; how many there were.
    ///
    /// # Errors
    /// When one did not start or, with the patient shim, did not stop.
    pub async fn finish(self) -> anyhow::Result<u64> {
        self.over.store(true, Ordering::SeqCst);
        for lane in self.lanes {
            lane.await.context("a lane panicked")??;
        }
        Ok(self.done.load(Ordering::SeqCst))
    }
}

async fn churn(
    lab: Lab,
    lane: u8,
    lanes: u8,
    over: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let mut round = 0u8;
    while !over.load(Ordering::SeqCst) {
        // Numbers are addresses in the pods' network, so each lane uses its own ones in turn.
        let pod = 200 + lane + lanes * (round % 2);
        let profile = Profile::alternately(usize::from(round));
        let place = || format!("lane {lane} round {round}");
        let (net, spec) = lab.add_pod(pod).await.with_context(place)?;
        let shim = Shim::boot(profile, &lab.dir().socket(), spec).await.with_context(place)?;
        // The Rust shim waits for one second and then leaves as if it had been stopped; its StopVM
        // stays with the relay. The look at the end tells whether it came through.
        match shim.stop().await {
            Err(error) if profile == Profile::GoLike => return Err(error).with_context(place),
            _ => {}
        }
        lab.network().remove_pod(&net).with_context(place)?;
        round = round.wrapping_add(1);
        done.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}
