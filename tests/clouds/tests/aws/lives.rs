//! VMs from their create to their end: calls, lists, replays, left-overs.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn two_sandboxes_of_one_name_keep_a_vm_each() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let (theirs, mut ours) = (spec(&report, 0), spec(&report, 1));
    ours.name = theirs.name.clone();
    let first = setup.provider.create(&theirs, &candidate()).await?;
    let second = setup.provider.create(&ours, &candidate()).await?;
    ensure!(first.native_id != second.native_id && first.addresses != second.addresses, "one VM");
    setup.delete(&ours).await?;
    let left = setup.provider.list().await?;
    ensure!(left.len() == 1 && left[0].vm.sandbox == theirs.sandbox, "{left:?}");
    ensure!(setup.provider.create(&theirs, &candidate()).await? == first, "another VM");
    setup.server.set(&json!({"foreign": theirs.name.as_str()}))?;
    let error = setup.fails(&theirs).await;
    ensure!(error.kind == Kind::Invalid && error.message.contains("another sandbox"), "{error}");
    setup.delete(&theirs).await?;
    ensure!(setup.server.resources()?.get("vm") == Some(&1), "somebody else's VM was touched");
    ensure!(setup.server.violations()?.is_empty(), "{:?}", setup.server.violations()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_outlive_their_vm_are_listed_and_deleted() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let spec = spec(&report, 0);
    setup.server.fault(&json!({"operation": "create", "fault": "partial"}))?;
    ensure!(setup.fails(&spec).await.kind == Kind::Unavailable, "halfway");
    let kinds: Vec<_> =
        setup.provider.list().await?.iter().map(|r| (r.kind, r.vm.name.clone())).collect();
    let name = || spec.name.clone();
    ensure!(
        kinds == [(ResourceKind::Interface, name()), (ResourceKind::Disk, name())],
        "{kinds:?}"
    );
    setup.delete(&spec).await?;
    setup.server.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_after_changed_settings_sends_the_same_plan() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let spec = spec(&report, 0);
    setup.server.fault(&json!({"operation": "create", "fault": "lost"}))?;
    ensure!(setup.fails(&spec).await.kind == Kind::Unavailable, "a lost reply");
    let other = [
        ("subnetid", "@net-b"),
        ("imageid", "@own-image"),
        ("use-public-ip", "true"),
        ("aws-root-volume-type", "gp2"),
        ("keyname", "people"),
        ("root-volume-size", "40"),
    ];
    let values = |changes: &[(&str, &str)]| values(setup.server.url(), &setup.facts, changes);
    let heir = registry::build("aws", &context(), &values(&other))?;
    let vm = heir.create(&spec, &candidate()).await?;
    ensure!(vm.addresses[0].to_string().starts_with("10.9."), "{vm:?}");
    ensure!(heir.create(&spec, &candidate()).await? == vm, "another VM");
    ensure!(setup.server.resources()?.get("vm") == Some(&1), "one VM");
    // What is not the same plan is refused by EC2, not taken for it.
    let changed = VmSpec { disk_gib: 30, ..spec.clone() };
    let error = heir.create(&changed, &candidate()).await.expect_err("refused");
    ensure!(error.message.contains("IdempotentParameterMismatch"), "{error}");
    for hostile in ["", "{}", "null", "[]", "{\"region\": 1}"] {
        let bad = VmSpec { template: hostile.to_owned(), ..spec.clone() };
        let error = setup.fails(&bad).await;
        ensure!(error.kind == Kind::Invalid && error.message.contains("template"), "{error}");
    }
    let moved = registry::build("aws", &context(), &values(&[("aws-region", "eu-west-1")]))?;
    let error = moved.create(&spec, &candidate()).await.expect_err("another region");
    ensure!(error.kind == Kind::Invalid && error.message.contains("AWS_REGION"), "{error}");
    setup.delete(&spec).await?;
    setup.server.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_a_vm_that_is_over_leads_to_the_next_candidate() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let spec = spec(&report, 0);
    setup.provider.create(&spec, &candidate()).await?;
    setup.server.set(&json!({"vanish": spec.name.as_str()}))?;
    let error = setup.fails(&spec).await;
    ensure!(error.kind == Kind::Capacity && error.scope.is_none(), "{error:?}");
    let next = Candidate { number: 1, ..candidate() };
    setup.provider.create(&spec, &next).await?;
    setup.delete(&spec).await?;
    setup.server.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_at_once_are_a_call_each_and_their_deletes_a_few() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let before = setup.server.calls()?.len();
    let specs: Vec<VmSpec> = (0..100).map(|n| spec(&report, n)).collect();
    let at = candidate();
    let vms = join_all(specs.iter().map(|spec| setup.provider.create(spec, &at))).await;
    let vms = vms.into_iter().collect::<Result<Vec<_>, _>>()?;
    let ids: BTreeSet<&str> = vms.iter().map(|vm| vm.native_id.as_str()).collect();
    ensure!(ids.len() == 100, "{} VMs", ids.len());
    let calls = setup.server.calls()?;
    let creates = calls.iter().skip(before).filter(|c| c.operation == "create").count();
    ensure!((creates, calls.len() - before) == (100, 100), "{creates} of {}", calls.len() - before);
    println!("aws: 100 creates: {creates} calls");
    let before = calls.len();
    // One that EC2 does not know is among them.
    let mut gone: Vec<VmRef> = specs
        .iter()
        .zip(&vms)
        .map(|(spec, vm)| VmRef { native_id: Some(vm.native_id.clone()), ..reference(spec) })
        .collect();
    gone[42].native_id = Some("i-0123456789abcdef0".to_owned());
    let deletes = join_all(gone.iter().map(|vm| setup.provider.delete(vm))).await;
    for (n, deletion) in deletes.into_iter().enumerate() {
        let expected = if n == 42 { Deletion::Accepted } else { Deletion::Gone };
        ensure!(deletion? == expected, "{n}");
    }
    setup.delete(&specs[42]).await?;
    let calls = setup.server.calls()?.len() - before;
    println!("aws: 100 deletes, one of them by its tag: {calls} calls");
    ensure!(calls < 30, "{calls} calls");
    setup.server.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_is_dropped_on_its_way_is_waited_for() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    setup.server.set(&json!({"late": 0.5}))?;
    for n in 0..5 {
        let spec = spec(&report, n);
        let at = candidate();
        let create = setup.provider.create(&spec, &at);
        // Long enough for the request to leave, too short for its answer.
        let left = tokio::time::timeout(Duration::from_millis(60 * n as u64), create).await;
        ensure!(left.is_err(), "{left:?}");
        setup.delete(&spec).await?;
    }
    setup.server.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn confidential_spot_and_public_vms_are_asked_for_as_the_model_has_it() -> anyhow::Result<()>
{
    let changes = [
        ("disable-cvm", "false"),
        ("instance-type", "m6a.large"),
        ("instance-types", "m6a.*"),
        ("spot-policy", "prefer"),
        ("use-public-ip", "true"),
        ("root-volume-size", "64"),
        ("aws-root-volume-type", "io2"),
        ("keyname", "people"),
        ("subnetid", "@net-b"),
    ];
    let setup = setup(&changes)?;
    let report = setup.report().await?;
    ensure!(report.markets == [Market::Spot, Market::OnDemand], "{report:?}");
    // Those of the family that can be confidential.
    ensure!(report.types.len() == 5 && report.zones == ["us-east-1b"], "{report:?}");
    setup.server.set(&json!({"hidden": 2}))?;
    let specs: Vec<VmSpec> = (0..3).map(|n| spec(&report, n)).collect();
    let at = Candidate {
        instance_type: "m6a.large".to_owned(),
        zone: Some("us-east-1b".to_owned()),
        market: Market::Spot,
        ..candidate()
    };
    let before = setup.server.calls()?.len();
    let vms = join_all(specs.iter().map(|spec| setup.provider.create(spec, &at))).await;
    for vm in vms {
        let vm = vm?;
        ensure!(!vm.addresses[0].to_string().starts_with("10."), "{vm:?}");
        ensure!(
            (vm.instance_type.as_str(), vm.zone.as_deref()) == ("m6a.large", Some("us-east-1b")),
            "{vm:?}"
        );
    }
    // The address shows at the second look; all three wait for the same ones.
    let calls = setup.server.calls()?.len() - before;
    ensure!(calls <= 7, "{calls} calls for three VMs");
    for spec in &specs {
        setup.delete(spec).await?;
    }
    setup.server.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_template_decides_what_it_is_for() -> anyhow::Result<()> {
    let setup =
        setup(&[("use-lt", "true"), ("imageid", ""), ("subnetid", ""), ("securitygroupids", "")])?;
    let report = setup.report().await?;
    ensure!(
        report.size.default_type == "t3.medium" && report.size.allowed.is_empty(),
        "{report:?}"
    );
    let spec = spec(&report, 0);
    let at = Candidate { zone: None, ..candidate() };
    setup.provider.create(&spec, &at).await?;
    setup.delete(&spec).await?;
    setup.server.clean()?;
    let rows = [
        (json!({"imageId": null}), "an image"),
        (json!({"instanceType": null}), "an instance type"),
    ];
    for (decides, says) in rows {
        setup.server.set(&json!({"decides": decides}))?;
        let report = setup.provider.check().await?;
        let problems = report.problems().unwrap_or_default();
        ensure!(problems.contains(says), "{says}: {problems}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_the_pods_own_has_a_disk_of_its_own_size() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let own = |n, image: &str| VmSpec { image: Some(image.to_owned()), ..spec(&report, n) };
    let (first, second) = (own(0, &setup.fact("own-image")), own(1, &setup.fact("own-image")));
    let before = setup.server.calls()?.len();
    setup.provider.create(&first, &candidate()).await?;
    setup.provider.create(&second, &candidate()).await?;
    let calls = setup.server.calls()?.len() - before;
    ensure!(calls == 3, "{calls} calls: the image is looked at once");
    for (image, says) in [("ami-0123456789abcdef0", "not there"), ("podvm", "is not ami-")] {
        let error = setup.fails(&own(2, image)).await;
        ensure!(error.kind == Kind::Invalid && error.message.contains(says), "{error}");
    }
    setup.delete(&first).await?;
    setup.delete(&second).await?;
    setup.server.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_attached_where_they_are_and_left_when_their_vm_goes() -> anyhow::Result<()> {
    let setup = setup(&[("subnetid", "@net-a,@net-b")])?;
    let report = setup.report().await?;
    ensure!(report.zones == ["us-east-1a", "us-east-1b"], "{report:?}");
    let volume = |key: &str| Volume::new(setup.fact(key), 0);
    let with = |n, disk: Volume| VmSpec { volumes: vec![disk], ..spec(&report, n) };
    let (first, second) = (with(0, volume("data-b")), with(1, volume("data-b")));
    let error = setup.fails(&first).await;
    ensure!(error.kind == Kind::Capacity && error.scope.is_none(), "{error:?}");
    ensure!(error.message.contains("is in zone us-east-1b"), "{error}");
    let at = Candidate { number: 1, zone: Some("us-east-1b".to_owned()), ..candidate() };
    let vm = setup.provider.create(&first, &at).await?;
    ensure!(setup.provider.create(&first, &at).await? == vm, "a replay with its volume attached");
    let error = setup.provider.create(&second, &at).await.expect_err("in use");
    ensure!(error.kind == Kind::Unavailable && error.message.contains(&vm.native_id), "{error}");
    ensure!(setup.server.resources()?.get("vm") == Some(&1), "made in vain");
    setup.delete(&first).await?;
    setup.provider.create(&second, &at).await?;
    setup.delete(&second).await?;
    for (disk, says) in
        [("vol-0123456789abcdef0", "InvalidVolume.NotFound"), ("data", "is not vol-")]
    {
        let missing = with(2, Volume::new(disk, 0));
        let error = setup.fails(&missing).await;
        ensure!(error.kind == Kind::Invalid && error.message.contains(says), "{error}");
    }
    setup.server.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn last_words_are_those_of_the_sandboxs_own_vm() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let (spec, other) = (spec(&report, 0), spec(&report, 1));
    let vm = setup.provider.create(&spec, &candidate()).await?;
    ensure!(setup.provider.console(&reference(&spec)).await?.is_none(), "nothing is written yet");
    for latest in [true, false] {
        setup
            .server
            .set(&json!({"console": {"text": "\u{1b}[31mlast words", "latest": latest}}))?;
        let words = setup.provider.console(&reference(&spec)).await?;
        ensure!(words.is_some_and(|w| w.contains("last words")), "latest {latest}");
    }
    let foreign = VmRef { native_id: Some(vm.native_id), ..reference(&other) };
    ensure!(setup.provider.console(&foreign).await?.is_none(), "somebody else's console");
    setup.delete(&spec).await?;
    setup.server.clean()
}
