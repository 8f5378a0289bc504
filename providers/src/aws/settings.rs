//! What the AWS provider is told (providers.md 3.1).

use std::collections::BTreeMap;

use super::id;
use super::request::NAME_TAG;
use crate::budget::Rate;
use crate::common::{self, Class, Common};
use crate::settings::{Key, Reader, SettingsError, Values};
use crate::tags::{self, TagRoom, TagRules};

const ACCESS_KEY: Key = Key::secret(
    "aws-access-key-id",
    "AWS_ACCESS_KEY_ID",
    "access key; without it the profile, else the usual chain (web identity, IMDS) is asked",
);
const SECRET_KEY: Key =
    Key::secret("aws-secret-key", "AWS_SECRET_ACCESS_KEY", "secret of the access key");
const SESSION: Key =
    Key::secret("aws-session-token", "AWS_SESSION_TOKEN", "token of a temporary access key");
const PROFILE: Key = Key::plain("aws-profile", "", "", "profile of the shared files to take");
pub(super) const REGION: Key =
    Key::plain("aws-region", "AWS_REGION", "", "region of the VMs; default: this machine's");
pub(super) const TYPE: Key =
    Key::plain("instance-type", "PODVM_INSTANCE_TYPE", "m6a.large", "default instance type");
pub(super) const TYPES: Key = Key::list(
    "instance-types",
    "PODVM_INSTANCE_TYPES",
    "",
    "permitted instance types, m6a.* for a family; empty permits the default alone",
);
pub(super) const IMAGE: Key = Key::plain("imageid", "PODVM_AMI_ID", "", "the VMs' AMI");
pub(super) const SUBNET: Key = Key::list(
    "subnetid",
    "AWS_SUBNET_ID",
    "",
    "subnet of the VMs; of several, one for each zone to try; default: this machine's",
);
pub(super) const GROUPS: Key = Key::list(
    "securitygroupids",
    "AWS_SG_IDS",
    "",
    "security groups of the VMs; default: this machine's",
);
pub(super) const VPC: Key =
    Key::plain("aws-vpc-id", "AWS_VPC_ID", "", "VPC in which subnet and groups must be");
pub(super) const KEY_PAIR: Key =
    Key::plain("keyname", "SSH_KP_NAME", "", "key pair of the VMs, for people to log in");
pub(super) const USE_TEMPLATE: Key = Key::plain(
    "use-lt",
    "USE_PODVM_LAUNCHTEMPLATE",
    "false",
    "let a launch template decide image, type and network",
);
pub(super) const TEMPLATE: Key =
    Key::plain("aws-lt-name", "PODVM_LAUNCHTEMPLATE_NAME", "kata", "name of the launch template");
pub(super) const VOLUME_TYPE: Key = Key::plain(
    "aws-root-volume-type",
    "AWS_ROOT_VOLUME_TYPE",
    "gp3",
    "type of the root disk: gp2, gp3, io1, io2",
);
pub(super) const ENCRYPTED: Key = Key::plain(
    "aws-root-volume-encrypted",
    "AWS_ROOT_VOLUME_ENCRYPTED",
    "true",
    "encrypt the root disk",
);
pub(super) const ENDPOINT: Key = Key::plain(
    "aws-endpoint-url-ec2",
    "AWS_ENDPOINT_URL_EC2",
    "",
    "where EC2 is, if not at the region's own address",
);
const STS_ENDPOINT: Key = Key::plain(
    "aws-endpoint-url-sts",
    "AWS_ENDPOINT_URL_STS",
    "",
    "where STS is, which says who asks, if not at the region's own address",
);
const METADATA: Key = Key::plain(
    "aws-ec2-metadata-service-endpoint",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "",
    "where this machine's metadata are, if not at 169.254.169.254",
);

// RunInstances, Describe* and whatever changes something: docs.aws.amazon.com, EC2 API, "Request
// throttling" (2/s of 5, 20/s of 100, 5/s of 50). TerminateInstances is taken as providers.md 2.8 has it (5/s of 100, not verified). The
// defaults are half of them.
pub(super) const RUN: Class = Class {
    key: Key::plain("api-rate-run-instances", "API_RATE_RUN_INSTANCES", "1", "creates per second"),
    name: "RunInstances",
    published: 2.0,
    bucket: 5,
};
pub(super) const TERMINATE: Class = Class {
    key: Key::plain(
        "api-rate-terminate-instances",
        "API_RATE_TERMINATE_INSTANCES",
        "2.5",
        "deletes per second, of up to 100 VMs each",
    ),
    name: "TerminateInstances",
    published: 5.0,
    bucket: 100,
};
pub(super) const DESCRIBE: Class = Class {
    key: Key::plain("api-rate-describe", "API_RATE_DESCRIBE", "10", "looks per second"),
    name: "Describe",
    published: 20.0,
    bucket: 100,
};

pub(super) const ATTACH: Class = Class {
    key: Key::plain(
        "api-rate-attach-volume",
        "API_RATE_ATTACH_VOLUME",
        "2.5",
        "volumes attached per second",
    ),
    name: "AttachVolume",
    published: 5.0,
    bucket: 50,
};

const KEYS: [Key; 28] = [
    ACCESS_KEY,
    SECRET_KEY,
    SESSION,
    PROFILE,
    REGION,
    TYPE,
    TYPES,
    IMAGE,
    SUBNET,
    GROUPS,
    VPC,
    KEY_PAIR,
    USE_TEMPLATE,
    TEMPLATE,
    VOLUME_TYPE,
    ENCRYPTED,
    ENDPOINT,
    STS_ENDPOINT,
    METADATA,
    common::DISABLE_CVM,
    common::PUBLIC_IP,
    common::DISK,
    common::SPOT,
    common::PRICES,
    RUN.key,
    TERMINATE.key,
    DESCRIBE.key,
    ATTACH.key,
];

/// The settings of this provider.
pub fn keys() -> &'static [Key] {
    &KEYS
}

/// What EC2 takes as tags ("Tag restrictions"). Keys of cost tags have only what a VM may show of its
/// tags in its metadata, which a launch template or the account may ask for ("View tags for your EC2
/// instances using instance metadata"): otherwise every launch would fail.
pub(super) const TAGS: TagRules = TagRules {
    cloud: "AWS",
    most: 50,
    key_max: 128,
    value_max: 256,
    key_has: |c| !c.is_control(),
    value_has: |c| !c.is_control(),
    forbidden_prefix: "aws:",
    cost_key_has: |c| c.is_ascii_alphanumeric() || "+-=.,_:@".contains(c),
    ..TagRules::ANY
};

/// What room there is for cost tags.
pub(super) fn tag_room() -> TagRoom {
    TagRoom { own: [NAME_TAG.to_owned()].into(), ..TagRoom::new(TAGS) }
}

/// By what this process shows who it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Identity {
    /// An access key from the settings.
    Static {
        /// Its id.
        id: String,
        /// Its secret; never printed.
        secret: String,
        /// Of a temporary key; never printed.
        session: Option<String>,
    },
    /// A profile of the shared files.
    Profile(String),
    /// What the SDK finds: environment, web identity, container, IMDS.
    Chain,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words())
    }
}

impl Identity {
    /// Which it is, for people.
    pub fn words(&self) -> String {
        match self {
            Self::Static { session: Some(_), .. } => "a temporary access key".to_owned(),
            Self::Static { .. } => "an access key".to_owned(),
            Self::Profile(name) => format!("profile {name:?}"),
            Self::Chain => "the usual chain of credentials".to_owned(),
        }
    }
}

/// Checked settings. See [`keys`] for where they come from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Credentials.
    pub identity: Identity,
    /// Region; `None` is this machine's.
    pub region: Option<String>,
    /// Default type.
    pub instance_type: String,
    /// Permitted types.
    pub types: Vec<String>,
    /// Default image; `None` where a launch template decides.
    pub image: Option<String>,
    /// Subnets in turn; empty is this machine's.
    pub subnets: Vec<String>,
    /// Security groups; empty are this machine's.
    pub groups: Vec<String>,
    /// Where subnets and groups must be.
    pub vpc: Option<String>,
    /// Key pair.
    pub key_pair: Option<String>,
    /// Launch template by name.
    pub launch_template: Option<String>,
    /// Type of the root disk.
    pub volume_type: String,
    /// Encrypt the root disk.
    pub encrypted: bool,
    /// EC2's address.
    pub endpoint: Option<String>,
    /// STS's address.
    pub sts_endpoint: Option<String>,
    /// Address of this machine's metadata.
    pub metadata: Option<String>,
    /// What all clouds share.
    pub common: Common,
    /// Budget of creates.
    pub run: Rate,
    /// Budget of deletes.
    pub terminate: Rate,
    /// Budget of looks.
    pub describe: Rate,
    /// Budget of volumes that are attached.
    pub attach: Rate,
}

impl Settings {
    /// Reads the settings; `user_tags` are the user's own.
    ///
    /// # Errors
    /// All that is missing or wrong, each with its key.
    pub fn from_values(
        values: &Values,
        user_tags: &BTreeMap<String, String>,
    ) -> Result<Self, SettingsError> {
        let mut reader = Reader::new(values);
        let settings = Self::read(&mut reader);
        let mut problems = tags::check(user_tags, &TAGS);
        match reader.finish(settings) {
            Ok(settings) if problems.is_empty() => Ok(settings),
            Ok(_) => Err(SettingsError(problems)),
            Err(SettingsError(mut all)) => {
                all.append(&mut problems);
                Err(SettingsError(all))
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let common = common::read(reader, &KEYS);
        let [run, terminate, describe, attach] =
            [RUN, TERMINATE, DESCRIBE, ATTACH].map(|class| class.rate(reader));
        let identity = identity(reader);
        let region = optional(reader, &REGION, id::region);
        let instance_type = reader.parsed(&TYPE, |text| id::instance_type(text, false));
        let types = items(reader, &TYPES, |text| id::instance_type(text, true));
        let template = launch_template(reader, common.as_ref());
        let image = match (&template, reader.text(&IMAGE)) {
            (Some(Some(_)), None) => Some(None),
            _ => reader.parsed(&IMAGE, |text| id::id(text, "ami-")).map(Some),
        };
        let subnets = items(reader, &SUBNET, |text| id::id(text, "subnet-"));
        let groups = items(reader, &GROUPS, |text| id::id(text, "sg-"));
        let vpc = optional(reader, &VPC, |text| id::id(text, "vpc-"));
        let volume_type = reader.parsed(&VOLUME_TYPE, volume_type);
        let encrypted = reader.parsed(&ENCRYPTED, common::boolean);
        let [at, sts, metadata] =
            [ENDPOINT, STS_ENDPOINT, METADATA].map(|key| optional(reader, &key, endpoint));
        Some(Self {
            identity: identity?,
            region: region?,
            instance_type: instance_type?,
            types,
            image: image?,
            subnets,
            groups,
            vpc: vpc?,
            key_pair: reader.text(&KEY_PAIR).map(str::to_owned),
            launch_template: template?,
            volume_type: volume_type?,
            encrypted: encrypted?,
            endpoint: at?,
            sts_endpoint: sts?,
            metadata: metadata?,
            common: common?,
            run: run?,
            terminate: terminate?,
            describe: describe?,
            attach: attach?,
        })
    }
}

/// A key that may be absent, but not wrong.
fn optional(
    reader: &mut Reader<'_>,
    key: &Key,
    parse: impl FnOnce(&str) -> Result<String, String>,
) -> Option<Option<String>> {
    // A forgotten placeholder is no wish for this machine's own.
    let left = reader.text(key).is_none() && !reader.is_placeholder(key);
    if left { Some(None) } else { reader.parsed(key, parse).map(Some) }
}

fn items(
    reader: &mut Reader<'_>,
    key: &Key,
    parse: impl Fn(&str) -> Result<String, String>,
) -> Vec<String> {
    if reader.is_placeholder(key) {
        reader.problem(key, "is a placeholder");
    }
    let items = common::list(reader.text(key).unwrap_or_default());
    for item in &items {
        if let Err(e) = parse(item) {
            reader.problem(key, format!("{item:?} {e}"));
        }
    }
    items
}

fn launch_template(reader: &mut Reader<'_>, common: Option<&Common>) -> Option<Option<String>> {
    if !reader.parsed(&USE_TEMPLATE, common::boolean)? {
        return Some(None);
    }
    if common.is_some_and(|c| c.public_ip) {
        reader.problem(&USE_TEMPLATE, "and USE_PUBLIC_IP (--use-public-ip) exclude each other");
    }
    reader.text(&TEMPLATE).map(|name| Some(name.to_owned()))
}

fn volume_type(text: &str) -> Result<String, &'static str> {
    match text {
        "gp2" | "gp3" | "io1" | "io2" => Ok(text.to_owned()),
        _ => Err("is none of gp2, gp3, io1, io2"),
    }
}

fn endpoint(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.starts_with('/') && !rest.contains(' ') => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err("is not a URL".to_owned()),
    }
}

/// An access key, else a profile, else the SDK's chain.
fn identity(reader: &mut Reader<'_>) -> Option<Identity> {
    let text = |key: &Key| reader.text(key).map(str::to_owned);
    match (text(&ACCESS_KEY), text(&SECRET_KEY), text(&PROFILE)) {
        (Some(id), Some(secret), _) => {
            Some(Identity::Static { id, secret, session: text(&SESSION) })
        }
        (Some(_), None, _) => {
            reader.problem(&SECRET_KEY, "is required with AWS_ACCESS_KEY_ID");
            None
        }
        (None, Some(_), _) => {
            reader.problem(&ACCESS_KEY, "is required with AWS_SECRET_ACCESS_KEY");
            None
        }
        (None, None, Some(profile)) => Some(Identity::Profile(profile)),
        (None, None, None) => Some(Identity::Chain),
    }
}

#[cfg(test)]
mod tests;
