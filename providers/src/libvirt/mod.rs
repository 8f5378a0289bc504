//! VMs of a host with libvirt, x86_64 or IBM Z (providers.md 6).
//!
//! ```text
//!   create ─ cidata ─ root disk on top of the image ─ define ─ start ─▶ address (lease, arp, agent)
//!   delete ─ whose? ─ destroy ─ undefine ─ root disk ─ cidata ─ console's log
//!   list   ─ domains by our metadata, volumes without a domain by the pattern of their names
//! ```
//! Creates are idempotent by the domain's UUID, which is the attempt's; whose it is stands in its
//! metadata. Volumes have no tags: their names have VM and installation in them, and the disk with the
//! user data begins with the tags.

mod address;
mod check;
mod client;
mod create;
mod delete;
mod domain;
mod error;
mod iso;
mod list;
mod mark;
mod settings;
mod template;
mod volume;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, Semaphore};

use crate::context::Context;
use crate::{Candidate, Deletion, Error, Provider, Report, Resource, Vm, VmRef, VmSpec};

use client::Client;
pub use settings::{Settings, Source, keys};

/// The name in the settings.
pub const NAME: &str = "libvirt";

/// Longest for a look.
const LOOK: Duration = Duration::from_secs(30);
/// Longest for what changes something, as the pool may be busy for a minute, and for a check, as a libvirtd
/// that has just started tries all its emulators.
const CHANGE: Duration = Duration::from_secs(120);

/// The provider.
#[derive(Debug)]
pub struct Libvirt {
    settings: Settings,
    installation: String,
    client: Client,
    /// Uploads at the same time; the other threads are for deletes and looks.
    uploads: Semaphore,
    /// Who works on which VM. A dropped create goes on until its next step, and a delete waits for that.
    busy: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Libvirt {
    /// Contacts nothing.
    pub fn new(settings: Settings, context: &Context) -> Self {
        Self {
            client: Client::new(&settings.uri),
            settings,
            installation: context.installation.clone(),
            uploads: Semaphore::new(2),
            busy: Mutex::default(),
        }
    }

    /// The right to change a VM; goes along with the job that does it.
    async fn alone(&self, name: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| lock.strong_count() > 0);
            let known = busy.get(name).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::new(tokio::sync::Mutex::new(()));
                busy.insert(name.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    fn parts(&self, name: &str) -> Parts {
        Parts::of(name, &self.installation)
    }
}

/// Names of a VM's volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    root: String,
    cidata: String,
    console: String,
}

/// End of the name of the disk with the user data.
const CIDATA: &str = "cloudinit.iso";
/// What comes after a VM's name in those of its volumes.
const ENDS: [&str; 3] = ["root.qcow2", CIDATA, "console.log"];

impl Parts {
    fn of(name: &str, installation: &str) -> Self {
        let part = |end: &str| format!("{name}-{}-{end}", short(installation));
        let [root, cidata, console] = ENDS.map(part);
        Self { root, cidata, console }
    }
}

/// Several installations may share a pool.
fn short(installation: &str) -> String {
    installation.chars().take(8).collect()
}

/// The VM whose volume that is, if it is one of this installation.
fn owner<'a>(volume: &'a str, installation: &str) -> Option<&'a str> {
    let name = part_of(volume)?.strip_suffix(&short(installation))?.strip_suffix('-')?;
    let legal = crate::VmName::from_existing(name).is_legal() && name.starts_with("podvm-");
    legal.then_some(name)
}

/// Whether a volume is part of a VM, whatever the installation.
fn is_part(volume: &str) -> bool {
    part_of(volume).is_some_and(|rest| rest.starts_with("podvm-"))
}

/// What stands before one of the [`ENDS`].
fn part_of(volume: &str) -> Option<&str> {
    // Rotated logs have a number at the end.
    let rotated = volume.trim_end_matches(|c: char| c.is_ascii_digit()).strip_suffix('.');
    let volume = rotated.unwrap_or(volume);
    ENDS.iter().find_map(|end| volume.strip_suffix(end)?.strip_suffix('-'))
}

impl std::fmt::Display for Libvirt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(NAME)
    }
}

#[async_trait::async_trait]
impl Provider for Libvirt {
    async fn check(&self) -> Result<Report, Error> {
        let settings = self.settings.clone();
        self.client.run("check", CHANGE, move |host| check::report(host, &settings)).await
    }

    async fn create(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Vm, Error> {
        self.create_vm(spec, candidate).await
    }

    async fn delete(&self, vm: &VmRef) -> Result<Deletion, Error> {
        self.delete_vm(vm).await
    }

    async fn list(&self) -> Result<Vec<Resource>, Error> {
        let (pool, installation) = (self.settings.pool.clone(), self.installation.clone());
        self.client.run("list", LOOK, move |host| list::all(host, &pool, &installation)).await
    }

    async fn console(&self, vm: &VmRef) -> Result<Option<String>, Error> {
        let (pool, vm) = (self.settings.pool.clone(), vm.clone());
        let parts = self.parts(vm.name.as_str());
        self.client.run("console", LOOK, move |host| list::console(host, &pool, &parts, &vm)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_known_by_its_name_and_that_of_somebody_else_is_not() {
        let parts = Parts::of("podvm-a-01234567", "installation");
        assert_eq!(parts.root, "podvm-a-01234567-installa-root.qcow2");
        for volume in [&parts.root, &parts.cidata, &parts.console, &format!("{}.0", parts.console)]
        {
            assert_eq!(owner(volume, "installation"), Some("podvm-a-01234567"), "{volume}");
            assert_eq!(owner(volume, "other"), None, "{volume}");
            assert!(is_part(volume), "{volume}");
        }
        assert!(!is_part("podvm-base.qcow2") && !is_part("data-root.qcow2"));
        for foreign in ["podvm-base.qcow2", "-installa-root.qcow2", "x-installa-root.qcow2"] {
            assert_eq!(owner(foreign, "installation"), None, "{foreign}");
        }
    }
}
