//! Azure over its double: the conformance rows, and what is Azure's own.

mod checks;
mod lives;
mod refusals;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use peerpod_clouds::{CloudDouble, INSTALLATION, Server, delete, keep_all};
use peerpod_providers::registry::{self, Context};
use peerpod_providers::report::State;
use peerpod_providers::settings::Values;
use peerpod_providers::{
    Candidate, Deletion, Error, Kind, Market, Provider, Report, UserData, VmName, VmRef, VmSpec,
    Volume, tags,
};
use serde_json::{Value, json};

const GROUP: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/pods";

/// As the users' guide prints them, and where the double is.
fn values(url: &str, changes: &[(&str, &str)]) -> Values {
    let network = format!("{GROUP}/providers/Microsoft.Network");
    let mut values: Values = [
        ("clientid", "00000000-0000-0000-0000-00000000000a"),
        ("secret", "hunter2-client-secret"),
        ("tenantid", "00000000-0000-0000-0000-00000000000b"),
        ("subscriptionid", "00000000-0000-0000-0000-000000000001"),
        ("region", "eastus"),
        ("resourcegroup", "pods"),
        ("subnetid", &format!("{network}/virtualNetworks/net/subnets/pods")),
        (
            "imageid",
            &format!(
                "{GROUP}/providers/Microsoft.Compute/galleries/podvm/images/podvm/versions/1.0.0"
            ),
        ),
        ("instance-sizes", "Standard_DC4as_v5"),
        ("azure-arm-endpoint", url),
        ("azure-authority-host", url),
        ("api-rate-vm-list", "1000"),
        ("api-rate-vm-put", "1000"),
        ("api-rate-vm-delete", "1000"),
        ("api-rate-arm-read", "1000"),
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
        tags: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
        forwarder_port: 15150,
        vxlan_port: 9000,
    }
}

struct Setup {
    server: Server,
    provider: std::sync::Arc<dyn Provider>,
}

fn setup(changes: &[(&str, &str)]) -> anyhow::Result<Setup> {
    let server = Server::start("arm.py", &[])?;
    let provider = registry::build("azure", &context(), &values(server.url(), changes))?;
    Ok(Setup { server, provider })
}

fn candidate() -> Candidate {
    Candidate {
        number: 0,
        instance_type: "Standard_DC2as_v5".to_owned(),
        zone: Some("1".to_owned()),
        market: Market::OnDemand,
    }
}

fn spec(report: &Report, n: usize) -> VmSpec {
    let sandbox = format!("{n:064x}");
    VmSpec {
        tags: BTreeMap::from([
            (tags::INSTALLATION.to_owned(), INSTALLATION.to_owned()),
            (tags::SANDBOX.to_owned(), sandbox.clone()),
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
        delete(self.provider.as_ref(), &reference(spec)).await
    }

    async fn fails(&self, spec: &VmSpec) -> Error {
        self.provider.create(spec, &candidate()).await.expect_err("refused")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_rows_are_kept() -> anyhow::Result<()> {
    let server = Server::start("arm.py", &[])?;
    let made = values(server.url(), &[]);
    let provider = registry::build("azure", &context(), &made)?;
    let report = provider.check().await?;
    let double = CloudDouble {
        provider,
        server,
        report,
        candidate: candidate(),
        page: 3,
        volume: Some(Volume::new(format!("{GROUP}/providers/Microsoft.Compute/disks/data-1"), 0)),
        exempt: &[],
        unsaid: &[],
    };
    keep_all("azure", &double).await?;
    double.server.clean()
}
