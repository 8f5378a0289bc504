//! Taking a VM away with all that came with it.

use hyper::Method;

use super::client::{Call, Class, DISKS, NETWORK};
use super::list::Part;
use super::wait::{Operation, Progress};
use super::{Azure, disk_name, id, lock, tags_of, text};
use crate::{Deletion, Error, Kind, ResourceKind, VmRef};

/// What the VM's own delete came to.
enum Machine {
    /// It is under way.
    Deleting,
    /// There is none.
    Gone,
    /// There is one of that name, and it is somebody else's.
    Foreign,
}

impl Azure {
    pub(super) async fn delete_vm(&self, vm: &VmRef) -> Result<Deletion, Error> {
        if !vm.name.is_legal() {
            // Nothing of that name can have been made.
            return Ok(Deletion::Gone);
        }
        let foreign = match self.delete_machine(vm).await? {
            Machine::Deleting => return Ok(Deletion::Accepted),
            Machine::Gone => false,
            Machine::Foreign => true,
        };
        lock(&self.shared.creating).remove(vm.name.as_str());
        self.delete_parts(vm, foreign).await
    }

    async fn delete_machine(&self, vm: &VmRef) -> Result<Machine, Error> {
        let (shared, name) = (&self.shared, vm.name.as_str());
        let under_way = lock(&shared.deleting).get(name).cloned();
        if let Some(operation) = under_way {
            match operation.look(&shared.arm, "delete").await {
                Ok(Progress::Pending(_)) => return Ok(Machine::Deleting),
                // Whatever came of it, the VM says; Azure forgets operations.
                Ok(Progress::Done | Progress::Failed(_)) => {}
                Err(e) if e.kind == Kind::NotFound => {}
                Err(e) => return Err(e),
            }
            lock(&shared.deleting).remove(name);
        }
        let Some(found) = shared.vm("delete", name).await? else { return Ok(Machine::Gone) };
        if !shared.is_of(&tags_of(&found), &vm.sandbox) {
            return Ok(Machine::Foreign);
        }
        if text(&found, "/properties/provisioningState") == "Deleting" {
            return Ok(Machine::Deleting);
        }
        match self.remove(shared.vm_path(name)).await? {
            Some(operation) => {
                lock(&shared.deleting).insert(name.to_owned(), operation);
                Ok(Machine::Deleting)
            }
            None => Ok(Machine::Gone),
        }
    }

    /// What the cascade has left: all of it is tried, the first error told.
    async fn delete_parts(&self, vm: &VmRef, foreign: bool) -> Result<Deletion, Error> {
        let parts = self.parts.ask(()).await?;
        let ours = |part: &&Part| self.is_left_of(part, vm, foreign);
        let mut left: Vec<&Part> = parts.iter().filter(ours).collect();
        if left.is_empty() {
            return Ok(Deletion::Gone);
        }
        // An interface holds its address.
        left.sort_by_key(|part| match part.kind {
            ResourceKind::Interface => 0,
            ResourceKind::Address => 1,
            _ => 2,
        });
        let mut first = None;
        for part in left {
            let version = if part.kind == ResourceKind::Disk { DISKS } else { NETWORK };
            let removed = self.remove(format!("{}?api-version={version}", part.id)).await;
            if let Err(e) = removed
                && !e.message.contains("InUse")
                && !e.message.contains("NicReservedForAnotherVm")
            {
                first.get_or_insert(e);
            }
        }
        match first {
            Some(error) => Err(error),
            // Looked for again when asked again.
            None => Ok(Deletion::Accepted),
        }
    }

    fn is_left_of(&self, part: &Part, vm: &VmRef, foreign: bool) -> bool {
        let name = vm.name.as_str();
        if part.owner.as_deref().is_some_and(|owner| !id::name(owner).eq_ignore_ascii_case(name)) {
            return false;
        }
        if foreign && part.owner.is_some() {
            // Whatever its own tags say, it is part of somebody else's VM.
            return false;
        }
        if self.shared.is_of(&part.tags, &vm.sandbox) {
            // The same sandbox may have a VM under the other form of its name.
            return part.vm.as_deref().is_some_and(|of| of.eq_ignore_ascii_case(name));
        }
        // Whether a disk gets its VM's tags is Azure's to decide; its name is ours.
        let nobodys = part.tags.is_empty() && part.owner.is_none() && !foreign;
        nobodys
            && part.kind == ResourceKind::Disk
            && part.name.eq_ignore_ascii_case(&disk_name(name))
    }

    /// `None` when it is gone.
    async fn remove(&self, target: String) -> Result<Option<Operation>, Error> {
        let call = Call {
            class: Class::Delete,
            method: Method::DELETE,
            ..Call::get("delete", Class::Delete, target)
        };
        match self.shared.arm.call(call).await {
            Ok(answer) => Ok(Operation::of(&answer)),
            Err(e) if e.kind == Kind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}
