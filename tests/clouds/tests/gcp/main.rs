//! Google Cloud over its double: the conformance rows, and what is Google's own.

mod checks;
mod lives;
mod refusals;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::join_all;
use peerpod_clouds::{CloudDouble, INSTALLATION, Server, delete, keep_all};
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
        delete(self.provider.as_ref(), vm).await
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
        provider,
        server,
        report,
        candidate: candidate(),
        page: 3,
        volume: Some(Volume::new("data-1", 0)),
        exempt: &[],
        unsaid: &[],
    };
    keep_all("gcp", &double).await?;
    double.server.clean()
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
    setup.server.clean()
}
