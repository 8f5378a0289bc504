//! The public key that Azure insists on.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Algorithms that Azure takes for Linux.
const TAKEN: [&str; 2] = ["ssh-rsa", "ssh-ed25519"];

/// A key that nobody holds: its private half is dropped as soon as it is made. One per process;
/// upstream's RSA key per VM costs seconds.
pub(super) fn nobodys() -> &'static str {
    static KEY: OnceLock<String> = OnceLock::new();
    KEY.get_or_init(|| {
        let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519);
        // Without randomness there is no key pair, but any point nobody knows the logarithm of will do.
        let public = made.map_or_else(|_| vec![9; 32], |pair| pair.public_key_raw().to_vec());
        line("ssh-ed25519", &public)
    })
}

fn line(algorithm: &str, public: &[u8]) -> String {
    let mut blob = Vec::new();
    for field in [algorithm.as_bytes(), public] {
        blob.extend(u32::try_from(field.len()).unwrap_or(0).to_be_bytes());
        blob.extend(field);
    }
    format!("{algorithm} {} peerpodd", STANDARD.encode(blob))
}

/// The key of a file that only its owner may write and read.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let metadata = std::fs::metadata(path).map_err(|e| format!("cannot be read: {e}"))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o177 != 0 {
        return Err(format!("has mode {mode:04o}, not 0600"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot be read: {e}"))?;
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let key = lines.next().ok_or("holds no key")?;
    match valid(key) {
        true => Ok(key.to_owned()),
        false => Err("holds no public key of ssh-rsa or ssh-ed25519".to_owned()),
    }
}

fn valid(key: &str) -> bool {
    let mut words = key.split_whitespace();
    let algorithm = words.next().unwrap_or_default();
    let blob = STANDARD.decode(words.next().unwrap_or_default()).unwrap_or_default();
    let length = u32::try_from(algorithm.len()).unwrap_or(0).to_be_bytes();
    let head = [&length[..], algorithm.as_bytes()].concat();
    TAKEN.contains(&algorithm) && blob.len() > head.len() + 4 && blob.starts_with(&head)
}

/// Names that Azure refuses are many; those that no Linux has are enough.
pub(super) fn user(text: &str) -> Result<String, &'static str> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    match text {
        "root" | "admin" | "administrator" | "guest" | "test" | "user" => {
            Err("is a name that Azure refuses")
        }
        _ if first && text.len() <= 32 && text.bytes().all(legal) => Ok(text.to_owned()),
        _ => Err("is no name of a user"),
    }
}
