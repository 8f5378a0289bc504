//! What the settings are once they have been checked. Nobody later reads flags, the environment or
//! a text that could still be wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use peerpod_providers::settings::Values;
use peerpod_tunnel::link::tls::Profile;
use peerpod_tunnel::network::Policy;
use podvm::initdata::Initdata;

use crate::labels::CostTag;
use crate::volumes::Places;

/// Everything `peerpodd node` runs by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sockets and directories.
    pub paths: Paths,
    /// The process itself.
    pub process: Process,
    /// Which provider, and its own keys.
    pub provider: ProviderChoice,
    /// The link to the pod VM.
    pub link: Link,
    /// The tunnel of the pod network.
    pub tunnel: Tunnel,
    /// The life of pods.
    pub pods: Pods,
    /// The comparison of provider and records.
    pub sweep: Sweep,
    /// What Kubernetes tells a daemon of itself.
    pub kubernetes: Kubernetes,
}

/// Everything `peerpodd relay` runs by: few, so that a wrong value of the node's never keeps the
/// relay from coming back.
#[derive(Clone, Debug)]
pub struct RelaySettings {
    /// Sockets and directories; the relay does not use the state directory.
    pub paths: Paths,
    /// How logs are written.
    pub log: Log,
    /// How long an ending process waits for its tasks.
    pub drain_timeout: Duration,
    /// How long a replaced relay that is told to end keeps the links that cannot move.
    pub linger: Duration,
    /// A replaced relay that holds nothing more waits to be told to end.
    pub stand_by: bool,
}

/// Sockets and directories, all absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The shims' socket, held by the relay.
    pub socket: PathBuf,
    /// One directory per sandbox, with `agent.ttrpc` in it.
    pub pods_dir: PathBuf,
    /// Sockets between our own processes.
    pub run_dir: PathBuf,
    /// What must survive a restart.
    pub state_dir: PathBuf,
    /// A state directory on a container's own layer is taken all the same.
    pub allow_volatile_state: bool,
}

impl Paths {
    /// Where the relay serves its control API.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// Where a relay is asked by the one that is to take its place.
    pub fn relay_socket(&self) -> PathBuf {
        self.run_dir.join("relay.sock")
    }

    /// Where the node process serves the hypervisor API to the relay.
    pub fn node_socket(&self) -> PathBuf {
        self.run_dir.join("node.sock")
    }
}

/// The process itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Name of this node; the host's name if nothing else is given.
    pub node_name: String,
    /// Given installation id; `None` takes the one kept in the state directory.
    pub installation_id: Option<String>,
    /// Port of probes, metrics and status on 127.0.0.1.
    pub probe_port: u16,
    /// How long an ending process waits for its tasks.
    pub drain_timeout: Duration,
    /// How logs are written.
    pub log: Log,
}

/// How logs are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Text for people or JSON for collectors.
    pub format: LogFormat,
    /// A level, or filter directives as of `tracing-subscriber` (`info,peerpodd::pod=debug`).
    pub filter: String,
}

/// Text for people or JSON for collectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of words and fields.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Which provider, and its own keys.
#[derive(Clone, Debug)]
pub struct ProviderChoice {
    /// `local`, `aws`, …
    pub name: String,
    /// Its own settings, found good by the provider. May hold secrets; they do not print.
    pub values: Values,
    /// Value of PATH, where a provider of this machine looks for its programs.
    pub search: String,
    /// Refuse to start when the provider's check finds a problem, instead of being not ready.
    pub verify: bool,
    /// The user's own tags for every VM.
    pub tags: BTreeMap<String, String>,
    /// Port of the agent link, for the provider's look at firewalls.
    pub forwarder_port: u16,
    /// Port of the tunnel, likewise.
    pub vxlan_port: u16,
}

/// The link to the pod VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// TCP port of the forwarder in the VM.
    pub forwarder_port: u16,
    /// Who shows which certificate.
    pub tls: Tls,
    /// Lowest version and suites, on the node and in the VM.
    pub profile: Profile,
    /// How long a VM may take until its forwarder answers.
    pub proxy_timeout: Duration,
    /// How long a broken link may last before the shim's connections are closed.
    pub give_up: Duration,
    /// How long a VM that does not answer is waited for while it runs.
    pub liveness_timeout: Duration,
}

/// Who shows which certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Plain text: only for images that expect it.
    Disabled,
    /// The VM's certificate is not looked at; client certificate as given, or made by us.
    SkipVerify {
        /// Certificate and key of the client, PEM files.
        client: Option<ClientFiles>,
    },
    /// The VM brings its own certificate, issued by this CA for the name `podvm-server`.
    Files {
        /// PEM file.
        ca: PathBuf,
        /// Certificate and key of the client, PEM files; `None`: made by us and sent to the VM, so
        /// that it never serves without asking for one.
        client: Option<ClientFiles>,
    },
    /// We issue a certificate for each VM.
    Automatic {
        /// Certificate and key of the client, PEM files; `None`: made by us.
        client: Option<ClientFiles>,
    },
}

/// PEM files of the client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// Certificate.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// The tunnel of the pod network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// UDP port.
    pub vxlan_port: u16,
    /// Smallest VNI we use, 1 to 16777215.
    pub vxlan_min_id: u32,
    /// Interface of the worker; `None`: the primary one.
    pub host_interface: Option<String>,
    /// Networks the pod reaches by its own gateway besides the routes it has.
    pub pod_subnets: Vec<IpNetwork>,
    /// What pods may do on the worker's network.
    pub policy: Policy,
}

/// The life of pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Pods {
    /// Most pods on this node at a time; `None`: as many as come.
    pub limit: Option<u32>,
    /// Most provider creates at a time.
    pub max_concurrent_creates: usize,
    /// For how long the VM of a start that failed is kept.
    pub keep_failed: Duration,
    /// For how long a place that had no room is left out.
    pub capacity_cooldown: Duration,
    /// Bound of one StartVM, everything included; below the shim's 600 s.
    pub start_timeout: Duration,
    /// How long a CreateVM without a StartVM is kept.
    pub sandbox_expiry: Duration,
    /// How long a pod without any shim connection is kept.
    pub orphan_grace: Duration,
    /// Rust shims always send 1 vCPU and 2048 MiB when a pod asks for nothing.
    pub rs_default_pair_is_unset: bool,
    /// initdata of pods that bring none.
    pub default_initdata: Option<Initdata>,
    /// Encrypted scratch disk in the VM.
    pub scratch_space: bool,
    /// Where the volumes of pods are written down, and where whose is which.
    pub volumes: Places,
    /// Labels that become tags of VMs, the most wanted first.
    pub cost_tags: Vec<CostTag>,
}

/// The comparison of provider and records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// Time between two; `None`: never.
    pub interval: Option<Duration>,
    /// Younger VMs are left alone.
    pub grace: Duration,
    /// Only report.
    pub dry_run: bool,
}

/// What Kubernetes tells a daemon of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// UID of the daemon's own pod.
    pub pod_uid: Option<String>,
    /// Namespace of the daemon's own pod.
    pub namespace: Option<String>,
    /// RuntimeClass of peer pods.
    pub runtime_class: String,
}
