//! VMs of Amazon EC2 (providers.md 3).
//!
//! ```text
//!   create ─ RunInstances with a token ─▶ the VM with its private address
//!            └─ public address, volumes: one look for all that wait ─▶ AttachVolume
//!   delete ─ TerminateInstances, up to 100 in one ─▶ disk and interface go with their VM
//!            └─ without an id: what carries the sandbox's tag, parts included
//! ```
//! Creates are idempotent by their ClientToken: EC2 gives the same VM for the same token and refuses it
//! for other parameters, so a plan keeps all that a request is made of.

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
mod network;
mod place;
mod request;
mod rights;
mod settings;
mod template;
mod volumes;
mod whole;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_ec2::types::{Instance, Tag};
use tokio::sync::watch;

use crate::batch::Batch;
use crate::context::Context;
use crate::{
    Candidate, Deletion, Error, Provider, Report, Resource, UserDataLimit, Vm, VmRef, VmSpec,
};

use client::Ec2;
use image::Images;
use list::Found;
pub use settings::{Identity, Settings, keys};

/// The name in the settings.
pub const NAME: &str = "aws";

/// "User data is limited to 16 KB, in raw form, before it is base64-encoded."
const USER_DATA_LIMIT: UserDataLimit = UserDataLimit { size: 16_384, base64: false };

/// Calls that come within this time of each other are one.
const SHARE: Duration = Duration::from_millis(50);
/// The same of deletes, for which nobody waits: a hundred pods that go at once are stopped over seconds.
const END: Duration = Duration::from_millis(500);
/// Ids of one TerminateInstances; also the sandboxes that one look asks for (EC2 takes 200 values).
const TOGETHER: usize = 100;

/// The provider.
#[derive(Debug)]
pub struct Aws {
    shared: Arc<Shared>,
    /// What there is of a sandbox.
    found: Batch<String, Found>,
    /// By instance id.
    terminate: Batch<String, ()>,
    /// By instance id; `None` while EC2 does not show it.
    looks: Batch<String, Option<Instance>>,
    /// By volume id; the instance to which each is attached.
    attached: Batch<String, Option<String>>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    installation: String,
    forwarder_port: u16,
    vxlan_port: u16,
    ec2: Ec2,
    images: Images,
    /// RunInstances that are on their way, by sandbox. They are not called back when their caller goes.
    creating: Mutex<Vec<(String, watch::Receiver<()>)>>,
}

impl Aws {
    /// Contacts nothing.
    pub fn new(settings: Settings, context: &Context) -> Self {
        let shared = Arc::new(Shared {
            ec2: Ec2::new(&settings),
            settings,
            installation: context.installation.clone(),
            forwarder_port: context.forwarder_port,
            vxlan_port: context.vxlan_port,
            images: Images::default(),
            creating: Mutex::default(),
        });
        let [finds, ends, looks, volumes] = [(); 4].map(|()| Arc::clone(&shared));
        Self {
            found: Batch::new(SHARE, TOGETHER, move |sandboxes| {
                let shared = Arc::clone(&finds);
                Box::pin(async move { shared.find(sandboxes).await })
            }),
            terminate: Batch::new(END, TOGETHER, move |ids| {
                let shared = Arc::clone(&ends);
                Box::pin(async move { shared.terminate(ids).await })
            }),
            looks: Batch::new(SHARE, TOGETHER, move |ids| {
                let shared = Arc::clone(&looks);
                Box::pin(async move { shared.look(ids).await })
            }),
            attached: Batch::new(SHARE, TOGETHER, move |ids| {
                let shared = Arc::clone(&volumes);
                Box::pin(async move { shared.attached(ids).await })
            }),
            shared,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tags_of(tags: &[Tag]) -> BTreeMap<String, String> {
    let pair = |tag: &Tag| Some((tag.key()?.to_owned(), tag.value()?.to_owned()));
    tags.iter().filter_map(pair).collect()
}

/// The same answer for all that share a call.
fn for_all<T: Clone>(number: usize, answer: Result<T, Error>) -> Vec<Result<T, Error>> {
    vec![answer; number]
}

impl std::fmt::Display for Aws {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(NAME)
    }
}

#[async_trait::async_trait]
impl Provider for Aws {
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
        self.console_of(vm).await
    }
}
