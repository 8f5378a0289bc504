//! Asks the provider what it has, until it is well, and hands that to the planner.

use std::sync::Arc;
use std::time::Duration;

use peerpod_providers::report::State;
use peerpod_providers::{Provider, Report, size, tags};

use super::planner::LatePlanner;
use crate::admin::Guard;
use crate::hypervisor;
use crate::labels::{CostTag, Labels};
use crate::pki::Pki;
use crate::plan::PlanRules;
use crate::pod::world::Planning;
use crate::request::RequestRules;
use crate::volumes::Places;

/// How long one look at the provider may take.
const CHECK: Duration = Duration::from_secs(60);
/// Pauses between looks at a provider that is not well: the first, doubled up to the last.
const CHECK_AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// By what pods are planned, but for the sizes.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) pki: Pki,
    pub(super) requests: RequestRules,
    pub(super) plans: PlanRules,
    pub(super) volumes: Option<Places>,
    pub(super) labels: Option<Arc<dyn Labels>>,
}

impl Rules {
    /// With what the provider has.
    pub(super) fn planning(self, report: Report) -> Planning {
        let plans = PlanRules {
            catalogue: report.types,
            size: report.size,
            zones: report.zones,
            markets: report.markets,
            disk_gib: report.disk_gib,
            user_data_limit: report.user_data,
            template: report.template,
            tag_room: report.tags,
            ..self.plans
        };
        let planning = Planning::new(self.pki, self.requests, plans);
        planning.with_volumes(self.volumes).with_labels(self.labels)
    }

    /// What becomes of the keys of cost tags at this provider.
    fn say_cost_tags(&self, report: &Report) {
        let cloud = report.tags.rules.cloud;
        for CostTag { label, tag } in &self.plans.cost_tags {
            match tags::from_label(tag, "", &report.tags.rules) {
                Some((key, _)) if key == *tag => {}
                Some((key, _)) => tracing::info!("label {label} becomes the tag {key} for {cloud}"),
                None => tracing::warn!("label {label} becomes no tag: {cloud} takes no key {tag}"),
            }
        }
    }
}

/// Looks at the provider until it is well, and then hands its sizes to the planner.
pub(super) struct Look {
    pub(super) provider: Arc<dyn Provider>,
    pub(super) planner: Arc<LatePlanner>,
    pub(super) rules: Rules,
}

impl Look {
    pub(super) async fn once(self) -> Result<(), (Box<Self>, String)> {
        match tokio::time::timeout(CHECK, self.provider.check()).await {
            Ok(Ok(report)) => match unfit(&report) {
                Some(reason) => Err((Box::new(self), reason)),
                None => {
                    for warning in report.in_state(State::Warning) {
                        tracing::warn!(provider = %self.provider, "{warning}");
                    }
                    self.rules.say_cost_tags(&report);
                    let types = report.types.len();
                    tracing::info!(provider = %self.provider, types, "provider is well");
                    self.planner.ready(self.rules.planning(report));
                    Ok(())
                }
            },
            Ok(Err(e)) => Err((Box::new(self), hypervisor::chain(&e))),
            Err(_) => Err((Box::new(self), format!("no answer within {CHECK:?}"))),
        }
    }

    /// Drops `guard` when it is.
    pub(super) async fn until_well(self, guard: Guard) {
        let (mut look, mut pause, mut said) = (self, CHECK_AGAIN.0, String::new());
        loop {
            let reason = match look.once().await {
                Ok(()) => break,
                Err((again, reason)) => {
                    look = *again;
                    reason
                }
            };
            if reason != said {
                tracing::error!(provider = %look.provider, reason, "provider is not well");
            }
            look.planner.missing(format!("provider {} is not well: {reason}", look.provider));
            said = reason;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(CHECK_AGAIN.1);
        }
        drop(guard);
    }
}

/// Why no VM can be planned by this report; `None` if one can.
fn unfit(report: &Report) -> Option<String> {
    if let Some(problems) = report.problems() {
        return Some(problems);
    }
    if report.size.any_size.is_some() {
        return None;
    }
    if report.types.is_empty() {
        return Some("it has no instance type".to_owned());
    }
    match size::unknown(&report.size, &report.types)[..] {
        [] => None,
        ref unknown => {
            Some(format!("instance types that it does not have: {}", unknown.join(", ")))
        }
    }
}
