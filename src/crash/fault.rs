//! Steps on the disk that fail because a test says so.

use std::io;

use nix::errno::Errno;

use super::Point;
use super::real::variable;

/// What a step is to do instead of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Fail with that error.
    Error(Errno),
    /// Write half of what there is, and then find the disk full.
    Short,
}

/// What the file says now of the step that the point belongs to.
fn of(point: Point) -> Option<Fault> {
    let text = std::fs::read_to_string(variable("PEERPODD_CRASH_FAULTS")?).ok()?;
    let step = point.name().split('.').next()?;
    let what = text.lines().find_map(|l| l.strip_prefix(step)?.strip_prefix(' '))?;
    match what.trim() {
        "EIO" => Some(Fault::Error(Errno::EIO)),
        "ENOSPC" => Some(Fault::Error(Errno::ENOSPC)),
        "EROFS" => Some(Fault::Error(Errno::EROFS)),
        "short" => Some(Fault::Short),
        _ => None,
    }
}

/// Whether a write is to be cut off.
pub fn is_short() -> bool {
    of(Point::RecordWriteBefore) == Some(Fault::Short)
}

/// Whether a step may do its work.
///
/// # Errors
/// What the fault says.
pub fn fault(point: Point) -> io::Result<()> {
    match of(point) {
        Some(Fault::Error(error)) => Err(error.into()),
        _ => Ok(()),
    }
}
