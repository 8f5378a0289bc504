//! UDP echo and its client, which sends one datagram at a time and repeats it if no echo comes.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::socket::{setsockopt, sockopt};

use super::Send;
use super::payload::{Report, measure, payload};

/// Payload of a datagram: a number and this many bytes.
const CHUNK: usize = 1000;
/// Bytes that may wait in a socket, some thousand datagrams.
const ROOM: usize = 8 << 20;
/// Longest wait for one echo.
const WAIT: Duration = Duration::from_millis(500);

/// Echoes until it is killed. The first line on stdout says that it listens.
pub(super) fn echo(at: SocketAddr) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(at).with_context(|| format!("bind {at}"))?;
    roomy(&socket);
    println!("listening on {}", socket.local_addr().context("own address")?);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (read, from) = socket.recv_from(&mut buffer).context("receive")?;
        // A peer that has gone is no reason to end.
        let _ = socket.send_to(&buffer[..read], from);
    }
}

/// A program that has to wait for a processor must not lose what others send to it meanwhile: that
/// would look like a loss on the way. Beyond the usual limit only with the right to, else up to it.
pub(super) fn roomy(socket: &UdpSocket) {
    let _ = setsockopt(socket, sockopt::RcvBuf, &ROOM);
    let _ = setsockopt(socket, sockopt::RcvBufForce, &ROOM);
}

/// Sends and compares.
pub(super) fn send(what: &Send) -> Report {
    measure(|bytes, repeated| {
        let any = if what.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).context("bind")?;
        socket.connect(what.to).with_context(|| format!("connect to {}", what.to))?;
        let wait = WAIT.min(what.limit());
        socket.set_read_timeout(Some(wait)).context("set a time limit")?;
        let tries = what.limit().as_millis().div_ceil(wait.as_millis().max(1));
        for (number, chunk) in (0u32..).zip(payload(what.bytes, what.seed).chunks(CHUNK)) {
            let datagram = [&number.to_be_bytes()[..], chunk].concat();
            let mut tried = 0;
            while !exchange(&socket, &datagram)? {
                tried += 1;
                *repeated += 1;
                if tried >= tries {
                    bail!("no echo of datagram {number} from {}", what.to);
                }
            }
            *bytes += chunk.len() as u64;
        }
        Ok(())
    })
}

/// Whether the echo came; late ones of earlier datagrams are skipped.
fn exchange(socket: &UdpSocket, datagram: &[u8]) -> anyhow::Result<bool> {
    if socket.send(datagram).is_err() {
        // Refused by an ICMP error to an earlier datagram; to be tried again.
        return Ok(false);
    }
    let mut buffer = vec![0; CHUNK + 64];
    loop {
        let Ok(read) = socket.recv(&mut buffer) else { return Ok(false) };
        let got = &buffer[..read];
        if got.get(..4) == datagram.get(..4) {
            if got != datagram {
                bail!("an echo is not what was sent");
            }
            return Ok(true);
        }
    }
}
