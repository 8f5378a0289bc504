//! Which cloud this machine is in, by its hypervisor and its firmware.

use super::Source;

const MICROSOFT: &[u8; 12] = b"Microsoft Hv";
const KVM: &[u8; 12] = b"KVMKVMKVM\0\0\0";
/// Azure writes this into the chassis of all its machines, ARM ones (which have no CPUID) included.
const AZURE_CHASSIS: &str = "7783-7084-3265-9085-8269-3286-77";

/// What the machine says about itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    /// CPUID's vendor of the hypervisor.
    hypervisor: Option<[u8; 12]>,
    /// SMBIOS: manufacturer of the system.
    manufacturer: String,
    /// SMBIOS: tag of the chassis.
    chassis: String,
}

impl Machine {
    pub(super) fn look() -> Self {
        let dmi = |name: &str| {
            let text = std::fs::read_to_string(format!("/sys/class/dmi/id/{name}"));
            text.unwrap_or_default().trim().to_owned()
        };
        Self {
            hypervisor: hypervisor(),
            manufacturer: dmi("sys_vendor"),
            chassis: dmi("chassis_asset_tag"),
        }
    }
}

impl Machine {
    /// One of Azure's.
    pub(super) fn is_azure(&self) -> bool {
        self.hypervisor.as_ref() == Some(MICROSOFT) || self.chassis == AZURE_CHASSIS
    }

    /// Its memory is hidden from its host.
    pub(super) fn is_confidential(&self) -> bool {
        let devices = ["/dev/sev-guest", "/dev/tdx_guest", "/dev/tdx-guest"];
        let secure_execution = std::fs::read_to_string("/sys/firmware/uv/prot_virt_guest");
        devices.iter().any(|d| std::path::Path::new(d).exists())
            || secure_execution.is_ok_and(|text| text.trim() == "1")
            // Behind Hyper-V's paravisor there is no such device.
            || (self.hypervisor.as_ref() == Some(MICROSOFT) && isolated())
    }
}

/// Hyper-V's features: isolation.
#[cfg(target_arch = "x86_64")]
fn isolated() -> bool {
    const ISOLATION: u32 = 1 << 22;
    std::arch::x86_64::__cpuid(0x4000_0003).ebx & ISOLATION != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn isolated() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn hypervisor() -> Option<[u8; 12]> {
    use std::arch::x86_64::__cpuid;
    const PRESENT: u32 = 1 << 31;
    if __cpuid(1).ecx & PRESENT == 0 {
        return None;
    }
    let leaf = __cpuid(0x4000_0000);
    let mut vendor = [0; 12];
    for (to, from) in vendor.chunks_exact_mut(4).zip([leaf.ebx, leaf.ecx, leaf.edx]) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    Some(vendor)
}

#[cfg(not(target_arch = "x86_64"))]
fn hypervisor() -> Option<[u8; 12]> {
    None
}

/// Upstream's order, without the file that comes first.
pub(super) async fn by_machine(machine: &Machine, metadata: Option<&str>) -> Option<Source> {
    let hypervisor = machine.hypervisor.as_ref();
    if machine.is_azure() {
        return Some(Source::Azure);
    }
    if machine.manufacturer == "Amazon EC2" {
        return Some(Source::Aws);
    }
    let google = hypervisor == Some(KVM) || machine.manufacturer == "Google";
    if google && super::google_answers(metadata).await {
        return Some(Source::Gcp);
    }
    (machine.manufacturer == "Alibaba Cloud").then_some(Source::Alibaba)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port nobody listens on.
    const NOBODY: Option<&str> = Some("127.0.0.1:1");

    #[tokio::test]
    async fn a_machine_is_known_by_its_hypervisor_and_its_board() {
        let machine = |hypervisor: Option<&[u8; 12]>, manufacturer: &str| Machine {
            hypervisor: hypervisor.copied(),
            manufacturer: manufacturer.to_owned(),
            chassis: String::new(),
        };
        let azure = machine(Some(MICROSOFT), "Microsoft Corporation");
        assert_eq!(by_machine(&azure, NOBODY).await, Some(Source::Azure));
        let aws = machine(Some(KVM), "Amazon EC2");
        assert_eq!(by_machine(&aws, NOBODY).await, Some(Source::Aws));
        let alibaba = machine(Some(KVM), "Alibaba Cloud");
        assert_eq!(by_machine(&alibaba, NOBODY).await, Some(Source::Alibaba));
        assert_eq!(by_machine(&machine(Some(KVM), "QEMU"), NOBODY).await, None);
        let arm = Machine { chassis: AZURE_CHASSIS.to_owned(), ..Machine::default() };
        assert_eq!(by_machine(&arm, NOBODY).await, Some(Source::Azure));
    }
}
