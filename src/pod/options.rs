//! What the settings say about pods. Defaults are those of the specification.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::Epochs;

/// Everything that is not a part of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Installation whose tag our VMs carry.
    pub installation: String,
    /// Name of this node; the sweep deletes VMs of this node only.
    pub node_name: String,
    /// The starts on this state directory; the sweep deletes nothing that another copy has made.
    pub epochs: Epochs,
    /// `/proc/sys/kernel/random/boot_id`: records of another boot are over.
    pub boot_id: String,
    /// Directory of the pods' sockets: `<pods_dir>/<sandbox>/agent.ttrpc`.
    pub pods_dir: PathBuf,
    /// Least VXLAN id that is given away.
    pub vxlan_min_id: u32,
    /// UDP port of the tunnel.
    pub vxlan_port: u16,
    /// TCP port of the forwarder.
    pub forwarder_port: u16,
    /// Most pods at a time that are not being deleted; `None` sets no limit.
    pub limit: Option<usize>,
    /// Most creates under way at a time; others wait in the order in which they came. A bound for memory
    /// alone: with n of them and VMs that take t, no more than n/t come a second, and 8 of 30 s each would
    /// use a sixteenth of what Azure allows (4.1 a second). 250 is more than a kubelet's usual 110 pods.
    pub concurrent_creates: usize,
    /// For how long the VM of a start that failed is kept.
    pub keep_failed: Duration,
    /// For how long a place that had no room is left out.
    pub capacity_cooldown: Duration,
    /// How long a start may take in all; a caller's own deadline may be shorter. Below the Go shim's
    /// 600 s, so that the shim hears the reason.
    pub start_deadline: Duration,
    /// How long a sandbox may wait for its StartVM.
    pub expiry: Duration,
    /// How long a pod may have no shim before it is over; also how long after a start of this process
    /// or of the relay nobody is taken for gone.
    pub orphan_grace: Duration,
    /// How long a running VM may not answer before the pod is over. A fifth of it is the period.
    pub liveness: Duration,
    /// How long the relay tries to make a broken link again.
    pub give_up: Duration,
    /// How long a VM that has an address may take until its agent answers.
    pub ready: Duration,
    /// Time between sweeps; `None` sweeps never.
    pub sweep_interval: Option<Duration>,
    /// Age from which on a VM without a record is deleted.
    pub sweep_grace: Duration,
    /// The sweep only says what it would delete.
    pub sweep_dry_run: bool,
    /// How long "there is no such VM" has to hold after a create whose outcome is not known, since
    /// lists of clouds lag and a lost create may still take effect.
    pub settle: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            installation: String::new(),
            node_name: String::new(),
            epochs: Epochs::default(),
            boot_id: String::new(),
            pods_dir: PathBuf::from("/run/peerpod/pods"),
            vxlan_min_id: 555_000,
            vxlan_port: 9000,
            forwarder_port: 15_150,
            limit: None,
            concurrent_creates: 250,
            keep_failed: Duration::ZERO,
            capacity_cooldown: Duration::from_secs(180),
            start_deadline: Duration::from_secs(540),
            expiry: Duration::from_secs(15 * 60),
            orphan_grace: Duration::from_secs(60),
            liveness: Duration::from_secs(15),
            give_up: Duration::from_secs(20),
            ready: Duration::from_secs(5 * 60),
            sweep_interval: Some(Duration::from_secs(10 * 60)),
            sweep_grace: Duration::from_secs(15 * 60),
            sweep_dry_run: false,
            settle: Duration::from_secs(120),
        }
    }
}
