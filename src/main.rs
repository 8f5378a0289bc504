//! The daemon: everything is in the library, so that it can be tested and put together.

use std::process::ExitCode;

use peerpodd::app;
use peerpodd::cli::Start;

#[global_allocator]
static ALLOCATOR: peerpod_tunnel::wipe::Allocator = peerpod_tunnel::wipe::Allocator;

fn main() -> ExitCode {
    // One crypto backend, before anything could choose another.
    peerpod_tunnel::link::tls::install_ring();
    // The local provider's VM is this program, too; it knows nothing of settings.
    #[cfg(feature = "local")]
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "local-guest") {
        return peerpod_providers::local::guest_main(std::env::args_os().skip(2).collect());
    }
    let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
    app::main(&Start {
        argv: std::env::args_os().map(text).collect(),
        env: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
        hostname: nix::unistd::gethostname().map(text).unwrap_or_default(),
        program: std::env::current_exe().unwrap_or_default(),
    })
}
