//! The process of a double, and what can be asked of it and done to it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use peerpod_netlink::Netns;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A running double; it ends with this value.
#[derive(Debug)]
pub struct Server {
    process: Child,
    url: String,
    /// Where it runs, if not where we do.
    netns: Option<Netns>,
}

/// One call that the double was asked.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Called {
    /// Seconds since 1970.
    pub at: f64,
    /// `create`, `delete`, `list`, `check` or `other`.
    pub operation: String,
    /// Name of the VM, where the call has one.
    pub name: String,
    /// HTTP status of the answer; 0 if there was none.
    pub status: u16,
    /// HTTP method.
    pub method: String,
    /// Path without the query.
    pub path: String,
}

/// Something that costs money.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Tagged {
    /// `vm`, `disk`, `nic` or `address`.
    pub kind: String,
    /// Its tags, where the cloud calls them so, or its labels.
    pub tags: BTreeMap<String, String>,
}

impl Server {
    /// Starts `double/<script>` with the packages that `tests/run conformance` installs.
    ///
    /// # Errors
    /// When it does not come up; says how to get what is missing.
    pub fn start(script: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::begin(script, arguments, None)
    }

    /// The same in a network namespace, where its own loopback is all that it listens on.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_in(netns: Netns, script: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::begin(script, arguments, Some(netns))
    }

    #[allow(clippy::disallowed_methods, reason = "a double is a process of its own")]
    fn begin(script: &str, arguments: &[&str], netns: Option<Netns>) -> anyhow::Result<Self> {
        let packages = packages();
        ensure!(
            packages.is_dir(),
            "{} is not there: `tests/run conformance` installs the Python packages of the clouds' \
             doubles (PEERPODD_PYTHON_PACKAGES names another directory)",
            packages.display()
        );
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("double");
        let mut command = Command::new("python3");
        command
            .arg("-u")
            .arg(folder.join(script))
            .args(arguments)
            .env("PYTHONPATH", format!("{}:{}", packages.display(), folder.display()))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let process = within(netns.as_ref(), || command.spawn().context("start python3"));
        let mut process = process?;
        let mut lines = BufReader::new(process.stdout.take().context("no output")?).lines();
        let url = lines.find_map(|line| line.ok()?.strip_prefix("listening ").map(str::to_owned));
        let Some(url) = url else {
            let _ = process.kill();
            bail!("{script} ended before it listened");
        };
        Ok(Self { process, url, netns })
    }

    /// Where it listens, as `http://address:port`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Every call so far.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn calls(&self) -> anyhow::Result<Vec<Called>> {
        self.get("calls")
    }

    /// What the cloud's published model would have refused.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn violations(&self) -> anyhow::Result<Vec<String>> {
        self.get("violations")
    }

    /// Nothing was refused by the cloud's model, and nothing is left that costs money.
    ///
    /// # Errors
    /// What is not so.
    pub fn clean(&self) -> anyhow::Result<()> {
        let violations = self.violations()?;
        ensure!(violations.is_empty(), "{violations:#?}");
        let left = self.resources()?;
        ensure!(left.values().sum::<u64>() == 0, "{left:?}");
        Ok(())
    }

    /// How much there is of what costs money, by kind.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn resources(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        self.get("resources")
    }

    /// The tags of what costs money, as far as it has any.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn tags(&self) -> anyhow::Result<Vec<Tagged>> {
        self.get("tags")
    }

    /// What is there before any call, where its ids are not fixed.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn facts(&self) -> anyhow::Result<BTreeMap<String, String>> {
        self.get("facts")
    }

    /// Lets something go wrong (see `double/base.py`).
    ///
    /// # Errors
    /// When it does not answer.
    pub fn fault(&self, fault: &Value) -> anyhow::Result<()> {
        self.post("fault", fault)
    }

    /// Sets something of this cloud's.
    ///
    /// # Errors
    /// When it does not answer, or has no such thing.
    pub fn set(&self, values: &Value) -> anyhow::Result<()> {
        self.post("set", values)
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn reset(&self) -> anyhow::Result<()> {
        self.post("reset", &Value::Object(serde_json::Map::new()))
    }

    fn get<T: DeserializeOwned>(&self, what: &str) -> anyhow::Result<T> {
        Ok(serde_json::from_slice(&self.ask("GET", what, b"")?)?)
    }

    fn post(&self, what: &str, body: &Value) -> anyhow::Result<()> {
        self.ask("POST", what, body.to_string().as_bytes()).map(drop)
    }

    /// One HTTP exchange on a connection of its own.
    fn ask(&self, method: &str, what: &str, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        let address = self.url.strip_prefix("http://").context("no http address")?;
        let mut stream = within(self.netns.as_ref(), || Ok(TcpStream::connect(address)?))?;
        let length = body.len();
        let head = format!(
            "{method} /_double/{what} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply)?;
        let end = reply.windows(4).position(|w| w == b"\r\n\r\n").context("no reply")?;
        let (head, body) = reply.split_at(end + 4);
        let head = String::from_utf8_lossy(head);
        ensure!(head.split(' ').nth(1) == Some("200"), "{method} {what}: {head}");
        Ok(body.to_vec())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends when its input does; killed all the same, so that no test waits for it.
        drop(self.process.stdin.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sockets and processes that are made there stay there.
fn within<T: Send>(
    netns: Option<&Netns>,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    match netns {
        Some(netns) => netns.run(|| work().map_err(Failed)).map_err(|Failed(e)| e),
        None => work(),
    }
}

/// Carries an error out of a namespace.
struct Failed(anyhow::Error);

impl From<peerpod_netlink::Error> for Failed {
    fn from(error: peerpod_netlink::Error) -> Self {
        Self(error.into())
    }
}

fn packages() -> PathBuf {
    let given = std::env::var_os("PEERPODD_PYTHON_PACKAGES").map(PathBuf::from);
    given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/python"))
}
