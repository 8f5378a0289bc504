//! The programs the demo is about: lying beside it, or built first.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use peerpod_standin::lab::Binaries;

use crate::cli::{Arguments, Provider};

/// The directory of the running program, where the others lie, too.
pub(crate) fn directory() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where the demo lies")?;
    Ok(own.parent().context("where the demo lies")?.to_owned())
}

/// Builds them, in the demo's own profile, if cargo has started the demo or one is missing.
pub(crate) fn build(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { json, provider, .. } = *arguments;
    let dir = directory()?;
    let binaries = Binaries::beside(&dir);
    let by_cargo = std::env::var_os("CARGO");
    if by_cargo.is_none() && binaries.missing().is_empty() {
        return Ok(());
    }
    if !json {
        println!("building peerpodd, podvm and standin-agent (nothing to do if they are there)");
    }
    let program = by_cargo.map_or_else(|| "cargo".into(), PathBuf::from);
    for what in packages(provider) {
        let mut command = cargo(&program, what, &dir);
        let status = command.status().with_context(|| {
            format!("{:?} are not beside the demo, and cargo cannot be started", binaries.missing())
        })?;
        ensure!(status.success(), "cargo build failed ({status})");
    }
    ensure!(binaries.missing().is_empty(), "cargo has built no {:?}", binaries.missing());
    Ok(())
}

/// What is built at a time: the daemon with that provider and no other.
fn packages(provider: Provider) -> &'static [&'static [&'static str]] {
    match provider {
        Provider::Local => &[&["-p", "peerpodd", "-p", "podvm", "-p", "peerpod-standin"]],
        Provider::Libvirt => &[
            &["-p", "peerpodd", "--no-default-features", "--features", "libvirt"],
            &["-p", "podvm", "-p", "peerpod-standin"],
        ],
    }
}

/// The project's top directory.
pub(crate) fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("."))
}

/// `target/<profile>/peerpodd-demo`: the profile's directory tells the profile and the target
/// directory.
fn cargo(program: &Path, what: &[&str], dir: &Path) -> Command {
    #[allow(clippy::disallowed_methods, reason = "the demo builds what it shows")]
    let mut command = Command::new(program);
    command.current_dir(top()).stdin(Stdio::null()).stdout(Stdio::null());
    // What cargo tells a program that it runs. Build scripts that watch these variables (ring's does)
    // would run anew at every change between a plain build and this one, and half the build with them.
    for (name, _) in std::env::vars_os() {
        let told = name.to_str().is_some_and(|n| {
            n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_") || n == "CARGO"
        });
        if told {
            command.env_remove(&name);
        }
    }
    command.arg("build").args(what);
    match dir.file_name().and_then(|n| n.to_str()) {
        Some("debug") | None => {}
        Some(profile) => drop(command.args(["--profile", profile])),
    }
    if let Some(target) = dir.parent() {
        command.arg("--target-dir").arg(target);
    }
    command
}
