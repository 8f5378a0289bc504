//! Which CAs the VMs of this node need, by their records on disk: those of a newer daemon included,
//! whatever else stands in them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use serde::Deserialize;

/// Longest record that is read.
const MAX_BYTES: u64 = 4 << 20;

#[derive(Deserialize)]
struct Named {
    link: Link,
}

#[derive(Deserialize)]
struct Link {
    #[serde(default)]
    authority: Option<String>,
}

/// Fingerprints that the records below `<state dir>/pods` name. `None` if some record does not tell, being
/// damaged or older than rotation: then any CA may be needed.
///
/// # Errors
/// When the place cannot be read.
pub fn in_use(state_dir: &Path) -> io::Result<Option<BTreeSet<String>>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(state_dir.join("pods"))? {
        match read(&entry?.path().join("record.json")) {
            Ok(Some(authority)) => found.insert(authority),
            // Never finished, or going just now.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Ok(None) | Err(_) => return Ok(None),
        };
    }
    Ok(Some(found))
}

fn read(path: &Path) -> io::Result<Option<String>> {
    let file = File::open(path)?;
    let size = usize::try_from(file.metadata()?.len().min(MAX_BYTES)).unwrap_or(0);
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(size + 1));
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    let named: Named = serde_json::from_slice(&bytes)?;
    Ok(named.link.authority)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn put(state: &Path, sandbox: &str, text: &str) {
        let dir = state.join("pods").join(sandbox);
        fs::create_dir_all(&dir).expect("directory");
        fs::write(dir.join("record.json"), text).expect("written");
    }

    #[test]
    fn records_name_what_they_need_and_one_that_does_not_needs_everything() {
        let state = tempfile::tempdir().expect("directory");
        assert!(in_use(state.path()).is_err(), "no place");
        fs::create_dir_all(state.path().join("pods/empty")).expect("directory");
        assert_eq!(in_use(state.path()).expect("read"), Some(BTreeSet::new()));
        put(state.path(), "a", r#"{"version": 1, "link": {"authority": "a1", "port": 1}}"#);
        put(state.path(), "b", r#"{"version": 9, "new": [], "link": {"authority": "b2"}}"#);
        let both = ["a1".to_owned(), "b2".to_owned()].into();
        assert_eq!(in_use(state.path()).expect("read"), Some(both));
        put(state.path(), "c", r#"{"version": 1, "link": {"port": 1}}"#);
        assert_eq!(in_use(state.path()).expect("read"), None, "of a build without rotation");
        put(state.path(), "c", r#"{"version": 1, "li"#);
        assert_eq!(in_use(state.path()).expect("read"), None, "damaged");
    }
}
