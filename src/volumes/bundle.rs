//! The UID of a pod: CRI-O's sandbox names carry it, and the bundle of the sandbox, which its shim was
//! started with, names it for containerd as for CRI-O. A bundle counts only if it says that it is this
//! sandbox's and this pod's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::file;
use crate::request::PodRequest;

/// Longest config.json, in bytes; a sandbox's has some ten thousand.
const CONFIG_MAX: u64 = 4 << 20;
/// Where in a sandbox's directory it lies: containerd, CRI-O.
const CONFIG: [&str; 2] = ["config.json", "userdata/config.json"];

/// Annotations of containerd and of CRI-O, in this order.
const SANDBOX: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];
const NAMESPACE: [&str; 2] =
    ["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri-o.Namespace"];
const NAME: [&str; 2] = ["io.kubernetes.cri.sandbox-name", "io.kubernetes.cri-o.KubeName"];
const UID: [&str; 2] = ["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"];
/// JSON: the pod's labels, the UID among them.
const LABELS: &str = "io.kubernetes.cri-o.Labels";

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Config {
    fn get(&self, keys: [&str; 2]) -> Option<&str> {
        let found = keys.iter().find_map(|key| self.annotations.get(*key));
        found.map(String::as_str).filter(|text| !text.is_empty())
    }

    fn uid(&self) -> Option<String> {
        if let Some(uid) = self.get(UID) {
            return Some(uid.to_owned());
        }
        let labels: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(self.annotations.get(LABELS)?).ok()?;
        labels.get(UID[1])?.as_str().map(str::to_owned)
    }
}

/// The pod's UID, or why it is not known.
pub(super) fn uid(bundles: &[PathBuf], request: &PodRequest) -> Result<String, String> {
    let found = in_bundle(bundles, request);
    match (&request.pod_uid, found) {
        (None, found) => found,
        (Some(uid), Ok(other)) if *uid != other => Err(format!(
            "the sandbox's name says that the pod's UID is {uid}, its bundle says {other}"
        )),
        // The name alone will do.
        (Some(uid), _) => Ok(uid.clone()),
    }
}

fn in_bundle(bundles: &[PathBuf], request: &PodRequest) -> Result<String, String> {
    let id = request.sandbox.as_str();
    let places = bundles.iter().flat_map(|dir| CONFIG.map(|file| dir.join(id).join(file)));
    let mut why = format!("no bundle of this sandbox in {bundles:?}");
    for path in places {
        match file::read(&path, CONFIG_MAX) {
            Ok(bytes) => return read(&path, &bytes, request),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => why = format!("the sandbox's bundle: {}: {e}", path.display()),
        }
    }
    Err(format!("the pod's UID is not known ({why})"))
}

fn read(path: &Path, bytes: &[u8], request: &PodRequest) -> Result<String, String> {
    let wrong = |what: String| format!("the pod's UID is not known ({}: {what})", path.display());
    let config: Config = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
    let same = [
        ("sandbox id", config.get(SANDBOX).unwrap_or_default(), request.sandbox.as_str()),
        ("namespace", config.get(NAMESPACE).unwrap_or(&request.namespace), &request.namespace),
        // Of CRI-O's names only a part is the pod's.
        ("pod", config.get(NAME).map_or(&request.pod, pod_of), &request.pod),
    ];
    if let Some((what, said, _)) = same.iter().find(|(_, said, wanted)| said != wanted) {
        return Err(wrong(format!("{what} {:?} is another one's", short(said))));
    }
    let uid = config.uid().ok_or_else(|| wrong("it names no UID".to_owned()))?;
    match is_uid(&uid) {
        true => Ok(uid),
        false => Err(wrong(format!("{:?} is no UID", short(&uid)))),
    }
}

fn pod_of(name: &str) -> &str {
    name.strip_prefix("k8s_").and_then(|rest| rest.split('_').next()).unwrap_or(name)
}

/// What Kubernetes gives, and what can be part of a path.
pub(super) fn is_uid(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
