//! Sandbox ids: what containerd (64 hex digits) or `ctr` (any container id) calls a sandbox. They
//! become directories, socket paths, tags and log fields, so only harmless ones get in.

use serde::{Deserialize, Serialize};

use super::RequestError;

/// Longest id, in characters: what containerd allows, and what leaves
/// `/run/peerpod/pods/<id>/agent.ttrpc` within the 107 bytes of a socket path.
const MAX: usize = 76;

/// A checked sandbox id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

impl SandboxId {
    /// Takes an id: 1 to 76 letters, digits, `_`, `.` and `-`, the first neither `.` nor `-`.
    ///
    /// # Errors
    /// [`RequestError::Id`], which names the field.
    pub fn parse(text: &str) -> Result<Self, RequestError> {
        let wrong = |reason| RequestError::Id { value: super::short(text), reason };
        if text.is_empty() {
            return Err(RequestError::Missing { field: "id" });
        }
        if text.len() > MAX {
            return Err(wrong("it is longer than 76 characters"));
        }
        if text.starts_with(['.', '-']) {
            return Err(wrong("it begins with a dot or a dash"));
        }
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if !text.bytes().all(fine) {
            return Err(wrong("only letters, digits, `_`, `.` and `-` may stand in it"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for SandboxId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for SandboxId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for SandboxId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SandboxId {
    type Error = RequestError;
    fn try_from(text: String) -> Result<Self, RequestError> {
        Self::parse(&text)
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl std::str::FromStr for SandboxId {
    type Err = RequestError;
    fn from_str(text: &str) -> Result<Self, RequestError> {
        Self::parse(text)
    }
}
