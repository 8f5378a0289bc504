//! What the integration tests share: a lab with a daemon in it, and questions about it.

pub mod bed;
pub mod clock;
#[cfg(feature = "crash-points")]
pub mod crash;
pub mod load;
pub mod needles;
pub mod stream;

use std::path::PathBuf;

pub use bed::Bed;
pub use load::{Churn, Load};
pub use stream::Stream;

/// The top of the checkout.
pub fn top() -> PathBuf {
    let mut dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    dir.pop();
    dir.pop();
    dir
}

/// A number from the environment, for campaigns that are longer than the default.
#[allow(clippy::disallowed_methods, reason = "a test's own switches")]
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Whether the test may make namespaces as root; says SKIP otherwise.
pub fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP {test}: needs root to make network namespaces");
    }
    root
}
