//! What is known of a pod, as it stands on disk: enough to take it up again after any crash.
//!
//! Saved before each act, so the disk always overstates. The VM stands apart from the pod
//! ([`Machine`]), since a VM may be made before it is known which pod it will be for.
//!
//! **Versions.** A daemon of version N reads records of N and of N - 1 (made ones of N as they are
//! read, written as such with their next save). All others, those of N + 1 above all, stay what and
//! where they are: their VMs are not deleted, their sockets are not closed, their calls get an error
//! that says so, and other pods go on. So a daemon may be replaced by the next version and that one
//! by the old one again, under running pods; what the next one has written in between waits for it.
//! Within a version fields may be added, with a default: a build that does not know a field keeps it.

use std::fmt::Debug;
use std::path::PathBuf;

use async_trait::async_trait;
use peerpod_providers::{Candidate, UserData, VmRef, VmSpec};
use peerpod_tunnel::network::PodNetwork;
use serde::{Deserialize, Serialize};

use super::interruption::Interruption;
use super::phase::{Made, Phase};
use super::world::Stage;
use crate::plan::FollowFile;
use crate::volumes::PodVolumes;

pub mod authorities;
mod check;
mod disk;
pub mod files;
mod sum;
mod version;

pub use disk::Disk;
pub use version::OLDEST;

/// Version of the form below; see above for what another one means.
pub const VERSION: u32 = 1 + crate::next::STEP;
/// Entries of a timeline; what comes in between is dropped, beginning and end stay.
const TIMELINE: usize = 48;
/// Bytes of an error text that are kept.
const ERROR_TEXT: usize = 1024;

/// Everything about one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`] of the daemon that wrote it.
    pub version: u32,
    /// Boot of the machine it belongs to; sockets and namespaces do not outlive that.
    pub boot: String,
    /// Installation whose tag the VM carries.
    pub installation: String,
    /// Sandbox id, the key.
    pub sandbox: String,
    /// Whose VM it is.
    pub pod: PodIdentity,
    /// The pod's network on this worker.
    pub network: NetworkPart,
    /// Where the shim finds the agent, held by the relay.
    pub link: LinkPart,
    /// The VM that is to be, or is.
    pub machine: Machine,
    /// Disks of the pod's own that the VM has; its containers are told of them.
    #[serde(default, skip_serializing_if = "PodVolumes::is_empty")]
    pub volumes: PodVolumes,
    /// Where in its life the pod is.
    pub phase: Phase,
    /// How far its start has come.
    pub stage: Option<Stage>,
    /// Steps and phases so far, oldest first.
    pub timeline: Vec<Moment>,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
    /// Its start failed, and nobody had asked for that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed_start: bool,
    /// The VM that is made, or was, is one that its cloud may take back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spot: bool,
    /// The cloud's word that it takes the VM back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interruption: Option<Interruption>,
    /// When CreateVM came, in milliseconds since 1970.
    pub created_ms: u64,
    /// When the phase was entered, in milliseconds since 1970.
    pub since_ms: u64,
    /// When CreateVM came, in milliseconds since the machine was started: nobody sets that clock.
    #[serde(default)]
    pub created_boot_ms: Option<u64>,
    /// Stands for what a next version may need.
    #[cfg(feature = "next-version")]
    pub generation: u32,
}

/// The pod in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIdentity {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID, where the shim gave it.
    pub uid: Option<String>,
    /// GPUs it asked for.
    pub gpus: u32,
}

/// The pod's side of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPart {
    /// Path of the namespace.
    pub netns: PathBuf,
    /// Its device and inode when it was looked at.
    pub netns_id: (u64, u64),
    /// What was found there.
    pub found: PodNetwork,
    /// VXLAN id, this pod's alone as long as the record is there.
    pub vni: u32,
    /// UDP port of the tunnel.
    pub vxlan_port: u16,
}

/// The agent link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkPart {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Methods whose requests are edited on their way to the VM.
    pub edit_methods: Vec<String>,
    /// TCP port of the forwarder.
    pub port: u16,
    /// Name the VM's certificate carries.
    pub server_name: String,
    /// Fingerprint of the CA of ours that issued it, which is believed as long as this stands here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
}

/// A VM: what it is made of and where it may be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The same bytes for every attempt. The user data, with the VM's key, go as soon as no create
    /// will be sent again: with the VM's address, or with the end of the pod.
    pub spec: VmSpec,
    /// Places in the order they are tried.
    pub candidates: Vec<Candidate>,
    /// Why these, for people.
    pub size_reason: String,
    /// What it must be sent before the pod begins; goes as soon as it has that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub follow: Vec<FollowFile>,
}

/// One line of a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// When it ended, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    pub what: String,
    /// How long it took, in milliseconds.
    pub took_ms: Option<u64>,
}

impl Record {
    /// How to find the VM, whatever is known of it.
    pub fn vm_ref(&self) -> VmRef {
        let known = match &self.phase {
            Phase::Deleting { made: Made::Known(vm), .. }
            | Phase::Launching { made: Made::Known(vm), .. }
            | Phase::Running { vm } => Some(vm),
            _ => None,
        };
        VmRef {
            name: known.map_or(&self.machine.spec.name, |vm| &vm.name).clone(),
            sandbox: self.machine.spec.sandbox.clone(),
            native_id: known.map(|vm| vm.native_id.clone()).filter(|id| !id.is_empty()),
        }
    }

    /// Adds a line to the timeline, which stays bounded.
    pub fn note(&mut self, at_ms: u64, what: impl Into<String>, took_ms: Option<u64>) {
        if self.timeline.len() >= TIMELINE {
            self.timeline.remove(TIMELINE / 2);
        }
        let mut what = what.into();
        truncate(&mut what);
        self.timeline.push(Moment { at_ms, what, took_ms });
    }

    /// Keeps an error's text.
    pub fn fail(&mut self, text: impl Into<String>) {
        let mut text = text.into();
        truncate(&mut text);
        self.last_error = Some(text);
    }

    /// Overwrites what holds the VM's private key and drops what only a create needs.
    pub fn wipe(&mut self) {
        self.machine.spec.user_data = UserData(String::new());
        self.machine.candidates = Vec::new();
        if !self.phase.is_young() {
            self.machine.follow = Vec::new();
        }
    }
}

fn truncate(text: &mut String) {
    if text.len() > ERROR_TEXT {
        let end = (0..=ERROR_TEXT).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

/// Where records are kept.
#[async_trait]
pub trait Records: Send + Sync + Debug {
    /// All records, and those that cannot be used.
    ///
    /// # Errors
    /// Only when the place itself cannot be read.
    async fn load(&self) -> Result<Loaded, RecordError>;

    /// Writes a record so that a crash right afterwards, or in the middle, leaves the old or the
    /// new one.
    ///
    /// # Errors
    /// The old one is still there then.
    async fn save(&self, record: &Record) -> Result<(), RecordError>;

    /// Forgets a sandbox; absent is success.
    ///
    /// # Errors
    /// When it is still there.
    async fn remove(&self, sandbox: &str) -> Result<(), RecordError>;
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// To be taken up again.
    pub records: Vec<Record>,
    /// To be told about.
    pub broken: Vec<Broken>,
}

/// A record that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Whose it was, by its directory's name.
    pub sandbox: String,
    /// Where it is kept.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// Written by a daemon of another version, as a rule a newer one: its VM and its files are not
    /// touched.
    pub newer: bool,
}

/// A record could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {source}", path.display())]
pub struct RecordError {
    /// What was being done.
    pub action: &'static str,
    /// With what.
    pub path: PathBuf,
    /// Why not.
    pub source: std::io::Error,
}

impl RecordError {
    /// Whether room is what is missing.
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self.source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    }
}

#[cfg(test)]
mod tests;
