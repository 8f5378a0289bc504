//! VMs of Microsoft Azure (providers.md 4).
//!
//! ```text
//!   create ─ PUT VM with interface, disk, address ─▶ operation ─▶ GET VM, interface ─▶ address
//!   delete ─ GET VM (whose?) ─ DELETE ─▶ operation ─▶ what the cascade has left, by tag and name
//! ```
//! Creates are idempotent by the VM's name and `If-None-Match: *`: Azure makes nothing where something is,
//! and whose it is stands in its tags.

mod catalogue;
mod check;
mod client;
mod console;
mod create;
mod delete;
mod error;
mod http;
mod id;
mod image;
mod list;
mod network;
mod settings;
mod ssh;
mod template;
mod wait;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::batch::Batch;
use crate::context::Context;
use crate::{
    Candidate, Deletion, Error, Provider, Report, Resource, UserDataLimit, Vm, VmRef, VmSpec, tags,
};

use catalogue::Catalogue;
use client::{Arm, COMPUTE, Call, Class};
use list::Part;
pub use settings::{Identity, Rates, Settings, keys};
use wait::Operation;

/// The name in the settings.
pub const NAME: &str = "azure";

/// "User data … must be base64-encoded and at most 64 KB", counted as characters.
const USER_DATA_LIMIT: UserDataLimit = UserDataLimit { size: 65_536, base64: true };

/// Deletes that come within this time of each other share their look at what is left.
const SHARE: Duration = Duration::from_millis(100);

/// The provider.
#[derive(Debug)]
pub struct Azure {
    shared: Arc<Shared>,
    /// What there is besides VMs, for all deletes that ask at the same time.
    parts: Batch<(), Arc<Vec<Part>>>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    installation: String,
    forwarder_port: u16,
    vxlan_port: u16,
    arm: Arm,
    catalogue: Mutex<Option<Arc<Catalogue>>>,
    /// What this process has under way, by the VM's name.
    creating: Mutex<BTreeMap<String, Operation>>,
    deleting: Mutex<BTreeMap<String, Operation>>,
}

impl Azure {
    /// Contacts nothing.
    pub fn new(settings: Settings, context: &Context) -> Self {
        let shared = Arc::new(Shared {
            arm: Arm::new(&settings),
            settings,
            installation: context.installation.clone(),
            forwarder_port: context.forwarder_port,
            vxlan_port: context.vxlan_port,
            catalogue: Mutex::default(),
            creating: Mutex::default(),
            deleting: Mutex::default(),
        });
        let looks = Arc::clone(&shared);
        let parts = Batch::new(SHARE, usize::MAX, move |askers: Vec<()>| {
            let shared = Arc::clone(&looks);
            Box::pin(async move {
                let parts = shared.parts("delete").await.map(Arc::new);
                vec![parts; askers.len()]
            })
        });
        Self { shared, parts }
    }
}

/// The disk that a VM boots from.
fn disk_name(vm: &str) -> String {
    format!("{vm}-disk")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tags of a thing.
fn tags_of(thing: &Value) -> BTreeMap<String, String> {
    let tags = thing.get("tags").and_then(Value::as_object);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    tags.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), text(v)?))).collect()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

impl Shared {
    fn group(&self) -> String {
        let Settings { subscription, group, .. } = &self.settings;
        format!("/subscriptions/{subscription}/resourceGroups/{group}")
    }

    fn vm_path(&self, name: &str) -> String {
        let group = self.group();
        format!("{group}/providers/Microsoft.Compute/virtualMachines/{name}?api-version={COMPUTE}")
    }

    async fn vm(&self, operation: &'static str, name: &str) -> Result<Option<Value>, Error> {
        let path = format!("{}&$expand=instanceView", self.vm_path(name));
        self.arm.maybe(Call::get(operation, Class::Get, path)).await
    }

    /// Whether a thing is that sandbox's: its id is in no other installation.
    fn is_of(&self, tags: &BTreeMap<String, String>, sandbox: &str) -> bool {
        let tag = |key: &str| tags.get(key).map(String::as_str);
        tag(tags::SANDBOX) == Some(sandbox)
    }
}

impl std::fmt::Display for Azure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(NAME)
    }
}

#[async_trait::async_trait]
impl Provider for Azure {
    async fn check(&self) -> Result<Report, Error> {
        self.shared.check().await
    }

    async fn create(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Vm, Error> {
        self.create_vm(spec, candidate).await
    }

    async fn delete(&self, vm: &VmRef) -> Result<Deletion, Error> {
        self.delete_vm(vm).await
    }

    async fn list(&self) -> Result<Vec<Resource>, Error> {
        self.shared.list().await
    }

    async fn console(&self, vm: &VmRef) -> Result<Option<String>, Error> {
        self.shared.console(vm).await
    }
}
