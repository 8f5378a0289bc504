//! CreateVM's annotations become a [`PodRequest`]; after this nobody reads the raw map. Pure.
//!
//! ```text
//!   CreateVmRequest {id, nine annotations, netns} ──parse──▶ PodRequest │ RequestError (→ INVALID_ARGUMENT)
//! ```

mod id;
mod number;

use std::collections::BTreeMap;
use std::path::PathBuf;

use podvm::initdata::{Initdata, InitdataError};
use serde::{Deserialize, Serialize};

pub use id::SandboxId;

use crate::hypervisor::{Failure, FailureKind};
use crate::proto::hypervisor::CreateVmRequest;

/// The nine keys a shim sends (kata.md 3.3); the last one's value is TOML text.
pub mod keys {
    /// Pod name, or CRI-O's sandbox name.
    pub const NAME: &str = "io.kubernetes.cri.sandbox-name";
    /// Kubernetes namespace.
    pub const NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
    /// Instance type, in the cloud's own words.
    pub const MACHINE_TYPE: &str = "io.katacontainers.config.hypervisor.machine_type";
    /// Image, in the cloud's own words.
    pub const IMAGE: &str = "io.katacontainers.config.hypervisor.image";
    /// CPUs, a decimal number.
    pub const VCPUS: &str = "io.katacontainers.config.hypervisor.default_vcpus";
    /// Memory in MiB.
    pub const MEMORY: &str = "io.katacontainers.config.hypervisor.default_memory";
    /// GPUs.
    pub const GPUS: &str = "io.katacontainers.config.hypervisor.default_gpus";
    /// GPU model.
    pub const GPU_MODEL: &str = "io.katacontainers.config.hypervisor.default_gpu_model";
    /// Initdata, TOML text.
    pub const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";
}

/// Longest value of an annotation other than initdata, in bytes. The longest legal one is an image
/// id of some hundred characters.
const TEXT_MAX: usize = 1024;
/// Longest name of a pod or namespace that Kubernetes gives.
const NAME_MAX: usize = 253;
/// What the kernel takes as a path.
const PATH_MAX: usize = 4095;
/// What the Rust shim sends when a pod asks for nothing.
const RS_DEFAULT_PAIR: (&str, &str) = ("1", "2048");

/// What a shim asks for, checked.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRequest {
    /// Sandbox id.
    pub sandbox: SandboxId,
    /// Pod name.
    pub pod: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// The pod's UID; only CRI-O's sandbox names carry it.
    pub pod_uid: Option<String>,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// Instance type the user wants.
    pub machine_type: Option<String>,
    /// Image the user wants instead of the default one.
    pub image: Option<String>,
    /// CPUs, rounded up to whole ones; `None` is not asked for.
    pub vcpus: Option<u32>,
    /// Memory in MiB; `None` is not asked for.
    pub memory_mib: Option<u64>,
    /// GPUs; 0 is none.
    pub gpus: u32,
    /// GPU model, in the user's words.
    pub gpu_model: Option<String>,
    /// The pod's initdata, or the default for all pods.
    #[serde(with = "wrapped_initdata", default)]
    pub initdata: Option<Initdata>,
}

impl std::fmt::Debug for PodRequest {
    /// Initdata can hold secrets and policies: only their digest is shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodRequest")
            .field("sandbox", &self.sandbox)
            .field("pod", &self.pod)
            .field("namespace", &self.namespace)
            .field("netns", &self.netns)
            .field("machine_type", &self.machine_type)
            .field("image", &self.image)
            .field("vcpus", &self.vcpus)
            .field("memory_mib", &self.memory_mib)
            .field("gpus", &self.gpus)
            .field("initdata", &self.initdata.as_ref().map(Initdata::digest))
            .finish_non_exhaustive()
    }
}

/// What the settings say about reading requests.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RequestRules {
    /// The Rust shim sends 1 CPU and 2048 MiB when the pod asked for nothing: take exactly that pair
    /// for nothing.
    pub rs_default_pair_is_unset: bool,
    /// Initdata of pods that bring none.
    pub default_initdata: Option<Initdata>,
}

/// Why a request is refused. Names the field or key, and the value cut to a length for messages.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Something needed is empty or not there.
    #[error("{field} is missing")]
    Missing {
        /// Field or annotation.
        field: &'static str,
    },
    /// A sandbox id that cannot be used.
    #[error("id {value:?} cannot be used: {reason}")]
    Id {
        /// The id, cut.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An annotation's value that cannot be used.
    #[error("annotation {key}: {value:?} {reason}")]
    Value {
        /// Which one.
        key: &'static str,
        /// Its value, cut.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Initdata that no VM could use.
    #[error("annotation {}", keys::INITDATA)]
    Initdata(#[source] InitdataError),
    /// A pod on the node's own network has nothing that a tunnel could carry to a VM.
    #[error(
        "networkNamespacePath is {0:?}: pods with hostNetwork cannot run as virtual machines of their own"
    )]
    HostNetwork(String),
    /// A path that is none.
    #[error("networkNamespacePath {value:?} cannot be used: {reason}")]
    Netns {
        /// The path, cut.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Failure::caused_by(FailureKind::Invalid, &error)
    }
}

/// Reads a request.
///
/// # Errors
/// [`RequestError`], naming the field or key.
pub fn parse(request: &CreateVmRequest, rules: &RequestRules) -> Result<PodRequest, RequestError> {
    let sandbox = SandboxId::parse(&request.id)?;
    let all = Annotations(&request.annotations);
    let initdata = all.initdata(rules)?;
    let (pod, pod_uid) = pod_name(all.needed(keys::NAME, TEXT_MAX)?)?;
    let namespace = all.needed(keys::NAMESPACE, NAME_MAX)?.to_owned();
    let gpus = number::integer(keys::GPUS, all.raw(keys::GPUS), number::GPUS_MAX)?.unwrap_or(0);
    let gpus = u32::try_from(gpus).unwrap_or(u32::MAX);
    let (vcpus, memory_mib) = all.size(rules, gpus)?;
    Ok(PodRequest {
        sandbox,
        pod,
        namespace,
        pod_uid,
        netns: netns(&request.network_namespace_path)?,
        machine_type: all.text(keys::MACHINE_TYPE)?,
        image: all.text(keys::IMAGE)?,
        vcpus,
        memory_mib,
        gpus,
        gpu_model: all.text(keys::GPU_MODEL)?,
        initdata,
    })
}

struct Annotations<'a>(&'a BTreeMap<String, String>);

impl<'a> Annotations<'a> {
    /// An absent key counts as an empty one: shims send all nine, empty when unset.
    fn raw(&self, key: &str) -> &'a str {
        self.0.get(key).map(String::as_str).unwrap_or_default()
    }

    fn text(&self, key: &'static str) -> Result<Option<String>, RequestError> {
        let value = self.raw(key);
        check(key, value, TEXT_MAX)?;
        Ok((!value.is_empty()).then(|| value.to_owned()))
    }

    fn needed(&self, key: &'static str, max: usize) -> Result<&'a str, RequestError> {
        let value = self.raw(key);
        if value.is_empty() {
            return Err(RequestError::Missing { field: key });
        }
        check(key, value, max)?;
        Ok(value)
    }

    fn initdata(&self, rules: &RequestRules) -> Result<Option<Initdata>, RequestError> {
        match self.raw(keys::INITDATA) {
            "" => Ok(rules.default_initdata.clone()),
            toml => Initdata::from_toml(toml).map(Some).map_err(RequestError::Initdata),
        }
    }

    fn size(
        &self,
        rules: &RequestRules,
        gpus: u32,
    ) -> Result<(Option<u32>, Option<u64>), RequestError> {
        let (vcpus, memory) = (self.raw(keys::VCPUS), self.raw(keys::MEMORY));
        if rules.rs_default_pair_is_unset && gpus == 0 && (vcpus, memory) == RS_DEFAULT_PAIR {
            return Ok((None, None));
        }
        let memory = number::integer(keys::MEMORY, memory, number::MEMORY_MAX)?;
        Ok((number::vcpus(keys::VCPUS, vcpus)?, memory))
    }
}

fn check(key: &'static str, value: &str, max: usize) -> Result<(), RequestError> {
    let wrong = |reason| Err(RequestError::Value { key, value: short(value), reason });
    if value.len() > max {
        return wrong("is too long");
    }
    if value.chars().any(char::is_control) {
        return wrong("holds a control character");
    }
    Ok(())
}

/// Pod name and, from CRI-O's `k8s_<pod>_<namespace>_<uid>_<attempt>`, the pod's UID. A Kubernetes
/// name never holds an underscore.
fn pod_name(value: &str) -> Result<(String, Option<String>), RequestError> {
    let fields: Vec<&str> = value.split('_').collect();
    let (name, uid) = match fields[..] {
        ["k8s", name, _, uid, _] => (name, Some(uid)),
        ["k8s", name, ..] => (name, None),
        _ => (value, None),
    };
    let wrong = |reason| RequestError::Value { key: keys::NAME, value: short(value), reason };
    if name.is_empty() {
        return Err(wrong("holds no pod name"));
    }
    if name.len() > NAME_MAX {
        return Err(wrong("holds a pod name longer than 253 characters"));
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let uid = uid.filter(|u| (1..=64).contains(&u.len()) && u.bytes().all(legal));
    Ok((name.to_owned(), uid.map(str::to_owned)))
}

fn netns(path: &str) -> Result<PathBuf, RequestError> {
    // What the Rust shim puts for a namespace that is not there.
    if path.is_empty() || path == "/proc/0/ns/net" {
        return Err(RequestError::HostNetwork(path.to_owned()));
    }
    let wrong = |reason| Err(RequestError::Netns { value: short(path), reason });
    if !path.starts_with('/') {
        return wrong("it is not absolute");
    }
    if path.len() > PATH_MAX {
        return wrong("it is longer than a path can be");
    }
    if path.chars().any(char::is_control) {
        return wrong("it holds a control character");
    }
    Ok(PathBuf::from(path))
}

/// Enough of a value to recognise it in a message.
fn short(value: &str) -> String {
    const SHOWN: usize = 80;
    let mut shown: String = value.chars().take(SHOWN).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    shown
}

/// Initdata in records: base64 of gzip of the text, whose bytes must not change.
mod wrapped_initdata {
    use super::{Deserialize, Initdata};

    pub(super) fn serialize<S: serde::Serializer>(
        value: &Option<Initdata>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(initdata) => serializer.serialize_some(&initdata.encode()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Initdata>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|t| Initdata::decode(&t).map_err(serde::de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests;
