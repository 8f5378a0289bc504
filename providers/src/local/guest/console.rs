//! The VM's console: one file and its predecessor, so that a VM that talks all day fills no disk.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;

use super::SAYS;
use crate::local::directory::CONSOLE;

/// Bytes per file.
const LIMIT: u64 = 512 << 10;

/// Goes on writing where the VM's start has begun.
#[derive(Debug)]
pub(super) struct Console {
    /// The directory itself: its path is out of sight once the VM has a `/run` of its own.
    directory: OwnedFd,
    file: File,
    written: u64,
    limit: u64,
}

impl Console {
    /// In the working directory.
    pub(super) fn open() -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let directory = open(".", flags, Mode::empty())?;
        let file = append(&directory)?;
        let written = file.metadata()?.len();
        Ok(Self { directory, file, written, limit: LIMIT })
    }

    /// Takes what the VM's programs print.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written + bytes.len() as u64 > self.limit {
            let old = format!("{CONSOLE}.1");
            renameat(&self.directory, CONSOLE, &self.directory, old.as_str())?;
            self.file = append(&self.directory)?;
            self.written = 0;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// A line of the VM's own. A console that cannot be written to stops no VM.
    pub(super) fn say(&mut self, what: &dyn std::fmt::Display) {
        let _ = self.write(format!("{SAYS}{what}\n").as_bytes());
    }
}

fn append(directory: &OwnedFd) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    Ok(openat(directory, CONSOLE, flags, Mode::from_bits_truncate(0o600))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_keeps_its_last_words_within_its_limit() {
        let dir = tempfile::tempdir().expect("directory");
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
        let directory = open(dir.path(), flags, Mode::empty()).expect("directory");
        let file = append(&directory).expect("file");
        let mut console = Console { directory, file, written: 0, limit: 100 };
        for n in 0..50 {
            console.say(&format!("line {n}"));
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("file");
        let (old, new) = (read("console.log.1"), read("console.log"));
        assert!(old.len() <= 100 && new.len() <= 100);
        assert_eq!(old.lines().count(), 4, "as many as there is room for: {old}");
        assert!(new.ends_with("local-guest: line 49\n"), "{new}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 2);
    }
}
