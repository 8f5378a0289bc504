//! Our side of a link: the real relay, told what to do by the client that the node process uses,
//! and the real forwarder of the pod VM.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use peerpod_netlink::Netns;
use peerpod_tunnel::link::Secret;
use peerpodd::relay::{Control, RelayClient};
use peerpodd::shutdown::Shutdown;
use podvm::apf::Apf;
use tokio::runtime::Handle;

use crate::Bench;
use crate::lab;
use crate::material::Material;
use crate::program::{Program, Start};

const GIVE_UP: Duration = Duration::from_secs(30);

/// A relay and its client. Dropping it ends both.
#[derive(Debug)]
pub(crate) struct Ours {
    pub(crate) relay: Program,
    dir: PathBuf,
    control: Arc<RelayClient>,
    shutdown: Shutdown,
    runtime: Handle,
}

/// Where the processes of one installation meet.
#[derive(Clone, Debug)]
pub(crate) struct Paths(pub(crate) PathBuf);

impl Paths {
    pub(crate) fn hypervisor(&self) -> PathBuf {
        self.0.join("hypervisor.sock")
    }

    pub(crate) fn pods(&self) -> PathBuf {
        self.0.join("pods")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.run().join("control.sock")
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.run().join("node.sock")
    }

    pub(crate) fn agent(&self, sandbox: &str) -> PathBuf {
        self.pods().join(sandbox).join("agent.ttrpc")
    }

    /// Starts `peerpodd relay` there and waits until it serves.
    pub(crate) fn relay(&self, bench: &Bench, netns: &Netns) -> anyhow::Result<Program> {
        for dir in [self.pods(), self.run()] {
            std::fs::create_dir_all(&dir)?;
        }
        let program = &bench.programs.peerpodd;
        let start = Start { program, log: self.0.join("relay.log"), netns: Some(netns) };
        let relay = start.with([
            "relay".as_ref(),
            "--socket".as_ref(),
            self.hypervisor().as_os_str(),
            "--pods-dir".as_ref(),
            self.pods().as_os_str(),
            "--run-dir".as_ref(),
            self.run().as_os_str(),
        ])?;
        lab::until_served(&self.control())?;
        Ok(relay)
    }
}

/// A VM.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    /// Its own in the directory.
    pub(crate) name: &'a str,
    pub(crate) at: SocketAddr,
    pub(crate) agent: &'a Path,
    /// What its forwarder is told besides.
    pub(crate) flags: &'a [&'a str],
}

impl Ours {
    pub(crate) fn start(bench: &Bench, dir: &Path, netns: &Netns) -> anyhow::Result<Self> {
        let paths = Paths(dir.to_owned());
        let relay = paths.relay(bench, netns)?;
        let shutdown = Shutdown::new();
        let runtime = bench.runtime.handle().clone();
        let _entered = runtime.enter();
        let (control, mut events) = RelayClient::start(
            paths.control(),
            paths.node(),
            "bench".to_owned(),
            &shutdown.tracker(),
            shutdown.token(),
        );
        // Nobody of the bench acts on them, but the relay must get rid of them.
        shutdown.tracker().spawn("events", async move { while events.recv().await.is_some() {} });
        Ok(Self { relay, dir: dir.to_owned(), control, shutdown, runtime: runtime.clone() })
    }

    /// Opens a sandbox and links it to the VM; returns the shim's socket.
    pub(crate) fn link(
        &self,
        sandbox: &str,
        target: SocketAddr,
        material: &Material,
    ) -> anyhow::Result<PathBuf> {
        let path = Paths(self.dir.clone()).agent(sandbox);
        let tls = material.client();
        self.runtime.block_on(async {
            self.control.open(sandbox, &path, &[]).await?;
            self.control.connect(sandbox, target, Some(&tls), GIVE_UP).await
        })?;
        Ok(path)
    }

    /// The forwarder of a VM without a pod network.
    pub(crate) fn forwarder(
        &self,
        start: &Start<'_>,
        Guest { name, at, agent, flags }: &Guest<'_>,
        material: &Material,
    ) -> anyhow::Result<Program> {
        let apf = Apf {
            pod_name: "bench".to_owned(),
            tls_server_cert: material.server_cert.clone(),
            tls_server_key: Secret::new(material.server_key.clone()),
            tls_client_ca: material.client_cert.clone(),
            ..Apf::default()
        };
        // Its other files lie beside it.
        let config = self.dir.join(name).join("apf.json");
        std::fs::create_dir_all(config.parent().context("no directory")?)?;
        std::fs::write(&config, apf.render()?)?;
        let at = at.to_string();
        let arguments = [
            "forwarder".as_ref(),
            "--config".as_ref(),
            config.as_os_str(),
            "--listen".as_ref(),
            at.as_ref(),
            "--kata-agent-socket".as_ref(),
            agent.as_os_str(),
        ];
        let forwarder = start.with(arguments.into_iter().chain(flags.iter().map(AsRef::as_ref)));
        forwarder.context("podvm forwarder")
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.shutdown.tell("the bench is done with it");
    }
}
