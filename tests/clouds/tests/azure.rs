//! Azure over its double: the conformance rows, and what is Azure's own.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use peerpod_clouds::{CloudDouble, INSTALLATION, Server};
use peerpod_providers::conformance::{self, Outcome};
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
        for _ in 0..200 {
            if self.provider.delete(&reference(spec)).await? == Deletion::Gone {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("not gone")
    }

    fn clean(&self) -> anyhow::Result<()> {
        let violations = self.server.violations()?;
        ensure!(violations.is_empty(), "{violations:#?}");
        let left: u64 = self.server.resources()?.values().sum();
        ensure!(left == 0, "{:?}", self.server.resources()?);
        Ok(())
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
        provider: Box::new(Shared(provider)),
        server,
        report,
        candidate: candidate(),
        page: 3,
        volume: Some(Volume::new(format!("{GROUP}/providers/Microsoft.Compute/disks/data-1"), 0)),
        exempt: &[],
        unsaid: &[],
    };
    let mut broken = Vec::new();
    for (row, outcome) in conformance::check(&double).await {
        match outcome {
            Ok(Outcome::Kept) => println!("conformance\tazure\t{row}\tkept"),
            Ok(Outcome::Exempt(why)) => println!("conformance\tazure\t{row}\texempt: {why}"),
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

/// Each code as an answer, and inside an operation that was accepted.
#[tokio::test(flavor = "multi_thread")]
async fn what_azure_refuses_arrives_as_what_it_is_and_leaves_nothing() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let quota = "exceeding approved Total Regional Cores quota";
    let table = [
        ("AllocationFailed", "", Kind::Capacity),
        ("ZonalAllocationFailed", "", Kind::Capacity),
        ("OverconstrainedZonalAllocationRequest", "", Kind::Capacity),
        ("SkuNotAvailable", "", Kind::Capacity),
        ("OperationPreempted", "", Kind::Capacity),
        ("SubnetIsFull", "", Kind::Capacity),
        ("OperationNotAllowed", quota, Kind::Quota),
        ("OperationNotAllowed", "something else", Kind::Other),
        ("QuotaExceeded", "", Kind::Quota),
        ("PublicIPCountLimitReached", "", Kind::Quota),
        ("LinkedAuthorizationFailed", "", Kind::Denied),
        ("RequestDisallowedByPolicy", "", Kind::Denied),
        ("ImageNotFound", "", Kind::Invalid),
        ("InternalServerError", "", Kind::Unavailable),
        ("WhoKnows", "", Kind::Other),
    ];
    for (n, (code, message, kind)) in table.into_iter().enumerate() {
        let spec = spec(&report, n);
        setup.server.set(&json!({"next": {"code": code, "message": message}}))?;
        let error = setup.fails(&spec).await;
        ensure!(error.kind == kind, "{code} inside an operation is {error}");
        ensure!(error.to_string().contains(code), "{error}");
        let fault = json!({"error": {"code": code, "message": message}}).to_string();
        setup.server.fault(
            &json!({"operation": "create", "fault": "garbage", "status": 409, "body": fault}),
        )?;
        let error = setup.fails(&spec).await;
        ensure!(error.kind == kind, "{code} as an answer is {error}");
        // A failed create has taken its own left-overs away.
        setup.clean()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_of_azures_is_unavailable() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let spec = spec(&report, 0);
    let odd = [(200, "<html>proxy</html>"), (201, "{\"id\": "), (502, "<html>"), (500, "")];
    for (status, body) in odd {
        for operation in ["create", "list"] {
            let fault =
                json!({"operation": operation, "fault": "garbage", "status": status, "body": body});
            setup.server.fault(&fault)?;
        }
        let error = setup.fails(&spec).await;
        ensure!(error.kind == Kind::Unavailable, "{status} {body:?}: {error}");
        let error = setup.provider.list().await.expect_err("no list");
        ensure!(error.kind == Kind::Unavailable, "{status} {body:?}: {error}");
        setup.provider.create(&spec, &candidate()).await?;
        setup.delete(&spec).await?;
    }
    setup.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_the_cascade_leaves_are_found_and_deleted() -> anyhow::Result<()> {
    for disk_tags in [false, true] {
        let setup = setup(&[("use-public-ip", "true")])?;
        let report = setup.report().await?;
        setup.server.set(&json!({"cascade": false, "disk_tags": disk_tags}))?;
        let spec = spec(&report, 0);
        let vm = setup.provider.create(&spec, &candidate()).await?;
        ensure!(vm.addresses[0].to_string().starts_with("192.0.2."), "{vm:?}");
        setup.delete(&spec).await?;
        setup.clean()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_waited_for_as_azure_says() -> anyhow::Result<()> {
    for by_location in [false, true] {
        let setup = setup(&[])?;
        let report = setup.report().await?;
        let spec = spec(&report, 0);
        setup.server.set(&json!({"polls": 2, "retry_after": "1", "by_location": by_location}))?;
        setup.provider.create(&spec, &candidate()).await?;
        let calls = setup.server.calls()?;
        let looks: Vec<_> = calls.iter().filter(|c| c.path.contains("/operations/")).collect();
        ensure!(looks.len() == 3, "{looks:#?}");
        let gaps = looks.windows(2).map(|pair| pair[1].at - pair[0].at);
        ensure!(gaps.clone().all(|gap| gap >= 0.99), "{:?}", gaps.collect::<Vec<_>>());
        let mut looks_at_vm = calls.iter().filter(|c| c.method == "GET" && !c.name.is_empty());
        ensure!(looks_at_vm.by_ref().count() == 1, "the VM itself was polled");
        setup.server.set(&json!({"retry_after": "0"}))?;
        setup.delete(&spec).await?;
        setup.clean()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_after_changed_settings_sends_the_same_plan() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let spec = spec(&report, 0);
    setup.server.fault(&json!({"operation": "create", "fault": "lost"}))?;
    ensure!(setup.fails(&spec).await.kind == Kind::Unavailable, "a lost reply");
    let url = setup.server.url().to_owned();
    let other = [("disable-cvm", "true"), ("use-public-ip", "true"), ("ssh-username", "other")];
    let provider = registry::build("azure", &context(), &values(&url, &other))?;
    let vm = provider.create(&spec, &candidate()).await?;
    ensure!(vm.addresses[0].to_string().starts_with("10."), "{vm:?}");
    let again = provider.create(&spec, &candidate()).await?;
    ensure!(again == vm, "{again:?} is not {vm:?}");
    ensure!(setup.server.resources()?.get("vm") == Some(&1), "one VM");
    for hostile in ["", "{}", "null", "[]", "{\"region\": 1}"] {
        let mut bad = spec.clone();
        bad.template = hostile.to_owned();
        let error = setup.fails(&bad).await;
        ensure!(error.kind == Kind::Invalid && error.message.contains("template"), "{error}");
    }
    setup.delete(&spec).await?;
    setup.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_at_once_stay_within_what_each_vm_may_be_asked() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let before = setup.server.calls()?.len();
    let specs: Vec<VmSpec> = (0..100).map(|n| spec(&report, n)).collect();
    let at = candidate();
    let creates = specs.iter().map(|spec| setup.provider.create(spec, &at));
    for vm in futures_util::future::join_all(creates).await {
        vm?;
    }
    let calls = setup.server.calls()?;
    let of = |method: &str, part: &str| {
        let calls = calls.iter().skip(before);
        calls.filter(|c| c.method == method && c.path.contains(part)).count()
    };
    let counts = (of("PUT", ""), of("GET", "virtualMachines"), of("GET", "networkInterfaces"));
    ensure!(counts == (100, 100, 100), "{counts:?}");
    let throttled = calls.iter().filter(|c| c.status == 429).count();
    ensure!(throttled == 0, "{throttled} throttled");
    println!(
        "azure: 100 creates: {} calls, {} polls",
        calls.len() - before,
        of("GET", "operations")
    );
    for done in futures_util::future::join_all(specs.iter().map(|s| setup.delete(s))).await {
        done?;
    }
    let all = setup.server.calls()?;
    let lists = all.iter().filter(|c| c.operation == "delete" && c.name.is_empty());
    println!("azure: 100 deletes: {} calls that are no VM's", lists.count());
    setup.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn spot_and_ordinary_vms_are_asked_for_as_the_model_has_it() -> anyhow::Result<()> {
    let changes = [
        ("disable-cvm", "true"),
        ("instance-size", "Standard_D2s_v5"),
        ("instance-sizes", "Standard_D*"),
        ("spot-policy", "prefer"),
        (
            "securitygroupid",
            &format!("{GROUP}/providers/Microsoft.Network/networkSecurityGroups/pods"),
        ),
        ("root-volume-size", "64"),
    ];
    let setup = setup(&changes)?;
    let report = setup.report().await?;
    ensure!(report.markets == [Market::Spot, Market::OnDemand], "{report:?}");
    ensure!(!report.types.iter().any(|t| t.name == "Standard_D2ps_v5"), "an arm64 size");
    let spec = VmSpec { disk_gib: report.disk_gib, ..spec(&report, 0) };
    let at = Candidate {
        instance_type: "Standard_D2s_v5".to_owned(),
        zone: None,
        market: Market::Spot,
        ..candidate()
    };
    setup.provider.create(&spec, &at).await?;
    setup.delete(&spec).await?;
    setup.clean()
}

/// What a change of settings or of the cloud makes a check find.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_finds_what_is_wrong() -> anyhow::Result<()> {
    let deny = json!([{"name": "DenyAll", "properties": {"direction": "Inbound", "access": "Deny",
        "protocol": "*", "priority": 100, "destinationPortRange": "*"}}]);
    type Row<'a> = (&'a [(&'a str, &'a str)], Value, &'a str, &'a str);
    let rows: &[Row<'_>] = &[
        (&[("instance-size", "Standard_B2als_v2")], json!({}), "types", "DISABLECVM"),
        (&[("instance-size", "Standard_Nope")], json!({}), "types", "Standard_Nope"),
        (&[("instance-sizes", "Standard_M8ms")], json!({}), "types", "NotAvailableForSubscription"),
        (
            &[("zone", "2"), ("instance-size", "Standard_DC8as_v5")],
            json!({}),
            "types",
            "AZURE_ZONES",
        ),
        (
            &[("disable-cvm", "1"), ("instance-sizes", "Standard_D2ps_v5")],
            json!({}),
            "types",
            "Arm64",
        ),
        (&[("region", "westus")], json!({}), "region", "AZURE_REGION"),
        (&[], json!({"gone": ["virtualNetworks"]}), "subnet", "AZURE_SUBNET_ID"),
        (&[], json!({"gone": ["galleries"]}), "image", "AZURE_IMAGE_ID"),
        (&[], json!({"nsg": deny}), "firewall", "tcp/15150"),
        (&[], json!({"nsg": deny}), "firewall", "udp/9000"),
        (&[], json!({"quota": 1}), "quota", "cores"),
        (&[], json!({"granted": ["Microsoft.Compute/*"]}), "rights", "Microsoft.Network"),
        (&[], json!({"token": 401}), "credentials", "AADSTS7000222"),
    ];
    for (changes, set, subject, says) in rows {
        let setup = setup(changes)?;
        setup.server.set(set)?;
        let report = setup.provider.check().await?;
        let found = report
            .in_state(State::Problem)
            .find(|f| f.subject == *subject && f.to_string().contains(says));
        found.with_context(|| format!("{subject} {says}: {:#?}", report.findings))?;
        let all = format!("{report:?} {:?}", setup.provider);
        ensure!(!all.contains("hunter2"), "a secret shows");
        ensure!(setup.server.violations()?.is_empty(), "{:?}", setup.server.violations()?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn last_words_are_read_without_showing_a_token_to_others() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let (spec, other) = (spec(&report, 0), spec(&report, 1));
    setup.provider.create(&spec, &candidate()).await?;
    let words = setup.provider.console(&reference(&spec)).await?;
    ensure!(words.is_some_and(|w| w.contains("last words of")), "no console");
    let foreign = VmRef { sandbox: other.sandbox.clone(), ..reference(&spec) };
    ensure!(setup.provider.console(&foreign).await?.is_none(), "somebody else's console");
    ensure!(setup.provider.console(&reference(&other)).await?.is_none(), "nobody's console");
    setup.delete(&spec).await?;
    setup.clean()
}

/// A server that gives tokens and fails is not credentials that are refused.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_refused_and_tokens_that_do_not_come_are_told_apart() -> anyhow::Result<()>
{
    for (status, kind) in [(401, Kind::Denied), (400, Kind::Denied), (503, Kind::Unavailable)] {
        let setup = setup(&[])?;
        setup.server.set(&json!({"token": status}))?;
        let error = setup.provider.list().await.expect_err("no token");
        ensure!(error.kind == kind, "{status}: {error}");
        let text = format!("{error:?} {error}");
        ensure!(!text.contains("hunter2"), "a secret shows: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_gone_or_changed_hands_behind_our_back_is_neither_missed_nor_deleted()
-> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let (kept, gone) = (spec(&report, 0), spec(&report, 1));
    setup.provider.create(&kept, &candidate()).await?;
    setup.provider.create(&gone, &candidate()).await?;
    setup.server.set(&json!({"vanish": gone.name.as_str()}))?;
    setup.delete(&gone).await?;
    setup.server.set(&json!({"foreign": kept.name.as_str()}))?;
    let error = setup.fails(&kept).await;
    ensure!(error.kind == Kind::Invalid && error.message.contains("another sandbox"), "{error}");
    let before = setup.server.resources()?;
    setup.delete(&kept).await?;
    ensure!(setup.server.resources()? == before, "somebody else's VM was touched");
    ensure!(setup.server.violations()?.is_empty(), "{:?}", setup.server.violations()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_of_one_vm_is_told_with_its_time_and_loses_nothing() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    setup.server.set(&json!({"buckets": [2, 60]}))?;
    let spec = spec(&report, 0);
    let made = setup.provider.create(&spec, &candidate()).await?;
    let mut waits = 0;
    for _ in 0..4 {
        match setup.provider.create(&spec, &candidate()).await {
            Ok(again) => ensure!(again == made, "{again:?}"),
            Err(e) => {
                ensure!(e.kind == Kind::Throttled(Some(Duration::from_secs(1))), "{e}");
                waits += 1;
            }
        }
    }
    ensure!(waits > 0, "never throttled");
    for _ in 0..20 {
        if let Ok(Deletion::Gone) = setup.provider.delete(&reference(&spec)).await {
            break;
        }
    }
    setup.clean()
}

/// A daemon that died after its PUT: the next one finds a VM that has failed, knows why if it was made for
/// this candidate, and takes it away in either case.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_vm_of_a_dead_daemon_is_taken_away_and_speaks_for_its_own_candidate_alone()
-> anyhow::Result<()> {
    for (size, kind) in
        [("Standard_DC2as_v5", Kind::Capacity), ("Standard_DC4as_v5", Kind::Unavailable)]
    {
        let setup = setup(&[])?;
        let report = setup.report().await?;
        let spec = spec(&report, 0);
        setup
            .server
            .set(&json!({"polls": 0, "next": {"code": "AllocationFailed", "message": "no"}}))?;
        setup.server.fault(&json!({"operation": "create", "fault": "lost"}))?;
        ensure!(setup.fails(&spec).await.kind == Kind::Unavailable, "a lost reply");
        let heir = registry::build("azure", &context(), &values(setup.server.url(), &[]))?;
        let at = Candidate { number: 1, instance_type: size.to_owned(), ..candidate() };
        let error = heir.create(&spec, &at).await.expect_err("it had failed");
        ensure!(error.kind == kind, "{size}: {error}");
        setup.clean()?;
        let vm = heir.create(&spec, &at).await?;
        ensure!(vm.instance_type == size, "{vm:?}");
        setup.delete(&spec).await?;
        setup.clean()?;
    }
    Ok(())
}
