//! AWS over its double: the conformance rows, and what is AWS's own.

mod checks;
mod lives;
mod refusals;

use std::collections::{BTreeMap, BTreeSet};
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

type Facts = BTreeMap<String, String>;

/// As the users' guide prints them, with what it leaves to the reader, and where the double is.
fn values(url: &str, facts: &Facts, changes: &[(&str, &str)]) -> Values {
    let fact = |key: &str| facts.get(key).cloned().unwrap_or_default();
    let mut values: Values = [
        ("aws-access-key-id", "AKIADOUBLE".to_owned()),
        ("aws-secret-key", "hunter2-secret-key".to_owned()),
        ("instance-type", "t3.medium".to_owned()),
        ("instance-types", "t2.small,t2.medium,t3.large".to_owned()),
        ("imageid", fact("image")),
        ("aws-region", "us-east-1".to_owned()),
        ("subnetid", fact("net-a")),
        ("aws-vpc-id", fact("net")),
        ("securitygroupids", fact("net-group")),
        ("root-volume-size", "6".to_owned()),
        ("disable-cvm", "true".to_owned()),
        ("aws-endpoint-url-ec2", url.to_owned()),
        ("aws-endpoint-url-sts", url.to_owned()),
        ("aws-ec2-metadata-service-endpoint", url.to_owned()),
        ("api-rate-run-instances", "1000".to_owned()),
        ("api-rate-terminate-instances", "1000".to_owned()),
        ("api-rate-describe", "1000".to_owned()),
    ]
    .into_iter()
    .collect();
    for (flag, value) in changes {
        // What begins so is a thing of the double's.
        let items = value.split(',').map(|item| match item.strip_prefix('@') {
            Some(key) => fact(key),
            None => item.to_owned(),
        });
        values.set(*flag, items.collect::<Vec<_>>().join(","));
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
    facts: Facts,
    provider: std::sync::Arc<dyn Provider>,
}

fn setup(changes: &[(&str, &str)]) -> anyhow::Result<Setup> {
    let server = Server::start("aws.py", &[])?;
    let facts = server.facts()?;
    let provider = registry::build("aws", &context(), &values(server.url(), &facts, changes))?;
    Ok(Setup { server, facts, provider })
}

fn candidate() -> Candidate {
    Candidate {
        number: 0,
        instance_type: "t3.medium".to_owned(),
        zone: Some("us-east-1a".to_owned()),
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
        disk_gib: report.disk_gib,
        ..VmSpec::new(VmName::second_form(INSTALLATION, &format!("pod-{n}"), &sandbox), sandbox)
    }
}

fn reference(spec: &VmSpec) -> VmRef {
    VmRef { name: spec.name.clone(), sandbox: spec.sandbox.clone(), native_id: None }
}

impl Setup {
    async fn report(&self) -> anyhow::Result<Report> {
        let report = self.provider.check().await?;
        ensure!(report.problems().is_none(), "{:#?}", report.findings);
        Ok(report)
    }

    async fn delete(&self, spec: &VmSpec) -> anyhow::Result<()> {
        delete(self.provider.as_ref(), &reference(spec)).await
    }

    async fn fails(&self, spec: &VmSpec) -> Error {
        self.provider.create(spec, &candidate()).await.expect_err("refused")
    }

    fn fact(&self, key: &str) -> String {
        self.facts.get(key).cloned().unwrap_or_default()
    }
}

const NOT_UNIQUE: &str = "names are nobody's alone in EC2 (providers.md 2.2: the Name tag is free text \
                          and not unique); two_sandboxes_of_one_name_keep_a_vm_each has it instead";

#[tokio::test(flavor = "multi_thread")]
async fn all_rows_are_kept() -> anyhow::Result<()> {
    let Setup { server, facts, provider } = setup(&[])?;
    let report = provider.check().await?;
    let double = CloudDouble {
        provider,
        report,
        candidate: candidate(),
        page: 3,
        volume: facts.get("data-a").map(|disk| Volume::new(disk, 0)),
        exempt: &[("a foreign name is not adopted", NOT_UNIQUE)],
        unsaid: &[],
        server,
    };
    keep_all("aws", &double).await?;
    double.server.clean()
}
