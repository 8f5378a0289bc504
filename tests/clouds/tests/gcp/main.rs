//! Google Cloud over its double: the conformance rows, and what is Google's own.

mod checks;
mod lives;
mod refusals;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::join_all;
use peerpod_clouds::{CloudDouble, INSTALLATION, Server};
use peerpod_providers::conformance::{self, Outcome};
use peerpod_providers::registry::{self, Context};
use peerpod_providers::report::State;
use peerpod_providers::settings::Values;
use peerpod_providers::{
    Candidate, Deletion, Error, Kind, Market, Provider, Report, ResourceKind, UserData, VmName,
    VmRef, VmSpec, Volume, tags,
};
use serde_json::{Value, json};

const ZONE: &str = "europe-west1-b";
const OTHER_ZONE: &str = "europe-west1-c";

/// Confidential VMs in two zones, and where the double is.
fn values(url: &str, changes: &[(&str, &str)]) -> Values {
    let mut values: Values = [
        ("gcp-project-id", "peerpod-test"),
        ("zone", "europe-west1-b,europe-west1-c"),
        ("network", "default"),
        ("image-name", "podvm"),
        ("machine-type", "n2d-standard-2"),
        ("machine-types", "n2d-standard-4"),
        ("confidential-type", "SEV_SNP"),
        ("gcp-labels", "team=blue"),
        ("gcp-compute-endpoint", url),
        ("api-rate-insert", "1000"),
        ("api-rate-delete", "1000"),
        ("api-rate-read", "1000"),
        ("api-rate-operation", "1000"),
    ]
    .into_iter()
    .collect();
    for (flag, value) in changes {
        values.set(*flag, *value);
    }
    values
}

fn context() -> Context {
    Context {
        installation: INSTALLATION.to_owned(),
        program: "/nowhere/peerpodd".into(),
        search: String::new(),
        tags: BTreeMap::from([("cost".to_owned(), "pods".to_owned())]),
        forwarder_port: 15150,
        vxlan_port: 9000,
    }
}

struct Setup {
    server: Server,
    provider: std::sync::Arc<dyn Provider>,
}

fn setup(changes: &[(&str, &str)]) -> anyhow::Result<Setup> {
    let server = Server::start("gcp.py", &[])?;
    let provider = registry::build("gcp", &context(), &values(server.url(), changes))?;
    Ok(Setup { server, provider })
}

fn candidate() -> Candidate {
    Candidate {
        number: 0,
        instance_type: "n2d-standard-2".to_owned(),
        zone: Some(ZONE.to_owned()),
        market: Market::OnDemand,
    }
}

fn spec(report: &Report, n: usize) -> VmSpec {
    let sandbox = format!("{n:064x}");
    VmSpec {
        tags: BTreeMap::from([
            (tags::INSTALLATION.to_owned(), INSTALLATION.to_owned()),
            (tags::SANDBOX.to_owned(), sandbox.clone()),
            ("cost".to_owned(), "pods".to_owned()),
        ]),
        user_data: UserData("#cloud-config\n".to_owned()),
        template: report.template.clone(),
        ..VmSpec::new(VmName::second_form(INSTALLATION, &format!("pod-{n}"), &sandbox), sandbox)
    }
}

fn reference(spec: &VmSpec) -> VmRef {
    VmRef { name: spec.name.clone(), sandbox: spec.sandbox.clone(), native_id: None }
}

impl Setup {
    async fn report(&self) -> anyhow::Result<Report> {
        let report = self.provider.check().await?;
        ensure!(report.problems().is_none(), "{:?}", report.findings);
        Ok(report)
    }

    async fn delete(&self, spec: &VmSpec) -> anyhow::Result<()> {
        self.delete_ref(&reference(spec)).await
    }

    async fn delete_ref(&self, vm: &VmRef) -> anyhow::Result<()> {
        for _ in 0..200 {
            if self.provider.delete(vm).await? == Deletion::Gone {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("not gone")
    }

    fn clean(&self) -> anyhow::Result<()> {
        let violations = self.server.violations()?;
        ensure!(violations.is_empty(), "{violations:#?}");
        let left = self.server.resources()?;
        ensure!(left.values().sum::<u64>() == 0, "{left:?}");
        Ok(())
    }

    async fn fails(&self, spec: &VmSpec) -> Error {
        self.provider.create(spec, &candidate()).await.expect_err("refused")
    }

    fn garbage(&self, operation: &str, status: u16, body: &str) -> anyhow::Result<()> {
        self.server.fault(
            &json!({"operation": operation, "fault": "garbage", "status": status, "body": body}),
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_rows_are_kept() -> anyhow::Result<()> {
    let Setup { server, provider } = setup(&[])?;
    let report = provider.check().await?;
    let double = CloudDouble {
        provider: Box::new(Shared(provider)),
        server,
        report,
        candidate: candidate(),
        page: 3,
        volume: Some(Volume::new("data-1", 0)),
        exempt: &[],
        unsaid: &[],
    };
    let mut broken = Vec::new();
    for (row, outcome) in conformance::check(&double).await {
        match outcome {
            Ok(Outcome::Kept) => println!("conformance\tgcp\t{row}\tkept"),
            Ok(Outcome::Exempt(why)) => println!("conformance\tgcp\t{row}\texempt: {why}"),
            Ok(Outcome::Untested) => broken.push(format!("{row}: untested")),
            Err(e) => broken.push(format!("{row}: {e}")),
        }
    }
    ensure!(broken.is_empty(), "{broken:#?}");
    let violations = double.server.violations()?;
    ensure!(violations.is_empty(), "{violations:#?}");
    let left = double.server.resources()?;
    ensure!(left.values().sum::<u64>() == 0, "{left:?}");
    Ok(())
}

/// The registry gives a shared provider, the rows want one of their own.
#[derive(Debug)]
struct Shared(std::sync::Arc<dyn Provider>);

impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait::async_trait]
impl Provider for Shared {
    async fn check(&self) -> Result<Report, Error> {
        self.0.check().await
    }
    async fn create(&self, spec: &VmSpec, at: &Candidate) -> Result<peerpod_providers::Vm, Error> {
        self.0.create(spec, at).await
    }
    async fn delete(&self, vm: &VmRef) -> Result<Deletion, Error> {
        self.0.delete(vm).await
    }
    async fn list(&self) -> Result<Vec<peerpod_providers::Resource>, Error> {
        self.0.list().await
    }
}

/// What the users' guide prints for `peer-pods-cm`, and the image that its Job fills in.
#[tokio::test(flavor = "multi_thread")]
async fn the_guides_keys_as_printed_make_vms() -> anyhow::Result<()> {
    let server = Server::start("gcp.py", &[])?;
    let values: Values = [
        ("machine-type", "e2-medium"),
        ("gcp-project-id", "peerpod-test"),
        ("zone", "europe-west1-b"),
        ("network", "default"),
        ("root-volume-size", "6"),
        ("disable-cvm", "true"),
        ("image-name", "podvm"),
        ("gcp-compute-endpoint", server.url()),
    ]
    .into_iter()
    .collect();
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let tags = BTreeMap::from([pair("key1", "value1"), pair("key2", "value2")]);
    let provider = registry::build("gcp", &Context { tags, ..context() }, &values)?;
    let setup = Setup { server, provider };
    let report = setup.report().await?;
    ensure!(report.template.contains("\"tagKeys/100\":\"tagValues/200\""), "{}", report.template);
    let spec = VmSpec { disk_gib: report.disk_gib, ..spec(&report, 0) };
    let at = Candidate { instance_type: report.size.default_type.clone(), ..candidate() };
    let vm = setup.provider.create(&spec, &at).await?;
    ensure!(vm.instance_type == "e2-medium" && vm.addresses[0].to_string().starts_with("10."));
    setup.delete(&spec).await?;
    setup.clean()
}
