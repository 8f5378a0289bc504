//! Everything that is ours: VMs and parts, of the whole resource group.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::client::{COMPUTE, Class, DISKS, NETWORK};
use super::{Shared, disk_name, tags_of, text};
use crate::{Error, Kind, Market, Resource, ResourceKind, VmName, VmRef, tags};

/// Something that comes with a VM, whoever's it is.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) kind: ResourceKind,
    pub(super) id: String,
    pub(super) name: String,
    pub(super) tags: BTreeMap<String, String>,
    /// The VM it was made for, by its name.
    pub(super) vm: Option<String>,
    /// Full id of the VM that has it now.
    pub(super) owner: Option<String>,
    created: Option<SystemTime>,
}

impl Part {
    fn of(kind: ResourceKind, thing: &Value) -> Self {
        let name = text(thing, "/name").to_owned();
        // Azure adds to the names of interfaces and addresses.
        let vm = match kind {
            ResourceKind::Disk => name.strip_suffix(&disk_name("")),
            ResourceKind::Address => name.rsplit_once("-ip").map(|(vm, _)| vm),
            _ => name.rsplit_once("-net").map(|(vm, _)| vm),
        };
        let owner = match kind {
            ResourceKind::Disk => text(thing, "/managedBy"),
            ResourceKind::Interface => text(thing, "/properties/virtualMachine/id"),
            _ => "",
        };
        Self {
            kind,
            id: text(thing, "/id").to_owned(),
            vm: vm.map(str::to_owned),
            name,
            tags: tags_of(thing),
            owner: Some(owner.to_owned()).filter(|owner| !owner.is_empty()),
            created: created(thing),
        }
    }
}

fn created(thing: &Value) -> Option<SystemTime> {
    let time = OffsetDateTime::parse(text(thing, "/properties/timeCreated"), &Rfc3339).ok()?;
    Some(time.into())
}

impl Shared {
    pub(super) async fn list(&self) -> Result<Vec<Resource>, Error> {
        let group = self.group();
        let vms =
            format!("{group}/providers/Microsoft.Compute/virtualMachines?api-version={COMPUTE}");
        let vms = self.arm.pages("list", Class::List, vms).await?;
        let ours = |tags: &BTreeMap<String, String>| {
            tags.get(tags::INSTALLATION).is_some_and(|i| *i == self.installation)
        };
        let vms: Vec<Value> = vms.into_iter().filter(|vm| ours(&tags_of(vm))).collect();
        let states = if vms.is_empty() { BTreeMap::new() } else { self.states().await? };
        let mut all: Vec<Resource> = vms
            .iter()
            .filter_map(|vm| {
                let state = states.get(&text(vm, "/id").to_ascii_lowercase());
                resource(ResourceKind::Vm, text(vm, "/name"), tags_of(vm), created(vm))
                    .map(|found| self.machine(found, vm, state))
            })
            .collect();
        let parts = self.parts("list").await?;
        let siblings: BTreeMap<String, BTreeMap<String, String>> = parts
            .iter()
            .filter(|part| ours(&part.tags))
            .filter_map(|part| Some((part.vm.clone()?, part.tags.clone())))
            .chain(vms.iter().map(|vm| (text(vm, "/name").to_owned(), tags_of(vm))))
            .collect();
        for part in &parts {
            let Some(vm) = &part.vm else { continue };
            // A disk without any tag is known by its VM's other parts.
            let nameless = part.kind == ResourceKind::Disk && part.tags.is_empty();
            let tags = match nameless {
                true => siblings.get(vm).cloned(),
                false => Some(part.tags.clone()).filter(&ours),
            };
            all.extend(tags.and_then(|tags| resource(part.kind, vm, tags, part.created)));
        }
        Ok(all)
    }

    fn machine(&self, found: Resource, vm: &Value, state: Option<&Value>) -> Resource {
        let size = text(vm, "/properties/hardwareProfile/vmSize");
        let spot = text(vm, "/properties/priority").eq_ignore_ascii_case("Spot");
        let market = if spot { Market::Spot } else { Market::OnDemand };
        Resource {
            running: running(vm, state),
            instance_type: Some(size.to_owned()).filter(|size| !size.is_empty()),
            price: self.settings.common.prices.of(size, market),
            ..found
        }
    }

    /// Interfaces, addresses and disks of the group, anybody's.
    pub(super) async fn parts(&self, operation: &'static str) -> Result<Vec<Part>, Error> {
        let kinds = [
            (ResourceKind::Interface, "Microsoft.Network/networkInterfaces", NETWORK),
            (ResourceKind::Address, "Microsoft.Network/publicIPAddresses", NETWORK),
            (ResourceKind::Disk, "Microsoft.Compute/disks", DISKS),
        ];
        let mut parts = Vec::new();
        for (kind, path, version) in kinds {
            let target = format!("{}/providers/{path}?api-version={version}", self.group());
            let things = self.arm.pages(operation, Class::Read, target).await?;
            parts.extend(things.iter().map(|thing| Part::of(kind, thing)));
        }
        Ok(parts)
    }

    /// Power states by lower-case id. Without the right to ask it is not known which VMs run.
    async fn states(&self) -> Result<BTreeMap<String, Value>, Error> {
        let target = format!(
            "/subscriptions/{}/providers/Microsoft.Compute/virtualMachines?api-version={COMPUTE}\
             &statusOnly=true",
            self.settings.subscription
        );
        match self.arm.pages("list", Class::List, target).await {
            Ok(vms) => {
                let by_id = |vm: Value| (text(&vm, "/id").to_ascii_lowercase(), vm);
                Ok(vms.into_iter().map(by_id).collect())
            }
            Err(e) if e.kind == Kind::Denied => {
                tracing::debug!("not known which VMs run: {e}");
                Ok(BTreeMap::new())
            }
            Err(e) => Err(e),
        }
    }
}

fn resource(
    kind: ResourceKind,
    vm: &str,
    tags: BTreeMap<String, String>,
    created: Option<SystemTime>,
) -> Option<Resource> {
    let sandbox = tags.get(tags::SANDBOX)?.clone();
    let vm = VmRef { name: VmName::from_existing(vm), sandbox, native_id: None };
    Some(Resource { created, ..Resource::new(kind, vm, tags) })
}

fn running(vm: &Value, state: Option<&Value>) -> Option<bool> {
    if matches!(text(vm, "/properties/provisioningState"), "Failed" | "Deleting") {
        return Some(false);
    }
    let statuses = state?.pointer("/properties/instanceView/statuses")?.as_array()?;
    let power = statuses.iter().find_map(|s| text(s, "/code").strip_prefix("PowerState/"))?;
    Some(matches!(power, "running" | "starting"))
}
