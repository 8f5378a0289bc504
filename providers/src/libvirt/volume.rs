//! Volumes: those that a VM is made of, and those of pods, which are only lent to it.

use std::collections::BTreeMap;

use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;
use virt_sys as sys;

use super::client::Host;
use super::domain::PodDisk;
use super::error::maybe;
use super::{NAME, is_part};
use crate::{Error, Kind, Volume};

/// Devices `vdc` to `vdz`.
const MOST: usize = 24;

/// A volume of the pool by name, else of any pool by key.
pub(super) fn find(host: &Host<'_>, pool: &StoragePool, image: &str) -> Result<StorageVol, Error> {
    let refuse = |e| host.refuse(&format!("image {image:?}"), &e);
    if image.contains('\0') {
        return Err(host.invalid(format!("image {image:?} is no name")));
    }
    if let Some(volume) = maybe(StorageVol::lookup_by_name(pool, image)).map_err(refuse)? {
        return Ok(volume);
    }
    let by_key = maybe(StorageVol::lookup_by_key(host.connection, image)).map_err(refuse)?;
    by_key.ok_or_else(|| host.invalid(format!("image {image:?} is no volume of the pool")))
}

/// Takes a volume away, if it is there.
pub(super) fn remove(host: &Host<'_>, pool: &StoragePool, name: &str) -> Result<(), Error> {
    let refuse = |e| host.refuse(&format!("volume {name:?}"), &e);
    if let Some(old) = maybe(StorageVol::lookup_by_name(pool, name)).map_err(refuse)? {
        maybe(old.delete(0)).map_err(refuse)?;
    }
    Ok(())
}

/// Makes a volume by its text.
pub(super) fn make(
    host: &Host<'_>,
    pool: &StoragePool,
    name: &str,
    xml: &str,
) -> Result<StorageVol, Error> {
    // One of an earlier try may be half-written.
    remove(host, pool, name)?;
    host.goes_on()?;
    let made = StorageVol::create_xml(pool, xml, 0);
    made.map_err(|e| host.refuse(&format!("volume {name:?}"), &e))
}

/// Fills a volume from its beginning.
pub(super) fn upload(
    host: &Host<'_>,
    volume: &StorageVol,
    name: &str,
    bytes: &[u8],
) -> Result<(), Error> {
    let refuse = |e| host.refuse(&format!("volume {name:?}"), &e);
    let stream = Stream::new(host.connection, 0).map_err(refuse)?;
    volume.upload(&stream, 0, bytes.len() as u64, 0).map_err(refuse)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        match stream.send(rest) {
            Ok(sent) if sent > 0 => rest = rest.get(sent..).unwrap_or_default(),
            ended => {
                let _ = stream.abort();
                let text = format!("volume {name:?}: cut short");
                let short = Error::new(NAME, "create", Kind::Unavailable, text);
                return Err(ended.map_or_else(refuse, |_| short));
            }
        }
    }
    stream.finish().map_err(refuse)
}

/// Some bytes of a volume; fewer where it is shorter.
pub(super) fn download(
    host: &Host<'_>,
    volume: &StorageVol,
    from: u64,
    length: u64,
) -> Result<Vec<u8>, virt::error::Error> {
    let stream = Stream::new(host.connection, 0)?;
    volume.download(&stream, from, length, 0)?;
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        match stream.recv(&mut part) {
            Ok(got) if got > 0 => bytes.extend_from_slice(part.get(..got).unwrap_or_default()),
            Ok(_) => break,
            Err(e) => {
                let _ = stream.abort();
                return Err(e);
            }
        }
    }
    stream.finish()?;
    Ok(bytes)
}

/// Where the pod's volumes lie. Refused is what is no volume of a pool, what belongs to VMs (disks,
/// images), and what another VM has.
pub(super) fn of_pod(
    host: &Host<'_>,
    pool: &StoragePool,
    volumes: &[Volume],
    images: &[String],
    uuid: &str,
) -> Result<Vec<PodDisk>, Error> {
    if volumes.is_empty() {
        return Ok(Vec::new());
    }
    if volumes.len() > MOST {
        let text = format!("{} volumes, at most {MOST} are possible", volumes.len());
        return Err(host.invalid(text));
    }
    let taken = taken(host, uuid)?;
    let mut disks: Vec<PodDisk> = Vec::new();
    for Volume { disk: name, lun, .. } in volumes {
        let what = format!("volume {name:?}");
        let refuse = |e| host.refuse(&what, &e);
        let volume = locate(host, pool, name)?;
        let path = volume.get_path().map_err(refuse)?;
        let kind = volume.get_info().map_err(refuse)?.kind;
        let block = kind == sys::VIR_STORAGE_VOL_BLOCK;
        let format = format_of(&volume.get_xml_desc(0).map_err(refuse)?);
        let whose = taken.get(&path);
        let why = if is_part(&volume.get_name().map_err(refuse)?) {
            "is a VM's own disk".to_owned()
        } else if images.contains(&path) {
            "is the image of VMs".to_owned()
        } else if let Some(whose) = whose {
            format!("is in use by VM {whose}")
        } else if disks.iter().any(|known| known.path == path) {
            "is there twice".to_owned()
        } else if !block && kind != sys::VIR_STORAGE_VOL_FILE {
            "is neither a file nor a device".to_owned()
        } else if !block && format != "raw" {
            // The VM gets the bytes as they are: what a pod writes must never name a file of the host.
            format!("has the format {format}, and only raw is lent")
        } else {
            disks.push(PodDisk { path, block, lun: *lun });
            continue;
        };
        return Err(host.invalid(format!("{what} {why}")));
    }
    Ok(disks)
}

/// A volume of a pod: by its name in the pool of the VMs, or a device that is in one of libvirt's pools.
/// Whoever has put it there has said that VMs may have it; of other devices the host may live.
fn locate(host: &Host<'_>, pool: &StoragePool, name: &str) -> Result<StorageVol, Error> {
    let what = format!("volume {name:?}");
    if name.chars().any(char::is_control) {
        return Err(host.invalid(format!("{what} is no name")));
    }
    let (found, why) = match name.starts_with("/dev/") {
        true => {
            let found = StorageVol::lookup_by_path(host.connection, name);
            (found, "is a device in none of libvirt's pools")
        }
        false => (StorageVol::lookup_by_name(pool, name), "is not in the pool"),
    };
    let found = maybe(found).map_err(|e| host.refuse(&what, &e))?;
    found.ok_or_else(|| host.invalid(format!("{what} {why}")))
}

/// Disks that other domains have, by their path, with the domain's name.
fn taken(host: &Host<'_>, uuid: &str) -> Result<BTreeMap<String, String>, Error> {
    let refuse = |e| host.refuse("domains", &e);
    let mut taken = BTreeMap::new();
    for domain in host.connection.list_all_domains(0).map_err(refuse)? {
        let known = maybe(domain.get_uuid_string()).map_err(refuse)?;
        if known.is_none_or(|known| known == uuid) {
            continue;
        }
        // One that vanishes meanwhile has none.
        let Some(xml) = maybe(domain.get_xml_desc(0)).map_err(refuse)? else { continue };
        let name = maybe(domain.get_name()).map_err(refuse)?.unwrap_or_default();
        for source in sources(&xml) {
            if let Some(path) = path_of(host, source).map_err(refuse)? {
                taken.insert(path, name.clone());
            }
        }
    }
    Ok(taken)
}

/// Pools in which a VM has disks of its own: that of the settings may have been another one.
pub(super) fn pools_of(host: &Host<'_>, xml: &str) -> Result<Vec<StoragePool>, Error> {
    let mut pools = Vec::new();
    for source in sources(xml) {
        let Source::Path(path) = source else { continue };
        let is_own = path.rsplit_once('/').is_some_and(|(_, name)| is_part(name));
        let volume = match is_own {
            true => maybe(StorageVol::lookup_by_path(host.connection, &path)),
            false => continue,
        };
        let Some(volume) = volume.map_err(|e| host.refuse(&path, &e))? else { continue };
        let pool = StoragePool::lookup_by_volume(&volume);
        pools.push(pool.map_err(|e| host.refuse(&path, &e))?);
    }
    Ok(pools)
}

/// Where a disk of a domain lies.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Path(String),
    Pooled { pool: String, volume: String },
}

/// All disks of a domain, with what lies below them.
fn sources(xml: &str) -> Vec<Source> {
    let Ok(document) = roxmltree::Document::parse(xml) else { return Vec::new() };
    let of_disk = |n: &roxmltree::Node<'_, '_>| n.ancestors().any(|a| a.has_tag_name("disk"));
    let all = document.descendants().filter(|n| n.has_tag_name("source")).filter(of_disk);
    let source = |n: roxmltree::Node<'_, '_>| {
        let text = |name| n.attribute(name).map(str::to_owned);
        match text("file").or_else(|| text("dev")) {
            Some(path) => Some(Source::Path(path)),
            None => Some(Source::Pooled { pool: text("pool")?, volume: text("volume")? }),
        }
    };
    all.filter_map(source).collect()
}

fn path_of(host: &Host<'_>, source: Source) -> Result<Option<String>, virt::error::Error> {
    match source {
        // A device has many names; libvirt knows which of them is the volume's.
        Source::Path(path) if path.starts_with("/dev/") => {
            match maybe(StorageVol::lookup_by_path(host.connection, &path))? {
                Some(volume) => volume.get_path().map(Some),
                None => Ok(Some(path)),
            }
        }
        Source::Path(path) => Ok(Some(path)),
        // A pool that has gone has no volumes.
        Source::Pooled { pool, volume } => {
            let Ok(pool) = StoragePool::lookup_by_name(host.connection, &pool) else {
                return Ok(None);
            };
            let volume = maybe(StorageVol::lookup_by_name(&pool, &volume))?;
            volume.map(|volume| volume.get_path()).transpose()
        }
    }
}

/// The format of a volume, from its text.
pub(super) fn format_of(xml: &str) -> String {
    let document = roxmltree::Document::parse(xml).ok();
    let format = document.as_ref().and_then(|d| {
        let target = d.root_element().children().find(|n| n.has_tag_name("target"))?;
        target.children().find(|n| n.has_tag_name("format"))?.attribute("type")
    });
    format.unwrap_or("raw").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_found_with_all_that_lies_below_them() {
        let xml = "<domain><devices><disk type='file'><source file='/p/root'/><backingStore>\
            <source file='/p/base'/></backingStore></disk><disk><source dev='/dev/sdb'/></disk>\
            <disk><source pool='p' volume='v'/></disk><disk><source startupPolicy='x'/></disk>\
            <interface><source network='n' dev='/dev/no'/></interface></devices></domain>";
        let path = |path: &str| Source::Path(path.to_owned());
        let pooled = Source::Pooled { pool: "p".to_owned(), volume: "v".to_owned() };
        assert_eq!(sources(xml), [path("/p/root"), path("/p/base"), path("/dev/sdb"), pooled]);
        assert_eq!(sources("nonsense"), []);
    }
}
