//! The VMs' network: is it there, in this region, and does its firewall let the daemon in?

use serde_json::Value;

use super::client::{Call, Class, NETWORK};
use super::settings::{NSG, SUBNET};
use super::{Shared, id, text};
use crate::Finding;

impl Shared {
    pub(super) async fn look_at_network(&self, findings: &mut Vec<Finding>) {
        let subnet = &self.settings.subnet;
        // Only the network knows where it is; its subnets stand in it.
        let at = subnet.to_ascii_lowercase().find("/subnets/").unwrap_or(subnet.len());
        let network = self.read(subnet.split_at(at).0).await;
        let its_group = match network {
            Err(e) => {
                findings.push(Finding::warning("subnet", format!("could not be looked at: {e}")));
                None
            }
            Ok(network) => self.judge_subnet(network.as_ref(), findings),
        };
        let of_interface = self.settings.nsg.clone();
        if of_interface.is_none() && its_group.is_none() {
            let text = "neither the subnet nor the interfaces have a network security group, so \
                        nothing is kept out, nor in";
            findings.push(Finding::fine("firewall", text));
        }
        let both = of_interface.as_deref().zip(its_group.as_deref());
        let its_group = if both.is_some_and(|(a, b)| id::same(a, b)) { None } else { its_group };
        let groups = [(NSG.env, of_interface), (SUBNET.env, its_group)];
        for (key, group) in groups.into_iter().filter_map(|(key, g)| Some((key, g?))) {
            match self.read(&group).await {
                Err(e) => findings
                    .push(Finding::warning("firewall", format!("could not be looked at: {e}"))),
                Ok(None) => findings
                    .push(Finding::problem("firewall", format!("{key} {group:?} is not there"))),
                Ok(Some(found)) => self.judge_group(&group, &found, findings),
            }
        }
    }

    async fn read(&self, id: &str) -> Result<Option<Value>, crate::Error> {
        let target = format!("{id}?api-version={NETWORK}");
        self.arm.maybe(Call::get("check", Class::Read, target)).await
    }

    /// The subnet's own security group.
    fn judge_subnet(&self, network: Option<&Value>, all: &mut Vec<Finding>) -> Option<String> {
        let (subnet, region) = (&self.settings.subnet, &self.settings.region);
        let subnets = network.and_then(|n| n.pointer("/properties/subnets"));
        let mut subnets = subnets.and_then(Value::as_array).into_iter().flatten();
        let found = subnets.find(|s| id::same(text(s, "/id"), subnet));
        let (Some(network), Some(found)) = (network, found) else {
            let text = format!("{} {subnet:?} is not there", SUBNET.env);
            all.push(Finding::problem("subnet", text).remedy(
                "az network vnet subnet list --vnet-name <network> --resource-group <group>",
            ));
            return None;
        };
        let place = text(network, "/location");
        all.push(match place.eq_ignore_ascii_case(region) {
            true => Finding::fine("subnet", format!("{} is in {region}", id::name(subnet))),
            false => Finding::problem(
                "subnet",
                format!("{} {subnet:?} is in {place}, AZURE_REGION is {region}", SUBNET.env),
            ),
        });
        let group = text(found, "/properties/networkSecurityGroup/id");
        Some(group.to_owned()).filter(|group| !group.is_empty())
    }

    fn judge_group(&self, id: &str, found: &Value, all: &mut Vec<Finding>) {
        let ports = [("Tcp", self.forwarder_port), ("Udp", self.vxlan_port)];
        for (protocol, port) in ports {
            let name = id::name(id);
            let lower = protocol.to_ascii_lowercase();
            all.push(match verdict(found, protocol, port) {
                Verdict::Open(rule) => {
                    Finding::fine("firewall", format!("{name}: {rule} opens {lower}/{port}"))
                }
                Verdict::Closed(rule) => {
                    let group = id::part(id, "resourceGroups").unwrap_or_default();
                    let text = format!("{name}: {rule} closes {lower}/{port} to the workers");
                    Finding::problem("firewall", text).remedy(format!(
                        "az network nsg rule create --resource-group {group} --nsg-name {name} \
                         --name peerpodd-{lower}-{port} --priority 300 --direction Inbound \
                         --access Allow --protocol {protocol} \
                         --source-address-prefixes VirtualNetwork \
                         --destination-port-ranges {port}"
                    ))
                }
            });
        }
    }
}

enum Verdict {
    Open(String),
    Closed(String),
}

/// The first inbound rule by priority that is about that port. Whether the workers are among its sources
/// only their addresses would tell; a rule for anybody in the network is taken for them.
fn verdict(group: &Value, protocol: &str, port: u16) -> Verdict {
    let lists = ["/properties/securityRules", "/properties/defaultSecurityRules"];
    let rules = lists.iter().filter_map(|list| group.pointer(list).and_then(Value::as_array));
    let mut rules: Vec<&Value> = rules
        .flatten()
        .filter(|rule| text(rule, "/properties/direction").eq_ignore_ascii_case("Inbound"))
        .filter(|rule| {
            let of = text(rule, "/properties/protocol");
            of == "*" || of.eq_ignore_ascii_case(protocol)
        })
        .filter(|rule| has_port(rule, port))
        .filter(|rule| !text(rule, "/name").eq_ignore_ascii_case("AllowAzureLoadBalancerInBound"))
        .collect();
    rules.sort_by_key(|rule| rule.pointer("/properties/priority").and_then(Value::as_u64));
    match rules.first() {
        Some(rule) if text(rule, "/properties/access").eq_ignore_ascii_case("Allow") => {
            Verdict::Open(text(rule, "/name").to_owned())
        }
        Some(rule) => Verdict::Closed(text(rule, "/name").to_owned()),
        // What the built-in rules say where they do not stand in the answer.
        None => Verdict::Open("AllowVnetInBound".to_owned()),
    }
}

fn has_port(rule: &Value, port: u16) -> bool {
    let one = text(rule, "/properties/destinationPortRange");
    let many = rule.pointer("/properties/destinationPortRanges").and_then(Value::as_array);
    let many = many.into_iter().flatten().filter_map(Value::as_str);
    std::iter::once(one).chain(many).any(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let inside = |from: u16, to: u16| (from..=to).contains(&port);
        range == "*" || from.parse().ok().zip(to.parse().ok()).is_some_and(|(a, b)| inside(a, b))
    })
}
