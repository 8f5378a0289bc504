//! Taking a VM away with all that was made with it.

use hyper::Method;

use super::client::{Call, Class, malformed};
use super::{Gcp, lock, native, native_id, sandbox, text};
use crate::{Deletion, Error, Kind, VmRef};

impl Gcp {
    pub(super) async fn delete_vm(&self, vm: &VmRef) -> Result<Deletion, Error> {
        let name = vm.name.as_str();
        if !vm.name.is_legal() {
            // Nothing of that name can have been made.
            return Ok(Deletion::Gone);
        }
        if let Some((zone, "instances", number)) = vm.native_id.as_deref().and_then(native) {
            // A number is nobody else's: no look is needed first, but all the more to see the end of it.
            let first = lock(&self.deleting).insert(name.to_owned());
            if first {
                match self.remove_at(&format!("zones/{zone}/instances/{number}")).await {
                    Ok(true) => return Ok(Deletion::Accepted),
                    Ok(false) => {}
                    Err(e) => {
                        lock(&self.deleting).remove(name);
                        return Err(e);
                    }
                }
            }
        }
        let deletion = self.delete_by_name(vm, &self.zones_of(vm)).await?;
        if deletion == Deletion::Gone {
            lock(&self.deleting).remove(name);
        }
        Ok(deletion)
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
                self.remove_at(&numbered(native_id(&found, "instances"))?).await?;
            }
            return Ok(Deletion::Accepted);
        }
        let disk = self.disk("delete", zone, name).await?;
        let Some(disk) = disk.filter(|disk| sandbox(disk) == vm.sandbox) else {
            return Ok(Deletion::Gone);
        };
        match self.remove_at(&numbered(native_id(&disk, "disks"))?).await {
            // A VM that is going still has it.
            Err(e) if e.message.contains("resourceInUseByAnotherResource") => {
                Ok(Deletion::Accepted)
            }
            Err(e) => Err(e),
            Ok(_) => Ok(Deletion::Accepted),
        }
    }

    /// Asks for the end of a thing by its number; false if there is none any more.
    async fn remove_at(&self, rest: &str) -> Result<bool, Error> {
        let call = Call {
            method: Method::DELETE,
            ..Call::get("delete", Class::Delete, self.path(rest), "compute#operation")
        };
        match self.compute.json(call).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind == Kind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}
