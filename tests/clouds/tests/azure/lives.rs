//! VMs from their create to their end: calls, lists, replays, left-overs.

use super::*;

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
        setup.server.clean()?;
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
        setup.server.clean()?;
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
    setup.server.clean()
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
    setup.server.clean()
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
    setup.server.clean()
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
    setup.server.clean()
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
        setup.server.clean()?;
        let vm = heir.create(&spec, &at).await?;
        ensure!(vm.instance_type == size, "{vm:?}");
        setup.delete(&spec).await?;
        setup.server.clean()?;
    }
    Ok(())
}
