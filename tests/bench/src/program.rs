//! Programs that the bench starts: built first, spoken to line by line where they are the rival's,
//! ended with the value that stands for them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use peerpod_netlink::Netns;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Where the programs under test are.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) peerpodd: PathBuf,
    pub(crate) podvm: PathBuf,
    /// `Err` says what is missing.
    pub(crate) rival: Result<PathBuf, String>,
    /// Whether the rival can make its tunnels; `Err` says what is missing.
    pub(crate) iptables: Result<(), String>,
}

impl Programs {
    /// Builds ours in the bench's own profile, and the rival as it would be released.
    pub(crate) fn build() -> anyhow::Result<Self> {
        let here = std::env::current_exe()?;
        let target = here.parent().context("the bench lies in no directory")?.to_owned();
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "-p", "peerpodd", "-p", "podvm", "--bins"]);
        if target.ends_with("release") {
            build.arg("--release");
        }
        let status = build.current_dir(&source).status().context("starting cargo")?;
        if !status.success() {
            bail!("building peerpodd and podvm: {status}");
        }
        Ok(Self {
            peerpodd: target.join("peerpodd"),
            podvm: target.join("podvm"),
            rival: build_rival(&source.join("rival"), &target.join("peerpod-bench-rival")),
            iptables: has_iptables(),
        })
    }

    /// The rival's program, for rows that need it.
    pub(crate) fn rival(&self) -> anyhow::Result<&Path> {
        self.rival.as_deref().map_err(|why| anyhow::anyhow!("{why}"))
    }
}

fn build_rival(source: &Path, to: &Path) -> Result<PathBuf, String> {
    let out = Command::new("go")
        .args(["build", "-trimpath", "-ldflags=-s -w", "-o"])
        .arg(to)
        .arg(".")
        .env("CGO_ENABLED", "0")
        .current_dir(source)
        .output();
    match out {
        Ok(out) if out.status.success() => Ok(to.to_owned()),
        Ok(out) => Err(format!("go build: {}", String::from_utf8_lossy(&out.stderr).trim())),
        Err(e) => Err(format!("the rival needs Go 1.26 or newer ('go' on PATH): {e}")),
    }
}

fn has_iptables() -> Result<(), String> {
    let out = Command::new("iptables").arg("--version").output();
    let text = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    if text.contains("nf_tables") {
        return Ok(());
    }
    Err("the rival's tunnels need iptables-nft: Debian package 'iptables'".to_owned())
}

/// A running program. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    log: PathBuf,
}

/// How to start one.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) program: &'a Path,
    pub(crate) log: PathBuf,
    pub(crate) netns: Option<&'a Netns>,
}

impl Start<'_> {
    /// Starts it with these arguments. Standard error goes to the log.
    pub(crate) fn with<A: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<Program> {
        let log = File::create(&self.log)?;
        let mut command = Command::new(self.program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        // A child is born into the namespaces of the thread that makes it.
        let spawned = match self.netns {
            Some(netns) => netns.run(|| Ok::<_, peerpod_netlink::Error>(command.spawn()))?,
            None => command.spawn(),
        };
        let mut child = spawned.with_context(|| self.program.display().to_string())?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Program { child, stdin, stdout, log: self.log.clone() })
    }
}

impl Program {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line of JSON.
    pub(crate) fn tell(&mut self, order: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        let to = self.stdin.as_mut().context("standard input is closed")?;
        to.write_all(&line).with_context(|| format!("see {}", self.log.display()))
    }

    /// Reads a line of JSON.
    pub(crate) fn hear<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let from = self.stdout.as_mut().context("standard output is closed")?;
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            bail!("a program of the bench ended: {}", self.said());
        }
        serde_json::from_str(&line).with_context(|| line.trim().to_owned())
    }

    /// Both.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, order: &impl Serialize) -> anyhow::Result<T> {
        self.tell(order)?;
        self.hear()
    }

    /// An error if it has ended, with what it said.
    pub(crate) fn lives(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("a program of the bench ended, {status}: {}", self.said()),
        }
    }

    fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let from = text.trim().char_indices().rev().nth(600).map_or(0, |(at, _)| at);
        text.trim().get(from..).unwrap_or_default().to_owned()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self, patience: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + patience;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                bail!("a program did not end within {patience:?}; see {}", self.log.display());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// SIGKILL, and waits until it has gone.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// In a program that the bench has made of itself: completes when the bench, however it ended, has
/// closed its standard input.
pub(crate) async fn end_with_stdin() {
    use tokio::io::AsyncReadExt;
    let _ = tokio::io::stdin().read_u8().await;
}
