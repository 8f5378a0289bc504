//! What the steps work on: the lab, the daemon, and the pods with their shims.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use peerpod_standin::lab::{Binaries, Daemon, DaemonOptions, Lab, PodNet, blocking};
use peerpod_standin::shim::{Profile, Shim};
use peerpod_standin::tool::Report;

use crate::cli::Arguments;
use crate::host::Host;
use crate::programs;
use crate::timeline::{Timeline, millis};

/// A running pod.
#[derive(Debug)]
pub(crate) struct Pod {
    /// `pod-0`, …
    pub(crate) name: String,
    /// Its namespace on the worker.
    pub(crate) net: PodNet,
    /// Its shim.
    pub(crate) shim: Shim,
    /// When its StartVM was answered.
    pub(crate) started: Option<Instant>,
}

/// Everything. Dropped in this order: shims, daemon, host, lab.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) pods: Vec<Pod>,
    pub(crate) daemon: Option<Daemon>,
    /// Where VMs are made, if not by the daemon itself.
    pub(crate) host: Option<Host>,
    pub(crate) lab: Lab,
    pub(crate) arguments: Arguments,
    pub(crate) timeline: Timeline,
}

impl World {
    /// Makes the lab and starts the daemon in it.
    pub(crate) async fn new(
        arguments: Arguments,
        timeline: Timeline,
    ) -> anyhow::Result<(Self, String)> {
        let lab = Lab::new(Binaries::beside(&programs::directory()?)).await?;
        timeline.say("a worker, a cluster behind it and pods, in namespaces of their own");
        let host = match arguments.provider.is_local() {
            true => None,
            false => Some(libvirt(&lab, &timeline).await?),
        };
        let begin = Instant::now();
        let options = DaemonOptions {
            boot_delay: arguments.boot_delay(),
            environment: host.as_ref().map(Host::environment).unwrap_or_default(),
            ..DaemonOptions::default()
        };
        let daemon = match lab.start(options).await {
            Ok(daemon) => daemon,
            Err(error) => {
                save(lab.dir().logs().as_path(), arguments.logs.as_deref());
                return Err(error);
            }
        };
        let took = begin.elapsed();
        let provider = arguments.provider.name();
        let text = format!("peerpodd run --provider {provider}: node and relay are ready");
        timeline.took(None, &text, took);
        let seen = format!("ready {} ms after its start", millis(took));
        Ok((Self { pods: Vec::new(), daemon: Some(daemon), host, lab, arguments, timeline }, seen))
    }

    /// The daemon, as long as it runs.
    pub(crate) fn daemon(&mut self) -> anyhow::Result<&mut Daemon> {
        self.daemon.as_mut().context("the daemon has been stopped")
    }

    /// Makes a pod's namespace and gives its shim's CreateVM.
    pub(crate) async fn create(lab: &Lab, number: u8) -> anyhow::Result<Pod> {
        let (net, spec) = lab.add_pod(number).await?;
        let profile = Profile::alternately(number.into());
        let name = spec.name.clone();
        let shim = Shim::create(profile, &lab.dir().socket(), spec).await;
        let shim = shim.with_context(|| format!("{name}: CreateVM"))?;
        Ok(Pod { shim, name, net, started: None })
    }

    /// Copies the logs where they were asked for, or shows their ends after a failure.
    pub(crate) fn save_logs(&self, ok: bool) {
        let logs = self.lab.dir().logs();
        if let Some(host) = &self.host {
            host.save_consoles(&logs);
        }
        save(&logs, self.arguments.logs.as_deref());
        if !ok {
            eprintln!("{}", peerpod_standin::lab::log_tail(&logs, 30));
        }
    }
}

async fn libvirt(lab: &Lab, timeline: &Timeline) -> anyhow::Result<Host> {
    let begin = Instant::now();
    let host = Host::start(lab).await?;
    timeline.took(None, "libvirtd behind the worker, with an image", begin.elapsed());
    Ok(host)
}

fn save(logs: &Path, to: Option<&Path>) {
    let Some(to) = to else { return };
    let copy = || -> std::io::Result<()> {
        std::fs::create_dir_all(to)?;
        for file in std::fs::read_dir(logs)? {
            let file = file?;
            std::fs::copy(file.path(), to.join(file.file_name()))?;
        }
        Ok(())
    };
    if let Err(error) = copy() {
        eprintln!("logs not copied to {}: {error}", to.display());
    }
}

impl Pod {
    /// Finishes the start after CreateVM and tells how long each part took.
    pub(crate) async fn finish_start(&mut self, timeline: &Timeline) -> anyhow::Result<()> {
        let name = &self.name;
        self.shim.start_vm().await.with_context(|| format!("{name}: StartVM"))?;
        self.started = Some(Instant::now());
        self.shim.connect().await.with_context(|| format!("{name}: dial the agent"))?;
        self.shim.start_sandbox().await.with_context(|| format!("{name}: start the sandbox"))?;
        for took in self.shim.took() {
            timeline.took(
                Some(name),
                &format!("{} ({})", took.step, self.shim.profile()),
                took.time,
            );
        }
        Ok(())
    }

    /// Runs one of the sending tools in the pod and gives its report.
    pub(crate) async fn send(
        &self,
        what: &str,
        to: String,
        more: &[&str],
    ) -> anyhow::Result<Report> {
        let exec = format!("{what}-{:08x}", rand::random::<u32>());
        let arguments: Vec<&str> = [what, &to].iter().chain(more).copied().collect();
        let process = self.shim.exec_tool(&exec, &arguments).await?;
        let output = process.output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(text.trim()).with_context(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            format!("{}: {what} {to} ends with {}: {text}{errors}", self.name, output.status)
        })
    }

    /// Bytes received and sent by the tunnel's device on the worker.
    pub(crate) async fn tunnel_bytes(&self) -> anyhow::Result<(u64, u64)> {
        let net = self.net.clone();
        blocking(move || Ok(net.device().context("the tunnel's device")?.bytes)).await
    }
}
