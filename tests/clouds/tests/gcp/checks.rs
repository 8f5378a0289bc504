//! What a check finds.

use super::*;

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
        setup.server.clean()?;
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
    setup.server.clean()
}
