//! Looks whether VMs could be made, and changes nothing (providers.md 3.2, `peerpodd doctor cloud`).

use std::collections::{BTreeMap, BTreeSet};

use super::catalogue::Known;
use super::image;
use super::network::Zone;
use super::place::Place;
use super::rights::{Decided, POLICY};
use super::settings::{IMAGE, SUBNET, TYPE, TYPES, tag_room};
use super::template::Template;
use super::{NAME, Shared, USER_DATA_LIMIT};
use crate::size::{self, SizeRules};
use crate::{Error, Finding, InstanceType, Kind, Market, Report};

/// Running On-Demand Standard instances; Service Quotas is another service with rights of its own.
const QUOTA: &str =
    "aws service-quotas get-service-quota --service-code ec2 --quota-code L-1216C47A";

type Offers = BTreeMap<String, BTreeSet<String>>;

impl Shared {
    pub(super) async fn check(&self) -> Result<Report, Error> {
        let mut findings = Vec::new();
        match self.look_at_all(&mut findings).await {
            Ok(report) => Ok(Report { findings, ..report }),
            // Nothing more can be looked at.
            Err(e) if matches!(e.kind, Kind::Denied | Kind::Invalid) => {
                let subject = if e.kind == Kind::Denied { "credentials" } else { "settings" };
                let unsigned = e.message.contains("NoCredentials");
                let remedy = if unsigned { "aws sts get-caller-identity" } else { POLICY };
                findings.push(Finding::problem(subject, e.message).remedy(remedy));
                Ok(Report { findings, ..Report::default() })
            }
            Err(e) => Err(e),
        }
    }

    async fn look_at_all(&self, findings: &mut Vec<Finding>) -> Result<Report, Error> {
        let region = self.ec2.made("check").await?.region.clone();
        findings.push(Finding::fine("region", region.clone()));
        self.look_at_caller(findings).await?;
        let place = self.place(findings).await;
        let zones = self.look_at_network(&place, findings).await?;
        let decided = self.look_at_template(findings).await?;
        let known = self.look_at_image(decided.as_ref(), findings).await?;
        self.look_at_key_pair(findings).await?;
        let size = self.rules(decided.as_ref());
        let types = self.look_at_types(&size, &zones, known.as_ref(), findings).await?;
        let template = self.template(region, place, &zones, known);
        if types.iter().any(|known| known.name == size.default_type) {
            let zone = zones.first().map(|(zone, _)| zone.clone());
            let first = self.first(&size.default_type, zone);
            self.look_at_rights(&template, first, findings).await?;
        }
        self.say_the_rest(findings);
        let template = serde_json::to_string(&template)
            .map_err(|e| Error::new(NAME, "check", Kind::Other, e.to_string()))?;
        Ok(Report {
            types,
            size,
            zones: zones.into_iter().map(|(zone, _)| zone).collect(),
            markets: self.settings.common.markets.clone(),
            disk_gib: self.settings.common.disk_gib,
            user_data: Some(USER_DATA_LIMIT),
            tags: tag_room(),
            template,
            ..Report::default()
        })
    }

    /// What only has to be known.
    fn say_the_rest(&self, findings: &mut Vec<Finding>) {
        let settings = &self.settings;
        let text = "how many vCPUs the account may have is not looked at";
        findings.push(Finding::warning("quota", text).remedy(QUOTA));
        let rates = [
            ("RunInstances", settings.run),
            ("TerminateInstances", settings.terminate),
            ("Describe", settings.describe),
        ];
        let text = rates.map(|(name, r)| format!("{name} {}/s, {} at once", r.per_second, r.burst));
        findings.push(Finding::fine("budgets", text.join("; ")));
        let warnings = settings.common.warnings.iter();
        findings.extend(warnings.map(|w| Finding::warning("settings", w.clone())));
    }

    fn template(
        &self,
        region: String,
        place: Place,
        zones: &[Zone],
        known: Option<image::Known>,
    ) -> Template {
        let settings = &self.settings;
        Template {
            region,
            subnets: zones.iter().cloned().collect(),
            groups: place.groups,
            image: settings.image.clone().filter(|_| settings.launch_template.is_none()),
            root: known.and_then(|known| known.root),
            key_pair: settings.key_pair.clone(),
            launch_template: settings.launch_template.clone(),
            volume_type: settings.volume_type.clone(),
            encrypted: settings.encrypted,
            confidential: !settings.common.disable_cvm,
            public_ip: settings.common.public_ip,
        }
    }

    /// What pods may ask for; with a launch template its type alone.
    fn rules(&self, decided: Option<&Decided>) -> SizeRules {
        let (default_type, allowed) = match decided {
            Some(decided) => (decided.instance_type.clone(), Vec::new()),
            None => (self.settings.instance_type.clone(), self.settings.types.clone()),
        };
        SizeRules { default_type, allowed, any_size: None }
    }

    /// What the first calls say of the credentials holds for all.
    async fn look_at_caller(&self, findings: &mut Vec<Finding>) -> Result<(), Error> {
        let words = self.settings.identity.words();
        self.ec2.signs().await?;
        findings.push(match self.ec2.caller().await {
            Ok(name) => Finding::fine("credentials", format!("{words}: {name}")),
            Err(e) if e.kind == Kind::Denied => return Err(e),
            Err(e) => Finding::warning(
                "credentials",
                format!("{words}; whose is not known: {}", e.message),
            ),
        });
        Ok(())
    }

    async fn look_at_image(
        &self,
        decided: Option<&Decided>,
        findings: &mut Vec<Finding>,
    ) -> Result<Option<image::Known>, Error> {
        let (image, key) = match decided {
            Some(decided) => (decided.image.clone(), "the launch template's image"),
            None => (self.settings.image.clone(), IMAGE.env),
        };
        let Some(image) = image else { return Ok(None) };
        let Some(known) = self.image("check", &image).await? else {
            let text = format!("{key} {image:?} is not there");
            let remedy = "aws ec2 describe-images --owners self";
            findings.push(Finding::problem("image", text).remedy(remedy));
            return Ok(None);
        };
        let cvm = decided.is_none() && !self.settings.common.disable_cvm;
        let problem = |text: String| Finding::problem("image", format!("{key} {image:?} {text}"));
        findings.push(match known.state.as_str() {
            state if state != "available" => problem(format!("is {state}")),
            _ if known.root.is_none() => problem("has no root disk".to_owned()),
            _ if cvm && !known.boot.starts_with("uefi") => {
                problem("does not boot by UEFI, which confidential VMs need".to_owned())
                    .remedy("DISABLECVM=true, or another image")
            }
            _ => Finding::fine("image", format!("{image}, {}", known.architecture)),
        });
        Ok(Some(known))
    }

    /// The permitted types that can be used; what is named and cannot is a problem, not left out.
    async fn look_at_types(
        &self,
        rules: &SizeRules,
        zones: &[Zone],
        image: Option<&image::Known>,
        findings: &mut Vec<Finding>,
    ) -> Result<Vec<InstanceType>, Error> {
        let mut names = rules.allowed.clone();
        names.push(rules.default_type.clone());
        names.retain(|name| !name.is_empty());
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let all = self.types(&names).await?;
        let offers = self.offers(&names).await?;
        let sizes: Vec<InstanceType> = all.iter().map(|known| known.size.clone()).collect();
        for name in size::unknown(rules, &sizes) {
            let text = format!("{} or {}: there is no {name:?}", TYPE.env, TYPES.env);
            let remedy = "aws ec2 describe-instance-types --query 'InstanceTypes[].InstanceType'";
            findings.push(Finding::problem("types", text).remedy(remedy));
        }
        let (mut usable, before) = (Vec::new(), findings.len());
        for known in &all {
            let name = &known.size.name;
            let named = *name == rules.default_type || rules.allowed.contains(name);
            let unfit = self.unfit(known, image).or_else(|| unoffered(name, &offers, zones));
            match unfit {
                None => usable.push(known.size.clone()),
                Some((text, remedy)) if named => {
                    findings.push(Finding::problem("types", text).remedy(remedy));
                }
                Some(_) => {}
            }
        }
        if findings.len() == before {
            findings.push(Finding::fine("types", format!("{} can be used", usable.len())));
        }
        self.settings.common.prices.fill(&mut usable);
        Ok(usable)
    }

    /// Why a type cannot be used with these settings, and what to do.
    fn unfit(&self, known: &Known, image: Option<&image::Known>) -> Option<(String, &'static str)> {
        let (settings, name) = (&self.settings, &known.size.name);
        let cvm = settings.launch_template.is_none() && !settings.common.disable_cvm;
        if cvm && !known.confidential {
            let text = format!("{name} cannot be a confidential VM, and DISABLECVM is false");
            return Some((text, "DISABLECVM=true, or a type such as m6a.large"));
        }
        let architecture = image.map(|image| image.architecture.as_str()).unwrap_or_default();
        let fits = known.architectures.iter().any(|a| a == architecture);
        if !architecture.is_empty() && !known.architectures.is_empty() && !fits {
            let its = known.architectures.join(", ");
            return Some((format!("{name} is {its}, the image is {architecture}"), OTHER));
        }
        if settings.common.markets == [Market::Spot] && !known.spot {
            return Some((format!("{name} cannot be had as spot"), "SPOT_POLICY=prefer"));
        }
        None
    }
}

const OTHER: &str = "name another type";

/// A type that none of the zones has. In a zone without it EC2 refuses it, and the next zone is tried.
fn unoffered(name: &str, offers: &Offers, zones: &[Zone]) -> Option<(String, &'static str)> {
    let offered = |zone: &String| offers.get(name).is_some_and(|zones| zones.contains(zone));
    if zones.is_empty() || zones.iter().any(|(zone, _)| offered(zone)) {
        return None;
    }
    let zones: Vec<&str> = zones.iter().map(|(zone, _)| zone.as_str()).collect();
    let text = format!("{}: {name} is not offered in {}", SUBNET.env, zones.join(", "));
    Some((text, OTHER))
}
