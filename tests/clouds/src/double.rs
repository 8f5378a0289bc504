//! A provider with its double, as the conformance suite wants them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use peerpod_providers::conformance::{self, Double, Injection, Operation, Outcome};
use peerpod_providers::{
    Candidate, Deletion, Kind, Provider, Report, UserDataLimit, VmRef, Volume,
};
use serde_json::{Value, json};

use crate::Server;

/// A provider whose calls go to a double.
#[derive(Debug)]
pub struct CloudDouble {
    /// The provider under test.
    pub provider: Arc<dyn Provider>,
    /// What it speaks to.
    pub server: Server,
    /// What its check said.
    pub report: Report,
    /// Where VMs can be made.
    pub candidate: Candidate,
    /// VMs per page of the double's lists.
    pub page: usize,
    /// A disk that the double has.
    pub volume: Option<Volume>,
    /// Rows that say nothing of this cloud, each with the reason and where it is written.
    pub exempt: &'static [(&'static str, &'static str)],
    /// Kinds of failure that this cloud has no way to say, each with the reason.
    pub unsaid: &'static [(Kind, &'static str)],
}

/// Installation id of all doubles' providers.
pub const INSTALLATION: &str = "conformance";

/// Puts a provider to every row, and prints what came of each as `tests/run conformance` reads it.
///
/// # Errors
/// The rows that are broken or were not tested.
pub async fn keep_all(cloud: &str, double: &dyn Double) -> anyhow::Result<()> {
    let mut broken = Vec::new();
    for (row, outcome) in conformance::check(double).await {
        let words = match outcome {
            Ok(Outcome::Kept) => "kept".to_owned(),
            Ok(Outcome::Exempt(why)) => format!("exempt: {why}"),
            Ok(Outcome::Untested) => {
                broken.push(format!("{row}: untested"));
                "untested".to_owned()
            }
            Err(e) => {
                broken.push(format!("{row}: {e}"));
                "broken".to_owned()
            }
        };
        println!("conformance\t{cloud}\t{row}\t{words}");
    }
    ensure!(broken.is_empty(), "{broken:#?}");
    Ok(())
}

/// Deletes a VM, again and again until it is gone.
///
/// # Errors
/// The provider's, or that it does not go.
pub async fn delete(provider: &dyn Provider, vm: &VmRef) -> anyhow::Result<()> {
    for _ in 0..200 {
        if provider.delete(vm).await? == Deletion::Gone {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("not gone")
}

impl Double for CloudDouble {
    fn provider(&self) -> &dyn Provider {
        self.provider.as_ref()
    }

    fn installation(&self) -> &str {
        INSTALLATION
    }

    fn candidate(&self) -> Candidate {
        self.candidate.clone()
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        self.report.user_data
    }

    fn exempt(&self, row: &str) -> Option<&'static str> {
        self.exempt.iter().find(|(name, _)| *name == row).map(|(_, reason)| *reason)
    }

    fn budgets(&self) -> bool {
        true
    }

    fn template(&self) -> String {
        self.report.template.clone()
    }

    fn page(&self) -> usize {
        self.page
    }

    fn lag(&self) -> Duration {
        Duration::from_millis(300)
    }

    fn volume(&self) -> Option<Volume> {
        self.volume.clone()
    }

    fn inject(&self, injection: Injection) -> bool {
        let fault = match injection {
            Injection::Fail(_, kind) if self.unsaid.iter().any(|(k, _)| same(*k, kind)) => {
                return false;
            }
            Injection::Fail(operation, kind) => fail(operation, kind),
            Injection::LostReply => json!({"operation": "create", "fault": "lost"}),
            Injection::Partial => json!({"operation": "create", "fault": "partial"}),
            Injection::BrokenList => json!({"operation": "list", "fault": "broken"}),
            Injection::VolumeFails => json!({"operation": "create", "fault": "volume"}),
        };
        self.server.fault(&fault).is_ok()
    }

    fn stop(&self, vm: &VmRef) -> bool {
        self.server.set(&json!({"stopped": vm.name.as_str()})).is_ok()
    }
}

fn fail(operation: Operation, kind: Kind) -> Value {
    let after = match kind {
        Kind::Throttled(after) => after.map(|d| d.as_secs_f64()),
        _ => None,
    };
    json!({"operation": operation.as_str(), "fault": "fail", "kind": kind.as_str(), "after": after})
}

/// Whatever a throttle says of its time.
fn same(a: Kind, b: Kind) -> bool {
    a.as_str() == b.as_str()
}
