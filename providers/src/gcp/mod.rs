//! VMs of Google Cloud (providers.md 5).
//!
//! ```text
//!   create ─ insert (requestId) ─▶ operation ─ wait ─▶ GET VM ─▶ address
//!   delete ─ DELETE by the VM's number, or first GET by name in each zone (whose?) ─▶ operation
//!          ─ asked again: operation done, nothing by that name in the other zones ─▶ gone
//! ```
//! Creates are idempotent by `requestId`, and by the VM's name after Google has forgotten that. Whose a VM is
//! stands whole in its description and, as far as it fits, in its labels.

mod catalogue;
mod check;
mod client;
mod console;
mod create;
mod delete;
mod error;
mod id;
mod image;
mod list;
mod manager;
mod network;
mod settings;
mod template;
mod wait;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::context::Context;
use crate::{
    Candidate, Deletion, Error, Provider, Report, Resource, UserDataLimit, Vm, VmRef, VmSpec, tags,
};

use client::{Call, Class, Compute};
use delete::Removal;
pub use settings::{Rates, Settings, keys};

/// The name in the settings.
pub const NAME: &str = "gcp";

/// A value of metadata is at most 256 KB; user data go as base64.
const USER_DATA_LIMIT: UserDataLimit = UserDataLimit { size: 262_144, base64: true };

/// The provider.
#[derive(Debug)]
pub struct Gcp {
    settings: Settings,
    installation: String,
    user_tags: Vec<String>,
    forwarder_port: u16,
    vxlan_port: u16,
    compute: Compute,
    /// What this process has asked for and not seen the end of, by the VM's name.
    deleting: Mutex<BTreeMap<String, Removal>>,
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// A number, which Google writes as text where it has 64 bits.
fn number(value: &Value, key: &str) -> u32 {
    let number = value.get(key).and_then(|n| n.as_u64().or_else(|| n.as_str()?.parse().ok()));
    number.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Full sandbox id of a VM or disk: from its description, if its label agrees.
fn sandbox(thing: &Value) -> &str {
    let label = thing.get("labels").and_then(|labels| labels.get(tags::SANDBOX));
    let label = label.and_then(Value::as_str).unwrap_or_default();
    let whole = text(thing, "/description");
    let agrees = !label.is_empty() && tags_value(whole) == label;
    if agrees { whole } else { label }
}

/// A value as it stands in a label.
fn tags_value(value: &str) -> String {
    let tag = BTreeMap::from([(tags::SANDBOX.to_owned(), value.to_owned())]);
    tags::fit(&tag, &settings::LABEL_RULES).into_values().next().unwrap_or_default()
}

/// `zones/europe-west1-b/instances/123`: what a VM or disk is called for good, whatever has its name later.
fn native_id(thing: &Value, kind: &str) -> Option<String> {
    let (zone, number) = (id::last(text(thing, "/zone")), text(thing, "/id"));
    let known = id::is_zone(zone) && id::is_number(number);
    known.then(|| format!("zones/{zone}/{kind}/{number}"))
}

/// Zone, kind and number of a native id.
fn native(id: &str) -> Option<(&str, &str, &str)> {
    let mut parts = id.strip_prefix("zones/")?.split('/');
    let (zone, kind, number) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = parts.next().is_none() && id::is_zone(zone) && id::is_number(number);
    whole.then_some((zone, kind, number))
}

impl Gcp {
    /// Contacts nothing.
    pub fn new(settings: Settings, context: &Context) -> Self {
        Self {
            compute: Compute::new(&settings),
            deleting: Mutex::default(),
            settings,
            installation: context.installation.clone(),
            user_tags: context.tags.keys().cloned().collect(),
            forwarder_port: context.forwarder_port,
            vxlan_port: context.vxlan_port,
        }
    }

    /// Path of something in the project.
    fn path(&self, rest: &str) -> String {
        format!("/compute/v1/projects/{}/{rest}", self.settings.project)
    }

    /// The VM of that name in that zone; `None` if there is none.
    async fn vm(
        &self,
        operation: &'static str,
        zone: &str,
        name: &str,
    ) -> Result<Option<Value>, Error> {
        let target = self.path(&format!("zones/{zone}/instances/{name}"));
        self.compute.maybe(Call::get(operation, Class::Read, target, "compute#instance")).await
    }

    /// The disk that a VM of that name boots from; `None` if there is none.
    async fn disk(
        &self,
        operation: &'static str,
        zone: &str,
        name: &str,
    ) -> Result<Option<Value>, Error> {
        let target = self.path(&format!("zones/{zone}/disks/{name}"));
        self.compute.maybe(Call::get(operation, Class::Read, target, "compute#disk")).await
    }

    /// Where a VM may be: where its native id says, and in the zones of the settings.
    fn zones_of<'a>(&'a self, vm: &'a VmRef) -> Vec<&'a str> {
        let known = vm.native_id.as_deref().and_then(native).map(|(zone, ..)| zone);
        let others = self.settings.zones.iter().map(String::as_str);
        let mut zones: Vec<&str> = Vec::new();
        for zone in known.into_iter().chain(others) {
            if !zones.contains(&zone) {
                zones.push(zone);
            }
        }
        zones
    }
}

impl std::fmt::Display for Gcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(NAME)
    }
}

#[async_trait::async_trait]
impl Provider for Gcp {
    async fn check(&self) -> Result<Report, Error> {
        self.look().await
    }

    async fn create(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Vm, Error> {
        self.create_vm(spec, candidate).await
    }

    async fn delete(&self, vm: &VmRef) -> Result<Deletion, Error> {
        self.delete_vm(vm).await
    }

    async fn list(&self) -> Result<Vec<Resource>, Error> {
        self.list_all().await
    }

    async fn console(&self, vm: &VmRef) -> Result<Option<String>, Error> {
        self.last_words(vm).await
    }
}
