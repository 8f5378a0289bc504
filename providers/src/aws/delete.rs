//! Taking a VM away with all that came with it.

use futures_util::future::join_all;

use super::client::Class;
use super::list::Part;
use super::{Aws, Shared, for_all, id};
use crate::{Deletion, Error, Kind, ResourceKind, VmRef};

impl Aws {
    pub(super) async fn delete_vm(&self, vm: &VmRef) -> Result<Deletion, Error> {
        self.shared.wait_for_creates(&vm.sandbox).await;
        let known = vm.native_id.clone().filter(|known| id::id(known, "i-").is_ok());
        if let Some(known) = known {
            match self.terminate.ask(known).await {
                // Disk and interface go with it.
                Ok(()) => return Ok(Deletion::Gone),
                // It may be too young to be shown.
                Err(e) if e.kind == Kind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        let found = self.found.ask(vm.sandbox.clone()).await?;
        if found.instances.is_empty() && found.parts.is_empty() {
            return Ok(Deletion::Gone);
        }
        let ends = found.instances.into_iter().map(|id| self.terminate.ask(id));
        let mut failed: Vec<Error> =
            join_all(ends).await.into_iter().filter_map(Result::err).collect();
        for part in &found.parts {
            failed.extend(self.shared.remove(part).await.err());
        }
        // All of it is tried, the first error told.
        match failed.into_iter().find(|e| e.kind != Kind::NotFound) {
            Some(error) => Err(error),
            // Looked for again when asked again.
            None => Ok(Deletion::Accepted),
        }
    }
}

impl Shared {
    /// Ends VMs. One id that EC2 does not know fails the whole call, so that it is split.
    pub(super) async fn terminate(&self, ids: Vec<String>) -> Vec<Result<(), Error>> {
        let client = match self.ec2.client("delete").await {
            Ok(client) => client,
            Err(e) => return for_all(ids.len(), Err(e)),
        };
        let mut answers = for_all(ids.len(), Ok(()));
        let mut left = vec![(0, ids.len())];
        while let Some((from, to)) = left.pop() {
            let some = ids.get(from..to).unwrap_or_default();
            let call = client.terminate_instances().set_instance_ids(Some(some.to_vec())).send();
            let answer =
                self.ec2.call(Class::Terminate, "delete", "TerminateInstances", call).await;
            let Err(error) = answer else { continue };
            if error.kind == Kind::NotFound && some.len() > 1 {
                let middle = from + some.len() / 2;
                left.extend([(from, middle), (middle, to)]);
                continue;
            }
            for answer in answers.iter_mut().take(to).skip(from) {
                *answer = Err(error.clone());
            }
        }
        answers
    }

    async fn remove(&self, part: &Part) -> Result<(), Error> {
        let client = self.ec2.client("delete").await?;
        let id = &part.id;
        let removed = match part.kind {
            ResourceKind::Disk => {
                let call = client.delete_volume().volume_id(id).send();
                let what = format!("DeleteVolume {id}");
                self.ec2.call(Class::Terminate, "delete", &what, call).await.map(drop)
            }
            _ => {
                let call = client.delete_network_interface().network_interface_id(id).send();
                let what = format!("DeleteNetworkInterface {id}");
                self.ec2.call(Class::Terminate, "delete", &what, call).await.map(drop)
            }
        };
        match removed {
            Err(e) if e.kind == Kind::NotFound => Ok(()),
            removed => removed,
        }
    }
}
