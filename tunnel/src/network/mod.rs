//! The pod's network between its namespace on the worker and its VM.
//!
//! ```text
//!   worker: pod namespace                host namespace            VM: host side      namespace podns
//!   eth0 ──fwd──▶ vxlan1 ─────────── UDP ─┬─ guard ──────────────────▶ │ ────────────▶ eth0 = vxlan
//!        ◀─pin─fwd──┘                     └ only the VM's address        with the pod's MAC, addresses,
//!                                           may speak for its VNI        routes and neighbours
//! ```
//!
//! Everything blocks for some milliseconds at most and works on the network namespace of the
//! calling thread as the host's; call it off the async threads.

mod guard;
pub mod guest;
mod inspect;
mod pin;
mod policy;
mod vni;
mod watch;
mod worker;

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use peerpod_netlink::{Mac, Protocol, Scope};
use serde::{Deserialize, Serialize};

pub use inspect::{InspectError, InspectSettings, inspect};
pub use pin::REASONS;
pub use policy::{Liberty, METADATA, Policy};
pub use vni::{MAX_VNI, VniError, kernel_vnis, pick_vni};
pub use watch::Watch;
pub use worker::{
    Counters, Leftover, Look, TunnelError, attach, counters, detach, leftovers, remove_leftover,
    verify,
};

/// Smallest packet that IPv6 may rely on; a tunnel that cannot carry it is refused.
pub const MIN_MTU: u32 = 1280;
/// Largest the pod's interface is given, jumbo frames of the clouds included.
pub const MAX_MTU: u32 = 9001;

/// Bytes that VXLAN puts around an inner packet, by the family of the outer one: inner Ethernet
/// header, VXLAN, UDP and IP.
pub fn overhead(outer: IpAddr) -> u32 {
    if outer.is_ipv4() { 14 + 8 + 8 + 20 } else { 14 + 8 + 8 + 40 }
}

/// What the pod's interface can carry through an underlay of `underlay` bytes.
///
/// # Errors
/// When less than [`MIN_MTU`] would be left: the numbers, for a message.
pub fn inner_mtu(pod: u32, underlay: u32, outer: IpAddr) -> Result<u32, MtuError> {
    let room = underlay.saturating_sub(overhead(outer));
    if room < MIN_MTU {
        let needed = MIN_MTU + overhead(outer);
        return Err(MtuError { underlay, room, needed });
    }
    Ok(pod.min(room).clamp(MIN_MTU, MAX_MTU))
}

/// The underlay is too narrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an underlay with an MTU of {underlay} leaves {room} bytes inside the tunnel; {MIN_MTU} are \
     needed, so at least {needed} outside"
)]
pub struct MtuError {
    /// MTU of the interface that carries the tunnel.
    pub underlay: u32,
    /// What it leaves.
    pub room: u32,
    /// What it must be at least.
    pub needed: u32,
}

/// A route of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Network; prefix 0 is the default route.
    pub destination: IpNetwork,
    /// Next hop, `None` for what is on the link.
    pub gateway: Option<IpAddr>,
    /// Who made it: `kernel`, `boot`, `static` or `dhcp`.
    pub protocol: String,
    /// `universe`, `site`, `link`, `host` or `nowhere`.
    pub scope: String,
}

/// A permanent neighbour of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbor {
    /// Its address.
    pub ip: IpAddr,
    /// Its Ethernet address.
    pub mac: MacText,
}

/// A MAC address as records and JSON hold it, checked when read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacText(pub Mac);

impl TryFrom<String> for MacText {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self)
    }
}

impl From<MacText> for String {
    fn from(mac: MacText) -> Self {
        mac.0.to_string()
    }
}

/// What was found in a pod's namespace and on the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetwork {
    /// The pod's interface, `eth0`.
    pub interface: String,
    /// Its Ethernet address.
    pub mac: MacText,
    /// Its MTU on the worker, in bytes.
    pub mtu: u32,
    /// Its addresses, at most one per family, IPv4 first.
    pub addresses: Vec<IpNetwork>,
    /// Its routes, those without a gateway first.
    pub routes: Vec<Route>,
    /// Its permanent neighbours.
    pub neighbors: Vec<Neighbor>,
    /// The worker's addresses on the interface that carries the tunnel, IPv4 first.
    pub worker: Vec<IpNetwork>,
    /// MTU of that interface.
    pub underlay_mtu: u32,
    /// The tunnel has an interface of its own, other than the worker's primary one.
    pub dedicated: bool,
}

impl PodNetwork {
    /// MTU inside the tunnel when the VM has an address of the family of `outer`.
    ///
    /// # Errors
    /// See [`inner_mtu`].
    pub fn inner_mtu(&self, outer: IpAddr) -> Result<u32, MtuError> {
        inner_mtu(self.mtu, self.underlay_mtu, outer)
    }
}

/// A tunnel on the worker: all that attach, verify and detach need, as a record keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Sandbox id, the owner mark on every kernel object.
    pub sandbox: String,
    /// VXLAN network id.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// The pod's namespace.
    pub netns: PathBuf,
    /// Device and inode of the namespace when it was inspected: another one under the same path
    /// is left alone.
    pub netns_id: (u64, u64),
    /// The pod's interface.
    pub interface: String,
    /// Its Ethernet address.
    pub mac: MacText,
    /// Its addresses.
    pub addresses: Vec<IpNetwork>,
    /// The VM's address.
    pub vm: IpAddr,
    /// MTU inside the tunnel.
    pub mtu: u32,
}

/// Text of a route's origin, as apf.json has it; `None` for those a pod does not take along.
pub fn protocol_text(protocol: Protocol) -> Option<&'static str> {
    match protocol {
        Protocol::Kernel => Some("kernel"),
        Protocol::Boot => Some("boot"),
        Protocol::Static => Some("static"),
        Protocol::Dhcp => Some("dhcp"),
        Protocol::Other(_) => None,
    }
}

/// Text of a route's scope, as apf.json has it.
pub fn scope_text(scope: Scope) -> &'static str {
    match scope {
        Scope::Universe => "universe",
        Scope::Site => "site",
        Scope::Link => "link",
        Scope::Host => "host",
        Scope::Nowhere => "nowhere",
    }
}

/// The mark of a sandbox on a device.
pub(crate) fn mark(sandbox: &str) -> String {
    format!("peerpod:{sandbox}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtu_is_what_the_underlay_leaves() {
        let (v4, v6) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([0u16; 8]));
        assert_eq!(inner_mtu(1500, 1500, v4), Ok(1450));
        assert_eq!(inner_mtu(1500, 1500, v6), Ok(1430));
        assert_eq!(inner_mtu(1400, 9001, v4), Ok(1400));
        assert_eq!(inner_mtu(9001, 9001, v4), Ok(8951));
        assert_eq!(inner_mtu(1500, 1330, v4), Ok(1280));
        assert_eq!(inner_mtu(1500, 1350, v6), Ok(1280));
    }

    #[test]
    fn mtu_below_what_ipv6_needs_is_refused_with_the_numbers() {
        let v4 = IpAddr::from([10, 0, 0, 1]);
        let error = inner_mtu(1500, 1329, v4).expect_err("refused").to_string();
        assert!(error.contains("1329") && error.contains("1330"), "{error}");
        assert!(inner_mtu(1500, 1349, IpAddr::from([0u16; 8])).is_err());
    }
}
