//! A pod's volumes: disks that a CSI driver has written down on this node for the pod, and that its VM gets
//! with its create. Only the pod's own: without its UID it gets none.
//!
//! ```text
//!   CreateVM ─▶ records of this node ─ any? ─▶ the pod's UID ─▶ its records, in order ─▶ disks 0, 1, …
//!                                              └ not to be had: none, and why stands in the timeline
//! ```
//! Everything here is read from files that others have written, and is checked before it is believed.

mod records;

use std::path::PathBuf;

use peerpod_providers::Volume;
use podvm::cloud_volumes::{self, CloudVolume};
use serde::{Deserialize, Serialize};

use crate::bundle;
use crate::hypervisor::{Failure, FailureKind};
use crate::request::PodRequest;

/// Targets of other volumes that are kept to recognise one of the pod's own by.
const TARGETS_KEPT: usize = 1024;

/// Where it is looked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Kata's direct-volume records, a directory each.
    pub records: PathBuf,
    /// Directories of bundles, by sandbox id: containerd's, CRI-O's.
    pub bundles: Vec<PathBuf>,
}

/// One volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodVolume {
    /// Path at which the kubelet thinks it is; the source of a container's mount.
    pub target: String,
    /// The cloud's id of the disk.
    pub disk: String,
    /// Number under which it is attached, and by which it has its name in the VM.
    pub number: u32,
    /// File system: ext4, ext3 or xfs.
    pub fs: String,
    /// Nothing is to be written to it.
    #[serde(default)]
    pub read_only: bool,
    /// Group that is to own its root directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_group: Option<u32>,
    /// luks or luks2, where it is encrypted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub encrypt_type: String,
    /// Name of its key at the key broker.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key_id: String,
}

impl PodVolume {
    /// What a container's annotation says of it.
    pub fn at(&self, mount_point: &str) -> CloudVolume {
        CloudVolume {
            mount_point: mount_point.to_owned(),
            fs_type: self.fs.clone(),
            lun: self.number.to_string(),
            disk_id: self.disk.clone(),
            fs_group: self.fs_group.map(|g| g.to_string()).unwrap_or_default(),
            encrypt_type: self.encrypt_type.clone(),
            key_id: self.key_id.clone(),
        }
    }

    /// Its name in the VM; upstream's.
    pub fn name(&self) -> String {
        format!("vol-{}", self.number)
    }

    /// What the provider attaches.
    pub fn spec(&self) -> Volume {
        let (disk, lun) = (self.disk.clone(), self.number);
        Volume { read_only: self.read_only, fs: self.fs.clone(), ..Volume::new(disk, lun) }
    }

    /// Whether it says only what may be said.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        cloud_volumes::disk(&self.disk).map_err(|why| format!("disk {:?} {why}", self.disk))?;
        cloud_volumes::Fs::parse(&self.fs).map_err(|why| format!("fs {:?} {why}", self.fs))?;
        if records::owner(&self.target).is_none() {
            return Err(format!("target {:?} is no path of a pod's volume", self.target));
        }
        match self.encrypt_type.to_ascii_lowercase().as_str() {
            "" => Ok(()),
            "luks" | "luks2" => cloud_volumes::key(&self.key_id)
                .map_err(|why| format!("key {:?} {why}", self.key_id)),
            other => Err(format!("encrypt-type {other:?} is neither luks nor luks2")),
        }
    }
}

/// The volumes of a pod, or why they are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodVolumes {
    /// Those that its VM has, by number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<PodVolume>,
    /// The UID by which they were chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Why there are none though there may be some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<Unknown>,
}

/// A pod whose volumes are not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// Why.
    pub reason: String,
    /// Targets of all volumes of the node, by which a container that needs one of them is known.
    pub targets: Vec<String>,
}

impl PodVolumes {
    /// The pod has none, for all that is known.
    pub fn is_empty(&self) -> bool {
        self.attached.is_empty() && self.unknown.is_none()
    }

    /// Lines for the timeline.
    pub fn notes(&self) -> Vec<String> {
        let why = self.unknown.iter().map(|u| format!("no volume is attached: {}", u.reason));
        let each = |v: &PodVolume| format!("{} is disk {} ({})", v.name(), v.disk, v.fs);
        why.chain(self.attached.iter().map(each)).collect()
    }
}

/// Why a pod cannot have the volumes that were written down for it. It must not start without them.
#[derive(Debug, thiserror::Error)]
pub enum VolumesError {
    /// The records cannot be listed.
    #[error("direct volumes: read {}: {source}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// One of the pod's own cannot be used.
    #[error("direct volume {target}: {reason}")]
    Record {
        /// The volume's target path.
        target: String,
        /// What is wrong.
        reason: String,
    },
    /// More than a VM can have.
    #[error("{0} volumes, a VM has at most {most}", most = cloud_volumes::MOST)]
    Many(usize),
}

impl From<VolumesError> for Failure {
    fn from(error: VolumesError) -> Self {
        let kind = match error {
            VolumesError::Read { .. } => FailureKind::Unavailable,
            VolumesError::Record { .. } | VolumesError::Many(_) => FailureKind::Invalid,
        };
        Failure::caused_by(kind, &error)
    }
}

impl Places {
    /// The volumes of the pod that asks. Reads files: not for the runtime's threads.
    ///
    /// # Errors
    /// When one of its own cannot be used. Those of others are not even opened.
    pub fn look(&self, request: &PodRequest) -> Result<PodVolumes, VolumesError> {
        let all = records::list(&self.records)?;
        if all.is_empty() {
            return Ok(PodVolumes::default());
        }
        let uid = match bundle::uid(&self.bundles, request) {
            Ok(uid) => uid,
            Err(reason) => {
                let targets = all.into_iter().map(|r| r.target).take(TARGETS_KEPT).collect();
                let unknown = Some(Unknown { reason, targets });
                return Ok(PodVolumes { unknown, ..PodVolumes::default() });
            }
        };
        let own: Vec<_> =
            all.into_iter().filter(|r| records::owner(&r.target) == Some(&uid)).collect();
        if own.len() > cloud_volumes::MOST {
            return Err(VolumesError::Many(own.len()));
        }
        let mut attached: Vec<PodVolume> = Vec::new();
        for (number, record) in (0..).zip(own) {
            let target = record.target.clone();
            let wrong = |reason| VolumesError::Record { target, reason };
            let volume = record.read(number).and_then(|v| v.check().map(|()| v));
            match volume {
                Ok(volume) if attached.iter().any(|a| a.disk == volume.disk) => {
                    return Err(wrong(format!("disk {:?} is another one's, too", volume.disk)));
                }
                Ok(volume) => attached.push(volume),
                Err(reason) => return Err(wrong(reason)),
            }
        }
        let uid = (!attached.is_empty()).then_some(uid);
        Ok(PodVolumes { attached, uid, unknown: None })
    }
}

#[cfg(test)]
mod tests;
