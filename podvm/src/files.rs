//! The files of the boot contract on disk: each is there whole or not at all, with its own mode from
//! its first byte on, and writing all of them again changes nothing.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use podvm::cloud_config::File;
use podvm::contract::RUN_DIR;
use podvm::initdata::{self, Initdata, InitdataError};

/// Files that only root reads.
const SECRET: [&str; 2] = ["apf.json", "auth.json"];
/// Starts the attestation agent, so it is written last.
const AA: &str = "aa.toml";
/// Initdata of a VM that was sent none: the attestation agent starts only with a file.
const DUMMY: &str = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = \"\"\n";
/// Largest wrapped initdata that are read, in bytes.
const WRAPPED: u64 = 2 * initdata::LIMIT;

/// Why the files do not stand.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("making {path}: {source}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("writing {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("reading {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Initdata(#[from] InitdataError),
}

/// Writes what was sent, then what follows from the initdata.
///
/// # Errors
/// When a file cannot be written or the initdata are broken; then there is no aa.toml of theirs and
/// nothing that is measured starts.
pub(crate) fn provision(run_dir: &Path, sent: &[File]) -> Result<(), FilesError> {
    keep(run_dir, sent)?;
    let aa = sent.iter().find(|file| name(file) == AA);
    let measured = read_initdata(&run_dir.join("initdata"))?;
    let initdata = match &measured {
        Some(wrapped) => Initdata::decode(wrapped)?,
        None => Initdata::from_toml(DUMMY)?,
    };
    write(run_dir, "initdata.digest", initdata.digest().as_bytes())?;
    for (name, text) in initdata.files().filter(|(name, _)| *name != AA) {
        write(run_dir, name, text.as_bytes())?;
    }
    let extracted = initdata.files().find(|(name, _)| *name == AA).map(|(_, text)| text);
    let text = match (&measured, aa) {
        // What is measured stands over what was only sent, and that over the dummy.
        (None, Some(file)) => Some(file.content.as_str()),
        (_, file) => extracted.or(file.map(|f| f.content.as_str())),
    };
    text.map_or(Ok(()), |text| write(run_dir, AA, text.as_bytes()))
}

/// Writes what was sent, but for what starts the attestation agent: more is to come before that.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn keep(run_dir: &Path, sent: &[File]) -> Result<(), FilesError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(run_dir)
        .map_err(|source| FilesError::Directory { path: run_dir.to_owned(), source })?;
    for file in sent.iter().filter(|file| name(file) != AA) {
        write(run_dir, name(file), file.content.as_bytes())?;
    }
    Ok(())
}

fn name(file: &File) -> &str {
    // Only paths of the list come here, all of them directly in one directory.
    file.path.strip_prefix(RUN_DIR).unwrap_or(&file.path).trim_start_matches('/')
}

/// Initdata from the user data, or from cloud-init.
fn read_initdata(path: &Path) -> Result<Option<String>, FilesError> {
    let failed = |source| FilesError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut text = String::new();
    file.take(WRAPPED + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > WRAPPED {
        return Err(InitdataError::TooLong.into());
    }
    Ok(Some(text))
}

fn write(dir: &Path, name: &str, content: &[u8]) -> Result<(), FilesError> {
    let path = dir.join(name);
    let mode = if SECRET.contains(&name) { 0o600 } else { 0o644 };
    // The same name in every run, so that a crash leaves at most one.
    let begun = dir.join(format!(".{name}.new"));
    let done = replace(&begun, &path, mode, content);
    done.map_err(|source| FilesError::Write { path, source })
}

fn replace(begun: &Path, path: &Path, mode: u32, content: &[u8]) -> std::io::Result<()> {
    match std::fs::remove_file(begun) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(begun)?;
    file.write_all(content)?;
    // The process's umask may have taken bits away that readers need.
    nix::sys::stat::fchmod(&file, nix::sys::stat::Mode::from_bits_truncate(mode))?;
    drop(file);
    std::fs::rename(begun, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(name: &str, content: &str) -> File {
        File { path: format!("{RUN_DIR}/{name}"), content: content.to_owned() }
    }

    fn read(dir: &Path, name: &str) -> Option<String> {
        std::fs::read_to_string(dir.join(name)).ok()
    }

    fn mode(dir: &Path, name: &str) -> u32 {
        std::fs::metadata(dir.join(name)).expect("metadata").permissions().mode() & 0o7777
    }

    #[test]
    fn secrets_are_for_root_and_the_others_for_all() {
        let dir = tempfile::tempdir().expect("dir");
        let run = dir.path().join("a/b");
        let sent = [file("apf.json", "{}\n"), file("auth.json", "{}\n"), file("cdh.toml", "x\n")];
        provision(&run, &sent).expect("provision");
        assert_eq!((mode(&run, "apf.json"), mode(&run, "auth.json")), (0o600, 0o600));
        assert_eq!((mode(&run, "cdh.toml"), mode(&run, "")), (0o644, 0o755));
    }

    #[test]
    fn initdata_become_a_digest_and_files_and_stand_over_what_was_sent() {
        let dir = tempfile::tempdir().expect("dir");
        let text = "algorithm = \"sha384\"\nversion = \"0.1.0\"\n[data]\n\"aa.toml\" = \"measured\"\n\
                    \"policy.rego\" = \"p\"\n\"../evil\" = \"e\"\n";
        let data = Initdata::from_toml(text).expect("toml");
        let sent = [file("aa.toml", "sent\n"), file("initdata", &(data.encode() + "\n"))];
        provision(dir.path(), &sent).expect("provision");
        assert_eq!(read(dir.path(), "aa.toml").as_deref(), Some("measured"));
        assert_eq!(read(dir.path(), "policy.rego").as_deref(), Some("p"));
        assert_eq!(read(dir.path(), "initdata.digest"), Some(data.digest()));
        assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 4);
    }

    #[test]
    fn without_initdata_the_attestation_agent_still_gets_its_file() {
        let dir = tempfile::tempdir().expect("dir");
        provision(dir.path(), &[]).expect("provision");
        assert_eq!(read(dir.path(), "aa.toml").as_deref(), Some(""));
        assert_eq!(read(dir.path(), "initdata.digest").expect("digest").len(), 64);
        provision(dir.path(), &[file("aa.toml", "sent\n")]).expect("provision");
        assert_eq!(read(dir.path(), "aa.toml").as_deref(), Some("sent\n"));
    }

    #[test]
    fn broken_initdata_leave_nothing_that_starts_the_attestation_agent() {
        let dir = tempfile::tempdir().expect("dir");
        let sent = [file("aa.toml", "sent\n"), file("initdata", "%%%\n")];
        assert!(matches!(provision(dir.path(), &sent), Err(FilesError::Initdata(_))));
        assert_eq!(read(dir.path(), "aa.toml"), None);
    }

    #[test]
    fn what_a_crash_has_left_is_in_nobodys_way() {
        let dir = tempfile::tempdir().expect("dir");
        let elsewhere = dir.path().join("elsewhere");
        std::fs::write(&elsewhere, "untouched").expect("write");
        std::os::unix::fs::symlink(&elsewhere, dir.path().join(".apf.json.new")).expect("link");
        provision(dir.path(), &[file("apf.json", "{}\n")]).expect("provision");
        provision(dir.path(), &[file("apf.json", "{}\n")]).expect("again");
        assert_eq!(read(dir.path(), "apf.json").as_deref(), Some("{}\n"));
        assert_eq!(std::fs::read_to_string(&elsewhere).expect("read"), "untouched");
    }
}
