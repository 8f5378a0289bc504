//! Numbered packets to an echo server and back, for as long as stdin is open: none may be lost or come
//! twice, in neither direction, whatever dies meanwhile.
//!
//! ```text
//!   UDP  0, 1, 2 …  one datagram every interval      each comes back once, or is lost, or repeated
//!   TCP  the same as 8 bytes each on one connection   each comes back in order
//!   at the end of stdin: what is still under way is waited for, then one line of JSON
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

/// How long the last packets may take to come back.
const STRAGGLERS: Duration = Duration::from_secs(5);
/// How often a waiting reader looks whether all is over.
const LOOK: Duration = Duration::from_millis(50);
/// A datagram's size: the number, and as much as a small request has.
const DATAGRAM: usize = 128;

/// Where to, and how often.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Sequence {
    /// The echo server.
    pub to: SocketAddr,
    /// Milliseconds between two packets.
    #[arg(long, default_value_t = 10)]
    pub interval: u64,
}

/// How it went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Packets sent.
    pub sent: u64,
    /// Of those, how many came back.
    pub back: u64,
    /// How many never did.
    pub lost: u64,
    /// How many came back more than once.
    pub repeated: u64,
    /// How many came back after one with a higher number.
    pub overtaken: u64,
    /// Longest time between two that came back, in milliseconds.
    pub silence_ms: u64,
    /// What ended it before its time.
    pub error: Option<String>,
}

impl Tally {
    /// Whether every packet came back once.
    pub fn is_whole(&self) -> bool {
        self.error.is_none() && self.sent == self.back && self.repeated == 0 && self.sent > 0
    }
}

/// What came back so far.
#[derive(Debug)]
struct Seen {
    times: Vec<u8>,
    highest: u64,
    overtaken: u64,
    last: Instant,
    silence: Duration,
}

impl Seen {
    fn new() -> Self {
        let last = Instant::now();
        Self { times: Vec::new(), highest: 0, overtaken: 0, last, silence: Duration::ZERO }
    }

    fn take(&mut self, number: u64) -> anyhow::Result<()> {
        let index = usize::try_from(number).context("number")?;
        ensure!(index < 100_000_000, "number {number} was never sent");
        if self.times.len() <= index {
            self.times.resize(index + 1, 0);
        }
        self.times[index] = self.times[index].saturating_add(1);
        self.overtaken += u64::from(number < self.highest);
        self.highest = self.highest.max(number);
        self.silence = self.silence.max(self.last.elapsed());
        self.last = Instant::now();
        Ok(())
    }

    fn back(&self) -> u64 {
        self.times.iter().filter(|times| **times > 0).count() as u64
    }

    fn tally(&self, sent: u64, error: Option<String>) -> Tally {
        let back = self.back();
        Tally {
            sent,
            back,
            lost: sent.saturating_sub(back),
            repeated: self.times.iter().filter(|times| **times > 1).count() as u64,
            overtaken: self.overtaken,
            silence_ms: u64::try_from(self.silence.as_millis()).unwrap_or(u64::MAX),
            error,
        }
    }
}

/// Hears of the end of stdin.
fn end_of_stdin() -> Receiver<()> {
    let (over, ended) = channel::<()>();
    std::thread::spawn(move || {
        let _over = over;
        let mut rest = [0; 256];
        while matches!(std::io::stdin().lock().read(&mut rest), Ok(1..)) {}
    });
    ended
}

/// Sends number after number until stdin ends; returns how many.
fn pace(
    interval: Duration,
    mut send: impl FnMut(u64) -> anyhow::Result<()>,
) -> (u64, Option<String>) {
    let ended = end_of_stdin();
    let mut number = 0;
    loop {
        if let Err(e) = send(number) {
            return (number, Some(format!("{e:#}")));
        }
        number += 1;
        if !matches!(ended.recv_timeout(interval), Err(RecvTimeoutError::Timeout)) {
            return (number, None);
        }
    }
}

fn print(tally: &Tally) -> anyhow::Result<u8> {
    println!("{}", serde_json::to_string(tally).context("print the tally")?);
    Ok(u8::from(!tally.is_whole()))
}

/// By UDP.
pub(super) fn udp(what: &Sequence) -> anyhow::Result<u8> {
    let any = if what.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).context("bind")?;
    socket.connect(what.to).with_context(|| format!("connect to {}", what.to))?;
    socket.set_read_timeout(Some(LOOK)).context("set a time limit")?;
    super::udp::roomy(&socket);
    let (seen, over) = (Arc::new(Mutex::new(Seen::new())), Arc::new(AtomicBool::new(false)));
    let sent = Arc::new(AtomicU64::new(0));
    let reader = {
        let (socket, seen) = (socket.try_clone().context("second handle")?, seen.clone());
        let (over, sent) = (over.clone(), sent.clone());
        std::thread::spawn(move || receive(&socket, &seen, &over, &sent))
    };
    let (count, mut error) = pace(Duration::from_millis(what.interval), |number| {
        let mut datagram = [0; DATAGRAM];
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        sent.store(number + 1, Ordering::SeqCst);
        // What an ICMP error refuses is as lost as what disappears, and counted with it.
        match socket.send(&datagram) {
            Err(e) if e.kind() != ErrorKind::ConnectionRefused => Err(e).context("send"),
            _ => Ok(()),
        }
    });
    over.store(true, Ordering::SeqCst);
    let read = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    error = error.or(read.err().map(|e| format!("{e:#}")));
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    print(&seen.tally(count, error))
}

fn receive(
    socket: &UdpSocket,
    seen: &Mutex<Seen>,
    over: &AtomicBool,
    sent: &AtomicU64,
) -> anyhow::Result<()> {
    let mut end = None;
    let mut buffer = [0; 2 * DATAGRAM];
    loop {
        match socket.recv(&mut buffer) {
            Ok(DATAGRAM) => {
                let number = u64::from_be_bytes(buffer[..8].try_into().context("number")?);
                ensure!(number < sent.load(Ordering::SeqCst), "number {number} was never sent");
                seen.lock().unwrap_or_else(PoisonError::into_inner).take(number)?;
            }
            Ok(size) => bail!("a datagram of {size} bytes, none of ours"),
            Err(e) if is_silence(e.kind()) || e.kind() == ErrorKind::ConnectionRefused => {}
            Err(e) => return Err(e).context("receive"),
        }
        if over.load(Ordering::SeqCst) {
            let end = *end.get_or_insert_with(|| Instant::now() + STRAGGLERS);
            let back = seen.lock().unwrap_or_else(PoisonError::into_inner).back();
            if back >= sent.load(Ordering::SeqCst) || Instant::now() > end {
                return Ok(());
            }
        }
    }
}

fn is_silence(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// By TCP.
pub(super) fn tcp(what: &Sequence) -> anyhow::Result<u8> {
    let stream = TcpStream::connect_timeout(&what.to, STRAGGLERS);
    let mut stream = stream.with_context(|| format!("connect to {}", what.to))?;
    stream.set_nodelay(true).context("set nodelay")?;
    let mut from = stream.try_clone().context("second handle")?;
    let reader = std::thread::spawn(move || {
        let mut seen = Seen::new();
        let mut number = [0; 8];
        let error = loop {
            match from.read_exact(&mut number) {
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => break None,
                Err(e) => break Some(format!("receive: {e}")),
                Ok(()) => {}
            }
            let (number, next) = (u64::from_be_bytes(number), seen.times.len() as u64);
            if number != next {
                break Some(format!("received {number}, wanted {next}"));
            }
            if let Err(e) = seen.take(number) {
                break Some(format!("{e:#}"));
            }
        };
        (seen, error)
    });
    let (count, error) = pace(Duration::from_millis(what.interval), |number| {
        stream.write_all(&number.to_be_bytes()).context("send")
    });
    // A connection that is broken has said so already.
    let _ = stream.shutdown(Shutdown::Write);
    let (seen, broken) = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    print(&seen.tally(count, error.or(broken)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_repeated_and_overtaken_packets_are_counted() {
        let mut seen = Seen::new();
        for number in [0, 1, 3, 2, 2, 5] {
            seen.take(number).expect("fine");
        }
        let tally = seen.tally(7, None);
        assert_eq!((tally.back, tally.lost, tally.repeated), (5, 2, 1));
        assert_eq!(tally.overtaken, 2, "the two of number 2");
        assert!(!tally.is_whole());
        let mut seen = Seen::new();
        assert!(!seen.tally(0, None).is_whole(), "nothing was sent");
        seen.take(0).expect("fine");
        assert!(seen.tally(1, None).is_whole());
        assert!(!seen.tally(1, Some("broken".to_owned())).is_whole());
        seen.take(u64::MAX).expect_err("never sent");
    }
}
