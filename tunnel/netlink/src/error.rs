//! The one error of this crate.

use std::io;
use std::path::PathBuf;

/// A kernel operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace could not be opened, made, entered or kept.
    #[error("network namespace {path}: {action}: {source}")]
    Netns {
        /// Where it is or should be.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The netlink socket itself failed.
    #[error("netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused an operation.
    #[error("{operation}: {source}{}", extended(.message))]
    Kernel {
        /// What was asked, with the object's name.
        operation: String,
        /// The error number.
        source: io::Error,
        /// The kernel's own explanation, where it gives one.
        message: Option<String>,
    },
    /// The kernel's answer could not be read.
    #[error("{operation}: answer does not parse: {reason}")]
    Answer {
        /// What was asked.
        operation: String,
        /// What was wrong.
        reason: String,
    },
    /// There is no link of that name here.
    #[error("no interface {0:?} in this namespace")]
    NoLink(String),
}

fn extended(message: &Option<String>) -> String {
    message.as_ref().map(|m| format!(" ({m})")).unwrap_or_default()
}

impl Error {
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } | Self::Netns { source, .. } | Self::Socket(source) => {
                source.raw_os_error()
            }
            _ => None,
        }
    }

    /// The object was there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(nix::libc::EEXIST)
    }

    /// The object is not there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::NoLink(_))
            || matches!(
                self.errno(),
                Some(
                    nix::libc::ENOENT
                        | nix::libc::ENODEV
                        | nix::libc::ESRCH
                        | nix::libc::EADDRNOTAVAIL
                )
            )
    }
}
