//! The disk with the user data: an ISO 9660 image of a few small files, made in memory.
//!
//! ```text
//!   sector 0   what the standard leaves to others: a mark
//!          16  primary volume descriptor, label `cidata`     ─▶ path tables 19, 20 ─▶ directory 23
//!          17  Joliet's, for names as they are                ─▶ path tables 21, 22 ─▶ directory 24
//!          18  end of the descriptors                              both name the same files from 25 on
//! ```
//! Of ECMA-119 and Joliet only what one flat directory needs. The primary names have a hyphen, which the
//! standard does not have and every reader takes; a guest without Joliet finds them, too.

/// Bytes of a sector.
const SECTOR: usize = 2048;
const PRIMARY: usize = 16;
const FILES: usize = 25;
/// Label by which a guest finds the disk.
const LABEL: &str = "cidata";

/// An image that begins with a mark (at most 32 KiB) and has these files, by name (lower-case letters,
/// digits, hyphens; at most 28 of them).
pub(super) fn image(mark: &[u8], files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut placed = Vec::new();
    let mut at = FILES;
    for (name, bytes) in files {
        placed.push(Placed { name, sector: at, size: bytes.len() });
        at += sectors(bytes.len());
    }
    let mut image = mark.to_vec();
    image.resize(PRIMARY * SECTOR, 0);
    image.extend(descriptor(false, at));
    image.extend(descriptor(true, at));
    image.extend(sector(b"\xffCD001\x01"));
    for directory in [DIRECTORY, JOLIET_DIRECTORY] {
        image.extend(sector(&path_table(directory, u32::to_le_bytes, u16::to_le_bytes)));
        image.extend(sector(&path_table(directory, u32::to_be_bytes, u16::to_be_bytes)));
    }
    for joliet in [false, true] {
        image.extend(sector(&directory(&placed, joliet)));
    }
    for (_, bytes) in files {
        let end = image.len() + sectors(bytes.len()) * SECTOR;
        image.extend_from_slice(bytes);
        image.resize(end, 0);
    }
    image
}

const DIRECTORY: usize = 23;
const JOLIET_DIRECTORY: usize = 24;

struct Placed<'a> {
    name: &'a str,
    sector: usize,
    size: usize,
}

fn sectors(bytes: usize) -> usize {
    bytes.div_ceil(SECTOR)
}

fn sector(bytes: &[u8]) -> Vec<u8> {
    let mut sector = bytes.to_vec();
    sector.resize(SECTOR, 0);
    sector
}

/// A number in both byte orders. Images have far less than 2^32 sectors and bytes.
fn both(n: usize) -> [u8; 8] {
    let n = u32::try_from(n).unwrap_or(u32::MAX);
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    bytes[4..].copy_from_slice(&n.to_be_bytes());
    bytes
}

fn both_short(n: u16) -> [u8; 4] {
    let (little, big) = (n.to_le_bytes(), n.to_be_bytes());
    [little[0], little[1], big[0], big[1]]
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// Text filled up with blanks.
fn padded(text: &str, size: usize, joliet: bool) -> Vec<u8> {
    let blanks: String = text.chars().chain(std::iter::repeat(' ')).take(size).collect();
    if joliet { wide(&blanks).into_iter().take(size).collect() } else { blanks.into_bytes() }
}

fn descriptor(joliet: bool, sectors: usize) -> Vec<u8> {
    let mut d = vec![if joliet { 2 } else { 1 }];
    d.extend(b"CD001\x01\0");
    d.extend(padded("", 32, joliet));
    d.extend(padded(LABEL, 32, joliet));
    d.extend([0; 8]);
    d.extend(both(sectors));
    let mut escapes = [0; 32];
    if joliet {
        escapes[..3].copy_from_slice(b"%/E");
    }
    d.extend(escapes);
    d.extend(both_short(1));
    d.extend(both_short(1));
    d.extend(both_short(2048));
    d.extend(both(PATH_TABLE));
    let (first, root) = if joliet { (21_u32, JOLIET_DIRECTORY) } else { (19, DIRECTORY) };
    d.extend(first.to_le_bytes());
    d.extend([0; 4]);
    d.extend((first + 1).to_be_bytes());
    d.extend([0; 4]);
    d.extend(record(&[0], root, SECTOR, true));
    // Set, publisher, preparer, application; then three names of files, which there are not.
    for size in [128, 128, 128, 128, 37, 37, 37] {
        d.extend(padded("", size, joliet));
    }
    for _ in 0..4 {
        // No date: the same bytes for the same files.
        d.extend(b"0000000000000000\0");
    }
    d.push(1);
    sector(&d)
}

/// Bytes of a path table of the root alone.
const PATH_TABLE: usize = 10;

fn path_table(root: usize, long: fn(u32) -> [u8; 4], short: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let mut table = vec![1, 0];
    table.extend(long(u32::try_from(root).unwrap_or(u32::MAX)));
    table.extend(short(1));
    table.extend([0, 0]);
    table
}

fn directory(files: &[Placed<'_>], joliet: bool) -> Vec<u8> {
    let own = if joliet { JOLIET_DIRECTORY } else { DIRECTORY };
    let mut records = record(&[0], own, SECTOR, true);
    records.extend(record(&[1], own, SECTOR, true));
    // Readers may search by halves.
    let mut sorted: Vec<&Placed<'_>> = files.iter().collect();
    sorted.sort_by_key(|file| file.name);
    for file in sorted {
        let name = match joliet {
            true => wide(&format!("{};1", file.name)),
            false => format!("{}.;1", file.name.to_ascii_uppercase()).into_bytes(),
        };
        records.extend(record(&name, file.sector, file.size, false));
    }
    records
}

fn record(name: &[u8], sector: usize, size: usize, directory: bool) -> Vec<u8> {
    let mut r = vec![0, 0];
    r.extend(both(sector));
    r.extend(both(size));
    // 1970-01-01: the same bytes for the same files.
    r.extend([70, 1, 1, 0, 0, 0, 0]);
    r.extend([if directory { 2 } else { 0 }, 0, 0]);
    r.extend(both_short(1));
    r.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    r.extend_from_slice(name);
    if r.len() % 2 == 1 {
        r.push(0);
    }
    r[0] = u8::try_from(r.len()).unwrap_or(u8::MAX);
    r
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "a real reader is a process")]
    use std::process::Command;

    use super::*;

    #[test]
    fn a_real_reader_finds_label_names_and_bytes_both_ways() {
        let user = "#cloud-config\n".repeat(400);
        let image = image(
            b"mark",
            &[("user-data", user.as_bytes()), ("meta-data", b"m"), ("vendor-data", b"")],
        );
        assert_eq!(image.len() % SECTOR, 0);
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cidata.iso");
        std::fs::write(&path, &image).expect("written");
        let run = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).arg(&path).output().ok()
        };
        let Some(info) = run("isoinfo", &["-d", "-i"]) else {
            println!("SKIP a_real_reader_finds_label_names_and_bytes_both_ways: no isoinfo");
            return;
        };
        let text = String::from_utf8_lossy(&info.stdout).into_owned();
        assert!(text.contains("Volume id: cidata"), "{text}");
        assert!(text.contains("Joliet with UCS level 3"), "{text}");
        for arguments in [&["-J", "-x", "/user-data;1", "-i"][..], &["-x", "/USER-DATA.;1", "-i"]] {
            let read = run("isoinfo", arguments).expect("isoinfo");
            assert_eq!(String::from_utf8_lossy(&read.stdout), user, "{arguments:?}");
        }
    }
}
