//! Google Cloud over its double: the conformance rows, and what is Google's own.

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

/// Each reason as the Compute API gives it, as `google.rpc.ErrorInfo`, and inside an operation.
#[tokio::test(flavor = "multi_thread")]
async fn what_google_refuses_arrives_as_what_it_is_and_leaves_nothing() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let table = [
        (503, "ZONE_RESOURCE_POOL_EXHAUSTED", Kind::Capacity),
        (503, "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", Kind::Capacity),
        (503, "STOCKOUT", Kind::Capacity),
        (400, "IP_SPACE_EXHAUSTED", Kind::Capacity),
        (403, "QUOTA_EXCEEDED", Kind::Quota),
        (403, "quotaExceeded", Kind::Quota),
        (403, "PERMISSIONS_ERROR", Kind::Denied),
        (403, "forbidden", Kind::Denied),
        (403, "accessNotConfigured", Kind::Denied),
        (401, "authError", Kind::Denied),
        (412, "conditionNotMet", Kind::Denied),
        (400, "INVALID_USAGE", Kind::Invalid),
        (400, "badRequest", Kind::Invalid),
        (404, "notFound", Kind::Invalid),
        (400, "resourceNotReady", Kind::Unavailable),
        (500, "backendError", Kind::Unavailable),
        (418, "WhoKnows", Kind::Other),
    ];
    for (n, (status, code, kind)) in table.into_iter().enumerate() {
        let spec = spec(&report, n);
        setup.server.set(&json!({"operation_error": code, "operation_status": status}))?;
        let error = setup.fails(&spec).await;
        ensure!(error.kind == kind && error.message.contains(code), "{code} inside: {error}");
        let error = |key: &str| json!({"error": {"code": status, key: [{"reason": code}]}});
        for form in ["errors", "details"] {
            // A class whose calls only fail is given a pause, which is for another test.
            let heir = registry::build("gcp", &context(), &values(setup.server.url(), &[]))?;
            setup.garbage("create", status, &error(form).to_string())?;
            let error = heir.create(&spec, &candidate()).await.expect_err("refused");
            ensure!(error.kind == kind && error.message.contains(code), "{code} {form}: {error}");
        }
        setup.clean()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_that_is_exceeded_is_told_with_its_time() -> anyhow::Result<()> {
    for form in ["errors", "details", "both"] {
        let setup = setup(&[])?;
        let report = setup.report().await?;
        setup.server.set(&json!({"quota": 0, "details": form}))?;
        let error = setup.fails(&spec(&report, 0)).await;
        let minute = Duration::from_secs(60);
        let told = matches!(error.kind, Kind::Throttled(Some(wait)) if wait <= minute);
        ensure!(told, "{form}: {error}");
        setup.clean()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_of_googles_is_unavailable() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let inside = r#"{"error": {"code": 403, "errors": [{"reason": "forbidden"}]}}"#;
    let odd = [
        (200, "<html>"),
        (200, "{\"kind\": \"comp"),
        (200, inside),
        (500, ""),
        (502, "<html>"),
        (200, "{}"),
    ];
    for (n, (status, body)) in odd.into_iter().enumerate() {
        let (spec, heir) = (
            spec(&report, n),
            registry::build("gcp", &context(), &values(setup.server.url(), &[]))?,
        );
        for operation in ["create", "list"] {
            setup.garbage(operation, status, body)?;
        }
        let error = heir.create(&spec, &candidate()).await.expect_err("no VM");
        ensure!(error.kind == Kind::Unavailable, "{status} {body}: {error}");
        let error = heir.list().await.expect_err("no list");
        ensure!(error.kind == Kind::Unavailable, "{status} {body}: {error}");
        heir.create(&spec, &candidate()).await?;
        setup.delete(&spec).await?;
    }
    setup.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_a_zone_is_none_and_an_empty_page_is_not_the_last() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let specs: Vec<VmSpec> = (0..4).map(|n| spec(&report, n)).collect();
    for spec in &specs {
        setup.provider.create(spec, &candidate()).await?;
    }
    setup.server.set(&json!({"hollow": true}))?;
    ensure!(setup.provider.list().await?.len() == specs.len(), "a page was missed");
    setup.server.set(&json!({"hollow": false, "unreachable": OTHER_ZONE}))?;
    let error = setup.provider.list().await.expect_err("no list");
    ensure!(error.kind == Kind::Unavailable && error.message.contains(OTHER_ZONE), "{error}");
    setup.server.set(&json!({"unreachable": null}))?;
    for spec in &specs {
        setup.delete(spec).await?;
    }
    setup.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_costs_four_calls_and_its_whole_sandbox_id_comes_back() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let (before, spec) = (setup.server.calls()?.len(), spec(&report, 7));
    setup.server.set(&json!({"steps": 0}))?;
    let vm = setup.provider.create(&spec, &candidate()).await?;
    let all = setup.provider.list().await?;
    ensure!(all.len() == 1 && all[0].vm.native_id.as_ref() == Some(&vm.native_id), "{all:?}");
    ensure!(all[0].vm.sandbox == spec.sandbox && all[0].tags["team"] == "blue", "{all:?}");
    ensure!(!all[0].tags.contains_key("cost"), "a resource-manager tag as label: {all:?}");
    let lists = 2;
    let known = VmRef { native_id: Some(vm.native_id), ..reference(&spec) };
    ensure!(setup.provider.delete(&known).await? == Deletion::Accepted, "not accepted");
    let calls = setup.server.calls()?.len() - before - lists;
    ensure!(calls == 4, "{calls} calls");
    ensure!(setup.provider.delete(&known).await? == Deletion::Gone, "not gone");
    setup.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_at_once_cost_three_calls_each() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    setup.server.set(&json!({"steps": 0}))?;
    let before = setup.server.calls()?.len();
    let specs: Vec<VmSpec> = (0..100).map(|n| spec(&report, n)).collect();
    let at = candidate();
    let mut known = Vec::new();
    for made in join_all(specs.iter().map(|s| setup.provider.create(s, &at))).await {
        known.push(Some(made?.native_id));
    }
    let calls = setup.server.calls()?;
    let made = calls.len() - before;
    let throttled = calls.iter().filter(|c| c.status == 403 || c.status == 429).count();
    let refs = specs.iter().zip(known);
    let refs: Vec<VmRef> =
        refs.map(|(spec, native_id)| VmRef { native_id, ..reference(spec) }).collect();
    for deleted in join_all(refs.iter().map(|vm| setup.provider.delete(vm))).await {
        deleted?;
    }
    let deleted = setup.server.calls()?.len() - before - made;
    println!("gcp: 100 creates: {made} calls, {throttled} throttled; 100 deletes: {deleted} calls");
    ensure!((made, throttled, deleted) == (300, 0, 100), "{made} {throttled} {deleted}");
    for gone in join_all(refs.iter().map(|vm| setup.delete_ref(vm))).await {
        gone?;
    }
    setup.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_waited_for_and_nothing_is_polled() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    setup.server.set(&json!({"steps": 3}))?;
    let spec = spec(&report, 0);
    let before = setup.server.calls()?.len();
    setup.provider.create(&spec, &candidate()).await?;
    let calls = setup.server.calls()?;
    let of = |part: &str| calls.iter().skip(before).filter(|c| c.path.ends_with(part)).count();
    ensure!((of("/wait"), calls.len() - before) == (4, 6), "{calls:#?}");
    setup.delete(&spec).await?;
    setup.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn spot_public_and_gpu_vms_are_asked_for_as_the_model_has_it() -> anyhow::Result<()> {
    let changes = [
        ("use-public-ip", "true"),
        ("network", "custom"),
        ("subnetwork", "pods"),
        ("disable-cvm", "true"),
        ("machine-type", "e2-medium"),
        ("machine-types", "n1-*,g2-standard-4,t2a-*"),
        ("accelerator-type", "nvidia-tesla-t4"),
        ("disk-type", "pd-balanced"),
        ("spot-policy", "prefer"),
    ];
    let setup = setup(&changes)?;
    let report = setup.provider.check().await?;
    ensure!(report.problems().is_none(), "{:?}", report.problems());
    ensure!(report.markets == [Market::Spot, Market::OnDemand], "{report:?}");
    let gpus: BTreeMap<&str, u32> =
        report.types.iter().map(|t| (t.name.as_str(), t.gpus)).collect();
    let wanted = BTreeMap::from([("e2-medium", 0), ("g2-standard-4", 1), ("n1-standard-4", 4)]);
    ensure!(gpus == wanted, "{gpus:?}");
    for (n, name) in ["n1-standard-4", "g2-standard-4", "e2-medium"].into_iter().enumerate() {
        let gpus = gpus[name].min(1);
        let spec = VmSpec { gpus, disk_gib: report.disk_gib, ..spec(&report, n) };
        let at = Candidate { market: Market::Spot, instance_type: name.to_owned(), ..candidate() };
        let vm = setup.provider.create(&spec, &at).await?;
        ensure!(vm.addresses[0].to_string().starts_with("203.0.113."), "{vm:?}");
        setup.delete(&spec).await?;
    }
    setup.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn last_words_are_the_vms_own_and_only_the_last() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let spec = spec(&report, 1);
    setup.provider.create(&spec, &candidate()).await?;
    ensure!(setup.provider.console(&reference(&spec)).await?.is_none(), "nothing written yet");
    setup.server.set(&json!({"serial": format!("{}login:", ".".repeat(100_000))}))?;
    let words = setup.provider.console(&reference(&spec)).await?.context("a console")?;
    ensure!(words.len() == 64 << 10 && words.ends_with("login:"), "{} bytes", words.len());
    let foreign = VmRef { sandbox: "f".repeat(64), ..reference(&spec) };
    ensure!(setup.provider.console(&foreign).await?.is_none(), "somebody else's console");
    setup.delete(&spec).await?;
    setup.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_after_changed_settings_sends_the_same_plan() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let spec = spec(&report, 1);
    setup.server.fault(&json!({"operation": "create", "fault": "lost"}))?;
    ensure!(setup.fails(&spec).await.kind == Kind::Unavailable, "a lost reply");
    // Not even its zone is in the settings any more.
    let other = [("disk-type", "pd-ssd"), ("network", "custom"), ("zone", OTHER_ZONE)];
    let changed = values(setup.server.url(), &other);
    let heir = registry::build("gcp", &context(), &changed)?;
    let vm = heir.create(&spec, &candidate()).await?;
    ensure!(vm == setup.provider.create(&spec, &candidate()).await?, "another VM");
    ensure!(setup.server.resources()?.get("vm") == Some(&1), "one VM");
    for template in ["", "{}", "<html>", "null"] {
        let bad = VmSpec { template: template.to_owned(), ..spec.clone() };
        let error = heir.create(&bad, &candidate()).await.expect_err("refused");
        ensure!(error.kind == Kind::Invalid && error.message.contains("template"), "{error}");
    }
    let listed = heir.list().await?;
    ensure!(listed.len() == 1 && listed[0].vm.native_id.as_ref() == Some(&vm.native_id), "listed");
    let heir = Setup { server: setup.server, provider: heir };
    heir.delete_ref(&listed[0].vm).await?;
    heir.clean()
}

/// What a change of settings or of the cloud makes a check find.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_finds_what_is_wrong() -> anyhow::Result<()> {
    let ordinary = ("disable-cvm", "true");
    let rule = |name: &str, list: &str| json!({"name": name, "direction": "INGRESS", "priority": 100, list: [{"IPProtocol": "all"}]});
    let policy = json!([{"shortName": "corp", "type": "HIERARCHY", "rules": [{"priority": 1}]}]);
    type Row<'a> = (&'a [(&'a str, &'a str)], Value, State, &'a str, &'a str);
    let (problem, warning) = (State::Problem, State::Warning);
    let rows: &[Row<'_>] = &[
        (&[("gcp-project-id", "nobody-1")], json!({}), problem, "project", "GCP_PROJECT_ID"),
        (&[("image-name", "absent")], json!({}), problem, "image", "PODVM_IMAGE_NAME"),
        (&[("image-name", "podvm-pending")], json!({}), problem, "image", "PENDING"),
        (&[("image-name", "podvm-old")], json!({}), problem, "image", "OBSOLETE"),
        (&[("image-name", "podvm-plain")], json!({}), problem, "image", "SEV_SNP_CAPABLE"),
        (&[ordinary, ("image-name", "podvm-arm")], json!({}), problem, "types", "ARM64"),
        (&[("network", "absent")], json!({}), problem, "network", "GCP_NETWORK"),
        (&[("network", "custom")], json!({}), problem, "subnetwork", "GCP_SUBNETWORK"),
        (&[("subnetwork", "absent")], json!({}), problem, "subnetwork", "GCP_SUBNETWORK"),
        (&[("subnetwork", "pods")], json!({}), problem, "subnetwork", "GCP_NETWORK is another"),
        (&[("machine-types", "n2d-standard-99")], json!({}), problem, "types", "n2d-standard-99"),
        (
            &[("machine-types", "n1-standard-4")],
            json!({}),
            problem,
            "types",
            "GCP_CONFIDENTIAL_TYPE",
        ),
        (
            &[ordinary, ("machine-types", "e2-standard-4")],
            json!({}),
            problem,
            "types",
            "europe-west1-c has no",
        ),
        (&[("zone", "europe-west1-z")], json!({}), problem, "zone", "GCP_ZONE"),
        (&[("disk-type", "pd-extreme")], json!({}), problem, "disk type", "GCP_DISK_TYPE"),
        (
            &[ordinary, ("machine-types", "n4-standard-2")],
            json!({}),
            warning,
            "disk type",
            "n4-standard-2",
        ),
        (&[("accelerator-type", "tpu")], json!({}), problem, "types", "GCP_ACCELERATOR_TYPE"),
        (&[], json!({"firewalls": []}), problem, "firewall", "tcp/15150"),
        (&[], json!({"firewalls": []}), problem, "firewall", "--allow=udp:9000"),
        (
            &[],
            json!({"firewalls": [rule("shut", "denied"), rule("open", "allowed")]}),
            problem,
            "firewall",
            "shut closes udp/9000",
        ),
        (&[], json!({"firewalls": [], "policies": policy}), warning, "firewall", "corp"),
        (&[], json!({"limits": {"N2D_CPUS": 1.0}}), problem, "quota", "N2D_CPUS"),
        (&[], json!({"limits": {"CPUS_ALL_REGIONS": 1.0}}), problem, "quota", "the project"),
        (
            &[],
            json!({"granted": ["compute.instances.create"]}),
            problem,
            "rights",
            "compute.instances.delete",
        ),
        (&[], json!({"gone": ["podvm"]}), problem, "image", "PODVM_IMAGE_NAME"),
    ];
    for (changes, set, state, subject, says) in rows {
        let setup = setup(changes)?;
        setup.server.set(set)?;
        let report = setup.provider.check().await?;
        let found =
            report.in_state(*state).find(|f| f.subject == *subject && f.to_string().contains(says));
        found.with_context(|| format!("{subject} {says}: {:#?}", report.findings))?;
        setup.clean()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_must_exist_and_a_look_that_is_refused_is_no_problem() -> anyhow::Result<()> {
    let server = Server::start("gcp.py", &[])?;
    let tags = BTreeMap::from([("cost".to_owned(), "nothing".to_owned())]);
    let of = Context { tags, ..context() };
    let provider = registry::build("gcp", &of, &values(server.url(), &[]))?;
    let report = provider.check().await?;
    let problem = report.in_state(State::Problem).find(|f| f.subject == "tags");
    ensure!(problem.is_some_and(|f| f.to_string().contains("cost/nothing")), "{report:?}");
    // Nothing but VMs: what cannot be looked at is said, and no more.
    let setup = setup(&[("subnetwork", "default"), ("accelerator-type", "nvidia-tesla-t4")])?;
    let looks = json!({"denied": ["acceleratorTypes.get", "diskTypes.get", "images.get", "machineTypes.list",
        "networks.get", "networks.getEffectiveFirewalls", "regions.get", "subnetworks.get", "projects.get",
        "cloudresourcemanager.projects.testIamPermissions"]});
    setup.server.set(&looks)?;
    let report = setup.report().await?;
    let warnings: Vec<&str> = report.in_state(State::Warning).map(|f| f.subject.as_str()).collect();
    for subject in
        ["rights", "credentials", "image", "types", "disk type", "network", "firewall", "quota"]
    {
        ensure!(warnings.contains(&subject), "{subject}: {warnings:?}");
    }
    let spec = spec(&report, 0);
    setup.provider.create(&spec, &candidate()).await?;
    setup.delete(&spec).await?;
    setup.clean()
}

/// A service account whose tokens the double checks, and a cloud that does not believe them.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_signs_tokens_and_one_that_is_refused_is_told() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("key.json");
    let path = path.to_str().context("a path")?;
    let server = Server::start("gcp.py", &["--key", path])?;
    let key = std::fs::read_to_string(path)?;
    let build = |key: &str| {
        registry::build("gcp", &context(), &values(server.url(), &[("gcp-credentials", key)]))
    };
    let provider = build(&key)?;
    let report = provider.check().await?;
    ensure!(report.problems().is_none(), "{:?}", report.problems());
    ensure!(report.findings.iter().any(|f| f.text.contains("iam.gserviceaccount.com")), "whose");
    let spec = spec(&report, 0);
    provider.create(&spec, &candidate()).await?;
    // Its clock runs ahead of ours by hours: what it says is no fault of the request.
    server.set(&json!({"clock": 10_000}))?;
    let error = provider.create(&spec, &candidate()).await.expect_err("refused");
    ensure!(error.kind == Kind::Denied && error.message.contains("clock"), "{error}");
    let problems = build(&key)?.check().await?.problems().context("a problem")?;
    ensure!(problems.starts_with("credentials") && problems.contains("clock"), "{problems}");
    server.set(&json!({"clock": 0}))?;
    let setup = Setup { server, provider };
    setup.delete(&spec).await?;
    setup.clean()?;
    let other = folder.path().join("other.json");
    let other = other.to_str().context("a path")?;
    drop(Server::start("gcp.py", &["--key", other])?);
    let mut bad: Value = serde_json::from_str(&key)?;
    bad["private_key"] = json!("hunter2");
    for (key, says) in
        [(std::fs::read_to_string(other)?, "credentials"), (bad.to_string(), "credentials")]
    {
        let values = values(setup.server.url(), &[("gcp-credentials", &key)]);
        let report = registry::build("gcp", &context(), &values)?.check().await?;
        let text = format!("{report:?}");
        ensure!(report.problems().is_some_and(|p| p.starts_with(says)), "{text}");
        ensure!(!text.contains("hunter2") && !text.contains("PRIVATE KEY"), "a secret shows");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_gone_or_changed_hands_behind_our_back_is_neither_missed_nor_deleted()
-> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let (kept, gone) = (spec(&report, 0), spec(&report, 1));
    let vm = setup.provider.create(&kept, &candidate()).await?;
    let known = VmRef { native_id: Some(vm.native_id), ..reference(&kept) };
    setup.provider.create(&gone, &candidate()).await?;
    setup.server.set(&json!({"vanish": gone.name.as_str()}))?;
    setup.delete(&gone).await?;
    // The same name, and whoever asks for ours by its number does not touch it.
    setup.server.set(&json!({"vanish": kept.name.as_str()}))?;
    setup.server.set(&json!({"foreign": [ZONE, kept.name.as_str()]}))?;
    let error = setup.fails(&kept).await;
    ensure!(error.kind == Kind::Invalid && error.message.contains("another sandbox"), "{error}");
    for vm in [&known, &reference(&kept)] {
        setup.delete_ref(vm).await?;
        ensure!(setup.server.resources()?["vm"] == 1, "somebody else's VM was touched");
    }
    ensure!(setup.server.violations()?.is_empty(), "{:?}", setup.server.violations()?);
    Ok(())
}

/// What a daemon that died has left is in the way of its successor's next candidate.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_daemon_has_left_is_taken_away_and_nobody_elses() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let next = Candidate { number: 1, ..candidate() };
    let spec = spec(&report, 0);
    let (name, other) = (spec.name.as_str(), "f".repeat(64));
    setup.server.set(&json!({"left": [ZONE, name, spec.sandbox]}))?;
    let error = setup.fails(&spec).await;
    ensure!(error.kind == Kind::Unavailable, "a disk in the way: {error}");
    setup.clean()?;
    setup.provider.create(&spec, &candidate()).await?;
    setup.server.set(&json!({"stopped": name}))?;
    let seen = setup.provider.list().await?;
    ensure!(seen[0].kind == ResourceKind::Vm && seen[0].running == Some(false), "{seen:?}");
    let error = setup.provider.create(&spec, &next).await.expect_err("it has stopped");
    ensure!(error.kind == Kind::Unavailable && error.message.contains("TERMINATED"), "{error}");
    setup.clean()?;
    setup.provider.create(&spec, &next).await?;
    setup.delete(&spec).await?;
    setup.server.set(&json!({"left": [ZONE, name, other]}))?;
    let error = setup.provider.create(&spec, &Candidate { number: 2, ..candidate() }).await;
    let error = error.expect_err("somebody else's disk");
    ensure!(error.kind == Kind::Invalid, "{error}");
    setup.delete(&spec).await?;
    ensure!(setup.server.resources()?["disk"] == 1, "somebody else's disk was touched");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_vanishes_between_check_and_create_is_a_mistake_that_is_named() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    for gone in ["podvm", "n2d-standard-2"] {
        setup.server.set(&json!({"gone": [gone]}))?;
        let error = setup.fails(&spec(&report, 0)).await;
        ensure!(error.kind == Kind::Invalid && error.message.contains(gone), "{error}");
    }
    setup.clean()
}
