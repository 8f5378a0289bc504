//! What there is of an installation's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use virt::domain::Domain;
use virt::error::ErrorNumber;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt_sys as sys;

use super::client::Host;
use super::domain::NAMESPACE;
use super::error::maybe;
use super::volume::download;
use super::{CIDATA, NAME, Parts, mark, owner};
use crate::{Error, Kind, Resource, ResourceKind, VmName, VmRef, tags};

/// Tags, as they are written on a domain or a volume.
pub(super) type Tags = BTreeMap<String, String>;

/// How long a look waits for a busy pool.
const PATIENT: Duration = Duration::from_secs(2);
/// Bytes of a console's end that are given.
const TAIL: u64 = 16 << 10;

/// The tags in a domain's metadata; `None` if it is not one of ours, whatever the installation.
pub(super) fn tags_of(domain: &Domain) -> Result<Option<Tags>, virt::error::Error> {
    let element = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
    match domain.get_metadata(element, Some(NAMESPACE), 0) {
        Ok(text) => Ok(Some(parse(&text))),
        Err(e) if e.code() == ErrorNumber::NoDomainMetadata => Ok(None),
        Err(e) => maybe(Err(e)),
    }
}

fn parse(text: &str) -> Tags {
    let Ok(document) = roxmltree::Document::parse(text) else { return Tags::new() };
    let tags = document.root_element().children().filter(|node| node.tag_name().name() == "tag");
    let pair = |node: roxmltree::Node<'_, '_>| {
        Some((node.attribute("key")?.to_owned(), node.text().unwrap_or_default().to_owned()))
    };
    tags.filter_map(pair).collect()
}

/// A pool, with what was in it when somebody last looked.
pub(super) fn named(host: &Host<'_>, name: &str) -> Result<StoragePool, Error> {
    let found = StoragePool::lookup_by_name(host.connection, name);
    found.map_err(|e| host.refuse(&format!("pool {name:?}"), &e))
}

/// The pool, with what is in it now; with what was in it a moment ago while it is busy for long, as
/// when an image is uploaded.
pub(super) fn pool(host: &Host<'_>, name: &str) -> Result<StoragePool, Error> {
    let pool = named(host, name)?;
    if let Err(e) = refresh(host, &pool, PATIENT) {
        tracing::debug!("pool {name:?} is not refreshed: {e}");
    }
    Ok(pool)
}

/// Has libvirt look what is in a pool: of files that others make there, as console's logs, it knows nothing
/// before. It refuses while a volume of the pool is written.
///
/// # Errors
/// When it does so for that long.
#[allow(clippy::disallowed_methods, reason = "on a thread of its own")]
pub(super) fn refresh(
    host: &Host<'_>,
    pool: &StoragePool,
    patience: Duration,
) -> Result<(), Error> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(50);
    while let Err(e) = pool.refresh(0) {
        if begin.elapsed() >= patience {
            let error = host.refuse("the pool's list", &e);
            return Err(Error { kind: Kind::Unavailable, ..error });
        }
        host.goes_on()?;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(5));
    }
    Ok(())
}

/// A volume that a VM is made of.
#[derive(Debug)]
pub(super) struct Part {
    /// The VM's name.
    pub(super) vm: String,
    pub(super) name: String,
    pub(super) volume: StorageVol,
}

impl Part {
    /// Whether [`whose`] tells of it.
    pub(super) fn is_marked(&self) -> bool {
        self.name.ends_with(CIDATA)
    }
}

/// All volumes whose names are those of this installation's VMs.
pub(super) fn parts(
    host: &Host<'_>,
    pool: &StoragePool,
    installation: &str,
) -> Result<Vec<Part>, Error> {
    let refuse = |e| host.refuse("volumes", &e);
    let mut parts = Vec::new();
    for volume in pool.list_all_volumes(0).map_err(refuse)? {
        // One that vanishes meanwhile is none.
        let Some(name) = maybe(volume.get_name()).map_err(refuse)? else { continue };
        if let Some(vm) = owner(&name, installation).map(str::to_owned) {
            parts.push(Part { vm, name, volume });
        }
    }
    Ok(parts)
}

/// The tags on a disk with user data; `None` where they have not been written so far.
pub(super) fn whose(
    host: &Host<'_>,
    volume: &StorageVol,
) -> Result<Option<Tags>, virt::error::Error> {
    Ok(mark::read(&download(host, volume, 0, mark::ROOM as u64)?))
}

/// VMs and left-over volumes.
pub(super) fn all(
    host: &Host<'_>,
    pool_name: &str,
    installation: &str,
) -> Result<Vec<Resource>, Error> {
    let domains = host.connection.list_all_domains(0).map_err(|e| host.refuse("domains", &e))?;
    let pool = pool(host, pool_name)?;
    let parts = parts(host, &pool, installation)?;
    // Disks with user data are written once, so that is when the VM was made.
    let marked = parts.iter().filter(|part| part.is_marked());
    let made: BTreeMap<&str, &StorageVol> = marked.map(|p| (p.vm.as_str(), &p.volume)).collect();
    let (mut found, mut names) = (Vec::new(), BTreeSet::new());
    for domain in domains {
        let machine = machine(&domain, installation, &mut names);
        let Some(vm) = machine.map_err(|e| host.refuse("a domain", &e))? else { continue };
        let created = made.get(vm.vm.name.as_str()).and_then(|volume| written(volume));
        found.push(Resource { created, ..vm });
    }
    let mut known: BTreeMap<&str, Option<Tags>> = BTreeMap::new();
    for (vm, volume) in made.iter().filter(|(vm, _)| !names.contains(**vm)) {
        // One that vanishes meanwhile is none.
        let read = maybe(whose(host, volume)).map_err(|e| host.refuse("a volume", &e))?;
        known.insert(vm, read.flatten());
    }
    for part in parts.iter().filter(|part| !names.contains(&part.vm)) {
        let tag = (tags::INSTALLATION.to_owned(), installation.to_owned());
        let tags = known.get(part.vm.as_str()).cloned().flatten();
        let tags = tags.unwrap_or_else(|| BTreeMap::from([tag]));
        // Names have only the beginning of an installation's id.
        if tags.get(tags::INSTALLATION).map(String::as_str) != Some(installation) {
            continue;
        }
        let sandbox = tags.get(tags::SANDBOX).cloned().unwrap_or_default();
        let vm = VmRef { name: VmName::from_existing(part.vm.as_str()), sandbox, native_id: None };
        let resource = Resource::new(ResourceKind::Disk, vm, tags);
        let volume = made.get(part.vm.as_str()).copied().unwrap_or(&part.volume);
        found.push(Resource { created: written(volume), ..resource });
    }
    Ok(found)
}

/// One domain; `None` if it is not this installation's or has just gone.
fn machine(
    domain: &Domain,
    installation: &str,
    names: &mut BTreeSet<String>,
) -> Result<Option<Resource>, virt::error::Error> {
    let Some(name) = maybe(domain.get_name())? else { return Ok(None) };
    names.insert(name.clone());
    let Some(all) = tags_of(domain)? else { return Ok(None) };
    if all.get(tags::INSTALLATION).map(String::as_str) != Some(installation) {
        return Ok(None);
    }
    let Some(running) = maybe(domain.is_active())? else { return Ok(None) };
    let sandbox = all.get(tags::SANDBOX).cloned().unwrap_or_default();
    let native_id = maybe(domain.get_uuid_string())?;
    let vm = VmRef { name: VmName::from_existing(name), sandbox, native_id };
    let resource = Resource::new(ResourceKind::Vm, vm, all);
    Ok(Some(Resource { running: Some(running), ..resource }))
}

/// When a volume was last written.
fn written(volume: &StorageVol) -> Option<SystemTime> {
    let xml = volume.get_xml_desc(0).ok()?;
    let document = roxmltree::Document::parse(&xml).ok()?;
    let mtime = document.descendants().find(|node| node.tag_name().name() == "mtime")?.text()?;
    let seconds: f64 = mtime.parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}

/// The end of the console's log, which lies in the pool.
pub(super) fn console(
    host: &Host<'_>,
    pool_name: &str,
    parts: &Parts,
    vm: &VmRef,
) -> Result<Option<String>, Error> {
    let refuse = |e| host.refuse("console", &e);
    let Some(domain) =
        maybe(Domain::lookup_by_name(host.connection, vm.name.as_str())).map_err(refuse)?
    else {
        return Ok(None);
    };
    let whose = tags_of(&domain).map_err(refuse)?.and_then(|tags| tags.get(tags::SANDBOX).cloned());
    if whose.as_ref() != Some(&vm.sandbox) {
        return Ok(None);
    }
    let pool = pool(host, pool_name)?;
    let found = maybe(StorageVol::lookup_by_name(&pool, &parts.console)).map_err(refuse)?;
    let Some(volume) = found else { return Ok(None) };
    let size = volume.get_info().map_err(refuse)?.capacity;
    let (from, length) = (size.saturating_sub(TAIL), size.min(TAIL));
    if length == 0 {
        return Ok(None);
    }
    let text = download(host, &volume, from, length).map_err(refuse)?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// What was promised and cannot be.
pub(super) fn broken(operation: &'static str, text: impl Into<String>) -> Error {
    Error::new(NAME, operation, Kind::Other, text)
}
