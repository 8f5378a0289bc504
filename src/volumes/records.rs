//! Kata's records of direct volumes: a directory for each, named by its target path in base64, with a
//! mountInfo.json (compat.md 14).

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::GeneralPurposeConfig;
use podvm::cloud_volumes::Fs;
use serde::Deserialize;
use serde_json::Value;

use super::{PodVolume, VolumesError};
use crate::{bundle, file};

/// Longest record, in bytes; one has some hundred.
const RECORD_MAX: u64 = 64 << 10;
/// Directories that are looked at: more than a node has volumes.
const LISTED: usize = 65_536;
/// With the padding at the end or without.
const ENCODING: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// A record that has not been read yet.
#[derive(Debug)]
pub(super) struct Record {
    /// The volume's path, checked.
    pub(super) target: String,
    dir: PathBuf,
}

#[derive(Deserialize)]
struct MountInfo {
    #[serde(default)]
    device: String,
    #[serde(default)]
    fstype: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default)]
    metadata: BTreeMap<String, Value>,
}

impl MountInfo {
    fn text(&self, key: &str) -> &str {
        self.metadata.get(key).and_then(Value::as_str).unwrap_or_default()
    }
}

impl Record {
    /// The volume, as number so and so of its pod; else what is wrong with it.
    pub(super) fn read(self, number: u32) -> Result<PodVolume, String> {
        let path = self.dir.join("mountInfo.json");
        let wrong = |what: String| format!("{}: {what}", path.display());
        let bytes = file::read(&path, RECORD_MAX).map_err(|e| wrong(e.to_string()))?;
        let info: MountInfo = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        let disk = match info.text("cloud-volume-path") {
            "" => info.device.as_str(),
            path => path,
        };
        if disk.is_empty() {
            return Err(wrong("it names no disk".to_owned()));
        }
        let fs = Fs::parse(&info.fstype);
        let fs = fs.map_err(|why| wrong(format!("fstype {:?} {why}", info.fstype)))?;
        let fs_group = match info.text("fsGroup") {
            "" => None,
            text => Some(text.parse().map_err(|_| wrong(format!("fsGroup {text:?} is no group")))?),
        };
        Ok(PodVolume {
            disk: disk.to_owned(),
            number,
            fs: fs.as_str().to_owned(),
            read_only: info.options.iter().any(|o| o == "ro"),
            fs_group,
            encrypt_type: info.text("encrypt-type").to_owned(),
            key_id: info.text("kbs-key-id").to_owned(),
            target: self.target,
        })
    }
}

/// All volumes of the node, in the order of their directories' names, which is upstream's. A node without
/// the directory has none.
pub(super) fn list(root: &Path) -> Result<Vec<Record>, VolumesError> {
    let failed = |source| VolumesError::Read { path: root.to_owned(), source };
    let entries = match fs::read_dir(root) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries.take(LISTED) {
        let entry = entry.map_err(failed)?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name();
        let target = ENCODING.decode(name.as_encoded_bytes()).ok();
        if let Some(target) = target.and_then(|bytes| String::from_utf8(bytes).ok())
            && owner(&target).is_some()
        {
            found.push((name, Record { target, dir: entry.path() }));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found.into_iter().map(|(_, record)| record).collect())
}

/// The UID of the pod to which a target path belongs: `…/pods/<uid>/volumes/kubernetes.io~csi/<name>/…`.
/// `None` for what is no such path, or goes back up.
pub(super) fn owner(target: &str) -> Option<&str> {
    let rest = target.strip_prefix('/')?;
    if target.len() > 4095 || target.chars().any(char::is_control) {
        return None;
    }
    let parts: Vec<&str> = rest.split('/').collect();
    if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
        return None;
    }
    let at = |window: &&[&str]| matches!(window, ["pods", uid, "volumes", "kubernetes.io~csi", _] if bundle::is_uid(uid));
    let mut all = parts.windows(5).filter(at);
    let (first, second) = (all.next()?, all.next());
    // One path, one pod.
    second.is_none().then(|| first.get(1).copied())?
}

/// Name of the directory of a target path's record.
#[cfg(test)]
pub(super) fn directory(target: &str) -> String {
    base64::engine::general_purpose::URL_SAFE.encode(target)
}
