//! The one place where VM names are made (providers.md 2.2).

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest name every cloud takes.
pub const MAX: usize = 63;
const POD_MAX: usize = 48;
const POD_MAX_SECOND: usize = 40;

/// A deterministic VM name, legal in every cloud: `podvm-<pod>-<first 8 of sandbox id>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VmName(String);

impl VmName {
    /// The form people and upstream's tests know.
    pub fn first_form(pod: &str, sandbox: &str) -> Self {
        Self(format!("podvm-{}-{}", legal(pod, POD_MAX), legal(sandbox, 8)))
    }

    /// The form for a name that is already taken by another sandbox: hashes installation and
    /// sandbox id, so that it clashes with nothing.
    pub fn second_form(installation: &str, pod: &str, sandbox: &str) -> Self {
        let digest = Sha256::new()
            .chain_update(installation)
            .chain_update([0])
            .chain_update(sandbox)
            .finalize();
        let hex: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
        Self(format!("podvm-{}-{hex}", legal(pod, POD_MAX_SECOND)))
    }

    /// Takes a name as it stands in a record or a cloud's reply.
    pub fn from_existing(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Whether it could have been made here: providers use names as paths and labels, and a record
    /// may hold anything.
    pub fn is_legal(&self) -> bool {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=MAX).contains(&self.0.len()) && self.0.bytes().all(legal)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for VmName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Lower case, every character outside `[a-z0-9-]` becomes `-`, at most `max` characters, no dash
/// at either end; nothing left is `x`.
fn legal(text: &str, max: usize) -> String {
    let mapped: String = text
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(max)
        .collect();
    match mapped.trim_matches('-') {
        "" => "x".to_owned(),
        s => s.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_form_upstreams_tests_know() {
        let name = VmName::first_form("My.Pod_1", "0123456789abcdef");
        assert_eq!(name.as_str(), "podvm-my-pod-1-01234567");
    }

    #[test]
    fn is_never_longer_than_every_cloud_takes() {
        let pod = "p".repeat(253);
        assert_eq!(VmName::first_form(&pod, &"f".repeat(64)).as_str().len(), MAX);
        assert!(VmName::second_form("inst", &pod, "s").as_str().len() <= MAX);
    }

    #[test]
    fn a_name_that_was_not_made_here_is_told_apart() {
        assert!(VmName::first_form("My Pod", "ä/..").is_legal());
        for odd in ["", "..", "a/b", "A", "a\0", &"a".repeat(64)] {
            assert!(!VmName::from_existing(odd).is_legal(), "{odd:?}");
        }
    }

    #[test]
    fn odd_ids_give_legal_names() {
        assert_eq!(VmName::first_form("---", "c1").as_str(), "podvm-x-c1");
        assert_ne!(VmName::second_form("a", "p", "s1"), VmName::second_form("a", "p", "s2"));
    }
}
