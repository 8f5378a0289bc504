//! What foreign bytes may not do to us: one function for each reader of such bytes, holding what must
//! be true of it whatever comes. A function that panics has found something.
//!
//! ```text
//!   fuzz_targets/<target>.rs ─ nightly ─▶ libFuzzer makes up bytes ─┐
//!                            └ stable ──▶ files named as arguments ─┴▶ peerpod_fuzz::<target>(bytes)
//!   tests/replay.rs ─ every file of corpus/<target>, memory and time bounded ─▶ the same function
//! ```

mod daemon;
mod kernel;
mod link;
mod session;
mod vm;

pub use daemon::{create_vm, hypervisor, record};
pub use kernel::{nft_netlink, route_netlink};
pub use link::{frame, gate, wire};
pub use session::{session, session_export};
pub use vm::{apf, cloud_config, edit, initdata};

/// A target: its name and its property.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("frame", frame),
    ("gate", gate),
    ("wire", wire),
    ("edit", edit),
    ("cloud_config", cloud_config),
    ("apf", apf),
    ("initdata", initdata),
    ("record", record),
    ("create_vm", create_vm),
    ("hypervisor", hypervisor),
    ("route_netlink", route_netlink),
    ("nft_netlink", nft_netlink),
    ("session", session),
    ("session_export", session_export),
];

/// The main of a target: libFuzzer's under cargo-fuzz, else one that replays the files it is given.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::$name(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            $crate::replay($crate::$name)
        }
    };
}

/// Runs a target on every file named on the command line.
///
/// # Errors
/// When a file cannot be read.
pub fn replay(target: fn(&[u8])) -> std::io::Result<()> {
    for path in std::env::args_os().skip(1) {
        println!("{}", path.display());
        target(&std::fs::read(path)?);
    }
    Ok(())
}

/// Hands out the parts of an input, so that what a mutator changes stays where it was.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    /// 0 when nothing is left.
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }
}
