//! What the Azure provider is told (providers.md 4.1).

use std::path::{Path, PathBuf};

use super::id;
use super::ssh;
use crate::budget::Rate;
use crate::common::{self, Class, Common};
use crate::http;
use crate::settings::{Key, Reader, SettingsError, Values};
use crate::tags::{self, TagRoom, TagRules};

const CLIENT_ID: Key = Key::plain(
    "clientid",
    "AZURE_CLIENT_ID",
    "",
    "application of a service principal or workload identity, or the client id of a user-assigned \
     managed identity",
);
const SECRET: Key = Key::secret(
    "secret",
    "AZURE_CLIENT_SECRET",
    "secret of the service principal; without it a workload identity or a managed identity is used",
);
const TENANT_ID: Key = Key::plain("tenantid", "AZURE_TENANT_ID", "", "tenant of the application");
const TOKEN_FILE: Key = Key::plain(
    "federated-token-file",
    "AZURE_FEDERATED_TOKEN_FILE",
    "",
    "file with the token of a workload identity, as its webhook sets it",
);
const SUBSCRIPTION: Key =
    Key::plain("subscriptionid", "AZURE_SUBSCRIPTION_ID", "", "subscription of the VMs");
pub(super) const REGION: Key = Key::plain("region", "AZURE_REGION", "", "region of the VMs");
pub(super) const GROUP: Key =
    Key::plain("resourcegroup", "AZURE_RESOURCE_GROUP", "", "resource group of the VMs");
pub(super) const SIZE: Key =
    Key::plain("instance-size", "AZURE_INSTANCE_SIZE", "Standard_DC2as_v5", "default VM size");
pub(super) const SIZES: Key = Key::list(
    "instance-sizes",
    "AZURE_INSTANCE_SIZES",
    "",
    "permitted VM sizes; a trailing * stands for the rest of a name; empty permits the default alone",
);
pub(super) const SUBNET: Key =
    Key::plain("subnetid", "AZURE_SUBNET_ID", "", "full id of the VMs' subnet");
pub(super) const NSG: Key = Key::plain(
    "securitygroupid",
    "AZURE_NSG_ID",
    "",
    "full id of the network security group of the VMs' interfaces",
);
pub(super) const IMAGE: Key = Key::plain(
    "imageid",
    "AZURE_IMAGE_ID",
    "",
    "full id of the image, or /CommunityGalleries/<gallery>/Images/<image>/Versions/<version>",
);
pub(super) const ZONES: Key =
    Key::list("zone", "AZURE_ZONES", "", "availability zones to try in turn: 1, 2, 3");
const SSH_KEY: Key = Key::plain(
    "ssh-key-path",
    "",
    "",
    "file with a public key for the VMs' user; default: a key that nobody holds",
);
const SSH_USER: Key =
    Key::plain("ssh-username", "SSH_USERNAME", "peerpod", "user that Azure makes in the VMs");
pub(super) const SECURE_BOOT: Key = Key::plain(
    "enable-secure-boot",
    "ENABLE_SECURE_BOOT",
    "false",
    "secure boot of confidential VMs",
);
pub(super) const ARM: Key = Key::plain(
    "azure-arm-endpoint",
    "AZURE_ARM_ENDPOINT",
    "https://management.azure.com",
    "Azure Resource Manager, of another cloud than the public one",
);
pub(super) const AUTHORITY: Key = Key::plain(
    "azure-authority-host",
    "AZURE_AUTHORITY_HOST",
    "https://login.microsoftonline.com",
    "where tokens come from, of another cloud than the public one",
);

const fn class(
    flag: &'static str,
    env: &'static str,
    default: &'static str,
    help: &'static str,
    (name, published, bucket): (&'static str, f64, u32),
) -> Class {
    Class { key: Key::plain(flag, env, default, help), name, published, bucket }
}

// Limits per subscription and region: learn.microsoft.com, "Virtual machine and VMSS throttling"
// (500, 8000 and 30 a minute, buckets of three minutes); the defaults are half of them. Those of
// operations and of the network are not published per call: ARM's own reads are taken for them.
pub(super) const PUT: Class = class(
    "api-rate-vm-put",
    "API_RATE_VM_PUT",
    "4.1",
    "VMs asked for per second",
    ("VM PUT", 8.33, 1500),
);
pub(super) const DELETE: Class = class(
    "api-rate-vm-delete",
    "API_RATE_VM_DELETE",
    "4.1",
    "deletes per second",
    ("VM DELETE", 8.33, 1500),
);
pub(super) const GET: Class = class(
    "api-rate-vm-get",
    "API_RATE_VM_GET",
    "66",
    "looks at single VMs per second",
    ("VM GET", 133.3, 24_000),
);
pub(super) const LIST: Class = class(
    "api-rate-vm-list",
    "API_RATE_VM_LIST",
    "0.25",
    "lists of VMs per second",
    ("VM list", 0.5, 30),
);
pub(super) const OPERATION: Class = class(
    "api-rate-operation",
    "API_RATE_OPERATION",
    "66",
    "looks at operations per second",
    ("operation", 133.3, 24_000),
);
pub(super) const READ: Class = class(
    "api-rate-arm-read",
    "API_RATE_ARM_READ",
    "12",
    "other reads per second",
    ("ARM read", 25.0, 250),
);

const KEYS: [Key; 29] = [
    CLIENT_ID,
    SECRET,
    TENANT_ID,
    TOKEN_FILE,
    SUBSCRIPTION,
    REGION,
    GROUP,
    SIZE,
    SIZES,
    SUBNET,
    NSG,
    IMAGE,
    ZONES,
    SSH_KEY,
    SSH_USER,
    SECURE_BOOT,
    ARM,
    AUTHORITY,
    common::DISABLE_CVM,
    common::PUBLIC_IP,
    common::DISK,
    common::SPOT,
    common::PRICES,
    PUT.key,
    DELETE.key,
    GET.key,
    LIST.key,
    OPERATION.key,
    READ.key,
];

/// The settings of this provider.
pub fn keys() -> &'static [Key] {
    &KEYS
}

/// What Azure takes as tags ("Use tags to organize your Azure resources", "Limitations"; the prefixes
/// from the reference of the tags API).
pub(super) const TAGS: TagRules = TagRules {
    cloud: "Azure",
    most: 50,
    chars_max: 2048,
    key_max: 512,
    value_max: 256,
    key_has: key_char,
    value_has: |c| !c.is_control(),
    forbidden_prefix: "",
    cost_key_has: key_char,
    cost_key_not: &["microsoft", "azure", "windows"],
};

fn key_char(c: char) -> bool {
    !r"<>%&\?/".contains(c) && !c.is_control()
}

/// What room there is for cost tags.
pub(super) fn tag_room() -> TagRoom {
    TagRoom::new(TAGS)
}

/// By what this process shows who it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Identity {
    /// Service principal with a secret.
    Secret {
        /// Directory.
        tenant: String,
        /// Application.
        client: String,
        /// Its secret; never printed.
        secret: String,
    },
    /// Service account token of Kubernetes, exchanged.
    Workload {
        /// Directory.
        tenant: String,
        /// Application.
        client: String,
        /// Where the token lies.
        file: PathBuf,
    },
    /// What the machine itself has.
    Managed {
        /// Client id of a user-assigned one.
        client: Option<String>,
    },
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
            Self::Secret { client, .. } => format!("service principal {client} with a secret"),
            Self::Workload { client, .. } => format!("workload identity {client}"),
            Self::Managed { client: Some(client) } => format!("managed identity {client}"),
            Self::Managed { client: None } => "the machine's own managed identity".to_owned(),
        }
    }
}

/// Budgets per second, in the order of the classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    pub(super) put: Rate,
    pub(super) delete: Rate,
    pub(super) get: Rate,
    pub(super) list: Rate,
    pub(super) operation: Rate,
    pub(super) read: Rate,
}

/// Checked settings. See [`keys`] for where they come from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Credentials.
    pub identity: Identity,
    /// Subscription of everything.
    pub subscription: String,
    /// Region of everything.
    pub region: String,
    /// Resource group of everything.
    pub group: String,
    /// Default size.
    pub size: String,
    /// Permitted sizes.
    pub sizes: Vec<String>,
    /// Subnet, full id.
    pub subnet: String,
    /// Network security group, full id.
    pub nsg: Option<String>,
    /// Default image.
    pub image: String,
    /// Zones in turn; empty lets Azure place VMs.
    pub zones: Vec<String>,
    /// `authorized_keys` line.
    pub ssh_key: String,
    /// User.
    pub ssh_user: String,
    /// Secure boot.
    pub secure_boot: bool,
    /// ARM, without a slash at the end.
    pub arm: String,
    /// Where tokens come from, without a slash at the end.
    pub authority: String,
    /// What all clouds share.
    pub common: Common,
    /// How often what may be asked.
    pub rates: Rates,
}

impl Settings {
    /// Reads the settings; `user_tags` are the user's own.
    ///
    /// # Errors
    /// All that is missing or wrong, each with its key.
    pub fn from_values(
        values: &Values,
        user_tags: &std::collections::BTreeMap<String, String>,
    ) -> Result<Self, SettingsError> {
        let mut reader = Reader::new(values);
        let common = common::read(&mut reader, &KEYS);
        let rates = rates(&mut reader);
        let identity = identity(&mut reader);
        let secure_boot = reader.parsed(&SECURE_BOOT, common::boolean);
        if secure_boot == Some(true) && common.as_ref().is_some_and(|c| c.disable_cvm) {
            let text = "needs a confidential VM, and DISABLECVM (--disable-cvm) is true";
            reader.problem(&SECURE_BOOT, text);
        }
        let settings = Self::read(&mut reader, (common, rates, identity, secure_boot));
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

    fn read(
        reader: &mut Reader<'_>,
        (common, rates, identity, secure_boot): (
            Option<Common>,
            Option<Rates>,
            Option<Identity>,
            Option<bool>,
        ),
    ) -> Option<Self> {
        let subscription = reader.parsed(&SUBSCRIPTION, id::uuid);
        let region = reader.parsed(&REGION, id::region);
        let group = reader.parsed(&GROUP, id::group);
        let size = reader.parsed(&SIZE, |text| id::size(text, false));
        let sizes = common::list(reader.text(&SIZES).unwrap_or_default());
        for size in &sizes {
            if let Err(e) = id::size(size, true) {
                reader.problem(&SIZES, format!("{size:?} {e}"));
            }
        }
        let subnet = reader.parsed(&SUBNET, id::subnet);
        let nsg = reader.text(&NSG).map(|_| reader.parsed(&NSG, id::nsg));
        let image = reader.parsed(&IMAGE, id::image);
        let zones = common::list(reader.text(&ZONES).unwrap_or_default());
        for zone in zones.iter().filter(|zone| !["1", "2", "3"].contains(&zone.as_str())) {
            reader.problem(&ZONES, format!("{zone:?} is none of 1, 2, 3"));
        }
        let ssh_key = match reader.text(&SSH_KEY) {
            Some(_) => reader.parsed(&SSH_KEY, |path| ssh::read(Path::new(path))),
            None => Some(ssh::nobodys().to_owned()),
        };
        let ssh_user = reader.parsed(&SSH_USER, ssh::user);
        let arm = reader.parsed(&ARM, http::endpoint);
        let authority = reader.parsed(&AUTHORITY, http::endpoint);
        Some(Self {
            identity: identity?,
            subscription: subscription?,
            region: region?,
            group: group?,
            size: size?,
            sizes,
            subnet: subnet?,
            nsg: match nsg {
                Some(nsg) => Some(nsg?),
                None => None,
            },
            image: image?,
            zones,
            ssh_key: ssh_key?,
            ssh_user: ssh_user?,
            secure_boot: secure_boot?,
            arm: arm?,
            authority: authority?,
            common: common?,
            rates: rates?,
        })
    }
}

fn rates(reader: &mut Reader<'_>) -> Option<Rates> {
    let [put, delete, get, list, operation, read] =
        [PUT, DELETE, GET, LIST, OPERATION, READ].map(|class| class.rate(reader));
    Some(Rates {
        put: put?,
        delete: delete?,
        get: get?,
        list: list?,
        operation: operation?,
        read: read?,
    })
}

/// A secret, else a workload identity, else a managed one.
fn identity(reader: &mut Reader<'_>) -> Option<Identity> {
    let client = reader.text(&CLIENT_ID).map(str::to_owned);
    let file = reader.text(&TOKEN_FILE).map(PathBuf::from);
    let secret = reader.text(&SECRET).map(str::to_owned);
    if secret.is_none() && file.is_none() {
        if client.is_some() {
            reader.parsed(&CLIENT_ID, id::uuid)?;
        }
        return Some(Identity::Managed { client });
    }
    let client = reader.parsed(&CLIENT_ID, id::uuid);
    let tenant = reader.parsed(&TENANT_ID, id::tenant);
    if let Some(secret) = secret {
        return Some(Identity::Secret { tenant: tenant?, client: client?, secret });
    }
    let file = file.filter(|file| match file.is_file() {
        true => true,
        false => {
            reader.problem(&TOKEN_FILE, format!("{:?} is not a file", file.display().to_string()));
            false
        }
    });
    Some(Identity::Workload { tenant: tenant?, client: client?, file: file? })
}

#[cfg(test)]
mod tests;
