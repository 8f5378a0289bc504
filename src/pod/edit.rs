//! The one request this process edits on its way to the VM: CreateContainer of a pod with GPUs or disks.
//! Annotations tell the agent to hand the GPUs in, and the VM's program which disk is which mount. Pure.
//!
//! ```text
//!   mounts ─ source is a volume's target ─▶ cloud_volumes: {"vol-<n>": mount point, file system, LUN, disk}
//!   GPUs   ───────────────────────────────▶ cdi.k8s.io/peer-pods
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use peerpod_tunnel::link::wire::{self, WireError};
use podvm::cloud_volumes::{self, ANNOTATION, CloudVolume, TARGETS};

use crate::volumes::PodVolumes;

/// Field of CreateContainerRequest: the OCI spec.
const OCI: u32 = 6;
/// Fields of the OCI spec: mounts, and annotations, a map.
const MOUNTS: u32 = 5;
const ANNOTATIONS: u32 = 7;
/// Fields of a mount.
const DESTINATION: u32 = 1;
const SOURCE: u32 = 2;
/// Fields of a map's entry.
const KEY: u32 = 1;
const VALUE: u32 = 2;

/// The method that is edited.
pub const METHOD: &str = "CreateContainer";
const CDI_KEY: &str = "cdi.k8s.io/peer-pods";
const CDI_VALUE: &str = "nvidia.com/gpu=all";
/// The pod's UID, as containerd has it.
const UID: &str = "io.kubernetes.cri.sandbox-uid";

/// What the pod has.
#[derive(Clone, Copy, Debug)]
pub struct Has<'a> {
    /// GPUs.
    pub gpus: bool,
    /// Disks.
    pub volumes: &'a PodVolumes,
}

/// Why a container cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The request cannot be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It needs a disk that its VM has not.
    #[error("volume {target} is not attached to the VM: {reason}")]
    NotAttached {
        /// Its target path.
        target: String,
        /// Why not.
        reason: String,
    },
    /// It is of another pod.
    #[error("it says that its pod is {said:?}, but the VM's disks are those of pod {ours}")]
    Foreign {
        /// What it says, cut.
        said: String,
        /// Whose they are.
        ours: String,
    },
    /// The annotation cannot be written.
    #[error("annotation {ANNOTATION}: {0}")]
    Annotation(#[from] serde_json::Error),
}

/// Adds annotations to a CreateContainer request; every other byte stays as it came, but for entries of
/// the same keys, of which nobody else has to say anything. A request without an OCI spec is the agent's
/// to refuse and stays as it is.
///
/// # Errors
/// When the request is no protobuf message, or asks for what the pod has not.
pub fn container(request: &Bytes, has: &Has<'_>) -> Result<Bytes, EditError> {
    let (ours, add) = annotations(request, has)?;
    let mut added = false;
    let edited = wire::map(request, OCI, |oci| -> Result<_, WireError> {
        let mut oci = without(oci, &ours)?;
        // A spec cut into several occurrences is merged by the reader: once is enough.
        for (key, value) in add.iter().filter(|_| !added) {
            let mut entry = Vec::new();
            wire::put(&mut entry, KEY, key.as_bytes());
            wire::put(&mut entry, VALUE, value.as_bytes());
            wire::put(&mut oci, ANNOTATIONS, &entry);
        }
        added = true;
        Ok(oci)
    })?;
    Ok(edited.into())
}

/// A mount of the container that may be a volume's.
struct Mount<'a> {
    destination: &'a str,
    source: &'a str,
}

/// The keys that are ours, and what is to stand there.
type Annotations = (Vec<&'static str>, Vec<(&'static str, String)>);

fn annotations(request: &Bytes, has: &Has<'_>) -> Result<Annotations, EditError> {
    let (mut ours, mut add) = (Vec::new(), Vec::new());
    if has.gpus {
        ours.push(CDI_KEY);
        add.push((CDI_KEY, CDI_VALUE.to_owned()));
    }
    if has.volumes.is_empty() {
        return Ok((ours, add));
    }
    ours.extend([ANNOTATION, TARGETS]);
    let (mounts, said) = look(request)?;
    if let (Some(uid), Some(said)) = (&has.volumes.uid, said)
        && said != uid
    {
        let said = said.chars().take(80).collect();
        return Err(EditError::Foreign { said, ours: uid.clone() });
    }
    if let Some(unknown) = &has.volumes.unknown
        && let Some(mount) = mounts.iter().find(|m| unknown.targets.iter().any(|t| t == m.source))
    {
        let (target, reason) = (mount.source.to_owned(), unknown.reason.clone());
        return Err(EditError::NotAttached { target, reason });
    }
    let (mut named, mut targets) = (BTreeMap::<String, CloudVolume>::new(), Vec::new());
    for volume in &has.volumes.attached {
        // A volume that this container does not use keeps its number.
        if let Some(mount) = mounts.iter().find(|m| m.source == volume.target) {
            named.insert(volume.name(), volume.at(mount.destination));
            targets.push(volume.target.as_str());
        }
    }
    if !named.is_empty() {
        add.push((ANNOTATION, cloud_volumes::render(&named)?));
        add.push((TARGETS, targets.join(",")));
    }
    Ok((ours, add))
}

/// The container's mounts, and the UID its annotations name.
fn look(request: &Bytes) -> Result<(Vec<Mount<'_>>, Option<&str>), WireError> {
    let (mut mounts, mut uid) = (Vec::new(), None);
    for oci in wire::walk(request) {
        let oci = oci?;
        for field in wire::walk(oci.content.filter(|_| oci.number == OCI).unwrap_or_default()) {
            let field = field?;
            let Some(content) = field.content else { continue };
            let text = |number| wire::text(content, number).unwrap_or_default();
            if field.number == MOUNTS {
                mounts.push(Mount { destination: text(DESTINATION), source: text(SOURCE) });
            } else if field.number == ANNOTATIONS && text(KEY) == UID {
                uid = Some(text(VALUE)).filter(|uid| !uid.is_empty());
            }
        }
    }
    Ok((mounts, uid))
}

/// The spec without entries of our keys, should a shim have sent some.
fn without(oci: &[u8], ours: &[&str]) -> Result<Vec<u8>, WireError> {
    let is_ours = |f: &wire::Field<'_>| {
        let key = f.content.and_then(|c| wire::text(c, KEY));
        f.number == ANNOTATIONS && key.is_some_and(|key| ours.contains(&key))
    };
    let mut out = Vec::with_capacity(oci.len() + 64);
    for field in wire::walk(oci) {
        let field = field?;
        if !is_ours(&field) {
            out.extend_from_slice(field.raw);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
