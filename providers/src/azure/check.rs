//! Looks whether VMs could be made, and changes nothing (providers.md 4.5, `peerpodd doctor cloud`).

use serde_json::Value;

use super::catalogue::{Catalogue, Sku};
use super::client::{AUTHORIZATION, COMPUTE, Call, Class, GROUPS};
use super::image::Known;
use super::settings::{GROUP, IMAGE, REGION, SIZE, SIZES, ZONES, tag_room};
use super::template::Template;
use super::{Shared, USER_DATA_LIMIT, text};
use crate::size::{self, SizeRules};
use crate::{Error, Finding, InstanceType, Kind, Market, Report};

/// What the provider does, as Azure's roles name it; `deploy/clouds/azure/role.json` grants it.
const ACTIONS: [&str; 12] = [
    "Microsoft.Compute/virtualMachines/read",
    "Microsoft.Compute/virtualMachines/write",
    "Microsoft.Compute/virtualMachines/delete",
    "Microsoft.Compute/disks/read",
    "Microsoft.Compute/disks/write",
    "Microsoft.Compute/disks/delete",
    "Microsoft.Network/networkInterfaces/read",
    "Microsoft.Network/networkInterfaces/write",
    "Microsoft.Network/networkInterfaces/delete",
    "Microsoft.Network/networkInterfaces/join/action",
    "Microsoft.Network/publicIPAddresses/read",
    "Microsoft.Network/publicIPAddresses/delete",
];
const PUBLIC_ACTIONS: [&str; 2] = [
    "Microsoft.Network/publicIPAddresses/write",
    "Microsoft.Network/publicIPAddresses/join/action",
];

impl Shared {
    pub(super) async fn check(&self) -> Result<Report, Error> {
        let mut findings = Vec::new();
        let words = self.settings.identity.words();
        match self.arm.token("check").await {
            Ok(_) => findings.push(Finding::fine("credentials", words)),
            // Nothing more can be looked at.
            Err(e) if e.kind == Kind::Denied => {
                let finding = Finding::problem("credentials", e.in_full());
                findings.push(finding.remedy("az ad sp credential reset --id <AZURE_CLIENT_ID>"));
                return Ok(Report { findings, ..Report::default() });
            }
            Err(e) => return Err(e),
        }
        self.look_at_group(&mut findings).await?;
        self.look_at_rights(&mut findings).await;
        let image = self.look_at_image(&mut findings).await;
        self.look_at_network(&mut findings).await;
        let types = match self.catalogue().await {
            Ok(catalogue) => {
                let types = self.judge_sizes(&catalogue, &image, &mut findings);
                self.look_at_quota(&catalogue, &mut findings).await;
                types
            }
            Err(e) => {
                findings.push(Finding::problem("types", format!("could not be looked at: {e}")));
                Vec::new()
            }
        };
        let rates = &self.settings.rates;
        let text = [("VM PUT", rates.put), ("VM DELETE", rates.delete), ("VM GET", rates.get)]
            .map(|(name, rate)| format!("{name} {}/s, {} at once", rate.per_second, rate.burst));
        findings.push(Finding::fine("budgets", text.join("; ")));
        findings.extend(
            self.settings.common.warnings.iter().map(|w| Finding::warning("settings", w.clone())),
        );
        self.report(types, &image, findings)
    }

    fn report(
        &self,
        mut types: Vec<InstanceType>,
        image: &Known,
        findings: Vec<Finding>,
    ) -> Result<Report, Error> {
        let settings = &self.settings;
        settings.common.prices.fill(&mut types);
        let template = Template {
            region: settings.region.clone(),
            subnet: settings.subnet.clone(),
            nsg: settings.nsg.clone(),
            image: settings.image.clone(),
            image_gib: image.size,
            ssh_key: settings.ssh_key.clone(),
            ssh_user: settings.ssh_user.clone(),
            confidential: !settings.common.disable_cvm,
            secure_boot: settings.secure_boot,
            public_ip: settings.common.public_ip,
        };
        let template = serde_json::to_string(&template)
            .map_err(|e| Error::new(super::NAME, "check", Kind::Other, e.to_string()))?;
        Ok(Report {
            types,
            size: self.rules(),
            zones: settings.zones.clone(),
            markets: settings.common.markets.clone(),
            disk_gib: settings.common.disk_gib,
            user_data: Some(USER_DATA_LIMIT),
            tags: tag_room(),
            template,
            findings,
        })
    }

    fn rules(&self) -> SizeRules {
        SizeRules {
            default_type: self.settings.size.clone(),
            allowed: self.settings.sizes.clone(),
            any_size: None,
        }
    }

    /// The first real call: what it says of the credentials holds for all.
    async fn look_at_group(&self, findings: &mut Vec<Finding>) -> Result<(), Error> {
        let name = &self.settings.group;
        let target = format!("{}?api-version={GROUPS}", self.group());
        findings.push(match self.arm.json(Call::get("check", Class::Read, target)).await {
            Ok(_) => Finding::fine("resource group", name.clone()),
            Err(e) if e.kind == Kind::NotFound || e.kind == Kind::Invalid => {
                let text = format!("{} {name:?} is not there: {}", GROUP.env, e.message);
                let region = &self.settings.region;
                Finding::problem("resource group", text)
                    .remedy(format!("az group create --name {name} --location {region}"))
            }
            Err(e) if e.kind == Kind::Denied => {
                Finding::problem("credentials", format!("may not read {name}: {}", e.message))
                    .remedy("apply deploy/clouds/azure/role.json")
            }
            Err(e) => return Err(e),
        });
        Ok(())
    }

    /// Azure has no dry run; it tells what the identity may do in the group.
    async fn look_at_rights(&self, findings: &mut Vec<Finding>) {
        let target = format!(
            "{}/providers/Microsoft.Authorization/permissions?api-version={AUTHORIZATION}",
            self.group()
        );
        let granted = match self.arm.pages("check", Class::Read, target).await {
            Ok(granted) => granted,
            Err(e) => {
                findings.push(Finding::warning("rights", format!("could not be looked at: {e}")));
                return;
            }
        };
        let public: &[&str] = if self.settings.common.public_ip { &PUBLIC_ACTIONS } else { &[] };
        let mut needed = ACTIONS.iter().chain(public);
        let mut missing: Vec<&str> = Vec::new();
        for action in needed.by_ref() {
            if !granted.iter().any(|set| grants(set, action)) {
                missing.push(action);
            }
        }
        findings.push(match missing.is_empty() {
            true => Finding::fine("rights", "all that is needed in the resource group"),
            false => Finding::problem("rights", format!("missing: {}", missing.join(", "))).remedy(
                "az role definition create --role-definition deploy/clouds/azure/role.json",
            ),
        });
    }

    async fn look_at_image(&self, findings: &mut Vec<Finding>) -> Known {
        let image = &self.settings.image;
        match self.image(image).await {
            Err(e) => {
                findings.push(Finding::warning("image", format!("could not be looked at: {e}")));
                Known::default()
            }
            Ok(None) => {
                let text = format!("{} {image:?} is not there", IMAGE.env);
                findings.push(Finding::problem("image", text));
                Known::default()
            }
            Ok(Some(known)) => {
                let cvm = !self.settings.common.disable_cvm;
                findings.push(match known.state.as_str() {
                    state if !state.is_empty() && state != "Succeeded" => {
                        Finding::problem("image", format!("{} {image:?} is {state}", IMAGE.env))
                    }
                    _ if cvm && known.confidential == Some(false) => {
                        let text = format!("{} {image:?} is not for confidential VMs", IMAGE.env);
                        Finding::problem("image", text).remedy("DISABLECVM=true, or another image")
                    }
                    _ => Finding::fine("image", image.clone()),
                });
                known
            }
        }
    }

    /// The permitted sizes that can be used; what is named and cannot is a problem, not left out.
    fn judge_sizes(
        &self,
        catalogue: &Catalogue,
        image: &Known,
        findings: &mut Vec<Finding>,
    ) -> Vec<InstanceType> {
        let (rules, region) = (self.rules(), &self.settings.region);
        if catalogue.skus.is_empty() {
            let text = format!("{} {region:?} has no VM size; is it a region?", REGION.env);
            findings.push(
                Finding::problem("region", text).remedy("az account list-locations --output table"),
            );
            return Vec::new();
        }
        let sizes: Vec<InstanceType> = catalogue.skus.iter().map(|s| s.size.clone()).collect();
        for name in size::unknown(&rules, &sizes) {
            let text = format!("{} or {}: {region} has no {name:?}", SIZE.env, SIZES.env);
            let remedy = format!("az vm list-skus --location {region} --output table");
            findings.push(Finding::problem("types", text).remedy(remedy));
        }
        let (mut usable, before) = (Vec::new(), findings.len());
        for sku in &catalogue.skus {
            let name = &sku.size.name;
            let named = *name == rules.default_type || rules.allowed.contains(name);
            let prefixes = rules.allowed.iter().filter_map(|a| a.strip_suffix('*'));
            if !named && !prefixes.into_iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            match self.unfit(sku, image) {
                None => usable.push(sku.size.clone()),
                Some((text, remedy)) if named => {
                    findings.push(Finding::problem("types", text).remedy(remedy));
                }
                Some(_) => {}
            }
        }
        if findings.len() == before {
            findings.push(Finding::fine("types", format!("{} can be used", usable.len())));
        }
        usable
    }

    /// Why a size cannot be used with these settings, and what to do.
    fn unfit(&self, sku: &Sku, image: &Known) -> Option<(String, String)> {
        let (settings, name) = (&self.settings, &sku.size.name);
        let other = || "name another size".to_owned();
        if let Some(reason) = &sku.refused {
            let text = format!("{name} is not to be had in {}: {reason}", settings.region);
            return Some((text, other()));
        }
        if !settings.common.disable_cvm && sku.confidential.is_none() {
            let text = format!("{name} cannot be a confidential VM, and DISABLECVM is false");
            return Some((text, "DISABLECVM=true, or a size such as Standard_DC2as_v5".to_owned()));
        }
        let architecture = if image.architecture.is_empty() { "x64" } else { &image.architecture };
        if !sku.architecture.eq_ignore_ascii_case(architecture) {
            let text = format!("{name} is {}, the image is {architecture}", sku.architecture);
            return Some((text, other()));
        }
        let missing: Vec<&str> =
            settings.zones.iter().filter(|z| !sku.zones.contains(z)).map(String::as_str).collect();
        if !missing.is_empty() {
            let text = format!("{}: {name} is not in zone {}", ZONES.env, missing.join(", "));
            return Some((text, other()));
        }
        if settings.common.markets == [Market::Spot] && !sku.spot {
            return Some((
                format!("{name} cannot be had as spot"),
                "SPOT_POLICY=prefer".to_owned(),
            ));
        }
        None
    }

    async fn look_at_quota(&self, catalogue: &Catalogue, findings: &mut Vec<Finding>) {
        let (subscription, region) = (&self.settings.subscription, &self.settings.region);
        let target = format!(
            "/subscriptions/{subscription}/providers/Microsoft.Compute/locations/{region}/usages\
             ?api-version={COMPUTE}"
        );
        let usages = match self.arm.pages("check", Class::Read, target).await {
            Ok(usages) => usages,
            Err(e) => {
                findings.push(Finding::warning("quota", format!("could not be looked at: {e}")));
                return;
            }
        };
        let Some(sku) = catalogue.of(&self.settings.size) else { return };
        for name in ["cores", &sku.family] {
            let usage = usages.iter().find(|u| text(u, "/name/value").eq_ignore_ascii_case(name));
            let Some((used, limit)) = usage.and_then(numbers) else { continue };
            let words = format!("{name}: {used} of {limit} vCPUs are in use");
            findings.push(match limit.saturating_sub(used) < u64::from(sku.size.vcpus) {
                true => {
                    Finding::problem("quota", format!("{words}, no VM of the default size fits"))
                        .remedy(
                            "ask for more at https://aka.ms/azquota, or delete what is not needed",
                        )
                }
                false => Finding::fine("quota", words),
            });
        }
    }
}

fn numbers(usage: &Value) -> Option<(u64, u64)> {
    Some((usage.get("currentValue")?.as_u64()?, usage.get("limit")?.as_u64()?))
}

/// Whether one set of permissions has an action: in `actions` and not in `notActions`.
fn grants(set: &Value, action: &str) -> bool {
    let has = |list: &str| {
        let all = set.get(list).and_then(Value::as_array).into_iter().flatten();
        all.filter_map(Value::as_str).any(|pattern| matches(pattern, action))
    };
    has("actions") && !has("notActions")
}

/// `*` stands for anything, as often as wanted; case is nothing.
fn matches(pattern: &str, action: &str) -> bool {
    let (pattern, action) = (pattern.to_ascii_lowercase(), action.to_ascii_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = action.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_right_is_granted_by_pattern_and_taken_back_by_another() {
        let action = "Microsoft.Compute/virtualMachines/read";
        for (pattern, granted) in [
            ("*", true),
            ("*/read", true),
            ("microsoft.compute/*", true),
            ("Microsoft.Compute/*/read", true),
            ("Microsoft.Compute/virtualMachines/read", true),
            ("Microsoft.Compute/virtualMachines/rea", false),
            ("Microsoft.Compute/*/write", false),
            ("Microsoft.Network/*", false),
            ("", false),
        ] {
            assert_eq!(matches(pattern, action), granted, "{pattern}");
        }
        let all_but = json!({"actions": ["*"], "notActions": ["Microsoft.Compute/*"]});
        assert!(!grants(&all_but, action));
        assert!(!grants(&json!({"actions": 7}), action));
    }

    /// What the provider does, the ready-made role grants.
    #[test]
    fn the_role_under_deploy_grants_what_is_needed() {
        let role = include_str!("../../../deploy/clouds/azure/role.json");
        let role: Value = serde_json::from_str(role).expect("JSON");
        let set = json!({"actions": role["Actions"], "notActions": role["NotActions"]});
        for action in ACTIONS.iter().chain(&PUBLIC_ACTIONS) {
            assert!(grants(&set, action), "{action}");
        }
    }
}
