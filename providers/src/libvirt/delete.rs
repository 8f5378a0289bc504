//! Takes a VM and its parts away, in order; the image below its disk is never touched.

use std::time::Duration;

use virt::domain::Domain;
use virt::storage_pool::StoragePool;
use virt_sys as sys;

use super::client::Host;
use super::error::maybe;
use super::list::{named, parts, refresh, tags_of, whose};
use super::volume::pools_of;
use super::{CHANGE, Libvirt, NAME};
use crate::{Deletion, Error, Kind, VmRef, tags};

/// How long a delete waits for a busy pool before it is asked again.
const PATIENT: Duration = Duration::from_secs(30);

impl Libvirt {
    pub(super) async fn delete_vm(&self, vm: &VmRef) -> Result<Deletion, Error> {
        // A create that its caller has left may be at its last step, and cannot be stopped there.
        let alone = tokio::time::timeout(CHANGE, self.alone(vm.name.as_str())).await;
        let alone = alone.map_err(|_| {
            let text = format!("VM {}: another call does not come to its end", vm.name);
            Error::new(NAME, "delete", Kind::Unavailable, text)
        })?;
        let (vm, pool) = (vm.clone(), self.settings.pool.clone());
        let installation = self.installation.clone();
        let job = move |host: &Host<'_>| {
            let _alone = alone;
            take_away(host, &vm, &pool, &installation)
        };
        self.client.run("delete", CHANGE, job).await
    }
}

/// All of one VM's; what is not there is no error.
pub(super) fn take_away(
    host: &Host<'_>,
    vm: &VmRef,
    pool_name: &str,
    installation: &str,
) -> Result<Deletion, Error> {
    let name = vm.name.as_str();
    let refuse = |e| host.refuse(&format!("VM {name}"), &e);
    let mut pools = vec![named(host, pool_name)?];
    if let Some(domain) = maybe(Domain::lookup_by_name(host.connection, name)).map_err(refuse)? {
        let tags = tags_of(&domain).map_err(refuse)?;
        let whose = tags.and_then(|tags| tags.get(tags::SANDBOX).cloned());
        if whose.as_ref() != Some(&vm.sandbox) {
            // Ours is absent; that of another sandbox is left alone, and so are its volumes.
            return Ok(Deletion::Gone);
        }
        pools.extend(pools_of(host, &domain.get_xml_desc(0).map_err(refuse)?)?);
        remove(&domain).map_err(refuse)?;
    }
    for pool in pools {
        // The console's log was made beside libvirt.
        refresh(host, &pool, PATIENT)?;
        empty(host, &pool, vm, installation)?;
    }
    Ok(Deletion::Gone)
}

/// Takes a VM's volumes out of a pool.
fn empty(host: &Host<'_>, pool: &StoragePool, vm: &VmRef, installation: &str) -> Result<(), Error> {
    let name = vm.name.as_str();
    let mut parts = parts(host, pool, installation)?;
    parts.retain(|part| part.vm == name);
    // Whose they are stands in that one, so it goes last.
    parts.sort_by_key(|part| part.is_marked());
    if let Some(part) = parts.last().filter(|part| part.is_marked()) {
        let known = maybe(whose(host, &part.volume));
        let known = known.map_err(|e| host.refuse("a volume", &e))?.flatten();
        // As of domains, only the sandbox counts.
        if known.is_some_and(|tags| tags.get(tags::SANDBOX) != Some(&vm.sandbox)) {
            return Ok(());
        }
    }
    let mut first = None;
    for part in parts {
        // Without the others, the marked one still says whose they are.
        if first.is_some() && part.is_marked() {
            continue;
        }
        if let Err(e) = maybe(part.volume.delete(0)) {
            first = first.or(Some(host.refuse(&format!("volume {:?}", part.name), &e)));
        }
    }
    first.map_or(Ok(()), Err)
}

fn remove(domain: &Domain) -> Result<(), virt::error::Error> {
    if maybe(domain.is_active())?.unwrap_or(false)
        && let Err(e) = maybe(domain.destroy())
        // It may have ended by itself in between.
        && maybe(domain.is_active())?.unwrap_or(false)
    {
        return Err(e);
    }
    let everything = sys::VIR_DOMAIN_UNDEFINE_NVRAM | sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE;
    match maybe(domain.undefine_flags(everything)) {
        Ok(_) => Ok(()),
        // Drivers without NVRAM refuse the flag.
        Err(_) => maybe(domain.undefine()).map(drop),
    }
}
