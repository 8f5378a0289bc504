//! What the bundle of a sandbox, which its shim was started with, says of the pod: its UID, which CRI-O's
//! sandbox names carry too, and under CRI-O its labels. containerd writes no labels down: a sandbox's
//! annotations are those of its CRI plugin (`internal/cri/annotations`) and what `pod_annotations` lets
//! through. A bundle counts only if it says that it is this sandbox's and this pod's.
//!
//! Each runtime is asked in its own words alone: CRI-O copies a pod's own annotations into its bundle, and
//! then the labels, where the kubelet puts the UID. containerd's word for it, there, would be the pod's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::file;
use crate::labels::label;
use crate::request::PodRequest;

/// Longest config.json, in bytes; a sandbox's has some ten thousand.
const CONFIG_MAX: u64 = 4 << 20;
/// Where in a sandbox's directory it lies: containerd, CRI-O.
const CONFIG: [&str; 2] = ["config.json", "userdata/config.json"];

/// Annotations of containerd and of CRI-O, in this order as well.
const SANDBOX: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];
const NAMESPACE: [&str; 2] =
    ["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri-o.Namespace"];
const NAME: [&str; 2] = ["io.kubernetes.cri.sandbox-name", "io.kubernetes.cri-o.KubeName"];
const UID: [&str; 2] = ["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"];
/// JSON, CRI-O's alone: the pod's labels, and the UID and the like among them.
const LABELS: &str = "io.kubernetes.cri-o.Labels";

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    /// Which runtime's: a place in each list above.
    #[serde(skip)]
    runtime: usize,
}

impl Config {
    fn get(&self, keys: [&str; 2]) -> Option<&str> {
        let found = keys.get(self.runtime).and_then(|key| self.annotations.get(*key));
        found.map(String::as_str).filter(|text| !text.is_empty())
    }

    fn uid(&self) -> Option<String> {
        if let Some(uid) = self.get(UID) {
            return Some(uid.to_owned());
        }
        if self.runtime == 0 {
            return None;
        }
        let labels: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(self.annotations.get(LABELS)?).ok()?;
        labels.get(UID[1])?.as_str().map(str::to_owned)
    }
}

/// The pod's UID, or why it is not known. Reads files, as [`labels`].
pub(crate) fn uid(bundles: &[PathBuf], request: &PodRequest) -> Result<String, String> {
    let found = find(bundles, request).and_then(|(path, config)| {
        let wrong = |what: String| format!("{}: {what}", path.display());
        let uid = config.uid().ok_or_else(|| wrong("it names no UID".to_owned()))?;
        match is_uid(&uid) {
            true => Ok(uid),
            false => Err(wrong(format!("{:?} is no UID", short(&uid)))),
        }
    });
    let found = found.map_err(|why| format!("the pod's UID is not known ({why})"));
    match (&request.pod_uid, found) {
        (None, found) => found,
        (Some(uid), Ok(other)) if *uid != other => Err(format!(
            "the sandbox's name says that the pod's UID is {uid}, its bundle says {other}"
        )),
        // The name alone will do.
        (Some(uid), _) => Ok(uid.clone()),
    }
}

/// The pod's labels, or why they are not known. What Kubernetes would not take as a label is none.
pub(crate) fn labels(
    bundles: &[PathBuf],
    request: &PodRequest,
) -> Result<BTreeMap<String, String>, String> {
    let (path, config) = find(bundles, request)?;
    let wrong = |what: String| format!("{}: {what}", path.display());
    let Some(text) = config.annotations.get(LABELS) else {
        return Err(wrong("it names no labels, which only CRI-O writes down".to_owned()));
    };
    let all: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|e| wrong(format!("{LABELS}: {e}")))?;
    let good = |(key, value): (String, serde_json::Value)| {
        let value = value.as_str()?.to_owned();
        (label::is_key(&key) && label::is_value(&value)).then_some((key, value))
    };
    Ok(all.into_iter().filter_map(good).collect())
}

/// The bundle and where it is.
fn find(bundles: &[PathBuf], request: &PodRequest) -> Result<(PathBuf, Config), String> {
    let id = request.sandbox.as_str();
    let files = (0..).zip(CONFIG);
    let places = bundles
        .iter()
        .flat_map(|dir| files.clone().map(|(runtime, file)| (runtime, dir.join(id).join(file))));
    let mut why = format!("no bundle of this sandbox in {bundles:?}");
    for (runtime, path) in places {
        match file::read(&path, CONFIG_MAX) {
            Ok(bytes) => {
                let config = read(&bytes, runtime, request);
                let config = config.map_err(|what| format!("{}: {what}", path.display()))?;
                return Ok((path, config));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => why = format!("the sandbox's bundle: {}: {e}", path.display()),
        }
    }
    Err(why)
}

fn read(bytes: &[u8], runtime: usize, request: &PodRequest) -> Result<Config, String> {
    let config: Config = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let config = Config { runtime, ..config };
    let same = [
        ("sandbox id", config.get(SANDBOX).unwrap_or_default(), request.sandbox.as_str()),
        ("namespace", config.get(NAMESPACE).unwrap_or(&request.namespace), &request.namespace),
        // Of CRI-O's names only a part is the pod's.
        ("pod", config.get(NAME).map_or(&request.pod, pod_of), &request.pod),
    ];
    if let Some((what, said, _)) = same.iter().find(|(_, said, wanted)| said != wanted) {
        return Err(format!("{what} {:?} is another one's", short(said)));
    }
    Ok(config)
}

fn pod_of(name: &str) -> &str {
    name.strip_prefix("k8s_").and_then(|rest| rest.split('_').next()).unwrap_or(name)
}

/// What Kubernetes gives, and what can be part of a path.
pub(crate) fn is_uid(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
