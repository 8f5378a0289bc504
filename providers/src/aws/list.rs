//! Everything that is ours: VMs that are not over, and disks and interfaces that no VM has.

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_sdk_ec2::primitives::DateTime;
use aws_sdk_ec2::types::{Filter, Instance, InstanceStateName, NetworkInterface, Volume};

use super::create::{market, state};
use super::request::NAME_TAG;
use super::{Shared, for_all, tags_of};
use crate::{Error, Kind, Resource, ResourceKind, VmName, VmRef, tags};

/// States of VMs that are not over.
const ALIVE: [&str; 4] = ["pending", "running", "stopping", "stopped"];
/// Things of one page.
const PAGE: i32 = 1000;

/// What there is of one sandbox.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// Ids.
    pub(super) instances: Vec<String>,
    pub(super) parts: Vec<Part>,
}

/// Something that came with a VM and has outlived it.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) kind: ResourceKind,
    pub(super) id: String,
    tags: BTreeMap<String, String>,
    created: Option<SystemTime>,
}

pub(super) fn filter(name: impl Into<String>, values: Vec<String>) -> Filter {
    Filter::builder().name(name).set_values(Some(values)).build()
}

fn tagged(key: &str, values: Vec<String>) -> Filter {
    filter(format!("tag:{key}"), values)
}

fn alive() -> Filter {
    filter("instance-state-name", ALIVE.map(str::to_owned).into())
}

fn time(at: Option<&DateTime>) -> Option<SystemTime> {
    at.and_then(|at| SystemTime::try_from(*at).ok())
}

impl Shared {
    pub(super) async fn list(&self) -> Result<Vec<Resource>, Error> {
        let ours = || tagged(tags::INSTALLATION, vec![self.installation.clone()]);
        let instances = self.instances("list", vec![ours(), alive()]).await?;
        let mut all = Vec::new();
        for instance in &instances {
            let tags = tags_of(instance.tags());
            let found =
                resource(ResourceKind::Vm, id_of(instance)?, tags, time(instance.launch_time()));
            all.extend(found.map(|found| self.machine(found, instance)));
        }
        let parts = self.parts("list", ours()).await?;
        let resources = parts.into_iter().map(|Part { kind, id, tags, created }| {
            // Deleted by its sandbox: the id is no VM's.
            resource(kind, id, tags, created)
                .map(|r| Resource { vm: VmRef { native_id: None, ..r.vm }, ..r })
        });
        all.extend(resources.flatten());
        Ok(all)
    }

    fn machine(&self, found: Resource, instance: &Instance) -> Resource {
        let instance_type = instance.instance_type().map(|t| t.as_str().to_owned());
        let stopped = [InstanceStateName::Stopping, InstanceStateName::Stopped];
        let of = instance_type.as_deref().unwrap_or_default();
        let price = self.settings.common.prices.of(of, market(instance));
        let running = state(instance).map(|state| !stopped.contains(state));
        Resource { running, instance_type, price, ..found }
    }

    /// What there is of each of these sandboxes, all in three calls.
    pub(super) async fn find(&self, sandboxes: Vec<String>) -> Vec<Result<Found, Error>> {
        match self.found(&sandboxes).await {
            Err(e) => for_all(sandboxes.len(), Err(e)),
            Ok(mut by_sandbox) => sandboxes
                .iter()
                .map(|sandbox| Ok(by_sandbox.remove(sandbox).unwrap_or_default()))
                .collect(),
        }
    }

    async fn found(&self, sandboxes: &[String]) -> Result<BTreeMap<String, Found>, Error> {
        let mut asked = sandboxes.to_vec();
        asked.dedup();
        let theirs = || tagged(tags::SANDBOX, asked.clone());
        let instances = self.instances("delete", vec![theirs(), alive()]).await?;
        let parts = self.parts("delete", theirs()).await?;
        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        for instance in &instances {
            if let Some(sandbox) = tags_of(instance.tags()).remove(tags::SANDBOX) {
                found.entry(sandbox).or_default().instances.push(id_of(instance)?);
            }
        }
        for part in parts {
            if let Some(sandbox) = part.tags.get(tags::SANDBOX).cloned() {
                found.entry(sandbox).or_default().parts.push(part);
            }
        }
        Ok(found)
    }

    /// VMs that fit.
    pub(super) async fn instances(
        &self,
        operation: &'static str,
        filters: Vec<Filter>,
    ) -> Result<Vec<Instance>, Error> {
        let client = self.ec2.client(operation).await?;
        let ask = |next| {
            let call = client.describe_instances().set_filters(Some(filters.clone()));
            call.max_results(PAGE).set_next_token(next).send()
        };
        let reservations = self
            .ec2
            .pages(operation, "DescribeInstances", ask, |page| {
                (page.reservations.unwrap_or_default(), page.next_token)
            })
            .await?;
        Ok(reservations.into_iter().flat_map(|r| r.instances.unwrap_or_default()).collect())
    }

    /// Disks and interfaces that fit and that no VM has.
    async fn parts(&self, operation: &'static str, whose: Filter) -> Result<Vec<Part>, Error> {
        let client = self.ec2.client(operation).await?;
        let filters = Some(vec![whose, filter("status", vec!["available".to_owned()])]);
        let ask = |next| {
            let call = client.describe_network_interfaces().set_filters(filters.clone());
            call.max_results(PAGE).set_next_token(next).send()
        };
        let interfaces = self
            .ec2
            .pages(operation, "DescribeNetworkInterfaces", ask, |page| {
                (page.network_interfaces.unwrap_or_default(), page.next_token)
            })
            .await?;
        let ask = |next| {
            let call = client.describe_volumes().set_filters(filters.clone());
            call.max_results(PAGE).set_next_token(next).send()
        };
        let volumes = self
            .ec2
            .pages(operation, "DescribeVolumes", ask, |page| {
                (page.volumes.unwrap_or_default(), page.next_token)
            })
            .await?;
        Ok(interfaces.iter().map(interface).chain(volumes.iter().map(disk)).collect())
    }
}

fn id_of(instance: &Instance) -> Result<String, Error> {
    let id = instance.instance_id().filter(|id| !id.is_empty()).map(str::to_owned);
    let text = "DescribeInstances: an instance without an id";
    id.ok_or_else(|| Error::new(super::NAME, "list", Kind::Unavailable, text))
}

fn interface(interface: &NetworkInterface) -> Part {
    Part {
        kind: ResourceKind::Interface,
        id: interface.network_interface_id().unwrap_or_default().to_owned(),
        tags: tags_of(interface.tag_set()),
        created: None,
    }
}

fn disk(volume: &Volume) -> Part {
    Part {
        kind: ResourceKind::Disk,
        id: volume.volume_id().unwrap_or_default().to_owned(),
        tags: tags_of(volume.tags()),
        created: time(volume.create_time()),
    }
}

fn resource(
    kind: ResourceKind,
    id: String,
    tags: BTreeMap<String, String>,
    created: Option<SystemTime>,
) -> Option<Resource> {
    let sandbox = tags.get(tags::SANDBOX)?.clone();
    let name = VmName::from_existing(tags.get(NAME_TAG).cloned().unwrap_or_default());
    let vm = VmRef { name, sandbox, native_id: Some(id) };
    Some(Resource { created, ..Resource::new(kind, vm, tags) })
}
