//! Small texts of the state directory: read whole, replaced whole.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

use super::state_dir::no_link;

/// The first `max` bytes of a file; `None` if there is none.
///
/// # Errors
/// The kernel's, and for a link; `InvalidData` when it is no UTF-8.
pub(super) fn read(path: &Path, max: u64) -> io::Result<Option<String>> {
    // Non-blocking: a FIFO in its place must not hold us.
    let opened = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path);
    let mut text = String::new();
    match opened.map_err(no_link).and_then(|file| file.take(max).read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whole or not at all, also across a power cut; what stands under the temporary name goes first.
/// `written` is called when the text is on disk and not yet in place.
///
/// # Errors
/// The kernel's; the former text is still there.
pub(super) fn write(path: &Path, text: &str, written: impl FnOnce()) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    written();
    std::fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}
