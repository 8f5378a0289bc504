//! What a disk holds. Only one of whose beginning and end every byte is zero counts as empty: whatever
//! is not known might be somebody's data.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// How much is looked at, at either end, in bytes: all signatures that are known lie there.
const LOOK: u64 = 1 << 20;
/// Where ext's superblock has its magic number.
const EXT: usize = 1024 + 56;
const EXT_MAGIC: [u8; 2] = [0x53, 0xef];
const XFS_MAGIC: &[u8] = b"XFSB";
/// LUKS 1 and 2.
const LUKS_MAGIC: &[u8] = b"LUKS\xba\xbe";

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing at all.
    Empty,
    /// ext2, ext3 or ext4; one driver mounts them all.
    Ext,
    Xfs,
    Luks,
    /// Something else.
    Unknown,
}

/// Looks at a disk.
pub(super) fn probe(disk: &mut File) -> std::io::Result<Content> {
    let size = disk.seek(SeekFrom::End(0))?;
    let begin = read(disk, 0, LOOK.min(size))?;
    let has = |at: usize, magic: &[u8]| begin.get(at..at + magic.len()) == Some(magic);
    Ok(if has(0, LUKS_MAGIC) {
        Content::Luks
    } else if has(0, XFS_MAGIC) {
        Content::Xfs
    } else if has(EXT, &EXT_MAGIC) {
        Content::Ext
    } else if size > 0 && zero(&begin) && zero(&read(disk, size.saturating_sub(LOOK), LOOK)?) {
        Content::Empty
    } else {
        Content::Unknown
    })
}

fn zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

fn read(disk: &mut File, at: u64, length: u64) -> std::io::Result<Vec<u8>> {
    disk.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    disk.by_ref().take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn holding(size: usize, parts: &[(usize, &[u8])]) -> Content {
        let mut bytes = vec![0; size];
        for (at, part) in parts {
            bytes[*at..at + part.len()].copy_from_slice(part);
        }
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).expect("written");
        probe(&mut file).expect("read")
    }

    #[test]
    fn signatures_are_known_and_anything_else_is_somebodys() {
        const SIZE: usize = 3 << 20;
        assert_eq!(holding(SIZE, &[]), Content::Empty);
        assert_eq!(holding(SIZE, &[(EXT, &EXT_MAGIC)]), Content::Ext);
        assert_eq!(holding(SIZE, &[(0, XFS_MAGIC)]), Content::Xfs);
        assert_eq!(holding(SIZE, &[(0, LUKS_MAGIC), (EXT, &EXT_MAGIC)]), Content::Luks);
        for at in [0, 510, 0x8000, 65_600, (1 << 20) - 1, 2 << 20, SIZE - 1] {
            assert_eq!(holding(SIZE, &[(at, b"\x01")]), Content::Unknown, "{at}");
        }
        assert_eq!(holding(0, &[]), Content::Unknown);
        assert_eq!(holding(512, &[]), Content::Empty);
    }
}
