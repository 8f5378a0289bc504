//! The VMs' network: are subnets and groups there, in one VPC, and does the firewall let the daemon in?

use std::collections::BTreeSet;

use aws_sdk_ec2::types::{IpPermission, SecurityGroup, Subnet};

use super::Shared;
use super::client::Class;
use super::place::Place;
use super::settings::{GROUPS, SUBNET, VPC};
use crate::{Error, Finding, Kind};

/// Fewer free addresses than that are soon used up.
const FEW: i32 = 16;

/// A subnet that is there, by its zone.
pub(super) type Zone = (String, String);

impl Shared {
    /// The subnets by zone, in the order of the settings.
    pub(super) async fn look_at_network(
        &self,
        place: &Place,
        findings: &mut Vec<Finding>,
    ) -> Result<Vec<Zone>, Error> {
        if place.subnets.is_empty() {
            return Ok(Vec::new());
        }
        let subnets = self.subnets(place, findings).await?;
        let mut zones: Vec<Zone> = Vec::new();
        for subnet in &subnets {
            let (id, zone) = (text(subnet.subnet_id()), text(subnet.availability_zone()));
            match zones.iter().find(|(known, _)| known == zone) {
                Some((_, first)) => {
                    let text = format!("{}: {id} is in zone {zone} as {first} is", SUBNET.env);
                    findings.push(Finding::warning("subnet", format!("{text}, and is not used")));
                }
                None => {
                    findings.push(room(subnet));
                    zones.push((zone.to_owned(), id.to_owned()));
                }
            }
        }
        let vpcs: BTreeSet<&str> = subnets.iter().map(|subnet| text(subnet.vpc_id())).collect();
        if vpcs.len() > 1 {
            let all: Vec<&str> = vpcs.iter().copied().collect();
            let text = format!("{}: subnets of several VPCs: {}", SUBNET.env, all.join(", "));
            findings.push(Finding::problem("subnet", text));
        }
        if let (Some(vpc), Some(is)) = (&self.settings.vpc, vpcs.first())
            && !vpcs.contains(vpc.as_str())
        {
            let text = format!("{} is {vpc}, {} is in {is}", VPC.env, SUBNET.env);
            findings.push(Finding::problem("subnet", text));
        }
        self.look_at_groups(place, vpcs.first().copied(), findings).await?;
        Ok(zones)
    }

    /// Those that are there.
    async fn subnets(
        &self,
        place: &Place,
        findings: &mut Vec<Finding>,
    ) -> Result<Vec<Subnet>, Error> {
        let client = self.ec2.client("check").await?;
        let mut found = Vec::new();
        // One by one: a single unknown id fails the whole call.
        for id in &place.subnets {
            let call = client.describe_subnets().subnet_ids(id).send();
            let answer = self.ec2.call(Class::Describe, "check", "DescribeSubnets", call).await;
            match answer {
                Ok(answer) if !answer.subnets().is_empty() => found.extend(answer.subnets),
                Err(e) if e.kind != Kind::Invalid => return Err(e),
                _ => {
                    let text = format!("{} {id:?} is not there", SUBNET.env);
                    findings
                        .push(Finding::problem("subnet", text).remedy("aws ec2 describe-subnets"));
                }
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    async fn look_at_groups(
        &self,
        place: &Place,
        vpc: Option<&str>,
        findings: &mut Vec<Finding>,
    ) -> Result<(), Error> {
        let client = self.ec2.client("check").await?;
        let mut found: Vec<SecurityGroup> = Vec::new();
        for id in &place.groups {
            let call = client.describe_security_groups().group_ids(id).send();
            let what = "DescribeSecurityGroups";
            match self.ec2.call(Class::Describe, "check", what, call).await {
                Ok(answer) if !answer.security_groups().is_empty() => {
                    found.extend(answer.security_groups.unwrap_or_default());
                }
                Err(e) if e.kind != Kind::Invalid => return Err(e),
                _ => {
                    let text = format!("{} {id:?} is not there", GROUPS.env);
                    let remedy = "aws ec2 describe-security-groups";
                    findings.push(Finding::problem("firewall", text).remedy(remedy));
                }
            }
        }
        for group in &found {
            let (id, of) = (text(group.group_id()), text(group.vpc_id()));
            if vpc.is_some_and(|vpc| vpc != of) {
                let vpc = vpc.unwrap_or_default();
                let text = format!("{}: {id} is in {of}, the subnet is in {vpc}", GROUPS.env);
                findings.push(Finding::problem("firewall", text));
            }
        }
        if !found.is_empty() {
            self.judge_ports(&found, findings);
        }
        Ok(())
    }

    /// A port is open when one of the groups opens it. Whether the workers are among the sources only
    /// their addresses would tell.
    fn judge_ports(&self, groups: &[SecurityGroup], findings: &mut Vec<Finding>) {
        for (protocol, port) in [("tcp", self.forwarder_port), ("udp", self.vxlan_port)] {
            let opens = |group: &&SecurityGroup| {
                group.ip_permissions().iter().any(|rule| opens(rule, protocol, port))
            };
            let first = groups.first().map(|group| text(group.group_id())).unwrap_or_default();
            findings.push(match groups.iter().find(opens) {
                Some(group) => {
                    let id = text(group.group_id());
                    Finding::fine("firewall", format!("{id} opens {protocol}/{port}"))
                }
                None => {
                    let text = format!("no group opens {protocol}/{port} to the workers");
                    Finding::problem("firewall", text).remedy(format!(
                        "aws ec2 authorize-security-group-ingress --group-id {first} --protocol \
                         {protocol} --port {port} --source-group <group of the workers>"
                    ))
                }
            });
        }
    }
}

fn room(subnet: &Subnet) -> Finding {
    let (id, zone) = (text(subnet.subnet_id()), text(subnet.availability_zone()));
    match subnet.available_ip_address_count() {
        Some(0) => Finding::problem("subnet", format!("{id} in {zone} has no address left")),
        Some(left) if left < FEW => {
            Finding::warning("subnet", format!("{id} in {zone} has only {left} addresses left"))
        }
        Some(left) => Finding::fine("subnet", format!("{id} in {zone}, {left} addresses left")),
        None => Finding::fine("subnet", format!("{id} in {zone}")),
    }
}

fn opens(rule: &IpPermission, protocol: &str, port: u16) -> bool {
    let sources = !rule.ip_ranges().is_empty()
        || !rule.ipv6_ranges().is_empty()
        || !rule.user_id_group_pairs().is_empty()
        || !rule.prefix_list_ids().is_empty();
    let port = i32::from(port);
    let ports = rule.from_port().unwrap_or(i32::MIN)..=rule.to_port().unwrap_or(i32::MAX);
    match rule.ip_protocol() {
        // Anything.
        Some("-1") => sources,
        Some(of) => sources && of == protocol && ports.contains(&port),
        None => false,
    }
}

pub(super) fn text(value: Option<&str>) -> &str {
    value.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::IpRange;

    use super::*;

    #[test]
    fn a_rule_opens_what_it_names_and_only_to_somebody() {
        let rule = |protocol: &str, from, to| {
            let anybody = IpRange::builder().cidr_ip("10.0.0.0/8").build();
            let rule = IpPermission::builder().ip_protocol(protocol).ip_ranges(anybody);
            rule.set_from_port(from).set_to_port(to).build()
        };
        assert!(opens(&rule("udp", Some(9000), Some(9000)), "udp", 9000));
        assert!(opens(&rule("udp", Some(0), Some(65535)), "udp", 9000));
        assert!(opens(&rule("-1", None, None), "udp", 9000));
        // What the OpenShift procedure opens.
        assert!(!opens(&rule("tcp", Some(9000), Some(9000)), "udp", 9000));
        assert!(!opens(&rule("udp", Some(9001), Some(9100)), "udp", 9000));
        let nobody = IpPermission::builder().ip_protocol("-1").build();
        assert!(!opens(&nobody, "udp", 9000));
    }
}
