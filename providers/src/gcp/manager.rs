//! The Resource Manager: what this identity may do, and the tags that must be there before they are put on
//! a VM.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::Method;
use serde_json::json;

use super::client::{Call, Class};
use super::{Gcp, id, items, text};
use crate::{Error, Finding, Kind};

/// What the provider does, as Google names it; `deploy/clouds/gcp/role.yaml` grants it.
const RIGHTS: [&str; 15] = [
    "compute.disks.create",
    "compute.disks.delete",
    "compute.disks.get",
    "compute.disks.list",
    "compute.disks.setLabels",
    "compute.disks.use",
    "compute.images.useReadOnly",
    "compute.instances.create",
    "compute.instances.delete",
    "compute.instances.get",
    "compute.instances.list",
    "compute.instances.setLabels",
    "compute.instances.setMetadata",
    "compute.subnetworks.use",
    "compute.zoneOperations.get",
];
const PUBLIC_RIGHTS: [&str; 1] = ["compute.subnetworks.useExternalIp"];
const TAG_RIGHTS: [&str; 2] =
    ["compute.disks.createTagBinding", "compute.instances.createTagBinding"];
/// Without these a check or the console sees less.
const LOOKS: [&str; 11] = [
    "compute.acceleratorTypes.get",
    "compute.diskTypes.get",
    "compute.images.get",
    "compute.images.getFromFamily",
    "compute.instances.getSerialPortOutput",
    "compute.machineTypes.list",
    "compute.networks.get",
    "compute.networks.getEffectiveFirewalls",
    "compute.projects.get",
    "compute.regions.get",
    "compute.subnetworks.get",
];

impl Gcp {
    /// Google has no dry run; it tells what an identity may do in the project.
    pub(super) async fn look_at_rights(&self, findings: &mut Vec<Finding>) -> Result<(), Error> {
        let settings = &self.settings;
        let public: &[&str] = if settings.common.public_ip { &PUBLIC_RIGHTS } else { &[] };
        let tags: &[&str] = if settings.manager_tags.is_empty() { &[] } else { &TAG_RIGHTS };
        let elsewhere = |path: &str| id::project_of(path).is_some_and(|of| of != settings.project);
        let (network, image) = (elsewhere(&settings.network), elsewhere(&settings.image));
        // What lies in another project is that project's to permit.
        let here = |right: &&str| {
            !(network && (right.contains(".subnetworks.") || right.contains(".networks.")))
                && !(image && right.contains(".images."))
        };
        let needed = RIGHTS.iter().chain(public).chain(tags).copied().filter(here);
        let needed: Vec<&str> = needed.collect();
        let looks: Vec<&str> = LOOKS.iter().copied().filter(here).collect();
        let asked: Vec<&str> = needed.iter().chain(&looks).copied().collect();
        let call = Call {
            method: Method::POST,
            body: Some(Bytes::from(json!({"permissions": asked}).to_string())),
            ..Call::get(
                "check",
                Class::Read,
                format!("/v3/projects/{}:testIamPermissions", settings.project),
                "",
            )
        };
        let granted = match self.compute.json(call).await {
            Ok(granted) => granted,
            Err(e) if e.kind == Kind::Denied => return self.refused(e, findings),
            Err(e) => {
                let text = format!("could not be looked at: {}", e.message);
                findings.push(Finding::warning("rights", text));
                return Ok(());
            }
        };
        let granted: Vec<&str> =
            items(&granted, "/permissions").filter_map(serde_json::Value::as_str).collect();
        let missing = |of: &[&str]| -> Vec<String> {
            of.iter().filter(|r| !granted.contains(*r)).map(|r| (*r).to_owned()).collect()
        };
        let remedy = "gcloud iam roles create peerpodd --file=deploy/clouds/gcp/role.yaml";
        findings.push(match (missing(&needed), missing(&looks)) {
            (needed, _) if !needed.is_empty() => {
                Finding::problem("rights", format!("missing: {}", needed.join(", "))).remedy(remedy)
            }
            (_, looks) if !looks.is_empty() => {
                let text = format!("enough for VMs; missing for checks: {}", looks.join(", "));
                Finding::warning("rights", text).remedy(remedy)
            }
            _ => Finding::fine("rights", "all that is needed in the project"),
        });
        Ok(())
    }

    /// It is not the rights that are refused here: anybody may ask for his own.
    fn refused(&self, error: Error, findings: &mut Vec<Finding>) -> Result<(), Error> {
        if error.message.contains("HTTP 401") {
            return Err(error);
        }
        let text = format!("could not be looked at: {}", error.message);
        let remedy = "gcloud services enable cloudresourcemanager.googleapis.com";
        findings.push(Finding::warning("rights", text).remedy(remedy));
        Ok(())
    }

    /// The user's tags as Google numbers them; what is not there is a problem of its own.
    pub(super) async fn look_at_tags(
        &self,
        findings: &mut Vec<Finding>,
    ) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for (key, value) in &self.settings.manager_tags {
            let (key, value) = match key.starts_with("tagKeys/") {
                true => (key.clone(), value.clone()),
                false => self.look_at_tag(key, value, findings).await,
            };
            all.insert(key, value);
        }
        all
    }

    async fn look_at_tag(
        &self,
        key: &str,
        value: &str,
        findings: &mut Vec<Finding>,
    ) -> (String, String) {
        let name = format!("{key}/{value}");
        let target = format!("/v3/tagValues/namespaced?name={}", id::encoded(&name));
        match self.compute.json(Call::get("check", Class::Read, target, "")).await {
            Ok(found) => {
                let (number, of) = (text(&found, "/name"), text(&found, "/parent"));
                if number.starts_with("tagValues/") && of.starts_with("tagKeys/") {
                    findings.push(Finding::fine("tags", format!("{name} is {number}")));
                    return (of.to_owned(), number.to_owned());
                }
                let text = format!("TAGS {name}: the answer is not one of Google's");
                findings.push(Finding::warning("tags", text));
            }
            // What is not there and what may not be seen are not told apart.
            Err(e) if matches!(e.kind, Kind::NotFound | Kind::Invalid | Kind::Denied) => {
                let text = format!("TAGS {name} is not there, or may not be seen: {}", e.message);
                let (parent, short) = key.split_once('/').unwrap_or(("", key));
                findings.push(Finding::problem("tags", text).remedy(format!(
                    "gcloud resource-manager tags keys create {short} --parent=projects/{parent}; \
                     gcloud resource-manager tags values create {value} --parent={key}"
                )));
            }
            Err(e) => {
                let text = format!("TAGS {name} could not be looked at: {}", e.message);
                findings.push(Finding::warning("tags", text));
            }
        }
        (key.to_owned(), value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_grants_what_is_asked_for_and_nothing_else() {
        let path = "../deploy/clouds/gcp/role.yaml";
        let role = std::fs::read_to_string(path).expect("the role's file");
        let line = |line: &str| Some(line.trim().strip_prefix("- ")?.to_owned());
        let granted: Vec<String> = role.lines().filter_map(line).collect();
        let mut granted: Vec<&str> = granted.iter().map(String::as_str).collect();
        let mut asked: Vec<&str> = [&RIGHTS[..], &PUBLIC_RIGHTS, &TAG_RIGHTS, &LOOKS].concat();
        granted.sort_unstable();
        asked.sort_unstable();
        assert_eq!(granted, asked);
    }
}
