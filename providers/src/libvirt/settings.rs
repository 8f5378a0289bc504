//! What the libvirt provider is told (providers.md 6.1).

use crate::common;
use crate::settings::{Key, Reader, SettingsError, Values};
use crate::tags::{TagRoom, TagRules};

/// What libvirt takes as tags: its metadata are XML, and have no limit.
const TAGS: TagRules = TagRules { cloud: "libvirt", ..TagRules::ANY };

/// What room there is for cost tags.
pub(super) fn tag_room() -> TagRoom {
    TagRoom::new(TAGS)
}

pub(super) const URI: Key = Key::plain(
    "uri",
    "LIBVIRT_URI",
    "qemu+ssh://root@192.168.122.1/system?no_verify=1",
    "libvirt's URI of the host; a bare address is taken as root's there, over ssh",
);
pub(super) const POOL: Key =
    Key::plain("pool-name", "LIBVIRT_POOL", "default", "storage pool of image and disks");
pub(super) const NET: Key =
    Key::plain("network-name", "LIBVIRT_NET", "default", "network of the VMs");
pub(super) const VOL: Key =
    Key::plain("vol-name", "LIBVIRT_VOL_NAME", "podvm-base.qcow2", "volume with the image");
pub(super) const IMAGE_ID: Key = Key::plain(
    "image-id",
    "LIBVIRT_IMAGE_ID",
    "",
    "volume with the image, as image jobs write it; wins over vol-name",
);
const LAUNCH_SECURITY: Key = Key::plain(
    "launch-security",
    "LIBVIRT_LAUNCH_SECURITY",
    "",
    "s390-pv (IBM Z alone) says that the image is one of Secure Execution; nothing otherwise",
);
const FIRMWARE: Key = Key::plain(
    "firmware",
    "LIBVIRT_EFI_FIRMWARE",
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "UEFI firmware on the host, x86_64 alone",
);
pub(super) const CPU: Key =
    Key::plain("cpu", "LIBVIRT_CPU", "2", "vCPUs of pods that ask for none");
pub(super) const MEMORY: Key =
    Key::plain("memory", "LIBVIRT_MEMORY", "8192", "MiB of memory of pods that ask for none");
const CPUSET: Key =
    Key::plain("cpuset", "LIBVIRT_CPUSET", "", "host CPUs of the VMs, like 0-3,^2; empty is all");
const ROOT_DISK: Key = Key::plain(
    "root-disk-size",
    "LIBVIRT_ROOT_DISK_SIZE",
    "",
    "root disk in GiB, upstream's name; root-volume-size wins",
);
const DATA_DIR: Key =
    Key::plain("data-dir", "", "/var/lib/libvirt/images", "taken and not used, as upstream");
pub(super) const DOMAIN_TYPE: Key = Key::plain(
    "domain-type",
    "LIBVIRT_DOMAIN_TYPE",
    "",
    "kvm, or qemu for emulation; empty takes kvm where the host has it",
);
pub(super) const ARCH: Key = Key::plain(
    "arch",
    "LIBVIRT_ARCH",
    "",
    "x86_64 or s390x; empty takes the host's own, any other is emulated",
);
const ADDRESS_SOURCE: Key = Key::plain(
    "address-source",
    "LIBVIRT_ADDRESS_SOURCE",
    "lease",
    "where a VM's address is learnt: lease (libvirt's own DHCP), arp, agent; bridges have no leases",
);
const CVM: Key = common::DISABLE_CVM.with_default("true");

const KEYS: [Key; 17] = [
    URI,
    POOL,
    NET,
    VOL,
    IMAGE_ID,
    LAUNCH_SECURITY,
    FIRMWARE,
    CPU,
    MEMORY,
    CPUSET,
    ROOT_DISK,
    DATA_DIR,
    DOMAIN_TYPE,
    ARCH,
    ADDRESS_SOURCE,
    CVM,
    common::DISK,
];

/// The settings of this provider.
pub fn keys() -> &'static [Key] {
    &KEYS
}

/// Where a VM's address is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// DHCP leases of libvirt's network.
    Lease,
    /// The host's neighbours.
    Arp,
    /// QEMU's agent in the guest.
    Agent,
}

/// Checked settings. See [`keys`] for where they come from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// libvirt's URI.
    pub uri: String,
    /// Storage pool.
    pub pool: String,
    /// Network.
    pub network: String,
    /// Volume with the image.
    pub image: String,
    /// Secure Execution is asked for.
    pub s390_pv: bool,
    /// Firmware on the host.
    pub firmware: String,
    /// Default vCPUs.
    pub vcpus: u32,
    /// Default memory in MiB.
    pub memory_mib: u64,
    /// Host CPUs; empty is all.
    pub cpuset: String,
    /// Root disk in GiB; 0 is the image's size.
    pub disk_gib: u32,
    /// `kvm`, `qemu`, or empty.
    pub domain_type: String,
    /// `x86_64`, `s390x`, or empty: the host's own.
    pub arch: String,
    /// Where addresses are learnt.
    pub source: Source,
    /// Confidential VMs are asked for.
    pub confidential: bool,
    /// What should be known of the values.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Reads the settings.
    ///
    /// # Errors
    /// All that is missing or wrong, each with its key.
    pub fn from_values(values: &Values) -> Result<Self, SettingsError> {
        let mut reader = Reader::new(values);
        let mut warnings = Vec::new();
        let settings = Self::read(&mut reader, values, &mut warnings);
        reader.finish(settings).map(|settings| Self { warnings, ..settings })
    }

    fn read(reader: &mut Reader<'_>, values: &Values, warnings: &mut Vec<String>) -> Option<Self> {
        let uri = reader.parsed(&URI, uri);
        let (pool, network) = (reader.parsed(&POOL, object), reader.parsed(&NET, object));
        let vol = reader.parsed(&VOL, object);
        let image_id = optional(reader, &IMAGE_ID, object);
        let security = optional(reader, &LAUNCH_SECURITY, |text| match text {
            "s390-pv" => Ok(()),
            _ => Err("is not s390-pv, the only one there is"),
        });
        let firmware = reader.parsed(&FIRMWARE, path);
        let vcpus = reader.parsed(&CPU, |text| number(text, 1, 4096));
        let memory = reader.parsed(&MEMORY, |text| number(text, 256, 64 << 20));
        let cpuset = optional(reader, &CPUSET, cpuset);
        let root = optional(reader, &ROOT_DISK, |text| number(text, 0, 64 << 10));
        let domain_type = optional(reader, &DOMAIN_TYPE, |text| match text {
            "kvm" | "qemu" => Ok(text.to_owned()),
            _ => Err("is neither kvm nor qemu"),
        });
        let arch = optional(reader, &ARCH, |text| match text {
            "x86_64" | "s390x" => Ok(text.to_owned()),
            _ => Err("is neither x86_64 nor s390x"),
        });
        let source = reader.parsed(&ADDRESS_SOURCE, |text| match text {
            "lease" => Ok(Source::Lease),
            "arp" => Ok(Source::Arp),
            "agent" => Ok(Source::Agent),
            _ => Err("is none of lease, arp, agent"),
        });
        let common = common::read(reader, &KEYS);
        let (uri, warning) = uri?;
        warnings.extend(warning);
        let (vol, image_id, root, common) = (vol?, image_id?, root?, common?);
        warnings.extend(common.warnings);
        let image = image(values, vol, image_id, warnings);
        let disk_gib = disk(values, root, common.disk_gib, warnings);
        Some(Self {
            uri,
            pool: pool?,
            network: network?,
            image,
            s390_pv: security?.is_some(),
            firmware: firmware?,
            vcpus: u32::try_from(vcpus?).unwrap_or(u32::MAX),
            memory_mib: memory?,
            cpuset: cpuset?.unwrap_or_default(),
            disk_gib,
            domain_type: domain_type?.unwrap_or_default(),
            arch: arch?.unwrap_or_default(),
            source: source?,
            confidential: !common.disable_cvm,
            warnings: Vec::new(),
        })
    }
}

/// LIBVIRT_IMAGE_ID is what image jobs write.
fn image(
    values: &Values,
    vol: String,
    image_id: Option<String>,
    warnings: &mut Vec<String>,
) -> String {
    let Some(image) = image_id else { return vol };
    if values.given(&VOL).is_some_and(|vol| vol != image) {
        warnings.push(format!("LIBVIRT_IMAGE_ID {image:?} wins over LIBVIRT_VOL_NAME {vol:?}"));
    }
    image
}

/// ROOT_VOLUME_SIZE is what the guide has, LIBVIRT_ROOT_DISK_SIZE what upstream reads.
fn disk(values: &Values, root: Option<u64>, shared: u32, warnings: &mut Vec<String>) -> u32 {
    let Some(root) = root.map(|gib| u32::try_from(gib).unwrap_or(u32::MAX)) else { return shared };
    if values.given(&common::DISK).is_none() {
        return match root {
            1..common::DISK_MIN => {
                warnings.push(format!(
                    "LIBVIRT_ROOT_DISK_SIZE {root} GiB is too small and taken as {}",
                    common::DISK_MIN
                ));
                common::DISK_MIN
            }
            root => root,
        };
    }
    if root != shared {
        warnings.push(format!(
            "ROOT_VOLUME_SIZE {shared} GiB wins over LIBVIRT_ROOT_DISK_SIZE {root} GiB"
        ));
    }
    shared
}

fn optional<T, E: std::fmt::Display>(
    reader: &mut Reader<'_>,
    key: &Key,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Option<Option<T>> {
    match reader.text(key) {
        Some(_) => reader.parsed(key, parse).map(Some),
        None => Some(None),
    }
}

/// The URI, and what should be known of it.
fn uri(text: &str) -> Result<(String, Option<String>), &'static str> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        let host = match address {
            std::net::IpAddr::V4(v4) => v4.to_string(),
            std::net::IpAddr::V6(v6) => format!("[{v6}]"),
        };
        let uri = format!("qemu+ssh://root@{host}/system?no_verify=1");
        let text = format!(
            "LIBVIRT_URI {text:?} is no URI and taken as {uri}, which does not check the host's key"
        );
        return Ok((uri, Some(text)));
    }
    let scheme = text.split_once("://").map(|(scheme, _)| scheme).unwrap_or_default();
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '+';
    if scheme.is_empty() || !scheme.chars().all(good) {
        return Err("is no URI of libvirt, like qemu:///system or qemu+ssh://user@host/system");
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("is no URI: it has blanks");
    }
    let unverified = text.contains("no_verify=1");
    let warning = "LIBVIRT_URI has no_verify=1: the host's key is not checked, whoever sits between can \
                   read and change everything";
    Ok((text.to_owned(), unverified.then(|| warning.to_owned())))
}

/// A name of an object of libvirt's: anything that is one line and no path.
fn object(text: &str) -> Result<String, &'static str> {
    match text.contains(['/', '\0']) || text.chars().any(char::is_control) {
        true => Err("is no name: it has a slash or a control character"),
        false => Ok(text.to_owned()),
    }
}

fn path(text: &str) -> Result<String, &'static str> {
    match text.starts_with('/') && !text.chars().any(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err("is no absolute path"),
    }
}

fn number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("is no whole number, {least} to {most}")),
    }
}

/// libvirt's grammar: `0-3,^2,8`.
fn cpuset(text: &str) -> Result<String, &'static str> {
    let cpu = |text: &str| text.parse::<u16>().ok();
    let good = |item: &str| match item.strip_prefix('^') {
        Some(out) => cpu(out).is_some(),
        None => match item.split_once('-') {
            Some((from, to)) => cpu(from).zip(cpu(to)).is_some_and(|(from, to)| from <= to),
            None => cpu(item).is_some(),
        },
    };
    match text.split(',').all(good) {
        true => Ok(text.to_owned()),
        false => Err("is no set of CPUs, like 0-3,^2"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::from_values(&pairs.iter().copied().collect())
    }

    #[test]
    fn the_defaults_are_upstreams_and_ordinary_vms() {
        let settings = read(&[]).expect("fine");
        assert_eq!((settings.vcpus, settings.memory_mib, settings.disk_gib), (2, 8192, 6));
        assert_eq!(settings.image, "podvm-base.qcow2");
        assert!(!settings.confidential && settings.source == Source::Lease);
        assert!(settings.warnings.join("").contains("no_verify=1"), "{:?}", settings.warnings);
    }

    #[test]
    fn the_image_jobs_volume_and_the_documented_size_win_and_it_is_said() {
        let pairs = [
            ("image-id", "new.qcow2"),
            ("vol-name", "old.qcow2"),
            ("root-disk-size", "20"),
            ("root-volume-size", "30"),
            ("uri", "qemu:///system"),
        ];
        let settings = read(&pairs).expect("fine");
        assert_eq!((settings.image.as_str(), settings.disk_gib), ("new.qcow2", 30));
        assert_eq!(settings.warnings.len(), 2, "{:?}", settings.warnings);
        assert_eq!(read(&[("root-disk-size", "20")]).expect("fine").disk_gib, 20);
        assert_eq!(read(&[("root-disk-size", "2")]).expect("fine").disk_gib, 6);
    }

    #[test]
    fn a_bare_address_becomes_a_uri_with_a_warning() {
        for (text, uri) in [
            ("10.0.0.7", "qemu+ssh://root@10.0.0.7/system?no_verify=1"),
            ("fd00::7", "qemu+ssh://root@[fd00::7]/system?no_verify=1"),
        ] {
            let settings = read(&[("uri", text)]).expect("fine");
            assert_eq!(settings.uri, uri);
            assert_eq!(settings.warnings.len(), 1);
        }
    }

    #[test]
    fn each_bad_value_is_named_and_all_in_one_message() {
        let bad = [
            ("uri", "somewhere", "LIBVIRT_URI"),
            ("pool-name", "a/b", "LIBVIRT_POOL"),
            ("launch-security", "sev", "LIBVIRT_LAUNCH_SECURITY"),
            ("firmware", "OVMF.fd", "LIBVIRT_EFI_FIRMWARE"),
            ("cpu", "0", "LIBVIRT_CPU"),
            ("memory", "255", "LIBVIRT_MEMORY"),
            ("cpuset", "3-1", "LIBVIRT_CPUSET"),
            ("root-disk-size", "-1", "LIBVIRT_ROOT_DISK_SIZE"),
            ("domain-type", "xen", "LIBVIRT_DOMAIN_TYPE"),
            ("address-source", "dns", "LIBVIRT_ADDRESS_SOURCE"),
            ("disable-cvm", "maybe", "DISABLECVM"),
        ];
        let values: Vec<(&str, &str)> =
            bad.iter().map(|(flag, value, _)| (*flag, *value)).collect();
        let text = read(&values).expect_err("refused").to_string();
        for (flag, value, env) in bad {
            assert!(text.contains(&format!("{env} (--{flag}) {value:?} ")), "{env}: {text}");
        }
    }
}
