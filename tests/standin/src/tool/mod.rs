//! Small programs that containers run, so that no distribution's are needed. They are part of
//! `standin-agent`: `standin-agent tool NAME …`.

mod count;
mod exec_in;
mod no_locks;
mod payload;
mod sequence;
mod tcp;
mod udp;

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;

pub use count::Checker;
pub use exec_in::ExecIn;
pub use no_locks::NoLocks;
pub use payload::Report;
pub use sequence::{Sequence, Tally};

/// A program of a container.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Copies stdin to stdout.
    Cat,
    /// Waits; for ever without SECONDS.
    Sleep {
        /// How long.
        seconds: Option<u64>,
    },
    /// Sends back what comes in by TCP.
    TcpEcho {
        /// Where to listen.
        at: SocketAddr,
    },
    /// Sends back what comes in by UDP.
    UdpEcho {
        /// Where to listen.
        at: SocketAddr,
    },
    /// Sends a payload to an echo server by TCP and compares what comes back.
    TcpSend(Send),
    /// Sends a payload to an echo server by UDP and compares what comes back.
    UdpSend(Send),
    /// Sends numbered datagrams to an echo server until stdin ends and counts what comes back.
    UdpCount(Sequence),
    /// The same on one TCP connection.
    TcpCount(Sequence),
    /// Writes numbered lines and numbers the lines that come in.
    Count {
        /// Milliseconds between two lines.
        #[arg(long, default_value_t = 2)]
        interval: u64,
    },
    /// Writes its arguments, ends with a status.
    Say {
        /// Exit status.
        #[arg(long, default_value_t = 0)]
        status: u8,
        /// To stderr instead of stdout.
        #[arg(long)]
        stderr: bool,
        /// What to write.
        words: Vec<String>,
    },
}

/// What to send and where.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Send {
    /// The echo server.
    pub to: SocketAddr,
    /// How many bytes.
    pub bytes: usize,
    /// Seed of the payload.
    pub seed: u64,
    /// Longest silence in milliseconds.
    #[arg(long, default_value_t = 5000)]
    pub timeout: u64,
}

impl Send {
    fn limit(&self) -> Duration {
        Duration::from_millis(self.timeout.max(1))
    }
}

/// Runs the tool and returns its exit status.
///
/// # Errors
/// When it cannot do its work at all.
pub fn run(tool: Tool) -> anyhow::Result<u8> {
    match tool {
        Tool::Cat => {
            let (mut from, mut to) = (std::io::stdin().lock(), std::io::stdout().lock());
            std::io::copy(&mut from, &mut to).context("copy stdin to stdout")?;
            to.flush().context("flush stdout")?;
        }
        Tool::Sleep { seconds } => sleep(seconds),
        Tool::TcpEcho { at } => tcp::echo(at)?,
        Tool::UdpEcho { at } => udp::echo(at)?,
        Tool::TcpSend(send) => return payload::report(&tcp::send(&send)),
        Tool::UdpSend(send) => return payload::report(&udp::send(&send)),
        Tool::UdpCount(sequence) => return sequence::udp(&sequence),
        Tool::TcpCount(sequence) => return sequence::tcp(&sequence),
        Tool::Count { interval } => count::run(Duration::from_millis(interval))?,
        Tool::Say { status, stderr, words } => {
            let text = words.join(" ");
            if stderr {
                eprintln!("{text}")
            } else {
                println!("{text}")
            }
            return Ok(status);
        }
    }
    Ok(0)
}

#[allow(clippy::disallowed_methods, reason = "sleeping is what this program is for")]
fn sleep(seconds: Option<u64>) {
    std::thread::sleep(seconds.map_or(Duration::MAX, Duration::from_secs));
}
