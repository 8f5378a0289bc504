//! Where a test build of the daemon may die in the middle of a tunnel; other builds have none of this.

use std::sync::OnceLock;

/// Names of all points, in the order in which attach and then detach come by.
pub const POINTS: &[&str] = &[
    "guard-allow.before",
    "guard-allow.after",
    "device-make.before",
    "device-make.after",
    "device-mark.before",
    "device-mark.after",
    "device-mtu.before",
    "device-mtu.after",
    "pin-set.before",
    "pin-set.after",
    "device-up.before",
    "device-up.after",
    "device-down.before",
    "device-down.after",
    "pin-clear.before",
    "pin-clear.after",
    "guard-revoke.before",
    "guard-revoke.after",
    "device-delete.before",
    "device-delete.after",
    "left-over.before",
    "left-over.after",
];

static TOLD: OnceLock<fn(&'static str)> = OnceLock::new();

/// From now on `who` is told of every point. The first one to ask is.
pub fn tell(who: fn(&'static str)) {
    let _ = TOLD.set(who);
}

/// A point is reached.
pub(crate) fn reach(name: &'static str) {
    if let Some(told) = TOLD.get() {
        told(name);
    }
}
