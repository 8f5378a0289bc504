//! A checked request and what was found become a [`Plan`]: all that is needed to make the VM, the
//! same bytes for every attempt. Pure but for one log line.
//!
//! ```text
//!   PodRequest ─┬─ size::choose ─────────────────▶ candidates (types × markets × zones)
//!   PodNetwork ─┼─ apf.json ┐
//!   Issued ─────┘  initdata ├─ cloud-config ─────▶ VmSpec (name, tags, user data, image)
//!                  auth.json┘  within the cloud's limit; what has no room follows over the link
//! ```

mod cost;
mod user_data;

use std::collections::BTreeMap;

use peerpod_providers::size::{self, Choice, SizeError, SizeRequest, SizeRules};
use peerpod_providers::tags::TagRoom;
use peerpod_providers::{Candidate, InstanceType, Market, UserDataLimit, VmName, VmSpec, tags};
use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::session::MAX_FILES;
use peerpod_tunnel::link::tls::Profile;
use peerpod_tunnel::network::PodNetwork;
use podvm::cloud_config::CloudConfigError;
use serde::{Deserialize, Serialize};

use crate::hypervisor::{Failure, FailureKind};
use crate::labels::{CostTag, PodLabels};
use crate::pki::Issued;
use crate::pod::edit;
use crate::request::PodRequest;
use crate::volumes::{PodVolume, PodVolumes};

pub use user_data::FollowFile;

/// More attempts than that only delay the message that there is no room (providers.md 2.9).
const CANDIDATES_MAX: usize = 8;

/// What is known of one pod.
#[derive(Clone, Debug)]
pub struct PlanInput<'a> {
    /// What the shim asked for.
    pub request: &'a PodRequest,
    /// What was found in its namespace.
    pub network: &'a PodNetwork,
    /// VXLAN id chosen for it.
    pub vni: u32,
    /// Name chosen for its VM.
    pub name: VmName,
    /// Its certificate; `None` if TLS is disabled.
    pub issued: Option<&'a Issued>,
    /// Registry credentials as auth.json, if there are any.
    pub auth: Option<&'a Secret>,
    /// Its volumes.
    pub volumes: &'a PodVolumes,
    /// Its labels, where some are wanted.
    pub labels: &'a PodLabels,
}

/// What is the same for all pods of this node.
#[derive(Clone, Debug, Default)]
pub struct PlanRules {
    /// Installation id.
    pub installation: String,
    /// Name of this node.
    pub node_name: String,
    /// Fencing epoch of this process.
    pub epoch: String,
    /// Tags of the user's for every VM; none may be one of ours.
    pub user_tags: BTreeMap<String, String>,
    /// Labels that become tags, the most wanted first.
    pub cost_tags: Vec<CostTag>,
    /// What room the provider has for these.
    pub tag_room: TagRoom,
    /// Types the provider has.
    pub catalogue: Vec<InstanceType>,
    /// Default and permitted types.
    pub size: SizeRules,
    /// Zones in the order of preference; empty if the cloud has none or chooses itself.
    pub zones: Vec<String>,
    /// Markets in the order of preference; empty is on demand.
    pub markets: Vec<Market>,
    /// Root disk in GiB; 0 is the image's own size.
    pub disk_gib: u32,
    /// UDP port of the tunnel.
    pub vxlan_port: u16,
    /// Versions and suites of the agent link, told to the VM.
    pub profile: Profile,
    /// Ask the VM for an encrypted scratch disk.
    pub scratch_space: bool,
    /// Traffic to the outside leaves by the VM's own second interface.
    pub external_network_via_podvm: bool,
    /// What the provider's cloud takes as user data; `None` takes anything.
    pub user_data_limit: Option<UserDataLimit>,
    /// The provider's settings as they stand in every request (`Report::template`).
    pub template: String,
}

/// All that is needed to make the VM and to speak to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What the VM is made of.
    pub spec: VmSpec,
    /// Where to try, in this order; never empty.
    pub candidates: Vec<Candidate>,
    /// Why the first candidate has that type, for the log and for people.
    pub size_reason: String,
    /// ttrpc methods whose requests the relay lets us edit.
    pub edit_methods: Vec<String>,
    /// Name the VM's certificate carries.
    pub server_name: String,
    /// Fingerprint of the CA of ours that issued it.
    pub authority: Option<String>,
    /// Disks of the pod's own that the VM has.
    #[serde(default, skip_serializing_if = "PodVolumes::is_empty")]
    pub volumes: PodVolumes,
    /// Files that the VM must be sent before the pod begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub follow: Vec<FollowFile>,
    /// Lines for the timeline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Why there is no plan. Asking again cannot help.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// No type fits.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A tag of the user's that is one of ours.
    #[error("TAGS: {0:?} begins with peerpodd-, which is reserved")]
    ReservedTag(String),
    /// Registry credentials that no image takes.
    #[error("auth.json: {size} bytes, at most {limit} can be sent to a VM")]
    Auth {
        /// Bytes there are.
        size: usize,
        /// Bytes there may be.
        limit: usize,
    },
    /// More than the cloud takes.
    #[error(
        "user data: {size} {unit}, the limit is {limit}; the largest part is {part} with {part_size} \
         bytes"
    )]
    TooLarge {
        /// What there is, as the cloud counts.
        size: usize,
        /// `bytes`, or `characters of base64`.
        unit: &'static str,
        /// What there may be.
        limit: usize,
        /// Path of the largest file.
        part: String,
        /// Its length in bytes.
        part_size: usize,
    },
    /// More than goes over the link.
    #[error(
        "{parts}: {size} bytes that have no room in the user data, at most {MAX_FILES} follow over the link"
    )]
    FollowTooLarge {
        /// Paths of the files.
        parts: String,
        /// Their length in bytes.
        size: usize,
    },
    /// apf.json cannot be written.
    #[error("writing apf.json")]
    Apf(#[from] serde_json::Error),
    /// The files cannot be put together.
    #[error(transparent)]
    CloudConfig(#[from] CloudConfigError),
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let kind = match error {
            PlanError::Apf(_) => FailureKind::Internal,
            _ => FailureKind::Invalid,
        };
        Failure::caused_by(kind, &error)
    }
}

/// Makes the plan.
///
/// # Errors
/// [`PlanError`]; sizes with the texts upstream's users know.
pub fn plan(input: &PlanInput<'_>, rules: &PlanRules) -> Result<Plan, PlanError> {
    let request = input.request;
    let Choice { types, reason } =
        size::choose(&size_request(request), &rules.catalogue, &rules.size)?;
    if let Some(image) = &request.image {
        tracing::info!(sandbox = %request.sandbox, "Choosing {image} as the image of this pod");
    }
    let mut tags = all_tags(request, rules)?;
    let mut notes = cost::add(&mut tags, input.labels, rules);
    let (user_data, follow) = user_data::make(input, rules)?;
    notes.extend(follow.iter().map(FollowFile::note));
    let spec = VmSpec {
        tags,
        user_data,
        image: request.image.clone(),
        disk_gib: rules.disk_gib,
        gpus: request.gpus,
        volumes: input.volumes.attached.iter().map(PodVolume::spec).collect(),
        template: rules.template.clone(),
        ..VmSpec::new(input.name.clone(), request.sandbox.as_str())
    };
    let issued = input.issued.map(|i| i.server_name.as_str()).filter(|n| !n.is_empty());
    Ok(Plan {
        spec,
        candidates: candidates(types, rules),
        size_reason: reason,
        edit_methods: if request.gpus > 0 || !input.volumes.is_empty() {
            vec![edit::METHOD.to_owned()]
        } else {
            Vec::new()
        },
        volumes: input.volumes.clone(),
        follow,
        notes,
        server_name: issued.unwrap_or(input.name.as_str()).to_owned(),
        authority: input.issued.and_then(|i| i.authority.clone()),
    })
}

fn size_request(request: &PodRequest) -> SizeRequest {
    SizeRequest {
        instance_type: request.machine_type.clone(),
        vcpus: request.vcpus,
        memory_mib: request.memory_mib,
        gpus: request.gpus,
    }
}

/// The best type everywhere, then the next one: a larger type costs more than another zone.
fn candidates(types: Vec<InstanceType>, rules: &PlanRules) -> Vec<Candidate> {
    let markets = match &rules.markets[..] {
        [] => &[Market::OnDemand],
        given => given,
    };
    let zones: Vec<Option<&String>> =
        if rules.zones.is_empty() { vec![None] } else { rules.zones.iter().map(Some).collect() };
    let places = types.iter().flat_map(|t| {
        let zones = &zones;
        markets.iter().flat_map(move |m| zones.iter().map(move |zone| (t, *m, *zone)))
    });
    let numbered = (0..).zip(places.take(CANDIDATES_MAX));
    numbered
        .map(|(number, (instance_type, market, zone))| Candidate {
            number,
            instance_type: instance_type.name.clone(),
            zone: zone.cloned(),
            market,
        })
        .collect()
}

fn all_tags(
    request: &PodRequest,
    rules: &PlanRules,
) -> Result<BTreeMap<String, String>, PlanError> {
    if let Some(key) = rules.user_tags.keys().find(|k| tags::is_reserved(k)) {
        return Err(PlanError::ReservedTag(key.clone()));
    }
    let ours = [
        (tags::INSTALLATION, rules.installation.as_str()),
        (tags::SANDBOX, request.sandbox.as_str()),
        (tags::NODE, rules.node_name.as_str()),
        (tags::NAMESPACE, request.namespace.as_str()),
        (tags::POD, request.pod.as_str()),
        (tags::EPOCH, rules.epoch.as_str()),
    ];
    let mut all = rules.user_tags.clone();
    all.extend(ours.map(|(key, value)| (key.to_owned(), value.to_owned())));
    Ok(all)
}

#[cfg(test)]
mod tests;
