//! Initdata: TOML that configures the guest's confidential parts and is measured byte for byte.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::Deserialize;
use sha2::Digest;

/// Largest TOML that is unpacked, in bytes.
pub const LIMIT: u64 = 1 << 20;
/// The only entries that become files.
pub const EXTRACTED: [&str; 3] = ["aa.toml", "cdh.toml", "policy.rego"];

/// Why initdata are refused.
#[derive(Debug, thiserror::Error)]
pub enum InitdataError {
    /// The wrapping is wrong.
    #[error("initdata: not base64 of gzip: {0}")]
    Wrapping(String),
    /// More than is unpacked.
    #[error("initdata: more than {LIMIT} bytes")]
    TooLong,
    /// Not the TOML it should be.
    #[error("initdata: {0}")]
    Toml(String),
    /// A digest nobody knows.
    #[error("initdata: algorithm {0:?} is not sha256, sha384 or sha512")]
    Algorithm(String),
}

/// Checked initdata. The text is kept as it came: its digest is over the very bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Initdata {
    text: String,
    algorithm: String,
    data: BTreeMap<String, String>,
}

/// Whoever wrote them may have written credentials into them.
impl std::fmt::Debug for Initdata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Initdata").field("digest", &self.digest()).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Document {
    algorithm: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

impl Initdata {
    /// Takes TOML text, as shims send it.
    ///
    /// # Errors
    /// By [`InitdataError`].
    pub fn from_toml(text: &str) -> Result<Self, InitdataError> {
        if text.len() as u64 > LIMIT {
            return Err(InitdataError::TooLong);
        }
        let document: Document = toml::from_str(text)
            .map_err(|e: toml::de::Error| InitdataError::Toml(e.message().to_owned()))?;
        if !matches!(document.algorithm.as_str(), "sha256" | "sha384" | "sha512") {
            return Err(InitdataError::Algorithm(document.algorithm));
        }
        let text = text.to_owned();
        Ok(Self { text, algorithm: document.algorithm, data: document.data })
    }

    /// Takes base64 of gzip of TOML, as annotations, settings and the file in the VM hold it.
    ///
    /// # Errors
    /// By [`InitdataError`].
    pub fn decode(wrapped: &str) -> Result<Self, InitdataError> {
        let bad = |e: &dyn std::fmt::Display| InitdataError::Wrapping(e.to_string());
        let packed = STANDARD.decode(wrapped.trim()).map_err(|e| bad(&e))?;
        let mut text = String::new();
        let mut reader = GzDecoder::new(&packed[..]).take(LIMIT + 1);
        reader.read_to_string(&mut text).map_err(|e| bad(&e))?;
        Self::from_toml(&text)
    }

    /// base64 of gzip of the text.
    pub fn encode(&self) -> String {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        // Writing to memory does not fail.
        let packed = gzip.write_all(self.text.as_bytes()).and_then(|()| gzip.finish());
        STANDARD.encode(packed.unwrap_or_default())
    }

    /// Hex digest over the text, by the algorithm it names.
    pub fn digest(&self) -> String {
        let bytes = self.text.as_bytes();
        let digest: Vec<u8> = match self.algorithm.as_str() {
            "sha384" => sha2::Sha384::digest(bytes).to_vec(),
            "sha512" => sha2::Sha512::digest(bytes).to_vec(),
            _ => sha2::Sha256::digest(bytes).to_vec(),
        };
        digest.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The entries that become files under /run/peerpod.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        let known = self.data.iter().filter(|(name, _)| EXTRACTED.contains(&name.as_str()));
        known.map(|(name, text)| (name.as_str(), text.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"x\"\n\"evil\" = \"y\"\n";

    #[test]
    fn the_bytes_survive_the_journey_and_only_known_names_come_out() {
        let data = Initdata::from_toml(TEXT).expect("toml");
        let back = Initdata::decode(&(data.encode() + "\n")).expect("decode");
        assert_eq!(back, data);
        assert_eq!(back.files().collect::<Vec<_>>(), [("aa.toml", "x")]);
        // printf '…' | sha256sum
        assert_eq!(data.digest().len(), 64);
        assert_ne!(
            data.digest(),
            Initdata::from_toml(&format!("{TEXT}\n")).expect("toml").digest()
        );
    }

    #[test]
    fn broken_ones_are_refused() {
        assert!(matches!(Initdata::decode("%%%"), Err(InitdataError::Wrapping(_))));
        assert!(matches!(Initdata::decode("aGVsbG8="), Err(InitdataError::Wrapping(_))));
        assert!(matches!(Initdata::from_toml("algorithm = 3"), Err(InitdataError::Toml(_))));
        let odd = Initdata::from_toml("algorithm = \"md5\"");
        assert!(matches!(odd, Err(InitdataError::Algorithm(_))));
    }
}
