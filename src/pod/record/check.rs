//! Whether a record that can be read says something that this daemon would have written. It is only a
//! file: what is taken from it as a path or a name is looked at before anything is done with it.

use std::path::{Component, Path};

use super::Record;
use crate::request::SandboxId;

/// What the kernel takes as the path of a socket, without its closing zero.
const SOCKET_MAX: usize = 107;
/// Longest path there is.
const PATH_MAX: usize = 4096;

/// What is wrong with it, by the field's name.
pub(super) fn check(record: &Record) -> Result<(), String> {
    SandboxId::parse(&record.sandbox).map_err(|e| format!("sandbox: {e}"))?;
    let link = &record.link;
    plain("link.socket", &link.socket, SOCKET_MAX)?;
    let directory = link.socket.parent().and_then(Path::file_name);
    if directory.is_none_or(|name| name != record.sandbox.as_str()) {
        return Err(format!(
            "link.socket: {} is not in a directory of the sandbox's own",
            short(&link.socket)
        ));
    }
    plain("network.netns", &record.network.netns, PATH_MAX)?;
    let spec = &record.machine.spec;
    if spec.sandbox != record.sandbox {
        return Err("machine.spec.sandbox: it is another sandbox's VM".to_owned());
    }
    for volume in &record.volumes.attached {
        volume.check().map_err(|e| format!("volumes: {e}"))?;
        if !spec.volumes.iter().any(|v| v.disk == volume.disk && v.lun == volume.number) {
            return Err(format!("volumes: {} is no disk of the VM", volume.name()));
        }
    }
    let names = [Some(&spec.name), record.phase.vm().map(|vm| &vm.name)];
    match names.into_iter().flatten().all(|name| name.is_legal()) {
        true => Ok(()),
        false => Err("machine.spec.name: no name that a VM of ours could have".to_owned()),
    }
}

/// Absolute, and going nowhere but down.
fn plain(field: &str, path: &Path, longest: usize) -> Result<(), String> {
    let odd = |c: Component<'_>| !matches!(c, Component::RootDir | Component::Normal(_));
    let text = path.as_os_str();
    if !path.is_absolute() || path.components().any(odd) || path.file_name().is_none() {
        return Err(format!("{field}: {} is no absolute path without ..", short(path)));
    }
    if text.len() > longest || text.as_encoded_bytes().iter().any(u8::is_ascii_control) {
        return Err(format!("{field}: {} is no path that could be used", short(path)));
    }
    Ok(())
}

/// Enough of a path to recognise it in a message.
fn short(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy().chars().take(80).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::phase::{Made, Phase};
    use crate::pod::samples;
    use peerpod_providers::{Vm, VmName};

    #[test]
    fn a_record_of_ours_is_fine() {
        check(&samples::record("s1")).expect("fine");
    }

    fn refused(change: impl FnOnce(&mut Record)) -> String {
        let mut record = samples::record("s1");
        change(&mut record);
        check(&record).expect_err("refused")
    }

    #[test]
    fn a_socket_outside_the_sandboxs_directory_is_named() {
        for path in [
            "/etc/passwd",
            "/run/peerpod/pods/s2/agent.ttrpc",
            "/run/peerpod/pods/s1/../s2/agent.ttrpc",
            "/run/peerpod/pods/s2/s1/../agent.ttrpc",
            "pods/s1/agent.ttrpc",
            "",
            "/",
        ] {
            let text = refused(|r| r.link.socket = path.into());
            assert!(text.starts_with("link.socket: "), "{path}: {text}");
        }
        let long = format!("/{}/s1/agent.ttrpc", "x".repeat(100));
        assert!(refused(|r| r.link.socket = long.into()).starts_with("link.socket: "));
        let odd = "/run/s1/agent\n.ttrpc";
        assert!(!refused(|r| r.link.socket = odd.into()).contains('\n'));
    }

    #[test]
    fn a_namespace_by_a_path_that_goes_up_is_named() {
        for path in ["netns/web", "/run/netns/../../proc/1/ns/net", ""] {
            assert!(refused(|r| r.network.netns = path.into()).starts_with("network.netns: "));
        }
    }

    #[test]
    fn a_volume_that_the_vm_has_not_or_that_is_none_is_named() {
        use crate::volumes::PodVolume;
        let volume = |target: &str| PodVolume {
            target: target.to_owned(),
            disk: "d".to_owned(),
            number: 0,
            fs: "ext4".to_owned(),
            read_only: false,
            fs_group: None,
            encrypt_type: String::new(),
            key_id: String::new(),
        };
        let good = volume("/k/pods/u/volumes/kubernetes.io~csi/pvc/mount");
        let with = |volume: PodVolume, attached: Vec<peerpod_providers::Volume>| {
            let mut record = samples::record("s1");
            record.volumes.attached = vec![volume];
            record.machine.spec.volumes = attached;
            check(&record)
        };
        with(good.clone(), vec![good.spec()]).expect("fine");
        assert!(with(good.clone(), vec![]).expect_err("none").contains("no disk of the VM"));
        let other = PodVolume { number: 1, ..good.clone() }.spec();
        assert!(with(good.clone(), vec![other]).expect_err("another").contains("vol-0"));
        let hostile = volume("/k/pods/u/volumes/kubernetes.io~csi/../../../etc");
        assert!(with(hostile.clone(), vec![hostile.spec()]).expect_err("path").contains("target"));
    }

    #[test]
    fn another_sandboxs_vm_and_names_that_would_be_paths_are_refused() {
        assert!(refused(|r| r.sandbox = "../s1".to_owned()).starts_with("sandbox: "));
        assert!(refused(|r| r.machine.spec.sandbox = "s2".to_owned()).contains("another"));
        let hostile = || VmName::from_existing("../../etc");
        assert!(refused(|r| r.machine.spec.name = hostile()).starts_with("machine.spec.name"));
        let vm = Vm {
            native_id: "i-1".to_owned(),
            name: hostile(),
            addresses: Vec::new(),
            instance_type: String::new(),
            zone: None,
            price_per_hour: None,
        };
        let text = refused(|r| {
            let reason = String::new();
            r.phase = Phase::Deleting { made: Made::Known(vm), reason };
        });
        assert!(text.contains("name"), "{text}");
    }
}
