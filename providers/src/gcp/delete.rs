//! Taking a VM away with all that was made with it.

use hyper::Method;

use super::client::{Call, Class, malformed};
use super::error::Refusal;
use super::{Gcp, lock, native, native_id, sandbox, text};
use crate::{Deletion, Error, VmRef};

/// A delete that this process has asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Removal {
    zone: String,
    operation: String,
}

/// How far it is.
enum Progress {
    Pending,
    Done,
    /// It failed, or Google has forgotten it: the VM itself says more.
    Unknown,
}

impl Gcp {
    pub(super) async fn delete_vm(&self, vm: &VmRef) -> Result<Deletion, Error> {
        let name = vm.name.as_str();
        if !vm.name.is_legal() {
            // Nothing of that name can have been made.
            return Ok(Deletion::Gone);
        }
        let mut zones = self.zones_of(vm);
        let under_way = lock(&self.deleting).get(name).cloned();
        if let Some(removal) = under_way {
            match self.progress(&removal).await? {
                Progress::Pending => return Ok(Deletion::Accepted),
                // With its disk, so that no look is needed there.
                Progress::Done => zones.retain(|zone| *zone != removal.zone),
                Progress::Unknown => {}
            }
            lock(&self.deleting).remove(name);
        } else if let Some((zone, "instances", number)) = vm.native_id.as_deref().and_then(native) {
            // A number is nobody else's: no look is needed first.
            if self.remove_vm(name, zone, &format!("zones/{zone}/instances/{number}")).await? {
                return Ok(Deletion::Accepted);
            }
        }
        self.delete_by_name(vm, &zones).await
    }

    async fn progress(&self, removal: &Removal) -> Result<Progress, Error> {
        let Removal { zone, operation } = removal;
        let target = self.path(&format!("zones/{zone}/operations/{operation}"));
        let call = Call::get("delete", Class::Operation, target, "compute#operation");
        let Some(found) = self.compute.maybe(call).await? else { return Ok(Progress::Unknown) };
        Ok(match (text(&found, "/status"), Refusal::inside(&found)) {
            ("DONE", None) => Progress::Done,
            ("DONE", Some(refusal)) => {
                tracing::warn!(?refusal, operation, "a delete failed, and is asked for again");
                Progress::Unknown
            }
            _ => Progress::Pending,
        })
    }

    /// In each of these zones: all of them are tried, the first error told.
    pub(super) async fn delete_by_name(
        &self,
        vm: &VmRef,
        zones: &[&str],
    ) -> Result<Deletion, Error> {
        let (mut deletion, mut first) = (Deletion::Gone, None);
        for zone in zones {
            match self.delete_in(zone, vm).await {
                Ok(Deletion::Accepted) => deletion = Deletion::Accepted,
                Ok(Deletion::Gone) => {}
                Err(e) => {
                    first.get_or_insert(e);
                }
            }
        }
        first.map_or(Ok(deletion), Err)
    }

    async fn delete_in(&self, zone: &str, vm: &VmRef) -> Result<Deletion, Error> {
        let name = vm.name.as_str();
        let numbered = |id: Option<String>| {
            id.ok_or_else(|| malformed("delete", name, "a thing without a number"))
        };
        if let Some(found) = self.vm("delete", zone, name).await? {
            if sandbox(&found) != vm.sandbox {
                // Of that name, but another's: ours is gone.
                return Ok(Deletion::Gone);
            }
            if text(&found, "/status") != "STOPPING" {
                let number = numbered(native_id(&found, "instances"))?;
                self.remove_vm(name, zone, &number).await?;
            }
            return Ok(Deletion::Accepted);
        }
        let disk = self.disk("delete", zone, name).await?;
        let Some(disk) = disk.filter(|disk| sandbox(disk) == vm.sandbox) else {
            return Ok(Deletion::Gone);
        };
        match self.remove(&numbered(native_id(&disk, "disks"))?).await {
            // A VM that is going still has it.
            Err(e) if e.message.contains("resourceInUseByAnotherResource") => {
                Ok(Deletion::Accepted)
            }
            Err(e) => Err(e),
            Ok(_) => Ok(Deletion::Accepted),
        }
    }

    /// Asks for the end of a VM by its number; false if there is none any more.
    async fn remove_vm(&self, name: &str, zone: &str, number: &str) -> Result<bool, Error> {
        let Some(operation) = self.remove(number).await? else { return Ok(false) };
        let removal = Removal { zone: zone.to_owned(), operation };
        lock(&self.deleting).insert(name.to_owned(), removal);
        Ok(true)
    }

    /// The operation by which a thing goes; `None` if there is none any more.
    async fn remove(&self, rest: &str) -> Result<Option<String>, Error> {
        let call = Call {
            method: Method::DELETE,
            ..Call::get("delete", Class::Delete, self.path(rest), "compute#operation")
        };
        let Some(operation) = self.compute.maybe(call).await? else { return Ok(None) };
        match text(&operation, "/name") {
            name if name.is_empty() || name.contains(['/', '?', '#']) => {
                Err(malformed("delete", rest, "the answer is no operation"))
            }
            name => Ok(Some(name.to_owned())),
        }
    }
}
