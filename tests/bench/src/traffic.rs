//! Senders and receivers of plain TCP and UDP on threads of the bench, each in a network namespace.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use peerpod_netlink::Netns;

use crate::machine::network_cpu;

/// How long one stream is sent.
const SPELL: Duration = Duration::from_millis(250);
/// A receiver that hears nothing for so long gives up.
const PATIENCE: Duration = Duration::from_secs(5);
/// A prime, so that bytes that are lost or repeated show.
const PATTERN: usize = 65_521;
/// Payload of a small packet.
const SMALL: usize = 64;
/// Room for what arrives while the receiver has no CPU.
const ROOM: usize = 64 << 20;

/// Somebody with an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) netns: &'a Netns,
    pub(crate) address: Ipv4Addr,
}

/// What one spell has brought.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brought {
    /// Bytes or packets that arrived.
    pub(crate) count: f64,
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// CPU time of senders, receivers and all that the kernel did for them; nanoseconds.
    pub(crate) cpu: f64,
    /// Part that did not arrive.
    pub(crate) lost: f64,
}

/// A TCP stream from each first to each second at the same time. `check` compares every byte.
pub(crate) fn tcp(ways: &[(End<'_>, End<'_>)], check: bool) -> anyhow::Result<Brought> {
    let pattern = pattern();
    let mut joined = Vec::new();
    for (from, to) in ways {
        joined.push(join(*from, *to)?);
    }
    let (begin, cpu) = (Instant::now(), network_cpu()?);
    let count = std::thread::scope(|scope| {
        let mut receivers = Vec::new();
        for (sender, receiver) in joined {
            scope.spawn(|| send(sender, &pattern));
            receivers.push(scope.spawn(|| receive(receiver, check.then_some(&pattern))));
        }
        receivers.into_iter().map(|r| joined_with(r.join())).sum::<anyhow::Result<usize>>()
    })?;
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), network_cpu()? - cpu);
    Ok(Brought { count: count as f64, seconds, cpu, lost: 0.0 })
}

/// Small packets from one to the other, as many as go.
pub(crate) fn udp(from: End<'_>, to: End<'_>) -> anyhow::Result<Brought> {
    let receiver = bound(to)?;
    setsockopt(&receiver, sockopt::RcvBufForce, &ROOM).context("a large receive buffer")?;
    receiver.set_read_timeout(Some(Duration::from_millis(20)))?;
    let sender = bound(from)?;
    sender.connect(receiver.local_addr()?)?;
    // The first one waits for an answer to ARP.
    until_heard(&sender, &receiver)?;
    let over = AtomicBool::new(false);
    let (begin, cpu) = (Instant::now(), network_cpu()?);
    let (sent, seconds, arrived) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| count(&receiver, &over));
        let sent = flood(&sender);
        let seconds = begin.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        Ok::<_, anyhow::Error>((sent?, seconds, joined_with(receiver.join())?))
    })?;
    let cpu = network_cpu()? - cpu;
    let lost = 1.0 - arrived as f64 / sent as f64;
    Ok(Brought { count: arrived as f64, seconds, cpu, lost })
}

fn joined_with<T>(done: std::thread::Result<anyhow::Result<T>>) -> anyhow::Result<T> {
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn pattern() -> Vec<u8> {
    (0..PATTERN).map(|n| (n.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

fn within<T: Send>(
    netns: &Netns,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> anyhow::Result<T> {
    Ok(netns.run(|| Ok::<_, peerpod_netlink::Error>(work()))??)
}

fn bound(end: End<'_>) -> anyhow::Result<UdpSocket> {
    within(end.netns, || UdpSocket::bind((end.address, 0)))
}

/// Both ends of a new TCP connection.
fn join(from: End<'_>, to: End<'_>) -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = within(to.netns, || TcpListener::bind((to.address, 0)))?;
    let at: SocketAddr = listener.local_addr()?;
    let sender = within(from.netns, || TcpStream::connect_timeout(&at, PATIENCE));
    let sender = sender.with_context(|| format!("{} connects to {at}", from.address))?;
    let (receiver, _) = listener.accept()?;
    for stream in [&sender, &receiver] {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((sender, receiver))
}

fn send(mut to: TcpStream, pattern: &[u8]) -> std::io::Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < SPELL {
        to.write_all(pattern)?;
    }
    to.shutdown(std::net::Shutdown::Write)
}

fn receive(mut from: TcpStream, check: Option<&Vec<u8>>) -> anyhow::Result<usize> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0usize;
    loop {
        let some = from.read(&mut buffer)?;
        if some == 0 {
            ensure!(total > 0 && total.is_multiple_of(PATTERN), "a stream ended too early");
            return Ok(total);
        }
        if let Some(pattern) = check {
            let read = buffer.get(..some).unwrap_or_default();
            let wanted = pattern.iter().cycle().skip(total % PATTERN);
            ensure!(read.iter().zip(wanted).all(|(a, b)| a == b), "a byte is another one");
        }
        total += some;
    }
}

fn until_heard(sender: &UdpSocket, receiver: &UdpSocket) -> anyhow::Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        sender.send(&[0; SMALL])?;
        if receiver.recv(&mut [0; SMALL]).is_ok() {
            return Ok(());
        }
    }
    bail!("no packet arrived within {PATIENCE:?}");
}

fn flood(sender: &UdpSocket) -> anyhow::Result<usize> {
    let (begin, mut sent) = (Instant::now(), 0);
    while begin.elapsed() < SPELL {
        for _ in 0..64 {
            sender.send(&[1; SMALL])?;
        }
        sent += 64;
    }
    Ok(sent)
}

fn count(receiver: &UdpSocket, over: &AtomicBool) -> anyhow::Result<usize> {
    let (mut buffer, mut arrived) = ([0; SMALL + 1], 0);
    loop {
        match receiver.recv(&mut buffer) {
            Ok(length) => {
                ensure!(length == SMALL, "a packet of {length} bytes");
                arrived += 1;
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if over.load(Ordering::Relaxed) {
                    return Ok(arrived);
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
}
