//! The body of a create (providers.md 5.3): a VM with its disk, interface and address in one request, so
//! that they are made, and deleted, together. It is written in the types of Google's own crate, so that a
//! field that the API does not have does not compile.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use google_cloud_compute_v1::model::{
    AcceleratorConfig, AccessConfig, AttachedDisk, AttachedDiskInitializeParams,
    ConfidentialInstanceConfig, Instance, InstanceParams, Metadata, NetworkInterface, Scheduling,
    access_config, attached_disk, metadata, network_interface, scheduling,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::settings::{ACCELERATOR, LABEL_RULES};
use super::{NAME, id};
use crate::common::DISK_MIN;
use crate::{Candidate, Error, Kind, Market, VmSpec, tags};

/// The settings as far as they are part of a create request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Template {
    pub(super) project: String,
    pub(super) network: String,
    pub(super) subnetwork: Option<String>,
    pub(super) image: String,
    /// Size of the image's disk; 0 is unknown.
    pub(super) image_gib: u32,
    pub(super) disk_type: String,
    pub(super) confidential: Option<String>,
    pub(super) public_ip: bool,
    /// Attached to machines that have no GPUs of their own.
    pub(super) accelerator: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    /// As Google numbers them, where that is known.
    pub(super) manager_tags: BTreeMap<String, String>,
    /// The user's own tags, which are no labels.
    pub(super) user_tags: Vec<String>,
}

fn invalid(text: String) -> Error {
    Error::new(NAME, "create", Kind::Invalid, text)
}

impl Template {
    /// As it stands in a plan.
    pub(super) fn read(text: &str) -> Result<Self, Error> {
        let template: Self = serde_json::from_str(text).map_err(|e| {
            // Anything else of the error may quote the content, which may be anything.
            let line = e.line();
            invalid(format!("the plan's template is not one of Google Cloud's (line {line})"))
        })?;
        let of = |result: Result<String, String>| result.err();
        let optional = |text: &Option<String>, read: fn(&str) -> Result<String, String>| {
            text.as_deref().and_then(|text| read(text).err())
        };
        let problems = [
            ("project", of(id::project(&template.project))),
            ("network", of(id::network(&template.network))),
            ("subnetwork", optional(&template.subnetwork, id::subnetwork)),
            ("image", of(id::image(&template.image, ""))),
            ("disk_type", of(id::resource(&template.disk_type, false))),
            ("confidential", optional(&template.confidential, id::confidential)),
            ("accelerator", optional(&template.accelerator, |text| id::resource(text, false))),
        ];
        match problems.into_iter().find_map(|(field, problem)| Some((field, problem?))) {
            Some((field, problem)) => {
                Err(invalid(format!("the plan's template: {field} {problem}")))
            }
            None => Ok(template),
        }
    }

    /// The body of the request: the same bytes for the same plan.
    pub(super) fn body(&self, spec: &VmSpec, at: &Candidate, zone: &str) -> Result<Value, Error> {
        let instance = self.instance(spec, at, zone)?;
        // By way of a value, whose fields have an order; a hash map's have a new one each time.
        serde_json::to_value(instance).map_err(|e| invalid(format!("VM {}: {e}", spec.name)))
    }

    fn instance(&self, spec: &VmSpec, at: &Candidate, zone: &str) -> Result<Instance, Error> {
        let item = |key: &str, value: String| metadata::Items::new().set_key(key).set_value(value);
        let user_data = STANDARD.encode(&spec.user_data.0);
        let instance = Instance::new()
            .set_name(spec.name.as_str())
            // A label holds 63 characters, a sandbox id has 64.
            .set_description(&spec.sandbox)
            .set_labels(self.labels(spec))
            .set_machine_type(format!("zones/{zone}/machineTypes/{}", at.instance_type))
            .set_disks(self.disks(spec, zone)?)
            .set_metadata(Metadata::new().set_items([
                item("user-data", user_data),
                item("user-data-encoding", "base64".to_owned()),
            ]))
            .set_network_interfaces([self.interface(zone)])
            .set_guest_accelerators(self.accelerators(spec, at, zone)?)
            .set_scheduling(self.scheduling(spec, at));
        let instance = match &self.confidential {
            Some(kind) => instance.set_confidential_instance_config(
                ConfidentialInstanceConfig::new()
                    .set_confidential_instance_type(kind.as_str())
                    .set_enable_confidential_compute(true),
            ),
            None => instance,
        };
        if self.manager_tags.is_empty() {
            return Ok(instance);
        }
        let params = InstanceParams::new().set_resource_manager_tags(self.manager_tags.clone());
        Ok(instance.set_params(params))
    }

    fn scheduling(&self, spec: &VmSpec, at: &Candidate) -> Scheduling {
        let spot = at.market == Market::Spot;
        let gpus = spec.gpus > 0 || id::has_accelerators(&at.instance_type);
        let mut scheduling = Scheduling::new().set_automatic_restart(false);
        if spot || gpus || self.confidential.is_some() {
            scheduling =
                scheduling.set_on_host_maintenance(scheduling::OnHostMaintenance::Terminate);
        }
        if spot {
            scheduling = scheduling
                .set_provisioning_model(scheduling::ProvisioningModel::Spot)
                .set_instance_termination_action(scheduling::InstanceTerminationAction::Delete);
        }
        scheduling
    }

    fn accelerators(
        &self,
        spec: &VmSpec,
        at: &Candidate,
        zone: &str,
    ) -> Result<Vec<AcceleratorConfig>, Error> {
        if spec.gpus == 0 || !id::takes_accelerators(&at.instance_type) {
            return Ok(Vec::new());
        }
        let Some(kind) = &self.accelerator else {
            let text = format!(
                "{} GPUs are asked for, {} has none of its own and {} is not set",
                spec.gpus, at.instance_type, ACCELERATOR.env
            );
            return Err(invalid(text));
        };
        let number = i32::try_from(spec.gpus)
            .map_err(|_| invalid(format!("{} GPUs are too many", spec.gpus)))?;
        Ok(vec![
            AcceleratorConfig::new()
                .set_accelerator_count(number)
                .set_accelerator_type(format!("zones/{zone}/acceleratorTypes/{kind}")),
        ])
    }

    /// Ours, cost tags, and the user's; the user's resource-manager tags are none.
    fn labels(&self, spec: &VmSpec) -> BTreeMap<String, String> {
        let of_vm = spec.tags.iter().filter(|(key, _)| !self.user_tags.contains(key));
        let mut labels: BTreeMap<String, String> =
            of_vm.map(|(key, value)| (key.clone(), value.clone())).collect();
        labels.extend(self.labels.clone());
        labels.insert(tags::SANDBOX.to_owned(), spec.sandbox.clone());
        tags::fit(&labels, &LABEL_RULES)
    }

    fn disks(&self, spec: &VmSpec, zone: &str) -> Result<Vec<AttachedDisk>, Error> {
        let own = spec.image.as_deref().filter(|image| !image.is_empty());
        let image = match own {
            Some(image) => id::image(image, &self.project)
                .map_err(|problem| invalid(format!("image {image:?} {problem}")))?,
            None => self.image.clone(),
        };
        // Kept for those who look for it in the log.
        tracing::info!("Choosing {image}");
        let least = if own.is_some() { 0 } else { self.image_gib };
        let mut root = AttachedDiskInitializeParams::new()
            .set_source_image(image)
            .set_disk_type(format!("zones/{zone}/diskTypes/{}", self.disk_type))
            .set_labels(self.labels(spec))
            .set_description(&spec.sandbox)
            .set_resource_manager_tags(self.manager_tags.clone());
        // Of an image whose size is not known the least disk may be too small, and its own never is.
        let floor = if least == 0 { DISK_MIN } else { 0 };
        if spec.disk_gib > floor {
            root = root.set_disk_size_gb(spec.disk_gib.max(least));
        }
        let mut disks = vec![
            AttachedDisk::new()
                .set_boot(true)
                .set_auto_delete(true)
                .set_type(attached_disk::Type::Persistent)
                .set_initialize_params(root),
        ];
        for volume in &spec.volumes {
            let name = id::last(&volume.disk);
            id::resource(name, false)
                .map_err(|_| invalid(format!("volume {:?} is not a disk's name", volume.disk)))?;
            let source = match volume.disk.contains('/') {
                true => volume.disk.clone(),
                false => format!("projects/{}/zones/{zone}/disks/{name}", self.project),
            };
            let disk =
                AttachedDisk::new().set_source(source).set_auto_delete(false).set_device_name(name);
            disks.push(match volume.read_only {
                true => disk.set_mode(attached_disk::Mode::ReadOnly),
                false => disk,
            });
        }
        Ok(disks)
    }

    fn interface(&self, zone: &str) -> NetworkInterface {
        let mut interface = NetworkInterface::new()
            .set_network(&self.network)
            .set_stack_type(network_interface::StackType::Ipv4Only);
        if let Some(subnetwork) = &self.subnetwork {
            interface = interface.set_subnetwork(match subnetwork.contains('/') {
                true => subnetwork.clone(),
                false => self.subnetwork_in(id::region(zone), subnetwork),
            });
        }
        if self.public_ip {
            interface = interface.set_access_configs([AccessConfig::new()
                .set_type(access_config::Type::OneToOneNat)
                .set_name("External NAT")
                .set_network_tier(access_config::NetworkTier::Standard)]);
        }
        interface
    }

    /// A subnetwork is in the project of its network.
    fn subnetwork_in(&self, region: &str, name: &str) -> String {
        let path = format!("regions/{region}/subnetworks/{name}");
        match id::project_of(&self.network) {
            Some(project) => format!("projects/{project}/{path}"),
            None => path,
        }
    }
}

#[cfg(test)]
mod tests;
