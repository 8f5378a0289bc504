//! Whole pods over a cloud's double: the real daemon in a lab, told what the users' guide tells its
//! readers, and a machine with the real `podvm` for each VM that the double makes.
//!
//! ```text
//!   shim ─▶ relay ─▶ node ─▶ provider ── HTTP ──▶ double ──▶ machines (podvm, agent)
//!             └───────────────── TLS, VXLAN ─────────────────────▲
//! ```

mod cloud;
mod machines;
mod metadata;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use peerpod_it::Bed;
use peerpod_netlink::Netns;
use peerpod_standin::lab::{Binaries, DaemonOptions, Kind, Lab, log_tail, wait_for};
use serde_json::{Value, json};

pub use cloud::{CLOUDS, Cloud, SECRET, Schedule};
pub use machines::Machines;
pub use metadata::Flavour;

use crate::Server;

/// A lab whose VMs are a double's.
#[derive(Debug)]
pub struct Site {
    // In the order in which they end.
    /// Lab and daemon.
    pub bed: Bed,
    /// The double.
    pub server: Server,
    /// What its VMs are.
    pub machines: Machines,
    /// Whose double it is.
    pub cloud: &'static Cloud,
    /// What the daemon is told by it, whatever else it is told.
    guide: Vec<(String, String)>,
}

/// Where the daemon with all clouds and with crash points lies, see tests/parts/clouds.sh.
///
/// # Errors
/// When it is not there.
pub fn binaries() -> anyhow::Result<Binaries> {
    let own = std::env::current_exe().context("where the running program lies")?;
    let mut above = own.ancestors().skip(1).flat_map(|dir| {
        // The second for a program of another profile.
        ["clouds", "debug/clouds"].map(|below| Binaries::beside(&dir.join(below)))
    });
    let found = above.find(|binaries| binaries.missing().is_empty());
    found.context("the daemon with all clouds is not built; run: tests/run clouds")
}

/// Options with what the guide of the cloud says before them.
fn told(guide: &[(String, String)], options: DaemonOptions) -> DaemonOptions {
    let environment = guide.iter().cloned().chain(options.environment).collect();
    DaemonOptions { environment, ..options }
}

/// The clouds of this build; `PEERPODD_CLOUDS=gcp,…` picks some of them.
#[allow(clippy::disallowed_methods, reason = "a test's own switch")]
pub fn clouds() -> impl Iterator<Item = &'static Cloud> {
    let wanted = std::env::var("PEERPODD_CLOUDS").unwrap_or_default();
    let all = CLOUDS.iter();
    all.filter(move |cloud| wanted.is_empty() || wanted.split(',').any(|name| name == cloud.name))
}

impl Site {
    /// A double and a daemon with these further arguments.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn new(cloud: &'static Cloud, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::with(cloud, |_| Bed::options(arguments)).await
    }

    /// The same with options that may depend on where the logs are; what their environment says comes
    /// after what the cloud's guide says.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn with(
        cloud: &'static Cloud,
        options: impl FnOnce(&Path) -> DaemonOptions,
    ) -> anyhow::Result<Self> {
        let lab = Lab::new(binaries()?).await?;
        let worker = Netns::open(lab.network().worker().path())?;
        // Not in the lab, or the survey would take the double for a left-over.
        let folder = tempfile::tempdir().context("a directory for a key")?;
        let file = folder.path().join("key");
        let file = file.to_str().context("a path")?;
        let with_key = ["--key", file];
        let arguments = if cloud.key.is_some() { &with_key[..] } else { &[] };
        let server = Server::start_in(worker, cloud.script, arguments)?;
        let mut guide = cloud.environment(server.url());
        if let Some(key) = cloud.key {
            let text = std::fs::read_to_string(file).context("the double's key")?;
            guide.push((key.to_owned(), text));
        }
        let machines = Machines::start(&lab, cloud.flavour).await?;
        server.set(&json!({"machines": machines.socket()}))?;
        let options = options(&lab.dir().logs());
        let daemon = lab.start(told(&guide, options)).await?;
        Ok(Self { bed: Bed { lab, daemon }, server, machines, cloud, guide })
    }

    /// The same, but nobody is in the VMs that the double makes.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn without_machines(
        cloud: &'static Cloud,
        options: DaemonOptions,
    ) -> anyhow::Result<Self> {
        let site = Self::with(cloud, |_| options).await?;
        site.server.set(&json!({"machines": null}))?;
        Ok(site)
    }

    /// Another daemon in the same lab, after the end of the one there is; the double forgets everything.
    ///
    /// # Errors
    /// When something is left, or the new one does not come up.
    pub async fn again(self, options: DaemonOptions) -> anyhow::Result<Self> {
        self.until_nothing_left().await?;
        self.is_clean()?;
        let Self { bed: Bed { lab, daemon }, server, machines, cloud, guide } = self;
        daemon.stop().await?;
        let left = lab.survey(false).await?;
        // Who dies on leaving leaves sockets; whoever comes next clears them away.
        let more = left.iter().any(|l| l.kind != Kind::Socket);
        ensure!(!more, "left behind: {left:?}\n{}", log_tail(&lab.dir().logs(), 60));
        server.reset()?;
        let daemon = lab.start(told(&guide, options)).await?;
        Ok(Self { bed: Bed { lab, daemon }, server, machines, cloud, guide })
    }

    /// VMs that the double has.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn vms(&self) -> anyhow::Result<u64> {
        Ok(self.server.resources()?.get("vm").copied().unwrap_or_default())
    }

    /// Waits until the daemon, the worker and the double have nothing left.
    ///
    /// # Errors
    /// With what is left.
    pub async fn until_nothing_left(&self) -> anyhow::Result<()> {
        self.bed.until_nothing_left().await?;
        let look = || async {
            let left: u64 = self.server.resources()?.values().sum();
            Ok((left == 0 && self.machines.running() == 0).then_some(()))
        };
        let gone = wait_for("the double to have nothing", Duration::from_secs(10), look).await;
        gone.with_context(|| format!("{:?}", self.server.resources()))
    }

    /// What must hold at any time: the cloud's model would refuse nothing, no pod ever had two VMs,
    /// and no secret is in a log.
    ///
    /// # Errors
    /// With what does not hold.
    pub fn is_clean(&self) -> anyhow::Result<()> {
        let violations = self.server.violations()?;
        ensure!(violations.is_empty(), "{violations:#?}");
        let doubled = self.machines.doubled();
        ensure!(doubled.is_empty(), "two VMs at a time: {doubled:?}");
        for entry in std::fs::read_dir(self.bed.lab.dir().logs())?.flatten() {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let shown = text.contains(SECRET) || text.contains("PRIVATE KEY");
            ensure!(!shown, "a secret is in {}", entry.path().display());
        }
        Ok(())
    }

    /// Ends the daemon and looks once more.
    ///
    /// # Errors
    /// When something is left, doubled, or not as the cloud wants it.
    pub async fn end(self) -> anyhow::Result<()> {
        self.until_nothing_left().await?;
        self.is_clean()?;
        // The double is there to the end, lest the daemon's last words are errors.
        let Self { bed, server, machines, .. } = self;
        bed.end().await?;
        drop((machines, server));
        Ok(())
    }

    /// What `peerpodd status` prints of a sandbox.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn status_text(&self, sandbox: &str) -> anyhow::Result<String> {
        let output = self.bed.daemon.peerpodd(&["status", sandbox]).await?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Takes the image away.
    ///
    /// # Errors
    /// When the double does not know how.
    pub fn take_image(&self) -> anyhow::Result<()> {
        let words: Value = serde_json::from_str(self.cloud.image_gone)?;
        self.server.set(&words)
    }

    /// Lets the next calls for that end with that fault, that many times.
    ///
    /// # Errors
    /// When the double does not answer.
    pub fn faults(&self, fault: &Value, times: usize) -> anyhow::Result<()> {
        (0..times).try_for_each(|_| self.server.fault(fault))
    }
}
