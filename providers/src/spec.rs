//! The plain values that go in and out of a provider. All of them can stand in a record on disk,
//! so that a repeated attempt sends the same bytes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::VmName;
use crate::prices::Price;

/// All that a VM is made of, except where: that is the [`Candidate`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Deterministic name, legal in every cloud.
    pub name: VmName,
    /// Full sandbox id; the tag that says whose VM this is.
    pub sandbox: String,
    /// Tags for the VM and all its parts (providers.md 2.3), ours and the user's.
    pub tags: BTreeMap<String, String>,
    /// cloud-config text, handed to the VM unread.
    pub user_data: UserData,
    /// Image override of this pod; `None` is the provider's default image.
    pub image: Option<String>,
    /// Root disk in GiB; 0 is the image's own size.
    pub disk_gib: u32,
    /// GPUs to attach, where they are not part of the type (GCP).
    #[serde(default)]
    pub gpus: u32,
    /// Disks that were there before the VM and outlive it.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// [`crate::Report::template`] at the time of the plan.
    #[serde(default)]
    pub template: String,
}

impl VmSpec {
    /// A VM of that name for that sandbox, with nothing else said.
    pub fn new(name: VmName, sandbox: impl Into<String>) -> Self {
        Self {
            name,
            sandbox: sandbox.into(),
            tags: BTreeMap::new(),
            user_data: UserData(String::new()),
            image: None,
            disk_gib: 0,
            gpus: 0,
            volumes: Vec::new(),
            template: String::new(),
        }
    }
}

/// A disk that is attached to the VM and detached from it, but never made or deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The cloud's id of the disk, as the volume's record has it (compat.md 14).
    pub disk: String,
    /// Number by which the VM finds it, where the cloud has such numbers (Azure).
    pub lun: u32,
    /// Nothing is to be written to it, where the cloud can see to that.
    #[serde(default)]
    pub read_only: bool,
    /// File system that it holds or will hold; for people, no provider makes one.
    #[serde(default)]
    pub fs: String,
}

impl Volume {
    /// A disk that is written to, of which nothing else is known.
    pub fn new(disk: impl Into<String>, lun: u32) -> Self {
        Self { disk: disk.into(), lun, read_only: false, fs: String::new() }
    }
}

/// Bytes for the VM alone; holds a private key, so it never prints.
#[derive(
    Clone, PartialEq, Eq, Serialize, Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop,
)]
pub struct UserData(pub String);

impl std::fmt::Debug for UserData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UserData({} bytes)", self.0.len())
    }
}

impl std::fmt::Debug for VmSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmSpec")
            .field("name", &self.name)
            .field("sandbox", &self.sandbox)
            .field("image", &self.image)
            .field("user_data", &self.user_data)
            .finish_non_exhaustive()
    }
}

/// One place to try: type × zone × market.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Candidate {
    /// Position in the plan's list; part of the idempotency id.
    pub number: u32,
    /// Instance type, in the cloud's own words.
    pub instance_type: String,
    /// Availability zone, where the cloud has zones.
    pub zone: Option<String>,
    /// On-demand or spot.
    pub market: Market,
}

/// How the VM is paid for.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Market {
    /// Until deleted.
    #[default]
    OnDemand,
    /// Cheaper, can be taken back.
    Spot,
}

/// A VM that has an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// The cloud's own id (`i-0123…`), for people and for faster deletes.
    pub native_id: String,
    /// The name it was made under.
    pub name: VmName,
    /// First: control and tunnel address. Second, if any: tunnel address in dedicated mode.
    pub addresses: Vec<IpAddr>,
    /// Type it really got.
    pub instance_type: String,
    /// Zone it really got.
    pub zone: Option<String>,
    /// Price per hour in the currency of the price table, where one is known.
    pub price_per_hour: Option<String>,
}

/// Enough to find a VM again, whatever is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRef {
    /// The name it was or would have been made under.
    pub name: VmName,
    /// Full sandbox id; a VM of that name with another sandbox's tag is not touched.
    pub sandbox: String,
    /// The cloud's own id, if it was ever learnt.
    pub native_id: Option<String>,
}

/// The answer to a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// Nothing of it is left, or never was.
    Gone,
    /// Under way; ask again until `Gone`.
    Accepted,
}

/// One thing that carries our tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// VM or part.
    pub kind: ResourceKind,
    /// How to delete it.
    pub vm: VmRef,
    /// When it was made, for the sweep's grace period; `None` if the cloud does not say.
    pub created: Option<SystemTime>,
    /// Whether the VM runs, as the cloud sees it; `None` if the cloud does not say.
    pub running: Option<bool>,
    /// All tags, as the cloud gives them.
    pub tags: BTreeMap<String, String>,
    /// What kind of VM, where the cloud says it.
    pub instance_type: Option<String>,
    /// What it costs per hour, where the table of prices says it.
    pub price: Option<Price>,
}

impl Resource {
    /// Something of that kind, of which nothing else is known.
    pub fn new(kind: ResourceKind, vm: VmRef, tags: BTreeMap<String, String>) -> Self {
        let (created, running, instance_type, price) = (None, None, None, None);
        Self { kind, vm, created, running, tags, instance_type, price }
    }
}

/// What a [`Resource`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResourceKind {
    /// A virtual machine.
    Vm,
    /// A disk left over or attached.
    Disk,
    /// A network interface.
    Interface,
    /// A public address.
    Address,
}

/// One line of a provider's catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceType {
    /// Name in the cloud's own words.
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// GPUs.
    pub gpus: u32,
    /// Price per hour on demand; `None` is unknown.
    pub price: Option<Price>,
}
