//! The texts that libvirt takes (providers.md 6.3): pure functions of what a VM is to be. Everything
//! that comes from elsewhere is escaped.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::Token;

/// Namespace of our element in a domain's metadata.
pub(super) const NAMESPACE: &str = "https://peerpodd/libvirt/1";

/// All that a domain's text is made of.
#[derive(Clone, Debug)]
pub(super) struct Domain<'a> {
    pub(super) name: &'a str,
    pub(super) uuid: String,
    pub(super) mac: String,
    pub(super) tags: &'a BTreeMap<String, String>,
    /// `kvm` or `qemu`.
    pub(super) domain_type: &'a str,
    pub(super) arch: &'a str,
    /// Empty lets libvirt choose.
    pub(super) machine: &'a str,
    /// Empty boots as the machine does by itself.
    pub(super) firmware: &'a str,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u64,
    pub(super) cpuset: &'a str,
    pub(super) network: &'a str,
    /// Path of the root disk on the host.
    pub(super) root: &'a str,
    /// Path of the disk with the user data.
    pub(super) cidata: &'a str,
    /// The pod's volumes.
    pub(super) volumes: &'a [PodDisk],
    /// File on the host for what the console says; empty is none.
    pub(super) console: &'a str,
}

/// A volume that is lent to a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodDisk {
    /// On the host.
    pub(super) path: String,
    /// A device, no file.
    pub(super) block: bool,
    /// The number by which the VM finds it: in the disk's serial.
    pub(super) lun: u32,
}

/// A hardware address of an attempt's own, locally administered.
pub(super) fn mac(token: &Token) -> String {
    let hex = token.hex();
    let pair = |n: usize| hex.get(2 * n..2 * n + 2).unwrap_or("00");
    format!("52:54:{}:{}:{}:{}", pair(0), pair(1), pair(2), pair(3))
}

/// Text inside an element or an attribute. What XML 1.0 has no way to write becomes `?`.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('?'),
            c if c.is_control() => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}

impl Domain<'_> {
    /// The domain's text.
    pub(super) fn xml(&self) -> String {
        let mut xml = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut xml);
        xml
    }

    fn is_z(&self) -> bool {
        self.arch == "s390x"
    }

    fn write(&self, xml: &mut String) -> std::fmt::Result {
        writeln!(xml, "<domain type='{}'>", escape(self.domain_type))?;
        writeln!(xml, "  <name>{}</name>", escape(self.name))?;
        writeln!(xml, "  <uuid>{}</uuid>", escape(&self.uuid))?;
        writeln!(xml, "  <metadata>\n    <p:vm xmlns:p='{NAMESPACE}'>")?;
        for (key, value) in self.tags {
            writeln!(xml, "      <p:tag key='{}'>{}</p:tag>", escape(key), escape(value))?;
        }
        writeln!(xml, "    </p:vm>\n  </metadata>")?;
        // A guest's secrets are not for the host's dumps.
        writeln!(xml, "  <memory unit='MiB' dumpCore='off'>{}</memory>", self.memory_mib)?;
        let cpuset = match self.cpuset {
            "" => String::new(),
            set => format!(" cpuset='{}'", escape(set)),
        };
        writeln!(xml, "  <vcpu placement='static'{cpuset}>{}</vcpu>", self.vcpus)?;
        self.boot(xml)?;
        writeln!(xml, "  <clock offset='utc'/>")?;
        writeln!(xml, "  <on_poweroff>destroy</on_poweroff>\n  <on_reboot>restart</on_reboot>")?;
        writeln!(xml, "  <on_crash>destroy</on_crash>\n  <devices>")?;
        self.disks(xml)?;
        self.others(xml)?;
        writeln!(xml, "  </devices>\n</domain>")
    }

    fn boot(&self, xml: &mut String) -> std::fmt::Result {
        let machine = match self.machine {
            "" => String::new(),
            machine => format!(" machine='{}'", escape(machine)),
        };
        writeln!(xml, "  <os>\n    <type arch='{}'{machine}>hvm</type>", escape(self.arch))?;
        if !self.firmware.is_empty() && !self.is_z() {
            let path = escape(self.firmware);
            writeln!(xml, "    <loader readonly='yes' type='pflash'>{path}</loader>")?;
        }
        writeln!(xml, "  </os>")?;
        if !self.is_z() {
            writeln!(xml, "  <features>\n    <acpi/>\n    <apic/>\n    <vmport state='off'/>")?;
            writeln!(xml, "  </features>")?;
        }
        // An emulated CPU is the emulator's own.
        if self.domain_type == "kvm" {
            writeln!(xml, "  <cpu mode='host-model'/>")?;
        }
        Ok(())
    }

    fn disks(&self, xml: &mut String) -> std::fmt::Result {
        let iommu = if self.is_z() { " iommu='on'" } else { "" };
        let ccw = |n: usize| match self.is_z() {
            true => {
                format!("      <address type='ccw' cssid='0xfe' ssid='0x0' devno='0x{n:04x}'/>\n")
            }
            false => String::new(),
        };
        writeln!(xml, "    <disk type='file' device='disk'>")?;
        writeln!(xml, "      <driver name='qemu' type='qcow2'{iommu}/>")?;
        writeln!(xml, "      <source file='{}'/>", escape(self.root))?;
        writeln!(xml, "      <target dev='vda' bus='virtio'/>\n      <boot order='1'/>")?;
        writeln!(xml, "{}    </disk>", ccw(1))?;
        // IBM Z has no CD drive; a guest finds the disk by its label everywhere. Elsewhere it is none that
        // would be counted among the pod's volumes, and one that kernels of clouds have a driver for.
        let (device, target) = match self.is_z() {
            true => ("disk", "<target dev='vdb' bus='virtio'/>"),
            false => ("cdrom", "<target dev='sda' bus='scsi'/>"),
        };
        writeln!(xml, "    <disk type='file' device='{device}'>")?;
        writeln!(xml, "      <driver name='qemu' type='raw'{iommu}/>")?;
        writeln!(xml, "      <source file='{}'/>\n      {target}", escape(self.cidata))?;
        writeln!(xml, "      <readonly/>\n{}    </disk>", ccw(2))?;
        for (n, (disk, letter)) in self.volumes.iter().zip('c'..='z').enumerate() {
            let (kind, attribute) = if disk.block { ("block", "dev") } else { ("file", "file") };
            writeln!(xml, "    <disk type='{kind}' device='disk'>")?;
            writeln!(xml, "      <driver name='qemu' type='raw'{iommu}/>")?;
            writeln!(xml, "      <source {attribute}='{}'/>", escape(&disk.path))?;
            writeln!(xml, "      <target dev='vd{letter}' bus='virtio'/>")?;
            writeln!(xml, "      <serial>lun-{}</serial>", disk.lun)?;
            writeln!(xml, "{}    </disk>", ccw(3 + n))?;
        }
        Ok(())
    }

    fn others(&self, xml: &mut String) -> std::fmt::Result {
        if !self.is_z() {
            writeln!(xml, "    <controller type='scsi' model='virtio-scsi'/>")?;
        }
        let iommu = if self.is_z() { "\n      <driver iommu='on'/>" } else { "" };
        writeln!(xml, "    <interface type='network'>")?;
        writeln!(xml, "      <mac address='{}'/>", escape(&self.mac))?;
        writeln!(xml, "      <source network='{}'/>", escape(self.network))?;
        writeln!(xml, "      <model type='virtio'/>{iommu}\n    </interface>")?;
        let target = if self.is_z() { "sclp" } else { "serial" };
        writeln!(xml, "    <console type='pty'>")?;
        if !self.console.is_empty() {
            writeln!(xml, "      <log file='{}' append='on'/>", escape(self.console))?;
        }
        writeln!(xml, "      <target type='{target}' port='0'/>\n    </console>")?;
        writeln!(xml, "    <channel type='unix'>")?;
        writeln!(
            xml,
            "      <target type='virtio' name='org.qemu.guest_agent.0'/>\n    </channel>"
        )?;
        writeln!(xml, "    <memballoon model='virtio'>{iommu}\n    </memballoon>")?;
        writeln!(xml, "    <rng model='virtio'>")?;
        writeln!(xml, "      <backend model='random'>/dev/urandom</backend>\n    </rng>")
    }
}

/// The text of the root disk: qcow2 on top of the image.
pub(super) fn root_volume(name: &str, capacity: u64, base: &str, format: &str) -> String {
    format!(
        "<volume>\n  <name>{}</name>\n  <capacity unit='bytes'>{capacity}</capacity>\n  \
         <target>\n    <format type='qcow2'/>\n    <permissions><mode>0600</mode></permissions>\n  \
         </target>\n  <backingStore>\n    <path>{}</path>\n    <format type='{}'/>\n  \
         </backingStore>\n</volume>\n",
        escape(name),
        escape(base),
        escape(format)
    )
}

/// The text of a raw volume of exactly so many bytes.
pub(super) fn raw_volume(name: &str, bytes: usize) -> String {
    format!(
        "<volume>\n  <name>{}</name>\n  <capacity unit='bytes'>{bytes}</capacity>\n  <target>\n    \
         <format type='raw'/>\n    <permissions><mode>0600</mode></permissions>\n  </target>\n\
         </volume>\n",
        escape(name)
    )
}

#[cfg(test)]
mod tests;
