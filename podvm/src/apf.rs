//! apf.json: what the forwarder in the VM is told. Field names and value forms are upstream's;
//! what upstream cannot say stands in additional objects, `peerpod`, which its reader ignores.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use peerpod_tunnel::link::Secret;
use peerpod_tunnel::network::guest::GuestNetwork;
use peerpod_tunnel::network::{MAX_VNI, MIN_MTU, MacText, Neighbor, PodNetwork, Route};
use serde::{Deserialize, Serialize};
use serde_json::Value;

mod follow;

pub use follow::{Ours, ToFollow};

/// UDP port of an upstream worker that names none.
const UPSTREAM_VXLAN_PORT: u16 = 4789;
const PROTOCOLS: [&str; 4] = ["static", "boot", "dhcp", "kernel"];
const SCOPES: [&str; 5] = ["universe", "site", "link", "host", "nowhere"];

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Apf {
    /// The tunnel; `null` for a VM without one.
    #[serde(default)]
    pub pod_network: Option<ApfNetwork>,
    /// Kubernetes namespace.
    #[serde(default)]
    pub pod_namespace: String,
    /// Pod name.
    #[serde(default)]
    pub pod_name: String,
    /// The forwarder's key, PEM.
    #[serde(default, skip_serializing_if = "Secret::is_empty")]
    pub tls_server_key: Secret,
    /// The forwarder's certificate, PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tls_server_cert: String,
    /// Anchor for the worker's certificate, PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tls_client_ca: String,
    /// `VersionTLS12` or `VersionTLS13`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tls_min_version: String,
    /// IANA names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls_cipher_suites: Vec<String>,
    /// What upstream cannot say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peerpod: Option<Ours>,
}

/// The tunnel as upstream describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ApfNetwork {
    /// The pod's address with its prefix length.
    #[serde(default)]
    pub podip: String,
    /// The pod's MAC.
    #[serde(default)]
    pub pod_hw_addr: String,
    /// The pod's interface.
    #[serde(default)]
    pub interface: String,
    /// The worker's address with its prefix length.
    #[serde(default)]
    pub worker_node_ip: String,
    /// `vxlan`.
    #[serde(default)]
    pub tunnel_type: String,
    /// Routes of the pod.
    #[serde(default)]
    pub routes: Option<Vec<ApfRoute>>,
    /// Neighbours of the pod.
    #[serde(default)]
    pub neighbors: Option<Vec<ApfNeighbor>>,
    /// MTU of the pod's interface on the worker.
    #[serde(default)]
    pub mtu: i64,
    /// Upstream's pod index.
    #[serde(default)]
    pub index: i64,
    /// UDP port.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub vxlan_port: i64,
    /// VXLAN id.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub vxlan_id: i64,
    /// The tunnel has an interface of its own.
    #[serde(default)]
    pub dedicated: bool,
    /// Traffic to the outside leaves by the VM itself.
    #[serde(default)]
    pub external_net_via_pod_vm: bool,
    /// What upstream cannot say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peerpod: Option<Extension>,
}

/// The network's additional object: the second family of a dual-stack pod, and the worker's further
/// addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Extension {
    /// Further pod addresses.
    pub addresses: Vec<String>,
    /// Further worker addresses.
    pub workers: Vec<String>,
    /// Routes of the further addresses.
    pub routes: Vec<ApfRoute>,
    /// Neighbours of the further addresses.
    pub neighbors: Vec<ApfNeighbor>,
}

/// A route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApfRoute {
    /// Network.
    pub dst: String,
    /// Gateway or nothing.
    pub gw: String,
    /// Interface.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dev: String,
    /// Who made it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// How far it reaches; nothing is the universe.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub scope: String,
}

/// A neighbour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ApfNeighbor {
    /// Address.
    pub ip: String,
    /// MAC.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hw_addr: String,
    /// Interface.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dev: String,
    /// `permanent` and others of the kernel's words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// What is wrong with an apf.json.
#[derive(Debug, thiserror::Error)]
pub enum ApfError {
    /// Not JSON, or a value of another type.
    #[error("apf.json: {0}")]
    Json(String),
    /// A value that cannot be used.
    #[error("apf.json: {key}: {reason}")]
    Value {
        /// Path of the key.
        key: String,
        /// What is wrong with its value.
        reason: String,
    },
}

fn bad(key: &str, reason: impl Into<String>) -> ApfError {
    ApfError::Value { key: format!("pod-network.{key}"), reason: reason.into() }
}

impl Apf {
    /// The text that travels.
    ///
    /// # Errors
    /// Never in practice; serde wants it said.
    pub fn render(&self) -> Result<String, serde_json::Error> {
        let mut out = Vec::new();
        let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut writer = serde_json::Serializer::with_formatter(&mut out, indent);
        self.serialize(&mut writer)?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// Reads the file. Keys count without regard to case, unknown ones are ignored.
    ///
    /// # Errors
    /// By [`ApfError::Json`]; the values of the network are looked at by [`ApfNetwork::check`].
    pub fn parse(text: &str) -> Result<Self, ApfError> {
        let value: Value = serde_json::from_str(text).map_err(|e| ApfError::Json(place(&e)))?;
        serde_json::from_value(lower_keys(value)).map_err(|e| ApfError::Json(e.to_string()))
    }
}

/// Where JSON breaks, without the text around it: the file holds a key.
fn place(error: &serde_json::Error) -> String {
    format!("not JSON at line {} column {}", error.line(), error.column())
}

fn lower_keys(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().map(|(k, v)| (k.to_lowercase(), lower_keys(v))).collect()
        }
        Value::Array(all) => all.into_iter().map(lower_keys).collect(),
        other => other,
    }
}

impl ApfNetwork {
    /// What the worker found, with the values chosen for the tunnel.
    pub fn new(pod: &PodNetwork, vni: u32, port: u16) -> Self {
        let first = pod.addresses.first();
        let v4 = first.is_some_and(IpNetwork::is_ipv4);
        let (routes, more_routes): (Vec<_>, Vec<_>) =
            pod.routes.iter().partition(|r| r.destination.is_ipv4() == v4);
        let (neighbors, more_neighbors): (Vec<_>, Vec<_>) =
            pod.neighbors.iter().partition(|n| n.ip.is_ipv4() == v4);
        let route = |r: &Route| wire_route(r, &pod.interface);
        let neighbor = |n: &Neighbor| wire_neighbor(n, &pod.interface);
        let text = |n: Option<&IpNetwork>| n.map(ToString::to_string).unwrap_or_default();
        let extension = Extension {
            addresses: pod.addresses.iter().skip(1).map(ToString::to_string).collect(),
            workers: pod.worker.iter().skip(1).map(ToString::to_string).collect(),
            routes: more_routes.into_iter().map(route).collect(),
            neighbors: more_neighbors.into_iter().map(neighbor).collect(),
        };
        Self {
            podip: text(first),
            pod_hw_addr: pod.mac.0.to_string(),
            interface: pod.interface.clone(),
            worker_node_ip: text(pod.worker.first()),
            tunnel_type: "vxlan".to_owned(),
            routes: Some(routes.into_iter().map(route).collect()),
            neighbors: Some(neighbors.into_iter().map(neighbor).collect()),
            mtu: pod.mtu.into(),
            index: 0,
            vxlan_port: port.into(),
            vxlan_id: vni.into(),
            dedicated: pod.dedicated,
            external_net_via_pod_vm: false,
            peerpod: (extension != Extension::default()).then_some(extension),
        }
    }

    /// Checks every value and gives what the guest's side of the tunnel needs.
    ///
    /// # Errors
    /// [`ApfError::Value`] naming the key.
    pub fn check(&self, podns: PathBuf) -> Result<GuestNetwork, ApfError> {
        if self.tunnel_type != "vxlan" {
            return Err(bad("tunnel-type", format!("{:?} is not vxlan", self.tunnel_type)));
        }
        // First, because routes and neighbours are held against it.
        let interface = interface(&self.interface)?;
        let extension = self.peerpod.clone().unwrap_or_default();
        let mut addresses = vec![network("podip", &self.podip)?];
        for text in &extension.addresses {
            addresses.push(network("peerpod.addresses", text)?);
        }
        let mut worker = vec![network("worker-node-ip", &self.worker_node_ip)?.ip()];
        for text in &extension.workers {
            worker.push(network("peerpod.workers", text)?.ip());
        }
        let mut routes = Vec::new();
        for route in self.routes.iter().flatten().chain(&extension.routes) {
            routes.extend(self.route(route)?);
        }
        let mut neighbors = Vec::new();
        for neighbor in self.neighbors.iter().flatten().chain(&extension.neighbors) {
            neighbors.extend(self.neighbor(neighbor)?);
        }
        let mac = MacText::try_from(self.pod_hw_addr.clone()).map_err(|e| bad("pod-hw-addr", e))?;
        Ok(GuestNetwork {
            interface,
            mac,
            mtu: self.checked_mtu()?,
            addresses,
            routes,
            neighbors,
            worker,
            vni: self.checked_vni()?,
            port: self.checked_port()?,
            podns,
            host_interface: None,
        })
    }

    fn checked_mtu(&self) -> Result<u32, ApfError> {
        u32::try_from(self.mtu)
            .ok()
            .filter(|m| (MIN_MTU..=65_535).contains(m))
            .ok_or_else(|| bad("mtu", format!("{} is not in {MIN_MTU}..=65535", self.mtu)))
    }

    fn checked_vni(&self) -> Result<u32, ApfError> {
        u32::try_from(self.vxlan_id)
            .ok()
            .filter(|v| (1..=MAX_VNI).contains(v))
            .ok_or_else(|| bad("vxlan-id", format!("{} is not in 1..={MAX_VNI}", self.vxlan_id)))
    }

    fn checked_port(&self) -> Result<u16, ApfError> {
        match self.vxlan_port {
            0 => Ok(UPSTREAM_VXLAN_PORT),
            port => u16::try_from(port)
                .map_err(|_| bad("vxlan-port", format!("{port} is not in 1..=65535"))),
        }
    }

    fn route(&self, route: &ApfRoute) -> Result<Option<Route>, ApfError> {
        if !route.dev.is_empty() && route.dev != self.interface {
            return Err(bad("routes", format!("dev {:?} is not the pod's interface", route.dev)));
        }
        known("routes: protocol", &route.protocol, &PROTOCOLS)?;
        known("routes: scope", &route.scope, &SCOPES)?;
        if route.dst.is_empty() {
            return Ok(None);
        }
        let or = |text: &str, other: &str| {
            if text.is_empty() { other.to_owned() } else { text.to_owned() }
        };
        Ok(Some(Route {
            destination: network("routes: dst", &route.dst)?,
            gateway: match route.gw.as_str() {
                "" => None,
                text => Some(address("routes: gw", text)?),
            },
            protocol: or(&route.protocol, "boot"),
            scope: or(&route.scope, "universe"),
        }))
    }

    fn neighbor(&self, neighbor: &ApfNeighbor) -> Result<Option<Neighbor>, ApfError> {
        if neighbor.ip.is_empty() || neighbor.hw_addr.is_empty() {
            return Ok(None);
        }
        let mac = MacText::try_from(neighbor.hw_addr.clone());
        let mac = mac.map_err(|e| bad("neighbors: hw-addr", e))?;
        Ok(Some(Neighbor { ip: address("neighbors: ip", &neighbor.ip)?, mac }))
    }
}

fn wire_route(route: &Route, dev: &str) -> ApfRoute {
    ApfRoute {
        dst: route.destination.to_string(),
        gw: route.gateway.map(|g| g.to_string()).unwrap_or_default(),
        dev: dev.to_owned(),
        protocol: route.protocol.clone(),
        scope: if route.scope == "universe" { String::new() } else { route.scope.clone() },
    }
}

fn wire_neighbor(neighbor: &Neighbor, dev: &str) -> ApfNeighbor {
    ApfNeighbor {
        ip: neighbor.ip.to_string(),
        hw_addr: String::from(neighbor.mac),
        dev: dev.to_owned(),
        state: "permanent".to_owned(),
    }
}

fn known(key: &str, text: &str, words: &[&str]) -> Result<(), ApfError> {
    if text.is_empty() || words.contains(&text) {
        return Ok(());
    }
    Err(bad(key, format!("{text:?} is none of {}", words.join(", "))))
}

fn interface(name: &str) -> Result<String, ApfError> {
    let fine = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name.chars().all(|c| c.is_ascii_graphic() && c != '/' && c != ':');
    if fine { Ok(name.to_owned()) } else { Err(bad("interface", format!("{name:?} is no name"))) }
}

fn address(key: &str, text: &str) -> Result<IpAddr, ApfError> {
    let address: IpAddr =
        text.parse().map_err(|_| bad(key, format!("{text:?} is not an IP address")))?;
    Ok(address.to_canonical())
}

/// A network with its prefix length. Go prints IPv4 networks also as IPv4-mapped ones, with either
/// prefix length.
fn network(key: &str, text: &str) -> Result<IpNetwork, ApfError> {
    let wrong = || bad(key, format!("{text:?} is not an address with a prefix length"));
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let mut prefix: u8 = prefix.parse().map_err(|_| wrong())?;
    let canonical = match address {
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => {
            prefix = if prefix >= 96 { prefix - 96 } else { prefix };
            address.to_canonical()
        }
        other => other,
    };
    IpNetwork::new(canonical, prefix).map_err(|_| wrong())
}

#[cfg(test)]
mod tests;
