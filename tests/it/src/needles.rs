//! Secrets that were planted, and the search for them in every form in which one may turn up.

use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Pieces of base64 that are searched for; 15 bytes of the secret stand in each.
const PIECE: usize = 20;
/// In a P-256 key as PKCS#8: behind what all such keys have in common, before the public key.
const SCALAR: std::ops::Range<usize> = 36..68;

/// A set of secrets to be found.
#[derive(Debug, Default)]
pub struct Needles {
    /// Name, form and bytes.
    all: Vec<(String, &'static str, Vec<u8>)>,
}

/// Where a secret was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Which secret.
    pub secret: String,
    /// In which form.
    pub form: &'static str,
    /// In what: a path, a page, a process.
    pub place: String,
}

impl Needles {
    /// A text: plain, as JSON has it, hexadecimal, base64.
    pub fn plant(&mut self, name: &str, text: &str) {
        self.add(name, "plain", text.as_bytes().to_vec());
        let json = serde_json::Value::from(text).to_string();
        self.add(name, "JSON", json.trim_matches('"').as_bytes().to_vec());
        self.bytes(name, text.as_bytes());
    }

    /// A private key in PEM (PKCS#8, P-256): its lines, its secret number raw, hexadecimal, base64 at any
    /// position, base64 of its PEM.
    ///
    /// # Errors
    /// When it is no such key.
    pub fn plant_key(&mut self, name: &str, pem: &str) -> anyhow::Result<()> {
        let body: String = pem.lines().filter(|l| !l.starts_with("-----")).collect();
        let der = STANDARD.decode(body.trim()).with_context(|| format!("{name}: no PEM"))?;
        let scalar = der.get(SCALAR).with_context(|| format!("{name}: a short key"))?;
        self.add(name, "raw", scalar.to_vec());
        self.bytes(name, scalar);
        // The first line ends with the beginning of the secret, the second begins in its middle.
        let second = pem.lines().nth(2).and_then(|l| l.get(..PIECE));
        self.add(name, "PEM line", second.context("one line")?.as_bytes().to_vec());
        self.pieces(name, "base64 of PEM", pem.get(100..150).context("a short PEM")?.as_bytes());
        Ok(())
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        self.add(name, "HEX", hex.to_uppercase().into_bytes());
        self.add(name, "hex", hex.into_bytes());
        self.pieces(name, "base64", bytes);
    }

    /// Whatever stands before it and however it is cut, one of these is in it.
    fn pieces(&mut self, name: &str, form: &'static str, bytes: &[u8]) {
        for shift in 0..3 {
            let whole = bytes.get(shift..).unwrap_or_default();
            let whole = whole.get(..whole.len() / 3 * 3).unwrap_or_default();
            let text = STANDARD.encode(whole);
            let starts = (0..text.len().saturating_sub(PIECE - 1)).step_by(4);
            for piece in starts.filter_map(|at| text.get(at..at + PIECE)) {
                self.add(name, form, piece.as_bytes().to_vec());
            }
        }
    }

    fn add(&mut self, name: &str, form: &'static str, bytes: Vec<u8>) {
        self.all.push((name.to_owned(), form, bytes));
    }

    /// How many secrets, and how many forms of them all.
    pub fn count(&self) -> (usize, usize) {
        let mut names: Vec<_> = self.all.iter().map(|(name, ..)| name).collect();
        names.dedup();
        (names.len(), self.all.len())
    }

    /// Ready to search.
    ///
    /// # Errors
    /// When there are too many.
    pub fn search(&self) -> anyhow::Result<Search<'_>> {
        let finder = AhoCorasick::new(self.all.iter().map(|(.., bytes)| bytes))?;
        Ok(Search { needles: self, finder, found: Vec::new(), files: 0, bytes: 0 })
    }
}

/// A search under way.
#[derive(Debug)]
pub struct Search<'a> {
    needles: &'a Needles,
    finder: AhoCorasick,
    /// What was found so far.
    pub found: Vec<Found>,
    /// Places looked at.
    pub files: usize,
    /// Bytes looked at.
    pub bytes: usize,
}

impl Search<'_> {
    /// Looks through something.
    pub fn look(&mut self, place: &str, bytes: &[u8]) {
        self.files += 1;
        self.bytes += bytes.len();
        for hit in self.finder.find_overlapping_iter(bytes) {
            let Some((secret, form, _)) = self.needles.all.get(hit.pattern().as_usize()) else {
                continue;
            };
            let found = Found { secret: secret.clone(), form, place: place.to_owned() };
            if !self.found.contains(&found) {
                self.found.push(found);
            }
        }
    }

    /// Looks through every file below a directory, names included.
    ///
    /// # Errors
    /// When something there cannot be read; what goes meanwhile is fine.
    pub fn tree(&mut self, dir: &Path) -> anyhow::Result<()> {
        let entries = match std::fs::read_dir(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.with_context(|| dir.display().to_string())?,
        };
        for entry in entries {
            let path: PathBuf = entry?.path();
            let shown = path.display().to_string();
            self.look(&shown, shown.as_bytes());
            let Ok(found) = path.symlink_metadata() else { continue };
            if found.is_dir() {
                self.tree(&path)?;
            } else if found.is_file() {
                match std::fs::read(&path) {
                    Ok(bytes) => self.look(&shown, &bytes),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    // A bound namespace.
                    Err(e) if e.raw_os_error() == Some(22) => {}
                    Err(e) => return Err(e).context(shown),
                }
            }
        }
        Ok(())
    }

    /// Looks through a process's memory, as the kernel shows it to root; what cannot be read (devices) is
    /// left out.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn memory(&mut self, name: &str, pid: i32) -> anyhow::Result<()> {
        use std::os::unix::fs::FileExt;
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).context("maps")?;
        let memory = std::fs::File::open(format!("/proc/{pid}/mem")).context("mem")?;
        for line in maps.lines().filter(|l| l.contains(" rw")) {
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            let Some((from, to)) = range else { continue };
            let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
            let mut bytes = vec![0; usize::try_from(to - from)?];
            if memory.read_exact_at(&mut bytes, from).is_ok() {
                let kind = line.rsplit(' ').next().filter(|k| !k.is_empty()).unwrap_or("heap");
                self.look(&format!("memory of {name} ({kind})"), &bytes);
            }
        }
        Ok(())
    }
}
