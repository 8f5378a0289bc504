//! Looks whether local VMs could be made, and changes nothing.

use std::path::Path;

use nix::unistd::{AccessFlags, access, geteuid};

use super::network::overlap;
use super::{NAME, Settings, USER_DATA_LIMIT};
use crate::{Finding, InstanceType, Report};

pub(super) fn report(settings: &Settings) -> Report {
    let mut report = Report::of_types(vec![whole_machine()]);
    report.user_data = Some(USER_DATA_LIMIT);
    report.markets.clone_from(&settings.markets);
    report.findings.push(Finding::warning(
        NAME,
        "local isolates nothing: its VMs share this machine's kernel, files and root user; use it \
         for development and tests only",
    ));
    let mut problems = programs(settings);
    problems.extend(overlap(settings.cidr).err().map(|e| e.to_string()));
    problems.extend(state_dir(settings));
    if !geteuid().is_root() {
        problems.push(
            "local VMs need root, or root in namespaces of one's own (unshare --map-root-user \
             --user --net --mount)"
                .to_owned(),
        );
    }
    report.findings.extend(problems.into_iter().map(|p| Finding::problem(NAME, p)));
    report
}

/// What is wrong with the programs that would run in a VM.
pub(super) fn programs(settings: &Settings) -> Vec<String> {
    let programs = [("LOCAL_PODVM", &settings.podvm), ("LOCAL_AGENT", &settings.agent)];
    let wrong = programs.into_iter().filter_map(|(key, command)| {
        let path = command.first().map_or(Path::new(""), Path::new);
        // A VM has its own of these two, so what lies there outside is out of its sight.
        let hidden = path.starts_with("/run") || path.starts_with("/media");
        let problem = match () {
            () if hidden => "lies where the VM cannot see it; not below /run or /media",
            () if !path.is_file() => "is not there",
            () if access(path, AccessFlags::X_OK).is_err() => "may not be executed",
            () => return None,
        };
        Some(format!("{key} {}: {problem}", path.display()))
    });
    wrong.collect()
}

/// The state directory, or where it would be made, must be writable.
fn state_dir(settings: &Settings) -> Option<String> {
    let mut there = settings.state_dir.ancestors().skip_while(|dir| !dir.exists());
    let there = there.next().unwrap_or(Path::new("/"));
    let problem = match () {
        () if !there.is_dir() => "is not a directory",
        () if access(there, AccessFlags::W_OK).is_err() => "may not be written to",
        () => return None,
    };
    Some(format!("LOCAL_STATE_DIR {}: {} {problem}", settings.state_dir.display(), there.display()))
}

/// The one type there is: nothing limits a local VM, so it is as large as the machine.
fn whole_machine() -> InstanceType {
    let vcpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    InstanceType {
        name: NAME.to_owned(),
        vcpus: u32::try_from(vcpus).unwrap_or(u32::MAX),
        memory_mib: kib.unwrap_or(0) / 1024,
        gpus: 0,
        price: None,
    }
}
