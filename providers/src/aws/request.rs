//! RunInstances of one attempt (providers.md 3.3): the same bytes for the same plan, whoever sends them.

use aws_sdk_ec2::operation::run_instances::RunInstancesInput;
use aws_sdk_ec2::operation::run_instances::builders::RunInstancesInputBuilder;
use aws_sdk_ec2::types::{
    AmdSevSnpSpecification, BlockDeviceMapping, CpuOptionsRequest, EbsBlockDevice, HttpTokensState,
    InstanceInterruptionBehavior, InstanceMarketOptionsRequest, InstanceMetadataOptionsRequest,
    InstanceNetworkInterfaceSpecification, InstanceType as Ec2Type, LaunchTemplateSpecification,
    MarketType, ResourceType, ShutdownBehavior, SpotInstanceType, SpotMarketOptions, Tag,
    TagSpecification, VolumeType,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::image::Root;
use super::template::Template;
use super::{NAME, settings};
use crate::{Candidate, Error, Kind, Market, Token, VmSpec, tags};

/// The tag that EC2's console shows as the name.
pub(super) const NAME_TAG: &str = "Name";
/// Operations per second of an io1 or io2 disk: what a gp3 has, within the least ratio to its size (50
/// for each GiB) and not below the least there is.
const IOPS: (u32, u32, u32) = (100, 50, 3000);

fn refuse(text: String) -> Error {
    Error::new(NAME, "create", Kind::Invalid, text)
}

impl Template {
    /// The request; `root` is the disk of an image that the pod names itself.
    pub(super) fn request(
        &self,
        spec: &VmSpec,
        at: &Candidate,
        root: Option<&Root>,
        token: &Token,
    ) -> Result<RunInstancesInputBuilder, Error> {
        let request = RunInstancesInput::builder()
            .min_count(1)
            .max_count(1)
            .client_token(token.hex())
            .user_data(STANDARD.encode(&spec.user_data.0))
            .set_tag_specifications(Some(tag_specifications(spec)))
            .set_instance_market_options(market(at.market));
        let own = spec.image.as_deref().filter(|image| !image.is_empty());
        if let Some(name) = &self.launch_template {
            // It decides all the rest.
            let template =
                LaunchTemplateSpecification::builder().launch_template_name(name).build();
            return Ok(request.launch_template(template).set_image_id(own.map(str::to_owned)));
        }
        let image = own.or(self.image.as_deref());
        let image = image.ok_or_else(|| refuse("the plan has no image".to_owned()))?;
        let root = root.or(self.root.as_ref());
        let root = root.ok_or_else(|| refuse(format!("image {image} has no root disk")))?;
        let request = request
            .image_id(image)
            .instance_type(Ec2Type::from(at.instance_type.as_str()))
            .block_device_mappings(self.disk(spec, root))
            .metadata_options(
                InstanceMetadataOptionsRequest::builder()
                    .http_tokens(HttpTokensState::Required)
                    .http_put_response_hop_limit(1)
                    .build(),
            )
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
            .set_key_name(self.key_pair.clone())
            .set_cpu_options(self.confidential.then(|| {
                CpuOptionsRequest::builder().amd_sev_snp(AmdSevSnpSpecification::Enabled).build()
            }));
        self.network(request, at)
    }

    /// Subnet and groups; with a public address they stand in the interface instead.
    fn network(
        &self,
        request: RunInstancesInputBuilder,
        at: &Candidate,
    ) -> Result<RunInstancesInputBuilder, Error> {
        let subnet = at.zone.as_ref().and_then(|zone| self.subnets.get(zone));
        let subnet = subnet.ok_or_else(|| {
            refuse(format!("the plan's template: subnets has none in zone {:?}", at.zone))
        })?;
        if !self.public_ip {
            let groups = Some(self.groups.clone()).filter(|groups| !groups.is_empty());
            return Ok(request.subnet_id(subnet).set_security_group_ids(groups));
        }
        let interface = InstanceNetworkInterfaceSpecification::builder()
            .device_index(0)
            .associate_public_ip_address(true)
            .subnet_id(subnet)
            .set_groups(Some(self.groups.clone()).filter(|groups| !groups.is_empty()))
            .delete_on_termination(true);
        Ok(request.network_interfaces(interface.build()))
    }

    fn disk(&self, spec: &VmSpec, root: &Root) -> BlockDeviceMapping {
        let (device, image_gib) = root;
        let size = spec.disk_gib.max(*image_gib);
        let provisioned = self.volume_type.starts_with("io");
        let (least, ratio, most) = IOPS;
        let iops = provisioned.then(|| size.saturating_mul(ratio).clamp(least, most));
        let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let disk = EbsBlockDevice::builder()
            .set_volume_size(Some(number(size)).filter(|size| *size > 0))
            .volume_type(VolumeType::from(self.volume_type.as_str()))
            .set_iops(iops.map(number))
            // EC2 refuses "not encrypted" for an image that is.
            .set_encrypted(self.encrypted.then_some(true))
            .delete_on_termination(true);
        BlockDeviceMapping::builder().device_name(device).ebs(disk.build()).build()
    }
}

fn market(market: Market) -> Option<InstanceMarketOptionsRequest> {
    let spot = SpotMarketOptions::builder()
        .spot_instance_type(SpotInstanceType::OneTime)
        .instance_interruption_behavior(InstanceInterruptionBehavior::Terminate);
    let options = InstanceMarketOptionsRequest::builder()
        .market_type(MarketType::Spot)
        .spot_options(spot.build());
    (market == Market::Spot).then(|| options.build())
}

/// All that comes with the VM is found by the same tags.
fn tag_specifications(spec: &VmSpec) -> Vec<TagSpecification> {
    let mut all = tags::fit(&spec.tags, &settings::TAGS);
    all.insert(NAME_TAG.to_owned(), spec.name.to_string());
    let all: Vec<Tag> = all.iter().map(|(k, v)| Tag::builder().key(k).value(v).build()).collect();
    [ResourceType::Instance, ResourceType::Volume, ResourceType::NetworkInterface]
        .map(|kind| {
            TagSpecification::builder().resource_type(kind).set_tags(Some(all.clone())).build()
        })
        .into()
}

#[cfg(test)]
mod tests;
