//! What the integration tests share.

use std::path::PathBuf;

/// The top of the checkout.
pub fn top() -> PathBuf {
    let mut dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    dir.pop();
    dir.pop();
    dir
}
