//! Which block device a volume is. A disk is known by what cannot be another's: its id, or the number that
//! it was attached under, by Azure as its LUN and by libvirt as its serial; never by its place in an order.
//!
//! ```text
//!   --disk ID=DEVICE given ─▶ only those (VMs of the local provider)
//!   Azure                  ─▶ by-lun links, by-path of vmbus, NVMe namespace, sysfs; never SCSI host 0
//!   any other              ─▶ /dev/disk/by-id, then serials in sysfs: EBS's id, GCE's device name, lun-<n>
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Azure's NVMe controller of remote disks; the OS's is namespace 1, LUN 0 is namespace 2.
const AZURE_NVME: &str = "MSFT NVMe Accelerator v1.0";
const AZURE_NVME_FIRST: u32 = 2;

/// How disks are known here.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// These, and no others.
    Given(BTreeMap<String, PathBuf>),
    /// By the number they were attached under.
    ByLun,
    /// By id or serial.
    ById,
}

/// Where devices are looked for.
#[derive(Clone, Debug)]
pub(super) struct Finder {
    pub(super) known: Known,
    pub(super) dev: PathBuf,
    pub(super) sys: PathBuf,
}

impl Finder {
    pub(super) fn new(known: Known) -> Self {
        Self { known, dev: "/dev".into(), sys: "/sys".into() }
    }

    /// The device of a disk, once it is there.
    ///
    /// # Errors
    /// When several have that id.
    pub(super) fn look(&self, disk: &str, lun: u32) -> Result<Option<PathBuf>, String> {
        let found = match &self.known {
            Known::Given(all) => all.get(disk).cloned().into_iter().collect(),
            Known::ByLun => self.by_lun(lun),
            Known::ById => self.by_id(disk, lun),
        };
        let names: Vec<_> = found.iter().map(|p| p.display().to_string()).collect();
        match names.len() {
            0 | 1 => Ok(found.into_iter().next()),
            _ => Err(format!("{} all claim to be it", names.join(", "))),
        }
    }

    /// What disks there are, for people who look for one that is not.
    pub(super) fn seen(&self) -> String {
        if let Known::Given(all) = &self.known {
            let ids: Vec<_> = all.keys().map(String::as_str).collect();
            return format!("this VM was given {ids:?}");
        }
        let all = self.disks();
        let all: Vec<_> = all.iter().map(|d| format!("{} {:?}", d.name, d.serials())).collect();
        format!("disks with their serials: {}", all.join(", "))
    }

    fn by_lun(&self, lun: u32) -> BTreeSet<PathBuf> {
        let azure = self.dev.join("disk/azure");
        let links =
            [azure.join(format!("data/by-lun/{lun}")), azure.join(format!("scsi1/lun{lun}"))];
        if let Some(found) = links.iter().find_map(|link| link.canonicalize().ok()) {
            return BTreeSet::from([found]);
        }
        let disks = self.disks();
        let of_lun = disks.iter().filter(|d| d.azure_lun() == Some(lun));
        of_lun.map(|d| self.dev.join(&d.name)).collect()
    }

    fn by_id(&self, disk: &str, lun: u32) -> BTreeSet<PathBuf> {
        let names = Names::of(disk, lun);
        let by_id = self.dev.join("disk/by-id");
        let links = names.links().into_iter().filter_map(|n| by_id.join(n).canonicalize().ok());
        let found: BTreeSet<_> = links.collect();
        if !found.is_empty() {
            return found;
        }
        let disks = self.disks();
        let same = disks.iter().filter(|d| d.serials().iter().any(|s| names.is(s)));
        same.map(|d| self.dev.join(&d.name)).collect()
    }

    fn disks(&self) -> Vec<Disk> {
        let block = self.sys.join("block");
        let entries = std::fs::read_dir(&block).into_iter().flatten().flatten();
        let names = entries.filter_map(|e| e.file_name().into_string().ok());
        let real =
            names.filter(|n| ["sd", "vd", "xvd", "nvme", "dasd"].iter().any(|p| n.starts_with(p)));
        real.map(|name| Disk { path: block.join(&name), name }).collect()
    }
}

/// What one disk may be called where.
struct Names {
    /// EBS has its id without the dash as serial.
    aws: Option<String>,
    /// Compute Engine's device name is the last part of the disk's address.
    last: String,
    /// The libvirt provider's serial.
    number: String,
}

impl Names {
    fn of(disk: &str, lun: u32) -> Self {
        let last = disk.rsplit('/').next().unwrap_or_default().to_owned();
        let aws = disk.strip_prefix("vol-").map(|rest| format!("vol{rest}"));
        Self { aws, last, number: format!("lun-{lun}") }
    }

    fn links(&self) -> Vec<String> {
        let Self { aws, last, number } = self;
        let mut links =
            vec![format!("virtio-{number}"), format!("scsi-0QEMU_QEMU_HARDDISK_{number}")];
        // Without an id there is nothing more to know it by.
        if !last.is_empty() {
            links.extend([format!("google-{last}"), format!("virtio-{last}")]);
        }
        if let Some(id) = aws {
            let plain = format!("nvme-Amazon_Elastic_Block_Store_{id}");
            links.extend([format!("{plain}_1"), format!("{plain}-ns-1"), plain]);
        }
        // A link leads where its name says, not to another directory.
        links.retain(|l| !l.contains('/'));
        links
    }

    fn is(&self, serial: &str) -> bool {
        let all = [self.aws.as_ref(), Some(&self.last), Some(&self.number)];
        all.into_iter().flatten().any(|name| name == serial)
    }
}

/// A disk as sysfs shows it.
struct Disk {
    name: String,
    path: PathBuf,
}

impl Disk {
    /// What it calls itself.
    fn serials(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for file in ["serial", "device/serial"] {
            all.extend(text(&self.path.join(file)));
        }
        // Designators of SCSI: text among bytes, its parts padded with blanks.
        for file in ["device/vpd_pg80", "device/vpd_pg83"] {
            let page = read(&self.path.join(file));
            let parts = page.get(4..).unwrap_or_default().split(|b| !b.is_ascii_graphic());
            let parts =
                parts.filter(|p| p.len() > 3).map(|p| String::from_utf8_lossy(p).into_owned());
            all.extend(parts);
        }
        all
    }

    /// The number Azure has attached it under.
    fn azure_lun(&self) -> Option<u32> {
        if text(&self.path.join("device/model")).as_deref() == Some(AZURE_NVME) {
            let namespace: u32 = text(&self.path.join("nsid"))?.parse().ok()?;
            return namespace.checked_sub(AZURE_NVME_FIRST);
        }
        let device = self.path.join("device").canonicalize().ok()?;
        let address = device.file_name()?.to_str()?;
        let parts: Vec<u32> = address.split(':').filter_map(|p| p.parse().ok()).collect();
        // Host 0 has the OS's disk and the temporary one.
        match parts[..] {
            [host, _, _, lun] if host != 0 => Some(lun),
            _ => None,
        }
    }
}

fn text(path: &Path) -> Option<String> {
    let text = String::from_utf8(read(path)).ok()?;
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

fn read(path: &Path) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What it could not read it does not know.
        let _ = file.take(4096).read_to_end(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Tree {
        dir: tempfile::TempDir,
        finder: Finder,
    }

    impl Tree {
        fn new(known: Known) -> Self {
            let dir = tempfile::tempdir().expect("dir");
            let root = dir.path().canonicalize().expect("path");
            let finder = Finder { known, dev: root.join("dev"), sys: root.join("sys") };
            std::fs::create_dir_all(&finder.dev).expect("dev");
            Self { dir, finder }
        }

        fn file(&self, path: &str, content: &[u8]) {
            let path = self.dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("dir");
            std::fs::write(path, content).expect("file");
        }

        fn link(&self, path: &str, to: &str) {
            let path = self.dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("dir");
            symlink(self.dir.path().join(to), path).expect("link");
        }

        fn look(&self, disk: &str, lun: u32) -> Option<String> {
            let found = self.finder.look(disk, lun).expect("not several");
            found.map(|p| p.file_name().expect("a name").to_string_lossy().into_owned())
        }
    }

    #[test]
    fn each_cloud_has_its_way_to_name_a_disk() {
        let tree = Tree::new(Known::ById);
        for device in ["nvme1n1", "nvme2n1", "sdb", "vdc"] {
            tree.file(&format!("dev/{device}"), b"");
        }
        let ebs = "dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0abc";
        tree.link(&format!("{ebs}1"), "dev/nvme2n1");
        tree.link(&format!("{ebs}_1"), "dev/nvme1n1");
        tree.link("dev/disk/by-id/google-data-1", "dev/sdb");
        tree.link("dev/disk/by-id/virtio-data.raw", "dev/vdc");
        assert_eq!(tree.look("vol-0abc", 0).as_deref(), Some("nvme1n1"), "not the longer id's");
        assert_eq!(tree.look("vol-0ab", 0), None);
        let full = "projects/p/zones/z/disks/data-1";
        assert_eq!(tree.look(full, 0).as_deref(), Some("sdb"));
        assert_eq!(tree.look("data.raw", 7).as_deref(), Some("vdc"));
        tree.link("dev/disk/by-id/virtio-lun-5", "dev/sdb");
        assert_eq!(tree.look("/pool/data.img", 5).as_deref(), Some("sdb"));
        let several = tree.finder.look("data.raw", 5).expect_err("by id this, by number that");
        assert!(several.contains("vdc") && several.contains("sdb"), "{several}");
        for id in ["", "data", "../by-id/virtio-data.raw", "vdc", "/dev/vdc"] {
            assert_eq!(tree.look(id, 0), None, "{id}");
        }
    }

    #[test]
    fn without_udev_the_serials_of_sysfs_do() {
        let tree = Tree::new(Known::ById);
        for (disk, file, content) in [
            ("vda", "serial", &b"root"[..]),
            ("vdb", "serial", b"data-1"),
            ("vdd", "serial", b"lun-12"),
            ("nvme0n1", "device/serial", b"vol0abc  \n"),
            (
                "sdb",
                "device/vpd_pg83",
                b"\x00\x83\x00\x1e\x02\x01\x00\x1aGoogle  PersistentDisk  gce-1",
            ),
            ("loop0", "serial", b"data-1"),
        ] {
            tree.file(&format!("sys/block/{disk}/{file}"), content);
        }
        assert_eq!(tree.look("data-1", 0).as_deref(), Some("vdb"));
        assert_eq!(tree.look("data.raw", 12).as_deref(), Some("vdd"));
        assert_eq!(tree.look("data.raw", 1), None, "not by the beginning of a number");
        assert_eq!(tree.look("vol-0abc", 0).as_deref(), Some("nvme0n1"));
        assert_eq!(tree.look("gce-1", 0).as_deref(), Some("sdb"));
        assert!(tree.finder.seen().contains("vdb"), "{}", tree.finder.seen());
        tree.file("sys/block/vdc/serial", b"data-1");
        let several = tree.finder.look("data-1", 0).expect_err("two of them");
        assert!(several.contains("vdb") && several.contains("vdc"), "{several}");
    }

    #[test]
    fn azures_disks_are_known_by_lun_and_never_on_host_0() {
        let tree = Tree::new(Known::ByLun);
        for (disk, host, lun) in [("sda", 0, 0), ("sdb", 0, 1), ("sdc", 1, 0), ("sdd", 1, 7)] {
            tree.file(&format!("sys/devices/{host}:0:0:{lun}/x"), b"");
            tree.link(
                &format!("sys/block/{disk}/device"),
                &format!("sys/devices/{host}:0:0:{lun}"),
            );
        }
        assert_eq!(tree.look("/subscriptions/s/disks/d", 0).as_deref(), Some("sdc"));
        assert_eq!(tree.look("", 7).as_deref(), Some("sdd"));
        assert_eq!(tree.look("", 1), None, "the temporary disk");
        tree.file("sys/block/nvme0n2/device/model", AZURE_NVME.as_bytes());
        tree.file("sys/block/nvme0n2/nsid", b"5\n");
        assert_eq!(tree.look("", 3).as_deref(), Some("nvme0n2"));
        tree.file("dev/sdx", b"");
        tree.link("dev/disk/azure/scsi1/lun7", "dev/sdx");
        assert_eq!(tree.look("", 7).as_deref(), Some("sdx"), "udev's word comes first");
    }

    #[test]
    fn where_disks_are_given_there_are_no_others() {
        let given = BTreeMap::from([("a".to_owned(), PathBuf::from("/dev/loop7"))]);
        let tree = Tree::new(Known::Given(given));
        tree.file("sys/block/vdb/serial", b"b");
        assert_eq!((tree.look("a", 0).as_deref(), tree.look("b", 0)), (Some("loop7"), None));
    }
}
