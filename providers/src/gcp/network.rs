//! The VMs' network: is it there, does it need a subnetwork, and does its firewall let the daemon in?

use serde_json::Value;

use super::client::{Call, Class};
use super::settings::{NETWORK, SUBNETWORK};
use super::{Gcp, id, items, text};
use crate::{Error, Finding};

/// Of a rule that names none.
const PRIORITY: u64 = 1000;

impl Gcp {
    fn network_project(&self) -> &str {
        id::project_of(&self.settings.network).unwrap_or(&self.settings.project)
    }

    async fn read(&self, rest: &str, kind: &'static str) -> Result<Option<Value>, Error> {
        let target = format!("/compute/v1/projects/{rest}");
        self.compute.maybe(Call::get("check", Class::Read, target, kind)).await
    }

    pub(super) async fn look_at_network(&self, findings: &mut Vec<Finding>) {
        let (project, name) = (self.network_project(), id::last(&self.settings.network));
        let network = format!("{project}/global/networks/{name}");
        match self.read(&network, "compute#network").await {
            Err(e) => {
                let text = format!("could not be looked at: {}", e.message);
                findings.push(Finding::warning("network", text));
            }
            Ok(None) => {
                let text = format!("{} {name:?} is not there", NETWORK.env);
                let remedy = format!("gcloud compute networks list --project={project}");
                findings.push(Finding::problem("network", text).remedy(remedy));
                return;
            }
            Ok(Some(found)) => findings.push(self.judge_network(&found)),
        }
        self.look_at_subnetworks(findings).await;
        match self.read(&format!("{network}/getEffectiveFirewalls"), "").await {
            Ok(Some(rules)) => self.judge_firewall(&rules, findings),
            Ok(None) => {}
            Err(e) => {
                let text = format!(
                    "could not be looked at; tcp/{} and udp/{} must be open to the VMs: {}",
                    self.forwarder_port, self.vxlan_port, e.message
                );
                let remedy = self.opening(&[
                    format!("tcp:{}", self.forwarder_port),
                    format!("udp:{}", self.vxlan_port),
                ]);
                findings.push(Finding::warning("firewall", text).remedy(remedy));
            }
        }
    }

    fn judge_network(&self, found: &Value) -> Finding {
        let name = id::last(&self.settings.network);
        let auto = found.get("autoCreateSubnetworks").and_then(Value::as_bool);
        match (auto, &self.settings.subnetwork) {
            (Some(false), None) => {
                let text = format!("{} is required: {name} is in custom mode", SUBNETWORK.env);
                Finding::problem("subnetwork", text).remedy(format!(
                    "gcloud compute networks subnets list --network={name} --project={}",
                    self.network_project()
                ))
            }
            _ => Finding::fine("network", name),
        }
    }

    /// In each region of the zones.
    async fn look_at_subnetworks(&self, findings: &mut Vec<Finding>) {
        let Some(subnetwork) = &self.settings.subnetwork else { return };
        let mut regions: Vec<&str> = self.settings.zones.iter().map(|z| id::region(z)).collect();
        regions.dedup();
        for region in regions {
            let own =
                format!("{}/regions/{region}/subnetworks/{subnetwork}", self.network_project());
            let path = match subnetwork.strip_prefix("projects/") {
                Some(rest) => rest.to_owned(),
                None if subnetwork.contains('/') => {
                    format!("{}/{subnetwork}", self.settings.project)
                }
                None => own,
            };
            let finding = match self.read(&path, "compute#subnetwork").await {
                Err(e) => {
                    let text = format!("could not be looked at: {}", e.message);
                    Finding::warning("subnetwork", text)
                }
                Ok(None) => {
                    let text =
                        format!("{} {subnetwork:?} is not there in {region}", SUBNETWORK.env);
                    Finding::problem("subnetwork", text)
                }
                Ok(Some(found)) => self.judge_subnetwork(&found, region),
            };
            findings.push(finding);
        }
    }

    fn judge_subnetwork(&self, found: &Value, region: &str) -> Finding {
        let (name, network) = (text(found, "/name"), id::last(text(found, "/network")));
        let place = id::last(text(found, "/region"));
        let problem = |of: String| {
            let text = format!("{} {name:?} is {of}", SUBNETWORK.env);
            Finding::problem("subnetwork", text)
        };
        if network != id::last(&self.settings.network) {
            return problem(format!("of network {network:?}, {} is another", NETWORK.env));
        }
        if place != region {
            return problem(format!("in {place}, the zones are in {region}"));
        }
        Finding::fine("subnetwork", format!("{name} in {region}"))
    }

    fn judge_firewall(&self, rules: &Value, findings: &mut Vec<Finding>) {
        let policies: Vec<&str> = items(rules, "/firewallPolicys")
            .filter(|policy| matches!(text(policy, "/type"), "HIERARCHY" | "NETWORK"))
            .filter(|policy| items(policy, "/rules").next().is_some())
            .map(|policy| text(policy, "/shortName"))
            .collect();
        let name = id::last(&self.settings.network);
        for (protocol, port) in [("tcp", self.forwarder_port), ("udp", self.vxlan_port)] {
            let remedy = self.opening(&[format!("{protocol}:{port}")]);
            findings.push(match verdict(rules, protocol, port) {
                Verdict::Open(rule) => {
                    Finding::fine("firewall", format!("{name}: {rule} opens {protocol}/{port}"))
                }
                Verdict::Closed(rule) => {
                    let text = format!("{name}: {rule} closes {protocol}/{port} to the workers");
                    Finding::problem("firewall", text).remedy(remedy)
                }
                Verdict::Nothing if policies.is_empty() => {
                    let text = format!("{name}: no rule opens {protocol}/{port} to the VMs");
                    Finding::problem("firewall", text).remedy(remedy)
                }
                Verdict::Nothing => {
                    let of = policies.join(", ");
                    let text = format!(
                        "{name}: no rule of the network opens {protocol}/{port}; whether the \
                         firewall policies do ({of}) is not looked at"
                    );
                    Finding::warning("firewall", text).remedy(remedy)
                }
            });
        }
    }

    fn opening(&self, ports: &[String]) -> String {
        let (project, name) = (self.network_project(), id::last(&self.settings.network));
        format!(
            "gcloud compute firewall-rules create peerpodd-{} --project={project} --network={name} \
             --direction=INGRESS --priority=900 --allow={} \
             --source-ranges=<the workers' addresses>",
            ports.join("-").replace(':', "-"),
            ports.join(","),
        )
    }
}

enum Verdict {
    Open(String),
    Closed(String),
    Nothing,
}

/// The first rule by priority that is about that port and the VMs, which have no network tags and no
/// service account. Whether the workers are among its sources only their addresses would tell: a rule that
/// opens is taken for them, one that closes only if it is for everybody.
fn verdict(rules: &Value, protocol: &str, port: u16) -> Verdict {
    let names = |rule: &Value, key: &str| items(rule, key).next().is_some();
    let mut rules: Vec<(u64, bool, &Value)> = items(rules, "/firewalls")
        .filter(|rule| text(rule, "/direction") != "EGRESS")
        .filter(|rule| rule.get("disabled").and_then(Value::as_bool) != Some(true))
        .filter(|rule| !names(rule, "/targetTags") && !names(rule, "/targetServiceAccounts"))
        .filter_map(|rule| {
            let priority = rule.get("priority").and_then(Value::as_u64).unwrap_or(PRIORITY);
            let about = |list: &str| items(rule, list).any(|what| has_port(what, protocol, port));
            let everybody = !names(rule, "/sourceTags")
                && !names(rule, "/sourceServiceAccounts")
                && (!names(rule, "/sourceRanges")
                    || items(rule, "/sourceRanges").any(|range| range == "0.0.0.0/0"));
            match (about("/denied"), about("/allowed")) {
                (true, _) if everybody => Some((priority, false, rule)),
                (_, true) => Some((priority, true, rule)),
                _ => None,
            }
        })
        .collect();
    // Of two with the same priority the one that closes wins.
    rules.sort_by_key(|(priority, opens, _)| (*priority, *opens));
    match rules.first() {
        Some((_, true, rule)) => {
            let from: Vec<&str> = items(rule, "/sourceRanges").filter_map(Value::as_str).collect();
            let name = text(rule, "/name");
            Verdict::Open(if from.is_empty() {
                name.to_owned()
            } else {
                format!("{name} (from {})", from.join(", "))
            })
        }
        Some((_, false, rule)) => Verdict::Closed(text(rule, "/name").to_owned()),
        None => Verdict::Nothing,
    }
}

fn has_port(what: &Value, protocol: &str, port: u16) -> bool {
    let number = if protocol == "tcp" { "6" } else { "17" };
    let of = text(what, "/IPProtocol");
    if of != "all" && of != number && !of.eq_ignore_ascii_case(protocol) {
        return false;
    }
    let mut ports = items(what, "/ports").filter_map(Value::as_str).peekable();
    ports.peek().is_none()
        || ports.any(|range| {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            let ends = from.trim().parse::<u16>().ok().zip(to.trim().parse().ok());
            ends.is_some_and(|(from, to)| (from..=to).contains(&port))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn opens(rules: Value) -> Option<bool> {
        match verdict(&json!({"firewalls": rules}), "tcp", 15150) {
            Verdict::Open(_) => Some(true),
            Verdict::Closed(_) => Some(false),
            Verdict::Nothing => None,
        }
    }

    #[test]
    fn the_first_rule_that_is_about_the_port_and_the_vms_decides() {
        let rule = |priority: u64, list: &str, ports: &[&str]| {
            json!({"name": "r", "direction": "INGRESS", "priority": priority,
                list: [{"IPProtocol": "tcp", "ports": ports}]})
        };
        let with = |mut rule: Value, key: &str, value: Value| {
            rule[key] = value;
            rule
        };
        let (open, closed) = (rule(1000, "allowed", &["15150"]), rule(900, "denied", &[]));
        assert_eq!(opens(json!([])), None);
        assert_eq!(opens(json!([open])), Some(true));
        assert_eq!(opens(json!([open, closed])), Some(false));
        assert_eq!(opens(json!([rule(1000, "allowed", &["15000-16000", "22"])])), Some(true));
        assert_eq!(opens(json!([rule(1000, "allowed", &["22", "9000"])])), None);
        for (key, value) in [
            ("disabled", json!(true)),
            ("direction", json!("EGRESS")),
            ("targetTags", json!(["web"])),
            ("targetServiceAccounts", json!(["x"])),
        ] {
            assert_eq!(opens(json!([with(open.clone(), key, value)])), None, "{key}");
        }
        let some = with(closed, "sourceRanges", json!(["203.0.113.0/24"]));
        assert_eq!(opens(json!([open, some])), Some(true), "closed to others");
        let same = rule(1000, "denied", &["15150"]);
        assert_eq!(opens(json!([open, same])), Some(false), "what closes wins");
        let numbered = json!([{"allowed": [{"IPProtocol": "6"}]}]);
        assert_eq!(opens(numbered), Some(true));
        assert_eq!(opens(json!([{"allowed": [{"IPProtocol": "udp"}]}])), None);
    }
}
