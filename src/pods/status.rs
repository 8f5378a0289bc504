//! What is told of a pod to `status`, the admin page and metrics.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::pod::interruption::Interruption;
use crate::pod::phase::Phase;
use crate::pod::record::{Broken, Moment, Record};
use crate::pod::world::Stage;

/// One pod. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Sandbox id.
    pub sandbox: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub pod: String,
    /// `prepared`, `launching`, `running`, `deleting`, or `broken` for a record that cannot be used.
    pub phase: String,
    /// The cloud's id of its VM, once known.
    pub vm: Option<String>,
    /// Name its VM has or would have.
    pub vm_name: String,
    /// The VM's addresses.
    pub addresses: Vec<IpAddr>,
    /// Type the VM really got.
    pub instance_type: Option<String>,
    /// Zone the VM really got.
    pub zone: Option<String>,
    /// Price per hour, where one is known.
    pub price_per_hour: Option<String>,
    /// The cloud may take the VM back.
    #[serde(default)]
    pub spot: bool,
    /// The cloud's word that it takes the VM back.
    #[serde(default)]
    pub interruption: Option<Interruption>,
    /// Why this type.
    pub size_reason: String,
    /// VXLAN id.
    pub vni: u32,
    /// Path of the agent socket.
    pub socket: String,
    /// How far the start has come.
    pub stage: Option<Stage>,
    /// Why the pod is over, or why the record cannot be used.
    pub reason: Option<String>,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
    /// When CreateVM came, in milliseconds since 1970.
    pub created_ms: u64,
    /// When the phase was entered, in milliseconds since 1970.
    pub since_ms: u64,
    /// Steps and phases so far, oldest first.
    pub timeline: Vec<Moment>,
}

impl From<&Record> for PodStatus {
    fn from(record: &Record) -> Self {
        let vm = record.phase.vm();
        let reason = match &record.phase {
            Phase::Deleting { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        Self {
            sandbox: record.sandbox.clone(),
            namespace: record.pod.namespace.clone(),
            pod: record.pod.name.clone(),
            phase: record.phase.name().to_owned(),
            vm: vm.map(|v| v.native_id.clone()),
            vm_name: record.vm_ref().name.to_string(),
            addresses: vm.map(|v| v.addresses.clone()).unwrap_or_default(),
            instance_type: vm.map(|v| v.instance_type.clone()),
            zone: vm.and_then(|v| v.zone.clone()),
            price_per_hour: vm.and_then(|v| v.price_per_hour.clone()),
            spot: vm.is_some() && record.spot,
            interruption: record.interruption.clone(),
            size_reason: record.machine.size_reason.clone(),
            vni: record.network.vni,
            socket: record.link.socket.display().to_string(),
            stage: record.stage,
            reason,
            last_error: record.last_error.clone(),
            created_ms: record.created_ms,
            since_ms: record.since_ms,
            timeline: record.timeline.clone(),
        }
    }
}

impl From<&Broken> for PodStatus {
    fn from(broken: &Broken) -> Self {
        let reason = format!("{}: {}", broken.path.display(), broken.reason);
        Self {
            sandbox: broken.sandbox.clone(),
            namespace: String::new(),
            pod: String::new(),
            phase: "broken".to_owned(),
            vm: None,
            vm_name: String::new(),
            addresses: Vec::new(),
            instance_type: None,
            zone: None,
            price_per_hour: None,
            spot: false,
            interruption: None,
            size_reason: String::new(),
            vni: 0,
            socket: String::new(),
            stage: None,
            reason: Some(reason),
            last_error: None,
            created_ms: 0,
            since_ms: 0,
            timeline: Vec::new(),
        }
    }
}
