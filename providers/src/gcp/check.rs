//! Looks whether VMs could be made, and changes nothing (providers.md 5.2, `peerpodd doctor cloud`).

use serde_json::Value;

use super::catalogue::Machine;
use super::client::{Call, Class};
use super::image::Known;
use super::settings::{
    ACCELERATOR, CONFIDENTIAL, DISK_TYPE, PROJECT, TYPE, TYPES, ZONES, tag_room,
};
use super::template::Template;
use super::{Gcp, NAME, USER_DATA_LIMIT, id, items, number, text};
use crate::size::{self, SizeRules};
use crate::{Error, Finding, InstanceType, Kind, Market, Report};

impl Gcp {
    pub(super) async fn look(&self) -> Result<Report, Error> {
        let mut findings = Vec::new();
        if !self.look_at_credentials(&mut findings).await? {
            // Nothing more can be looked at.
            return Ok(Report { findings, ..Report::default() });
        }
        let image = self.look_at_image(&mut findings).await;
        let cards = self.look_at_accelerator(&mut findings).await;
        let types = self.look_at_types(cards, &image, &mut findings).await;
        self.look_at_disk_type(&mut findings).await;
        self.look_at_network(&mut findings).await;
        self.look_at_quotas(&types, &image, &mut findings).await;
        let manager_tags = self.look_at_tags(&mut findings).await;
        let rates = &self.settings.rates;
        let text = [("insert", rates.insert), ("delete", rates.delete), ("read", rates.read)]
            .map(|(name, rate)| format!("{name} {}/s, {} at once", rate.per_second, rate.burst));
        findings.push(Finding::fine("budgets", text.join("; ")));
        findings.extend(
            self.settings.common.warnings.iter().map(|w| Finding::warning("settings", w.clone())),
        );
        let settings = &self.settings;
        let template = Template {
            project: settings.project.clone(),
            network: settings.network.clone(),
            subnetwork: settings.subnetwork.clone(),
            image: settings.image.clone(),
            image_gib: image.size,
            disk_type: settings.disk_type.clone(),
            confidential: settings.confidential.clone(),
            public_ip: settings.common.public_ip,
            accelerator: settings.accelerator.clone(),
            labels: settings.labels.clone(),
            manager_tags,
            user_tags: self.user_tags.clone(),
        };
        self.report(types, &template, findings)
    }

    fn report(
        &self,
        mut types: Vec<InstanceType>,
        template: &Template,
        findings: Vec<Finding>,
    ) -> Result<Report, Error> {
        let settings = &self.settings;
        settings.common.prices.fill(&mut types);
        let template = serde_json::to_string(template)
            .map_err(|e| Error::new(NAME, "check", Kind::Other, e.to_string()))?;
        Ok(Report {
            types,
            size: self.rules(),
            zones: settings.zones.clone(),
            markets: settings.common.markets.clone(),
            disk_gib: settings.common.disk_gib,
            user_data: Some(USER_DATA_LIMIT),
            tags: tag_room(settings),
            template,
            findings,
        })
    }

    fn rules(&self) -> SizeRules {
        SizeRules {
            default_type: self.settings.machine_type.clone(),
            allowed: self.settings.machine_types.clone(),
            any_size: None,
        }
    }

    /// A token, and the first real calls: what they say of the credentials holds for all. False if they
    /// are refused.
    async fn look_at_credentials(&self, findings: &mut Vec<Finding>) -> Result<bool, Error> {
        let identity = self.compute.identity();
        let remedy = "gcloud iam service-accounts keys create key.json --iam-account=<account>, and \
                      its content as GCP_CREDENTIALS";
        let refused = |e: &Error| Finding::problem("credentials", e.in_full()).remedy(remedy);
        let token = self.compute.token("check").await.map(drop);
        let known = match token {
            Ok(()) => self.look_at_rights(findings).await,
            Err(e) => Err(e),
        };
        match known {
            Ok(()) => {}
            Err(e) if e.kind == Kind::Denied => {
                findings.push(refused(&e));
                return Ok(false);
            }
            Err(e) => return Err(e),
        }
        match self.project().await {
            Err(e) if e.kind == Kind::NotFound => {
                let text = format!("{} {:?} is not there", PROJECT.env, self.settings.project);
                findings.push(Finding::problem("project", text).remedy("gcloud projects list"));
                Ok(false)
            }
            Err(e) if e.message.contains("HTTP 401") => {
                findings.push(refused(&e));
                Ok(false)
            }
            // Named among the rights already.
            Err(e) if e.kind == Kind::Denied => {
                findings.push(Finding::warning("credentials", identity));
                Ok(true)
            }
            Err(e) => Err(e),
            Ok(_) => {
                findings.push(Finding::fine("credentials", identity));
                Ok(true)
            }
        }
    }

    async fn project(&self) -> Result<Value, Error> {
        let target = format!("/compute/v1/projects/{}", self.settings.project);
        self.compute.json(Call::get("check", Class::Read, target, "compute#project")).await
    }

    /// How many cards one VM may have; 0 without an accelerator.
    async fn look_at_accelerator(&self, findings: &mut Vec<Finding>) -> u32 {
        let Some(kind) = &self.settings.accelerator else { return 0 };
        let mut least: Option<u32> = None;
        for zone in &self.settings.zones {
            let target = self.path(&format!("zones/{zone}/acceleratorTypes/{kind}"));
            let call = Call::get("check", Class::Read, target, "compute#acceleratorType");
            match self.compute.maybe(call).await {
                Ok(Some(found)) => {
                    let cards = number(&found, "maximumCardsPerInstance");
                    least = Some(least.map_or(cards, |least| least.min(cards)));
                }
                Ok(None) => {
                    let text = format!("{} {kind:?} is not in {zone}", ACCELERATOR.env);
                    let remedy =
                        format!("gcloud compute accelerator-types list --filter=zone:{zone}");
                    findings.push(Finding::problem("types", text).remedy(remedy));
                    return 0;
                }
                Err(e) => {
                    let text = format!("{kind} could not be looked at: {}", e.message);
                    findings.push(Finding::warning("types", text));
                }
            }
        }
        least.unwrap_or(0)
    }

    /// The permitted types that can be used in the first zone, and what is missing in any.
    async fn look_at_types(
        &self,
        cards: u32,
        image: &Known,
        findings: &mut Vec<Finding>,
    ) -> Vec<InstanceType> {
        let (mut first, before) = (None::<Vec<InstanceType>>, findings.len());
        for zone in &self.settings.zones {
            match self.machines(zone, cards).await {
                Ok(machines) => {
                    let types = self.judge_types(zone, &machines, image, findings);
                    first.get_or_insert(types);
                }
                Err(e) if matches!(e.kind, Kind::NotFound | Kind::Invalid) => {
                    let text = format!("{} {zone:?} is not there: {}", ZONES.env, e.message);
                    let remedy = "gcloud compute zones list";
                    findings.push(Finding::problem("zone", text).remedy(remedy));
                }
                Err(e) => {
                    let text = format!("{zone} could not be looked at: {}", e.message);
                    findings.push(Finding::warning("types", text));
                }
            }
        }
        let types = first.unwrap_or_default();
        if findings.len() == before {
            findings.push(Finding::fine("types", format!("{} can be used", types.len())));
        }
        types
    }

    /// What is named and cannot be used is a problem; what only a pattern has is left out.
    fn judge_types(
        &self,
        zone: &str,
        machines: &[Machine],
        image: &Known,
        findings: &mut Vec<Finding>,
    ) -> Vec<InstanceType> {
        let rules = self.rules();
        let sizes: Vec<InstanceType> = machines.iter().map(|m| m.size.clone()).collect();
        for name in size::unknown(&rules, &sizes) {
            let text = format!("{} or {}: {zone} has no {name:?}", TYPE.env, TYPES.env);
            let remedy = format!("gcloud compute machine-types list --zones={zone}");
            findings.push(Finding::problem("types", text).remedy(remedy));
        }
        let mut usable = Vec::new();
        for machine in machines {
            let name = &machine.size.name;
            let named = *name == rules.default_type || rules.allowed.contains(name);
            let prefixes = rules.allowed.iter().filter_map(|a| a.strip_suffix('*'));
            if !named && !prefixes.into_iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            match self.unfit(machine, image) {
                None => usable.push(machine.size.clone()),
                Some(text) if named => {
                    let text = format!("{zone}: {text}");
                    findings.push(Finding::problem("types", text).remedy("name another type"));
                }
                Some(_) => {}
            }
            if named && id::refuses_disk(name, &self.settings.disk_type) {
                let disk = &self.settings.disk_type;
                let text = format!("{} {disk:?}: no disk of {name}'s family", DISK_TYPE.env);
                let remedy = "GCP_DISK_TYPE=pd-balanced or hyperdisk-balanced";
                findings.push(Finding::warning("disk type", text).remedy(remedy));
            }
        }
        usable
    }

    /// Why a type cannot be used with these settings.
    fn unfit(&self, machine: &Machine, image: &Known) -> Option<String> {
        let name = &machine.size.name;
        if let Some(state) = &machine.ended {
            return Some(format!("{name} is {state}"));
        }
        if let Some(kind) = self.settings.confidential.as_ref().filter(|k| !id::can_be(name, k)) {
            let key = CONFIDENTIAL.env;
            return Some(format!("{name} cannot be a confidential VM, and {key} is {kind}"));
        }
        let known = !machine.architecture.is_empty() && !image.architecture.is_empty();
        if known && machine.architecture != image.architecture {
            let (of, other) = (&machine.architecture, &image.architecture);
            return Some(format!("{name} is {of}, the image is {other}"));
        }
        None
    }

    async fn look_at_disk_type(&self, findings: &mut Vec<Finding>) {
        let kind = &self.settings.disk_type;
        for zone in &self.settings.zones {
            let target = self.path(&format!("zones/{zone}/diskTypes/{kind}"));
            let call = Call::get("check", Class::Read, target, "compute#diskType");
            findings.push(match self.compute.maybe(call).await {
                Ok(Some(_)) => Finding::fine("disk type", format!("{kind} in {zone}")),
                Ok(None) => {
                    let text = format!("{} {kind:?} is not in {zone}", DISK_TYPE.env);
                    let remedy = format!("gcloud compute disk-types list --zones={zone}");
                    Finding::problem("disk type", text).remedy(remedy)
                }
                Err(e) => {
                    let text = format!("{kind} could not be looked at: {}", e.message);
                    Finding::warning("disk type", text)
                }
            });
        }
    }

    /// Whether the account has room for one more VM of the default type.
    async fn look_at_quotas(
        &self,
        types: &[InstanceType],
        image: &Known,
        findings: &mut Vec<Finding>,
    ) {
        let vcpus = types.iter().find(|t| t.name == self.settings.machine_type);
        let vcpus = f64::from(vcpus.map_or(1, |t| t.vcpus));
        let mut places: Vec<&str> = self.settings.zones.iter().map(|z| id::region(z)).collect();
        places.dedup();
        for region in places {
            let target = self.path(&format!("regions/{region}"));
            let call = Call::get("check", Class::Read, target, "compute#region");
            match self.compute.json(call).await {
                Ok(found) => {
                    let needs = self.needs(&found, vcpus, image);
                    findings.extend(judge_quotas(region, &found, &needs));
                }
                Err(e) => {
                    let text = format!("{region} could not be looked at: {}", e.message);
                    findings.push(Finding::warning("quota", text));
                }
            }
        }
        if let Ok(project) = self.project().await {
            let needs = [("CPUS_ALL_REGIONS".to_owned(), vcpus)];
            findings.extend(judge_quotas("the project", &project, &needs));
        }
    }

    /// What one VM takes of a region's quotas.
    fn needs(&self, region: &Value, vcpus: f64, image: &Known) -> Vec<(String, f64)> {
        let settings = &self.settings;
        let own = format!("{}_CPUS", id::family(&settings.machine_type).to_ascii_uppercase());
        let known = items(region, "/quotas").any(|quota| text(quota, "/metric") == own);
        let cpus = match settings.common.markets.as_slice() {
            [Market::Spot] => "PREEMPTIBLE_CPUS".to_owned(),
            _ if known => own,
            _ => "CPUS".to_owned(),
        };
        let disks = match settings.disk_type.as_str() {
            "pd-standard" => "DISKS_TOTAL_GB",
            _ => "SSD_TOTAL_GB",
        };
        let gib = f64::from(settings.common.disk_gib.max(image.size));
        let mut needs = vec![(cpus, vcpus), (disks.to_owned(), gib), ("INSTANCES".to_owned(), 1.0)];
        if settings.common.public_ip {
            needs.push(("IN_USE_ADDRESSES".to_owned(), 1.0));
        }
        needs
    }
}

fn judge_quotas(place: &str, found: &Value, needs: &[(String, f64)]) -> Vec<Finding> {
    let mut all = Vec::new();
    for quota in items(found, "/quotas") {
        let metric = text(quota, "/metric");
        let Some((_, need)) = needs.iter().find(|(of, _)| of == metric) else { continue };
        let value = |key: &str| quota.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        let (limit, usage) = (value("limit"), value("usage"));
        // A limit of 0 may be another quota's affair; preemptible CPUs count as ordinary ones then.
        let full = usage + need > limit && !(metric == "PREEMPTIBLE_CPUS" && limit == 0.0);
        all.push(match full {
            false => Finding::fine("quota", format!("{place}: {metric} {usage} of {limit}")),
            true => {
                let text =
                    format!("{place}: {metric} {usage} of {limit}, one VM takes {need} more");
                let remedy = "https://console.cloud.google.com/iam-admin/quotas";
                Finding::problem("quota", text).remedy(remedy)
            }
        });
    }
    all
}
