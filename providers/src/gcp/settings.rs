//! What the Google Cloud provider is told (providers.md 5.1).

use std::collections::BTreeMap;

use super::id;
use crate::budget::Rate;
use crate::common::{self, Class, Common};
use crate::context::Context;
use crate::http;
use crate::settings::{Key, Reader, SettingsError, Values};
use crate::tags::{self, TagRoom, TagRules};

const CREDENTIALS: Key = Key::secret(
    "gcp-credentials",
    "GCP_CREDENTIALS",
    "a service account's key as JSON text; without it the application default credentials are used",
);
pub(super) const PROJECT: Key =
    Key::plain("gcp-project-id", "GCP_PROJECT_ID", "", "project of the VMs");
pub(super) const ZONES: Key =
    Key::list("zone", "GCP_ZONE", "", "zones to try in turn: europe-west1-b, europe-west1-c");
pub(super) const NETWORK: Key = Key::plain(
    "network",
    "GCP_NETWORK",
    "",
    "network of the VMs: its name, or projects/<project>/global/networks/<name>",
);
pub(super) const SUBNETWORK: Key = Key::plain(
    "subnetwork",
    "GCP_SUBNETWORK",
    "",
    "subnetwork of the VMs; a network in custom mode needs one",
);
pub(super) const IMAGE: Key = Key::plain(
    "image-name",
    "PODVM_IMAGE_NAME",
    "",
    "image: its name, projects/<project>/global/images/<name>, or a URL",
);
pub(super) const TYPE: Key =
    Key::plain("machine-type", "GCP_MACHINE_TYPE", "e2-medium", "default machine type");
pub(super) const TYPES: Key = Key::list(
    "machine-types",
    "GCP_INSTANCE_TYPES",
    "",
    "permitted machine types; a trailing * stands for the rest of a name; empty permits the default alone",
);
/// The name that the users' guides of other clouds would lead one to.
const TYPES_TOO: Key = Key::list(
    "gcp-machine-types",
    "GCP_MACHINE_TYPES",
    "",
    "more permitted machine types, as GCP_INSTANCE_TYPES has them",
);
pub(super) const ACCELERATOR: Key = Key::plain(
    "accelerator-type",
    "GCP_ACCELERATOR_TYPE",
    "",
    "accelerator for pods that ask for GPUs and get an N1 machine (nvidia-tesla-t4); other families \
     have their own",
);
pub(super) const DISK_TYPE: Key =
    Key::plain("disk-type", "GCP_DISK_TYPE", "pd-standard", "type of the root disk");
pub(super) const CONFIDENTIAL: Key = Key::plain(
    "confidential-type",
    "GCP_CONFIDENTIAL_TYPE",
    "",
    "SEV, SEV_SNP or TDX; required unless DISABLECVM is true",
);
const LABELS: Key = Key::list(
    "gcp-labels",
    "GCP_LABELS",
    "",
    "labels for VMs and disks: key=value, …; for cost reports",
);
const ENDPOINT: Key = Key::plain(
    "gcp-compute-endpoint",
    "GCP_COMPUTE_ENDPOINT",
    "https://compute.googleapis.com",
    "the Compute API, of another universe or through a private address",
);
/// Where the Resource Manager is, unless the Compute API is a double: that is both.
const MANAGER: &str = "https://cloudresourcemanager.googleapis.com";

// 1500 a minute in each group of quotas, refilled at the full minute: cloud.google.com, "Rate quotas"
// of Compute Engine. The defaults are half of it.
const fn class(
    flag: &'static str,
    env: &'static str,
    help: &'static str,
    name: &'static str,
) -> Class {
    Class { key: Key::plain(flag, env, "12.5", help), name, published: 25.0, bucket: 1500 }
}

pub(super) const INSERT: Class =
    class("api-rate-insert", "API_RATE_INSERT", "VMs asked for per second", "instances.insert");
pub(super) const DELETE: Class =
    class("api-rate-delete", "API_RATE_DELETE", "deletes per second", "delete");
pub(super) const READ: Class = class("api-rate-read", "API_RATE_READ", "reads per second", "read");
pub(super) const LIST: Class = class("api-rate-list", "API_RATE_LIST", "lists per second", "list");
pub(super) const OPERATION: Class = class(
    "api-rate-operation",
    "API_RATE_OPERATION",
    "looks at operations per second",
    "operations.wait",
);

const KEYS: [Key; 24] = [
    CREDENTIALS,
    PROJECT,
    ZONES,
    NETWORK,
    SUBNETWORK,
    IMAGE,
    TYPE,
    TYPES,
    TYPES_TOO,
    ACCELERATOR,
    DISK_TYPE,
    CONFIDENTIAL,
    LABELS,
    ENDPOINT,
    common::DISABLE_CVM,
    common::PUBLIC_IP,
    common::DISK,
    common::SPOT,
    common::PRICES,
    INSERT.key,
    DELETE.key,
    READ.key,
    LIST.key,
    OPERATION.key,
];

/// The settings of this provider.
pub fn keys() -> &'static [Key] {
    &KEYS
}

fn label_char(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_'
}

/// What Google takes as labels.
pub(super) const LABEL_RULES: TagRules = TagRules {
    cloud: "Google Cloud",
    most: 64,
    key_max: 63,
    value_max: 63,
    key_has: label_char,
    value_has: label_char,
    forbidden_prefix: "goog",
    cost_key_has: label_char,
    ..TagRules::ANY
};

/// What room there is for cost tags, which are labels here as ours are.
pub(super) fn tag_room(settings: &Settings) -> TagRoom {
    TagRoom { own: settings.labels.keys().cloned().collect(), ..TagRoom::new(LABEL_RULES) }
}

/// Most resource-manager tags of one VM.
const TAGS_MOST: usize = 50;

/// Budgets per second.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    pub(super) insert: Rate,
    pub(super) delete: Rate,
    pub(super) read: Rate,
    pub(super) list: Rate,
    pub(super) operation: Rate,
}

/// Checked settings. See [`keys`] for where they come from.
#[derive(Clone)]
pub struct Settings {
    /// A service account's key; `None` is the application default credentials. Never printed.
    pub(super) credentials: Option<serde_json::Value>,
    /// Project of everything.
    pub project: String,
    /// Zones in turn, at least one.
    pub zones: Vec<String>,
    /// Network, as a part of a URL.
    pub network: String,
    /// Subnetwork, likewise or as a bare name.
    pub subnetwork: Option<String>,
    /// Default image, as a part of a URL.
    pub image: String,
    /// Default machine type.
    pub machine_type: String,
    /// Permitted machine types.
    pub machine_types: Vec<String>,
    /// Accelerator of N1 machines for pods that ask for GPUs.
    pub accelerator: Option<String>,
    /// Type of the root disk.
    pub disk_type: String,
    /// SEV, `SEV_SNP` or TDX; `None` makes ordinary VMs.
    pub confidential: Option<String>,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// The user's resource-manager tags: `<parent>/<key>` or `tagKeys/<number>`, and the value likewise.
    pub manager_tags: BTreeMap<String, String>,
    /// The Compute API, without a slash at the end.
    pub compute: String,
    /// The Resource Manager, likewise.
    pub manager: String,
    /// What all clouds share.
    pub common: Common,
    /// How often what may be asked.
    pub rates: Rates,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { project, zones, network, image, .. } = self;
        write!(f, "Settings({project} {zones:?} {network} {image})")
    }
}

impl Settings {
    /// Reads the settings; the context has the user's tags.
    ///
    /// # Errors
    /// All that is missing or wrong, each with its key.
    pub fn from_values(values: &Values, context: &Context) -> Result<Self, SettingsError> {
        let mut reader = Reader::new(values);
        let settings = Self::read(&mut reader, context);
        reader.finish(settings)
    }

    fn read(reader: &mut Reader<'_>, context: &Context) -> Option<Self> {
        let common = common::read(reader, &KEYS);
        let rates = rates(reader);
        let credentials = optional(reader, &CREDENTIALS, id::credentials);
        let project = reader.parsed(&PROJECT, id::project);
        let zones = reader.parsed(&ZONES, id::zones);
        let network = reader.parsed(&NETWORK, id::network);
        let subnetwork = optional(reader, &SUBNETWORK, id::subnetwork);
        let of = project.clone().unwrap_or_default();
        let image = reader.parsed(&IMAGE, |text| id::image(text, &of));
        let machine_type = reader.parsed(&TYPE, |text| id::resource(text, false));
        let machine_types = machine_types(reader);
        let accelerator = optional(reader, &ACCELERATOR, |text| id::resource(text, false));
        let disk_type = reader.parsed(&DISK_TYPE, |text| id::resource(text, false));
        let labels = optional(reader, &LABELS, labels);
        let compute = reader.parsed(&ENDPOINT, http::endpoint);
        let disabled = common.as_ref().is_none_or(|common| common.disable_cvm);
        let confidential = confidential(reader, disabled, machine_type.as_deref());
        let manager_tags = manager_tags(reader, &of, &context.tags);
        let compute = compute?;
        Some(Self {
            credentials: credentials?,
            project: project?,
            zones: zones?,
            network: network?,
            subnetwork: subnetwork?,
            image: image?,
            machine_type: machine_type?,
            machine_types,
            accelerator: accelerator?,
            disk_type: disk_type?,
            confidential: confidential?,
            labels: labels?.unwrap_or_default(),
            manager_tags,
            manager: match compute.starts_with("http://") {
                true => compute.clone(),
                false => MANAGER.to_owned(),
            },
            compute,
            common: common?,
            rates: rates?,
        })
    }
}

/// `Some(None)` if there is no such text.
fn optional<T, E: std::fmt::Display>(
    reader: &mut Reader<'_>,
    key: &Key,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Option<Option<T>> {
    match reader.text(key) {
        Some(_) => reader.parsed(key, parse).map(Some),
        None => Some(None),
    }
}

fn machine_types(reader: &mut Reader<'_>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for key in [TYPES, TYPES_TOO] {
        for name in common::list(reader.text(&key).unwrap_or_default()) {
            match id::resource(&name, true) {
                Ok(name) if all.contains(&name) => {}
                Ok(name) => all.push(name),
                Err(e) => reader.problem(&key, format!("{name:?} {e}")),
            }
        }
    }
    all
}

/// Which kind of confidential VM; refused now instead of at each create.
fn confidential(
    reader: &mut Reader<'_>,
    disabled: bool,
    machine_type: Option<&str>,
) -> Option<Option<String>> {
    if disabled {
        return Some(None);
    }
    if reader.text(&CONFIDENTIAL).is_none() {
        let text = "is required (SEV, SEV_SNP or TDX) unless DISABLECVM (--disable-cvm) is true";
        reader.problem(&CONFIDENTIAL, text);
        return None;
    }
    let kind = reader.parsed(&CONFIDENTIAL, id::confidential)?;
    if let Some(name) = machine_type.filter(|name| !id::can_be(name, &kind)) {
        let text = format!("{name:?} cannot be a confidential VM of type {kind}");
        reader.problem(&TYPE, text);
        return None;
    }
    Some(Some(kind))
}

fn labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for item in common::list(text) {
        let Some((key, value)) = item.split_once('=') else {
            return Err(format!("has {item:?}, which is not key=value"));
        };
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        if tags::is_reserved(&key) {
            return Err(format!("has {key:?}, which is ours"));
        }
        if !key.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(format!("has {key:?}, which does not start with a small letter"));
        }
        labels.insert(key, value);
    }
    match tags::check(&labels, &LABEL_RULES).first() {
        Some(problem) => Err(problem.trim_start_matches("TAGS (--tags): ").to_owned()),
        None => Ok(labels),
    }
}

/// Google takes `<project or organisation>/<key>` and the value's short name, or numbers for both.
fn manager_tags(
    reader: &mut Reader<'_>,
    project: &str,
    tags: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    const TAGS: Key = Key::plain("tags", "TAGS", "", "");
    let mut all = BTreeMap::new();
    if tags.len() > TAGS_MOST {
        let text = format!("{} tags, Google Cloud takes {TAGS_MOST} on a resource", tags.len());
        reader.problem(&TAGS, text);
    }
    let bare = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    let odd = |c: char| c.is_control() || "'\"\\/".contains(c);
    for (key, value) in tags {
        let numeric = key.strip_prefix("tagKeys/").is_some_and(id::is_number);
        if numeric != value.strip_prefix("tagValues/").is_some_and(id::is_number) {
            let text = format!("{key:?}: tagKeys/<number> goes with tagValues/<number> alone");
            reader.problem(&TAGS, text);
        } else if !numeric
            && [bare(key), value.clone()].iter().any(|t| t.is_empty() || t.contains(odd))
        {
            let text = format!("{key:?}={value:?}: is not the name of a tag and one of its values");
            reader.problem(&TAGS, text);
        }
        let key = if key.contains('/') { key.clone() } else { format!("{project}/{key}") };
        all.insert(key, value.clone());
    }
    all
}

fn rates(reader: &mut Reader<'_>) -> Option<Rates> {
    let [insert, delete, read, list, operation] =
        [INSERT, DELETE, READ, LIST, OPERATION].map(|class| class.rate(reader));
    Some(Rates {
        insert: insert?,
        delete: delete?,
        read: read?,
        list: list?,
        operation: operation?,
    })
}

#[cfg(test)]
mod tests;
