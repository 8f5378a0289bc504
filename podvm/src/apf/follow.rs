//! Which files are to come over the agent link, as the user data promise them.

use peerpod_tunnel::link::session::MAX_FILES;
use serde::{Deserialize, Serialize};
use sha2::Digest;

use super::{Apf, ApfError};
use crate::contract::TO_FOLLOW;

/// What is ours of the whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Ours {
    /// Files that had no room in the user data: the worker sends them over the agent link, and nothing of
    /// the pod begins before.
    pub files: Vec<ToFollow>,
}

/// A file that comes over the agent link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ToFollow {
    /// Absolute path in the VM.
    pub path: String,
    /// Bytes.
    pub size: usize,
    /// Its digest, in hex.
    pub sha256: String,
}

impl ToFollow {
    /// Promises a file.
    pub fn of(path: &str, content: &[u8]) -> Self {
        let sha256 = sha2::Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
        Self { path: path.to_owned(), size: content.len(), sha256 }
    }
}

impl Apf {
    /// Files that come over the agent link, checked.
    ///
    /// # Errors
    /// When one may not come that way, is there twice, or they are too large.
    pub fn to_follow(&self) -> Result<&[ToFollow], ApfError> {
        let files = self.peerpod.as_ref().map_or(&[][..], |ours| &ours.files);
        let bad = |file: &ToFollow, reason: &str| {
            let reason = format!("{:?} {reason}", file.path);
            Err(ApfError::Value { key: "peerpod.files".to_owned(), reason })
        };
        let mut size = 0_usize;
        for (index, file) in files.iter().enumerate() {
            size = size.saturating_add(file.size);
            if !TO_FOLLOW.contains(&file.path.as_str()) {
                return bad(file, "cannot come over the link");
            }
            if files.iter().take(index).any(|other| other.path == file.path) {
                return bad(file, "is there twice");
            }
            if size > MAX_FILES {
                return bad(file, &format!("is too large: at most {MAX_FILES} bytes in all"));
            }
        }
        Ok(files)
    }
}
