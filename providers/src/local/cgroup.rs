//! A control group per VM, where this machine lets us make one: so that stopping the daemon's
//! systemd unit, which kills the unit's group, leaves the VMs alone. Nothing else depends on it (a
//! VM's processes end with the init of its pid namespace), so where cgroup v2 is not mounted at its
//! usual place or not writable, as for an ordinary user, there is none.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::VmName;

const ROOT: &str = "/sys/fs/cgroup";
const OURS: &str = "peerpod-local";

fn path(name: &VmName) -> Option<PathBuf> {
    let v2 = statfs(ROOT).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    v2.then(|| Path::new(ROOT).join(OURS).join(name.as_str()))
}

/// Moves the calling process into the VM's group; false if there can be none.
pub(super) fn join(name: &VmName) -> bool {
    let Some(path) = path(name) else {
        return false;
    };
    let joined = std::fs::create_dir_all(&path)
        .and_then(|()| std::fs::write(path.join("cgroup.procs"), "0"));
    joined.is_ok()
}

/// Takes the VM's group and those below it away, once its processes have ended.
pub(super) fn remove(name: &VmName) -> io::Result<()> {
    let Some(path) = path(name) else {
        return Ok(());
    };
    remove_tree(&path)?;
    // Stays as long as there are others.
    let _ = path.parent().map(std::fs::remove_dir);
    Ok(())
}

/// The files of a group cannot be removed; the directories can, from the innermost.
fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
