//! Who may take a relay's place: a process of our user or root that runs a program of ours.

use std::path::Path;

use peerpod_tunnel::link::notice::Notices;
use tokio::net::UnixStream;

use super::message::{Hello, VERSION, agreed, oldest};
use crate::relay::RelayOptions;

static UNSEEN: Notices = Notices::new();

/// Names under which the program is installed.
const PROGRAMS: [&str; 3] = ["peerpodd", "cloud-api-adaptor", "cloud-api-adapt"];

/// Whether the process at the other end runs a program of ours. Its user was checked before. A
/// process whose program the kernel does not show, as in another container, has only its user to
/// show for itself.
pub(super) fn program(stream: &UnixStream) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|e| format!("who asks is not known: {e}"))?;
    let Some(pid) = peer.pid().filter(|pid| *pid > 0) else { return Ok(()) };
    let shown = std::fs::read_link(format!("/proc/{pid}/exe")).or_else(|_| {
        // A relay shows nobody its program, and looks into no process with more privileges than it
        // has itself. The name stays, of which the kernel keeps 15 bytes.
        std::fs::read_to_string(format!("/proc/{pid}/comm")).map(|name| name.trim_end().into())
    });
    match shown {
        Ok(program) if is_ours(&program) => Ok(()),
        Ok(program) => Err(format!("process {pid} is {}, no relay", program.display())),
        Err(error) => {
            UNSEEN.say(|| {
                tracing::info!(pid, %error, "the program of who asks for the hand-over is not shown");
            });
            Ok(())
        }
    }
}

fn is_ours(program: &Path) -> bool {
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    // Cargo puts a hash behind a test's name.
    PROGRAMS.iter().any(|ours| {
        name.strip_prefix(ours).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
    })
}

/// Whether it speaks our language and would serve what we serve; returns the version to speak.
pub(super) fn hello(options: &RelayOptions, hello: &Hello) -> Result<u32, String> {
    let Some(version) = agreed(hello.version, hello.oldest) else {
        return Err(format!(
            "the new relay (build {}) hands over by version {} to {}, the old one (build {}) by \
             {} to {VERSION}: no pod can be kept, stop the old one before the new one starts",
            hello.build,
            hello.oldest,
            hello.version,
            options.build,
            oldest(),
        ));
    };
    let paths = [
        (&hello.hypervisor, &options.hypervisor_socket, "--socket"),
        (&hello.control, &options.control_socket, "--run-dir"),
        (&hello.pods_dir, &options.pods_dir, "--pods-dir"),
    ];
    for (theirs, ours, setting) in paths {
        if Path::new(theirs) != ours {
            let ours = ours.display();
            return Err(format!("{setting}: the new relay has {theirs}, the old one {ours}"));
        }
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_ours_are_known_by_name() {
        for ours in ["/usr/bin/peerpodd", "/x/cloud-api-adaptor", "/a/peerpodd (deleted)"] {
            assert!(is_ours(Path::new(ours)), "{ours}");
        }
        for other in ["/usr/bin/python3", "/tmp/peerpodd2", "/peerpodd/sh", ""] {
            assert!(!is_ours(Path::new(other)), "{other}");
        }
    }
}
