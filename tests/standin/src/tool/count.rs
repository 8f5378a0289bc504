//! Counting both ways at once, to prove that no byte is lost or repeated.
//!
//! ```text
//!   stdout  n 0, n 1, n 2 …      one every interval, as long as stdin is open
//!   stdin   i 0, i 1 …           each is answered:  e <how many so far> i <k>
//!   at the end of stdin:         end <numbers> <echoes>
//! ```

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

/// The program.
pub(super) fn run(interval: Duration) -> anyhow::Result<()> {
    static ECHOES: AtomicU64 = AtomicU64::new(0);
    let (over, ended) = channel::<()>();
    std::thread::spawn(move || {
        let _over = over;
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let number = ECHOES.fetch_add(1, Ordering::SeqCst);
            put(&format!("e {number} {line}\n"))?;
        }
        Ok::<(), std::io::Error>(())
    });
    let mut number = 0u64;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(interval) {
        put(&format!("n {number}\n")).context("write")?;
        number += 1;
    }
    put(&format!("end {number} {}\n", ECHOES.load(Ordering::SeqCst))).context("write")
}

fn put(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.flush()
}

/// The other side: makes what to write, and checks what was read.
#[derive(Debug, Default)]
pub struct Checker {
    rest: Vec<u8>,
    sent: u64,
    numbers: u64,
    echoes: u64,
    ended: bool,
}

impl Checker {
    /// The next line for stdin.
    pub fn next_line(&mut self) -> String {
        self.sent += 1;
        format!("i {}\n", self.sent - 1)
    }

    /// Takes what stdout brought.
    ///
    /// # Errors
    /// At the first line that is lost, repeated or broken.
    pub fn take(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.line(String::from_utf8_lossy(&line).trim_end())?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> anyhow::Result<()> {
        ensure!(!self.ended, "{line:?} after the end");
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["n", number] => {
                ensure!(number == self.numbers.to_string(), "{line:?}, wanted n {}", self.numbers);
                self.numbers += 1;
            }
            ["e", number, "i", of] => {
                let wanted = self.echoes.to_string();
                ensure!(number == wanted && of == wanted, "{line:?}, wanted e {wanted} i {wanted}");
                self.echoes += 1;
            }
            ["end", numbers, echoes] => {
                ensure!(numbers == self.numbers.to_string(), "{line:?} after {}", self.numbers);
                ensure!(echoes == self.sent.to_string(), "{line:?}, sent {}", self.sent);
                self.ended = true;
            }
            _ => bail!("{line:?} is none of ours"),
        }
        Ok(())
    }

    /// Numbered lines and echoes so far.
    pub fn seen(&self) -> (u64, u64) {
        (self.numbers, self.echoes)
    }

    /// Checks the end.
    ///
    /// # Errors
    /// When the stream broke off or echoes are missing.
    pub fn finish(&self) -> anyhow::Result<()> {
        ensure!(self.ended, "the stream broke off after {} lines", self.numbers);
        ensure!(self.echoes == self.sent, "{} of {} lines came back", self.echoes, self.sent);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_a_repeated_and_a_missing_line_are_seen() {
        let mut checker = Checker::default();
        assert_eq!(checker.next_line(), "i 0\n");
        checker.take(b"n 0\nn 1\ne 0 i").expect("fine");
        checker.take(b" 0\nn 2\n").expect("fine");
        assert_eq!(checker.seen(), (3, 1));
        checker.finish().expect_err("no end yet");
        checker.take(b"end 3 1\n").expect("fine");
        checker.finish().expect("all there");
        Checker::default().take(b"n 1\n").expect_err("lost");
        let mut checker = Checker::default();
        checker.take(b"n 0\nn 0\n").expect_err("repeated");
    }
}
