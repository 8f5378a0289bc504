//! Everything that is ours, in all zones of the project: a zone may have left the settings since.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::client::{Call, Class, malformed};
use super::{Gcp, id, items, native_id, sandbox, text};
use crate::{Error, Market, Resource, ResourceKind, VmName, VmRef, tags};

/// How a VM is paid for.
pub(super) fn market(vm: &Value) -> Market {
    match text(vm, "/scheduling/provisioningModel") {
        "SPOT" => Market::Spot,
        _ => Market::OnDemand,
    }
}

/// Whether a VM in that state does not run, or is about to.
pub(super) fn has_stopped(status: &str) -> bool {
    matches!(
        status,
        "DEPROVISIONING" | "STOPPED" | "STOPPING" | "SUSPENDED" | "SUSPENDING" | "TERMINATED"
    )
}

fn created(thing: &Value) -> Option<SystemTime> {
    let time = OffsetDateTime::parse(text(thing, "/creationTimestamp"), &Rfc3339).ok()?;
    Some(time.into())
}

fn labels(thing: &Value) -> BTreeMap<String, String> {
    let labels = thing.get("labels").and_then(Value::as_object);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut all: BTreeMap<String, String> =
        labels.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), text(v)?))).collect();
    // Whole, as it was given.
    all.insert(tags::SANDBOX.to_owned(), sandbox(thing).to_owned());
    all
}

impl Gcp {
    pub(super) async fn list_all(&self) -> Result<Vec<Resource>, Error> {
        let vms = self.everywhere("instances", "compute#instanceAggregatedList").await?;
        let disks = self.everywhere("disks", "compute#diskAggregatedList").await?;
        // A disk that its VM takes along is no part of its own.
        let left = disks.iter().filter(|disk| items(disk, "/users").next().is_none());
        let vms = vms.iter().map(|vm| self.machine(vm));
        Ok(left.map(|disk| resource(disk, ResourceKind::Disk)).chain(vms).collect())
    }

    fn machine(&self, vm: &Value) -> Resource {
        let name = id::last(text(vm, "/machineType")).to_owned();
        Resource {
            running: Some(!has_stopped(text(vm, "/status"))),
            price: self.settings.common.prices.of(&name, market(vm)),
            instance_type: Some(name),
            ..resource(vm, ResourceKind::Vm)
        }
    }

    /// All pages over all zones; a list that leaves a zone out is no list.
    async fn everywhere(&self, what: &str, kind: &'static str) -> Result<Vec<Value>, Error> {
        let filter = format!("labels.{}={}", tags::INSTALLATION, self.installation);
        let rest = format!("aggregated/{what}?filter={}", id::encoded(&filter));
        let call = Call::get("list", Class::List, self.path(&rest), kind);
        let mut all = Vec::new();
        for page in self.compute.pages(call).await? {
            if let Some(zone) = items(&page, "/unreachables").find_map(Value::as_str) {
                return Err(malformed("list", what, &format!("{zone} does not answer")));
            }
            let code = text(&page, "/warning/code");
            if is_partial(code) {
                return Err(malformed("list", what, code));
            }
            let scopes = page.get("items").and_then(Value::as_object);
            for (zone, scope) in scopes.into_iter().flatten() {
                let code = text(scope, "/warning/code");
                if is_partial(code) {
                    return Err(malformed("list", what, &format!("{zone}: {code}")));
                }
                all.extend(items(scope, &format!("/{what}")).cloned());
            }
        }
        Ok(all)
    }
}

/// Warnings that say that something is missing.
fn is_partial(code: &str) -> bool {
    matches!(code, "LIST_OVERHEAD_QUOTA_EXCEED" | "PARTIAL_SUCCESS" | "UNREACHABLE")
}

fn resource(thing: &Value, kind: ResourceKind) -> Resource {
    let of = if kind == ResourceKind::Vm { "instances" } else { "disks" };
    let vm = VmRef {
        name: VmName::from_existing(text(thing, "/name")),
        sandbox: sandbox(thing).to_owned(),
        native_id: native_id(thing, of),
    };
    Resource { created: created(thing), ..Resource::new(kind, vm, labels(thing)) }
}
