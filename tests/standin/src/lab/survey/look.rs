//! Where the survey looks.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use peerpod_netlink::nft::{Family, Nft};
use peerpod_netlink::{Error, Handle, Link, Netns};

use super::{Finding, Kind};
use crate::lab::dir::SANDBOXES;
use crate::lab::processes;

/// Looks everywhere. `lab` is the directory of a lab, `groups` that of the VMs' control groups.
pub(super) fn everywhere(
    lab: &Path,
    groups: &Path,
    daemon_runs: bool,
) -> anyhow::Result<Vec<Finding>> {
    anyhow::ensure!(lab.join("net").is_dir(), "{} is no lab", lab.display());
    let mut found = Vec::new();
    for netns in entries(&lab.join("net"))? {
        let name = netns.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "cluster" {
            continue;
        }
        let inside = Netns::open(&netns).and_then(|n| n.run(namespace));
        let inside = inside.with_context(|| format!("look into namespace {name}"))?;
        found.extend(
            inside
                .into_iter()
                .map(|(kind, what)| Finding { kind, what: format!("{what} in {name}") }),
        );
    }
    let mut note = |kind: Kind, what: String| found.push(Finding { kind, what });
    for path in entries(&lab.join("local"))?.into_iter().filter(|p| p.is_dir()) {
        note(Kind::Vm, show(&path));
    }
    for dir in ["state/pods", "state/broken"] {
        entries(&lab.join(dir))?.iter().for_each(|p| note(Kind::Record, show(p)));
    }
    entries(&lab.join("pods"))?.iter().for_each(|p| note(Kind::Socket, show(p)));
    if !daemon_runs {
        let own = entries(lab)?.into_iter().chain(entries(&lab.join("run"))?);
        own.filter(|p| is_socket(p)).for_each(|p| note(Kind::Socket, show(&p)));
    }
    for process in processes::using(lab) {
        if !(daemon_runs && process.is_daemon()) {
            note(Kind::Process, format!("{} {}", process.pid, process.command.join(" ")));
        }
    }
    found.extend(cgroups(lab, groups)?);
    found.sort();
    Ok(found)
}

/// Devices and tables of ours in the namespace of the calling thread.
fn namespace() -> Result<Vec<(Kind, String)>, Error> {
    let links = Handle::here()?.links()?.into_iter().filter(is_ours);
    let mut found: Vec<_> = links.map(|l| (Kind::Device, l.name)).collect();
    for (family, word) in [(Family::Inet, "inet"), (Family::Netdev, "netdev")] {
        let tables = Nft::tables(family)?.into_iter().filter(|t| t.starts_with("peerpod"));
        found.extend(tables.map(|t| (Kind::Rule, format!("table {word} {t}"))));
    }
    Ok(found)
}

fn is_ours(link: &Link) -> bool {
    let marked = link.alias.as_deref().is_some_and(|a| a.starts_with("peerpod:"));
    // In turn: a tunnel's device and one on its way, the local VMs' ports and their bridge.
    let named = ["vxlan", "ppvx", "ppl", "peerpod"].iter().any(|p| link.name.starts_with(p));
    marked || named
}

/// Groups of this lab's VMs, whose names end in the first 8 characters of their sandboxes' ids.
fn cgroups(lab: &Path, dir: &Path) -> anyhow::Result<Vec<Finding>> {
    let ids = std::fs::read_to_string(lab.join(SANDBOXES)).unwrap_or_default();
    let ends: Vec<&str> = ids.lines().filter_map(|id| id.get(..8)).collect();
    let groups = entries(dir)?.into_iter().filter(|p| {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        p.is_dir() && ends.iter().any(|e| name.ends_with(e))
    });
    Ok(groups.map(|p| Finding { kind: Kind::Cgroup, what: show(&p) }).collect())
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
}

fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("look into {}", dir.display())),
        Ok(all) => Ok(all.flatten().map(|e| e.path()).collect()),
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
