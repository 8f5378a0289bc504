//! TCP echo and its client.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, ensure};

use super::Send;
use super::payload::{Report, measure, payload};

/// Echoes until it is killed. The first line on stdout says that it listens.
pub(super) fn echo(at: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(at).with_context(|| format!("listen on {at}"))?;
    println!("listening on {}", listener.local_addr().context("own address")?);
    for stream in listener.incoming() {
        let stream = stream.context("accept")?;
        std::thread::spawn(move || answer(stream));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    std::io::copy(&mut stream, &mut writer)?;
    writer.shutdown(Shutdown::Write)
}

/// Sends and compares.
pub(super) fn send(what: &Send) -> Report {
    measure(|bytes, _| {
        let sent = payload(what.bytes, what.seed);
        let stream = TcpStream::connect_timeout(&what.to, what.limit());
        let mut stream = stream.with_context(|| format!("connect to {}", what.to))?;
        stream.set_read_timeout(Some(what.limit())).context("set a time limit")?;
        stream.set_write_timeout(Some(what.limit())).context("set a time limit")?;
        let mut writer = stream.try_clone().context("second handle")?;
        let all = sent.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&all)?;
            writer.shutdown(Shutdown::Write)
        });
        compare(&mut stream, &sent, bytes)?;
        let wrote = writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        wrote.context("send")
    })
}

fn compare(stream: &mut TcpStream, sent: &[u8], right: &mut u64) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let read = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).with_context(|| format!("receive after {at} bytes")),
        };
        let wanted = sent.get(at..at + read).context("more came back than was sent")?;
        ensure!(wanted == &buffer[..read], "not what was sent, after {at} bytes");
        at += read;
        *right = at as u64;
    }
    ensure!(at == sent.len(), "{at} of {} bytes came back", sent.len());
    Ok(())
}
