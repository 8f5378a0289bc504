//! What is mounted where, and on which device; the kernel's word counts, not a memory of our own, so a
//! program that was started anew knows as much as the one before.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A file system that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) point: PathBuf,
    /// What mountinfo calls its source.
    pub(super) source: String,
    /// Its device, "major:minor".
    device: String,
}

/// What is mounted directly in `base`.
pub(super) fn below(base: &Path) -> std::io::Result<Vec<Mounted>> {
    let all = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&all).filter(|m| m.point.parent() == Some(base)).collect())
}

/// The file system that is mounted there, the uppermost one.
pub(super) fn at(point: &Path) -> std::io::Result<Option<Mounted>> {
    let all = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&all).filter(|m| m.point == point).last())
}

/// Lines of mountinfo: number, parent, device, root, mount point, options, …, "-", type, source, options.
fn parse(text: &[u8]) -> impl Iterator<Item = Mounted> {
    text.split(|b| *b == b'\n').filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let dash = fields.iter().position(|f| *f == b"-")?;
        let point = PathBuf::from(OsString::from_vec(plain(fields.get(4)?)));
        let source = String::from_utf8_lossy(&plain(fields.get(dash + 2)?)).into_owned();
        let device = String::from_utf8_lossy(fields.get(2)?).into_owned();
        Some(Mounted { point, source, device })
    })
}

/// Blanks and the like stand there as octal numbers.
fn plain(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal =
            after.get(..3).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// Number of a block device.
pub(super) fn number(device: &Path) -> std::io::Result<u64> {
    let found = std::fs::metadata(device)?;
    match found.file_type().is_block_device() {
        true => Ok(found.rdev()),
        false => Err(std::io::Error::other("is no block device")),
    }
}

/// Whether the file system mounted at `point` lies on `device`, directly or by mappings between.
pub(super) fn lies_on(point: &Path, device: u64) -> std::io::Result<bool> {
    Ok(stands_on(std::fs::metadata(point)?.dev(), device, 4))
}

fn stands_on(upper: u64, device: u64, depth: u8) -> bool {
    if upper == device {
        return true;
    }
    let (major, minor) = (nix::sys::stat::major(upper), nix::sys::stat::minor(upper));
    let slaves = std::fs::read_dir(format!("/sys/dev/block/{major}:{minor}/slaves"));
    depth > 0
        && slaves.into_iter().flatten().flatten().any(|slave| {
            let number = Path::new("/dev").join(slave.file_name()).metadata().map(|m| m.rdev());
            number.is_ok_and(|number| stands_on(number, device, depth - 1))
        })
}

/// Opens a disk that nobody uses.
///
/// # Errors
/// When it, or a part of it, is mounted, mapped or has partitions.
pub(super) fn open_unused(device: &Path) -> std::io::Result<File> {
    let rdev = number(device)?;
    let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    let parts = std::fs::read_dir(format!("/sys/dev/block/{major}:{minor}"));
    let parts = parts.into_iter().flatten().flatten();
    if parts.map(|p| p.path().join("partition")).any(|p| p.exists()) {
        return Err(std::io::Error::other("it has partitions"));
    }
    // The kernel gives a disk away for one use only.
    OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(device)
}

/// Opens a disk whose file system containers alone still hold: they have it from us, and mounted a second
/// time it is the same one.
///
/// # Errors
/// When it is mounted anywhere in the VM, or mapped.
pub(super) fn open_shared(device: &Path) -> std::io::Result<File> {
    let rdev = number(device)?;
    let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    let (all, own) = (std::fs::read("/proc/self/mountinfo")?, format!("{major}:{minor}"));
    let holders = std::fs::read_dir(format!("/sys/dev/block/{own}/holders"));
    if parse(&all).any(|m| m.device == own) || holders.is_ok_and(|mut all| all.next().is_some()) {
        return Err(Errno::EBUSY.into());
    }
    OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC).open(device)
}

/// Mounts a disk; one that can only be read so that it is only read.
pub(super) fn attach(device: &Path, point: &Path, fs: &str) -> nix::Result<()> {
    let flags = |more| MsFlags::MS_NODEV | more;
    let none = None::<&str>;
    match mount(Some(device), point, Some(fs), flags(MsFlags::empty()), none) {
        Err(Errno::EROFS | Errno::EACCES) => {
            mount(Some(device), point, Some(fs), flags(MsFlags::MS_RDONLY), none)
        }
        other => other,
    }
}

/// Writes out what is not yet on the disk, then takes the mount away. What containers still hold of it
/// stays theirs.
pub(super) fn detach(point: &Path) -> std::io::Result<()> {
    let written = File::open(point).and_then(|dir| Ok(nix::unistd::syncfs(dir)?));
    umount2(point, MntFlags::UMOUNT_NOFOLLOW)?;
    // A mount point without a mount would take what is meant for the volume.
    std::fs::remove_dir(point)?;
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_its_odd_characters() {
        let text =
            b"36 35 98:0 / /run/cloud-volumes/v\\0401 rw,noatime master:1 - ext4 /dev/sdb rw\n\
            37 35 0:5 / /proc rw - proc proc rw\nbroken\n38 35 1:1 / \\09 rw - x y\\ z";
        let all: Vec<_> = parse(text).collect();
        assert_eq!(all[0].point, Path::new("/run/cloud-volumes/v 1"));
        assert_eq!((all[0].source.as_str(), all.len()), ("/dev/sdb", 3));
        assert_eq!(at(Path::new("/proc")).expect("read").expect("mounted").source, "proc");
    }

    #[test]
    fn what_is_no_disk_is_not_opened_as_one() {
        for path in ["/dev/null", "/proc/self/mountinfo", "/nowhere"] {
            open_unused(Path::new(path)).expect_err(path);
        }
    }
}
