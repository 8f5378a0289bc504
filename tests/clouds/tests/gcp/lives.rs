//! VMs from their create to their end: calls, lists, replays, left-overs.

use super::*;

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
    setup.server.clean()
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
    setup.server.clean()
}

/// Three calls and looks at operations, which are counted apart; a delete that fails is no end.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_is_over_when_its_operation_is_and_asked_for_again_when_that_fails()
-> anyhow::Result<()> {
    let setup = setup(&[("zone", ZONE)])?;
    let report = setup.report().await?;
    for (n, (error, calls)) in [(None, 3), (Some("RESOURCE_NOT_READY"), 5)].into_iter().enumerate()
    {
        let (spec, before) = (spec(&report, n), setup.server.calls()?.len());
        let vm = setup.provider.create(&spec, &candidate()).await?;
        setup.server.set(&json!({"delete_error": error}))?;
        let known = VmRef { native_id: Some(vm.native_id), ..reference(&spec) };
        setup.delete_ref(&known).await?;
        let all = setup.server.calls()?;
        let made: Vec<_> =
            all.iter().skip(before).filter(|c| !c.path.contains("/operations/")).collect();
        ensure!(made.len() == calls, "{error:?}: {made:#?}");
        setup.server.clean()?;
    }
    Ok(())
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
    setup.server.clean()
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
    setup.server.clean()
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
    setup.server.clean()
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
    setup.server.clean()
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
    heir.server.clean()
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
    setup.server.clean()?;
    setup.provider.create(&spec, &candidate()).await?;
    setup.server.set(&json!({"stopped": name}))?;
    let seen = setup.provider.list().await?;
    ensure!(seen[0].kind == ResourceKind::Vm && seen[0].running == Some(false), "{seen:?}");
    let error = setup.provider.create(&spec, &next).await.expect_err("it has stopped");
    ensure!(error.kind == Kind::Unavailable && error.message.contains("TERMINATED"), "{error}");
    setup.server.clean()?;
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
