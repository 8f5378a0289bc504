//! Instance types: what there is of the permitted ones, and what each can be used for.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{InstanceTypeInfo, LocationType, SupportedAdditionalProcessorFeature};

use super::Shared;
use super::list::filter;
use crate::{Error, InstanceType};

/// Types of one page; EC2 takes no more.
const PAGE: i32 = 100;

/// One type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) size: InstanceType,
    /// `x86_64`, `arm64`.
    pub(super) architectures: Vec<String>,
    /// AMD SEV-SNP.
    pub(super) confidential: bool,
    pub(super) spot: bool,
}

impl Known {
    fn of(info: &InstanceTypeInfo) -> Option<Self> {
        let number = |n: i32| u32::try_from(n).unwrap_or(0);
        let gpus = info.gpu_info().map(|gpus| gpus.gpus()).unwrap_or_default();
        let processor = info.processor_info();
        let features = processor.map(|p| p.supported_features()).unwrap_or_default();
        let memory = info.memory_info().and_then(|m| m.size_in_mib()).unwrap_or(0);
        let classes = info.supported_usage_classes();
        let size = InstanceType {
            name: info.instance_type()?.as_str().to_owned(),
            vcpus: number(info.v_cpu_info().and_then(|c| c.default_v_cpus()).unwrap_or(0)),
            memory_mib: u64::try_from(memory).unwrap_or(0),
            gpus: gpus.iter().map(|gpu| number(gpu.count().unwrap_or(0))).sum(),
            price: None,
        };
        let architectures = processor.map(|p| p.supported_architectures()).unwrap_or_default();
        Some(Self {
            size,
            architectures: architectures.iter().map(|a| a.as_str().to_owned()).collect(),
            confidential: features.contains(&SupportedAdditionalProcessorFeature::AmdSevSnp),
            spot: classes.is_empty() || classes.iter().any(|class| class.as_str() == "spot"),
        })
    }
}

impl Shared {
    /// What there is of these types; `m6a.*` is a family. One that is not there does not come back.
    pub(super) async fn types(&self, names: &[String]) -> Result<Vec<Known>, Error> {
        let client = self.ec2.client("check").await?;
        let wanted = filter("instance-type", names.to_vec());
        let ask = |next| {
            let call = client.describe_instance_types().filters(wanted.clone());
            call.max_results(PAGE).set_next_token(next).send()
        };
        let all = self.ec2.pages("check", "DescribeInstanceTypes", ask, |page| {
            (page.instance_types.unwrap_or_default(), page.next_token)
        });
        Ok(all.await?.iter().filter_map(Known::of).collect())
    }

    /// The zones in which each of these types is offered.
    pub(super) async fn offers(
        &self,
        names: &[String],
    ) -> Result<BTreeMap<String, BTreeSet<String>>, Error> {
        let client = self.ec2.client("check").await?;
        let wanted = filter("instance-type", names.to_vec());
        let ask = |next| {
            let call = client.describe_instance_type_offerings().filters(wanted.clone());
            let call = call.location_type(LocationType::AvailabilityZone);
            call.max_results(1000).set_next_token(next).send()
        };
        let all = self.ec2.pages("check", "DescribeInstanceTypeOfferings", ask, |page| {
            (page.instance_type_offerings.unwrap_or_default(), page.next_token)
        });
        let mut offers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for offer in all.await? {
            let (Some(name), Some(zone)) = (offer.instance_type(), offer.location()) else {
                continue;
            };
            offers.entry(name.as_str().to_owned()).or_default().insert(zone.to_owned());
        }
        Ok(offers)
    }
}
