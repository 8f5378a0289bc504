//! Looks whether VMs could be made, and changes nothing.

use virt::connect::Connect;
use virt::network::Network;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;

use super::client::Host;
use super::error::maybe;
use super::settings::{ARCH, CPU, DOMAIN_TYPE, MEMORY, NET, POOL, URI, VOL, tag_room};
use super::template::Template;
use super::{NAME, Settings, Source};
use crate::size::{AnySize, SizeRules};
use crate::{Error, Finding, Kind, Report};

/// What a host says of the machines it makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Machines {
    arch: String,
    /// Canonical name of the machine that is asked for.
    machine: String,
    kvm: bool,
    emulated: bool,
}

/// Memory in MiB that active domains have.
pub(super) fn committed(connection: &Connect) -> Result<u64, virt::error::Error> {
    let mut kib = 0;
    for domain in connection.list_all_domains(virt_sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)? {
        kib += maybe(domain.get_info())?.map_or(0, |info| info.max_mem);
    }
    Ok(kib / 1024)
}

pub(super) fn report(host: &Host<'_>, settings: &Settings) -> Result<Report, Error> {
    let connection = host.connection;
    let refuse = |what: &str, e: &virt::error::Error| host.refuse(what, e);
    let node = connection.get_node_info().map_err(|e| refuse("the host", &e))?;
    let xml = connection.get_capabilities().map_err(|e| refuse("capabilities", &e))?;
    let mut findings = vec![Finding::fine("connection", settings.uri.clone())];
    findings.extend(settings.warnings.iter().map(|w| Finding::warning(URI.env, w.clone())));
    let machines = machines(&xml, &settings.arch);
    let domain_type = domain_type(settings, &machines, &mut findings);
    contradictions(settings, &machines, &mut findings);
    look_at_storage(host, settings, &mut findings);
    look_at_network(host, settings, &mut findings);
    let memory = node.memory / 1024;
    for (key, want, has) in [
        (CPU, u64::from(settings.vcpus), u64::from(node.cpus)),
        (MEMORY, settings.memory_mib, memory),
    ] {
        findings.push(match want <= has {
            true => Finding::fine(key.env, format!("{want} of the host's {has}")),
            false => Finding::problem(key.env, format!("{want}, and the host has {has}"))
                .remedy(format!("{}={has} or less", key.env)),
        });
    }
    let template = Template {
        pool: settings.pool.clone(),
        network: settings.network.clone(),
        image: settings.image.clone(),
        firmware: settings.firmware.clone(),
        cpuset: settings.cpuset.clone(),
        domain_type,
        arch: machines.arch,
        machine: machines.machine,
    };
    let template = serde_json::to_string(&template)
        .map_err(|e| Error::new(NAME, "check", Kind::Other, e.to_string()))?;
    let any_size = AnySize {
        vcpus: settings.vcpus,
        memory_mib: settings.memory_mib,
        vcpus_max: node.cpus,
        memory_mib_max: memory,
    };
    let size = SizeRules { any_size: Some(any_size), ..SizeRules::default() };
    let (disk_gib, tags) = (settings.disk_gib, tag_room());
    Ok(Report { size, disk_gib, tags, template, findings, ..Report::default() })
}

/// What the wanted architecture has (empty is the host's own), from libvirt's capabilities.
fn machines(xml: &str, wanted: &str) -> Machines {
    let mut found = Machines { arch: "x86_64".to_owned(), ..Machines::default() };
    let Ok(document) = roxmltree::Document::parse(xml) else { return found };
    let all = || document.descendants();
    let host = all().find(|n| n.has_tag_name("host"));
    let arch = host.and_then(|h| h.descendants().find(|n| n.has_tag_name("arch")));
    let own = arch.and_then(|n| n.text());
    if let Some(arch) = Some(wanted).filter(|arch| !arch.is_empty()).or(own) {
        found.arch = arch.to_owned();
    }
    let of_it = |n: &roxmltree::Node<'_, '_>| {
        n.has_tag_name("arch") && n.attribute("name") == Some(found.arch.as_str())
    };
    let Some(guest) = all().find(of_it) else { return found };
    let usual = if found.arch == "s390x" { "s390-ccw-virtio" } else { "q35" };
    let machine =
        guest.descendants().find(|n| n.has_tag_name("machine") && n.text() == Some(usual));
    let machine = machine.map(|n| n.attribute("canonical").unwrap_or(usual).to_owned());
    let has = |kind| {
        guest.descendants().any(|n| n.has_tag_name("domain") && n.attribute("type") == Some(kind))
    };
    let (kvm, emulated) = (has("kvm"), has("qemu"));
    Machines { machine: machine.unwrap_or_default(), kvm, emulated, ..found.clone() }
}

fn domain_type(settings: &Settings, machines: &Machines, findings: &mut Vec<Finding>) -> String {
    if !machines.kvm && !machines.emulated {
        let text = format!("the host makes no VMs of {}", machines.arch);
        let remedy =
            "install its emulator (qemu-system-x86, qemu-system-misc for s390x) on the host";
        findings.push(Finding::problem(ARCH.env, text).remedy(remedy));
        return settings.domain_type.clone();
    }
    let key = DOMAIN_TYPE.env;
    let best = if machines.kvm { "kvm" } else { "qemu" };
    let wanted = if settings.domain_type.is_empty() { best } else { settings.domain_type.as_str() };
    let has = if wanted == "kvm" { machines.kvm } else { machines.emulated };
    findings.push(match (has, wanted) {
        (true, "kvm") => Finding::fine(key, "kvm"),
        (true, _) => Finding::warning(key, "qemu: VMs are emulated, and slow"),
        (false, _) => {
            let text = format!("{wanted:?} is nothing the host can do");
            Finding::problem(key, text).remedy(format!("{key}={best}"))
        }
    });
    wanted.to_owned()
}

fn contradictions(settings: &Settings, machines: &Machines, findings: &mut Vec<Finding>) {
    let z = machines.arch == "s390x";
    if settings.s390_pv && !z {
        let text = format!("s390-pv on a host that is {}", machines.arch);
        findings.push(Finding::problem("LIBVIRT_LAUNCH_SECURITY", text).remedy("leave it empty"));
    }
    if settings.confidential && !z {
        let text = "false, and libvirt makes no confidential VMs on this host";
        findings.push(Finding::problem("DISABLECVM", text).remedy("DISABLECVM=true"));
    }
    if settings.confidential && z {
        let text = "false: the image must be one of Secure Execution, which cannot be looked at";
        findings.push(Finding::warning("DISABLECVM", text));
    }
}

fn look_at_storage(host: &Host<'_>, settings: &Settings, findings: &mut Vec<Finding>) {
    let (name, image) = (&settings.pool, &settings.image);
    let key = POOL.env;
    let pool = match StoragePool::lookup_by_name(host.connection, name) {
        Ok(pool) => pool,
        Err(e) => {
            let finding = Finding::problem(key, format!("{name:?}: {}", e.message()));
            findings
                .push(finding.remedy(format!("virsh pool-list --all; virsh pool-start {name}")));
            return;
        }
    };
    if !pool.is_active().unwrap_or(false) {
        let finding = Finding::problem(key, format!("{name:?} is not active"));
        findings.push(finding.remedy(format!("virsh pool-start {name}")));
        return;
    }
    findings.push(match pool.get_info() {
        Ok(info) => Finding::fine(key, format!("{name}: {} GiB left", info.available >> 30)),
        Err(e) => Finding::warning(key, format!("{name}: could not be looked at: {}", e.message())),
    });
    findings.push(match StorageVol::lookup_by_name(&pool, image) {
        Ok(_) => Finding::fine("image", image.clone()),
        Err(e) => {
            let text = format!("{} {image:?} in pool {name:?}: {}", VOL.env, e.message());
            Finding::problem("image", text)
                .remedy(format!("virsh pool-refresh {name}; virsh vol-list {name}"))
        }
    });
}

fn look_at_network(host: &Host<'_>, settings: &Settings, findings: &mut Vec<Finding>) {
    let (name, key) = (&settings.network, NET.env);
    let network = match Network::lookup_by_name(host.connection, name) {
        Ok(network) => network,
        Err(e) => {
            let finding = Finding::problem(key, format!("{name:?}: {}", e.message()));
            findings.push(finding.remedy("virsh net-list --all"));
            return;
        }
    };
    if !network.is_active().unwrap_or(false) {
        let finding = Finding::problem(key, format!("{name:?} is not active"));
        findings.push(finding.remedy(format!("virsh net-start {name}")));
        return;
    }
    findings.push(Finding::fine(key, name.clone()));
    let dhcp = network.get_xml_desc(0).is_ok_and(|xml| xml.contains("<dhcp"));
    if settings.source == Source::Lease && !dhcp {
        let text = format!("lease, and network {name:?} gives no addresses itself");
        findings.push(
            Finding::problem("LIBVIRT_ADDRESS_SOURCE", text)
                .remedy("LIBVIRT_ADDRESS_SOURCE=arp, or agent where the image has QEMU's agent"),
        );
    }
    let text = "what stands between worker and VMs could not be looked at; tcp to the forwarder and udp \
                to the tunnel must pass";
    findings.push(Finding::warning("firewall", text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_of_the_host_or_of_the_wanted_architecture_are_taken() {
        let xml = "<capabilities><host><cpu><arch>s390x</arch></cpu></host>\
            <guest><os_type>hvm</os_type><arch name='x86_64'><machine>q35</machine>\
            <domain type='qemu'/></arch></guest>\
            <guest><os_type>hvm</os_type><arch name='s390x'>\
            <machine canonical='s390-ccw-virtio-7.2'>s390-ccw-virtio</machine>\
            <domain type='qemu'/><domain type='kvm'/></arch></guest></capabilities>";
        let found = machines(xml, "");
        assert_eq!((found.arch.as_str(), found.kvm, found.emulated), ("s390x", true, true));
        assert_eq!(found.machine, "s390-ccw-virtio-7.2");
        let found = machines(xml, "x86_64");
        assert_eq!((found.arch.as_str(), found.kvm, found.emulated), ("x86_64", false, true));
        let found = machines(xml, "riscv64");
        assert_eq!((found.kvm, found.emulated), (false, false));
        assert_eq!(machines("nonsense", "").arch, "x86_64");
    }
}
