//! libvirt itself: the conformance rows over a real libvirtd and QEMU in namespaces of the test's own, and
//! what is libvirt's own. `libvirt_boot` has a guest that boots.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use peerpod_clouds::{INSTALLATION, Leases, Libvirtd, keep_all};
use peerpod_providers::conformance::{Double, Injection, Operation};
use peerpod_providers::registry::{self, Context};
use peerpod_providers::report::State;
use peerpod_providers::settings::Values;
use peerpod_providers::{
    Candidate, Deletion, Kind, Market, Provider, Report, ResourceKind, UserData, UserDataLimit,
    VmName, VmRef, VmSpec, Volume, tags,
};

fn start(test: &str) -> anyhow::Result<Option<Libvirtd>> {
    Libvirtd::start(test, Leases::Pretended)
}

fn context(installation: &str) -> Context {
    Context {
        installation: installation.to_owned(),
        program: "/nowhere/peerpodd".into(),
        search: String::new(),
        tags: BTreeMap::new(),
        forwarder_port: 15150,
        vxlan_port: 9000,
    }
}

fn provider(uri: &str, changes: &[(&str, &str)]) -> anyhow::Result<Arc<dyn Provider>> {
    provider_of(INSTALLATION, uri, changes)
}

fn provider_of(
    installation: &str,
    uri: &str,
    changes: &[(&str, &str)],
) -> anyhow::Result<Arc<dyn Provider>> {
    let mut values: Values = [
        ("uri", uri),
        ("domain-type", "qemu"),
        ("cpu", "1"),
        ("memory", "256"),
        ("root-volume-size", "0"),
    ]
    .into_iter()
    .collect();
    for (flag, value) in changes {
        values.set(*flag, *value);
    }
    Ok(registry::build("libvirt", &context(installation), &values)?)
}

struct Real {
    libvirtd: Libvirtd,
    provider: Arc<dyn Provider>,
    report: Report,
}

fn candidate() -> Candidate {
    let (number, zone, market) = (0, None, Market::OnDemand);
    Candidate { number, instance_type: "1x256".to_owned(), zone, market }
}

impl Double for Real {
    fn provider(&self) -> &dyn Provider {
        self.provider.as_ref()
    }

    fn installation(&self) -> &str {
        INSTALLATION
    }

    fn candidate(&self) -> Candidate {
        candidate()
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        self.report.user_data
    }

    fn template(&self) -> String {
        self.report.template.clone()
    }

    fn lag(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn exempt(&self, row: &str) -> Option<&'static str> {
        match row {
            "a throttle is obeyed" => Some("libvirt has no throttling (providers.md 6.4)"),
            "too much user data is named" => {
                Some("a disk of any size holds the user data (providers.md 2.5)")
            }
            "a broken list is an error" => {
                Some("libvirt lists in one call, without pages (virConnectListAllDomains)")
            }
            _ => None,
        }
    }

    fn volume(&self) -> Option<Volume> {
        Some(Volume::new("data.raw", 0))
    }

    fn inject(&self, injection: Injection) -> bool {
        let flag = match injection {
            Injection::LostReply => "lose",
            // What else a host refuses is in the table of codes, with its test.
            Injection::Fail(Operation::Create, Kind::Other)
            | Injection::Partial
            | Injection::VolumeFails => "fail",
            Injection::Fail(..) | Injection::BrokenList => return false,
        };
        self.libvirtd.flag(flag).is_ok()
    }

    fn stop(&self, vm: &VmRef) -> bool {
        self.libvirtd.virsh(&["destroy", vm.name.as_str()]).is_ok()
    }
}

fn spec(report: &Report, n: usize) -> VmSpec {
    let sandbox = format!("{n:064x}");
    VmSpec {
        tags: BTreeMap::from([
            (tags::INSTALLATION.to_owned(), INSTALLATION.to_owned()),
            (tags::SANDBOX.to_owned(), sandbox.clone()),
            (tags::NODE.to_owned(), "worker".to_owned()),
        ]),
        user_data: UserData("#cloud-config\n".to_owned()),
        template: report.template.clone(),
        ..VmSpec::new(VmName::first_form(&format!("pod-{n}"), &sandbox), sandbox)
    }
}

fn reference(spec: &VmSpec) -> VmRef {
    VmRef { name: spec.name.clone(), sandbox: spec.sandbox.clone(), native_id: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_rows_are_kept_and_the_host_is_as_it_was() -> anyhow::Result<()> {
    let Some(libvirtd) = start("all_rows_are_kept_and_the_host_is_as_it_was")? else {
        return Ok(());
    };
    let before = libvirtd.files()?;
    let provider = provider(&libvirtd.uri(), &[])?;
    let report = provider.check().await?;
    ensure!(report.problems().is_none(), "{:?}", report.findings);
    let real = Real { libvirtd, provider, report };
    keep_all("libvirt", &real).await?;
    let after = real.libvirtd.files()?;
    ensure!(before == after, "{before:?} was, {after:?} is");
    ensure!(real.libvirtd.virsh(&["list", "--all", "--name"])?.trim().is_empty(), "domains stay");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn left_over_volumes_are_found_by_name_and_taken_away() -> anyhow::Result<()> {
    let Some(libvirtd) = start("left_over_volumes_are_found_by_name_and_taken_away")? else {
        return Ok(());
    };
    let before = libvirtd.files()?;
    let provider = provider(&libvirtd.uri(), &[])?;
    for name in ["podvm-a-0-conforma-root.qcow2", "podvm-a-0-conforma-cloudinit.iso"] {
        libvirtd.virsh(&["vol-create-as", "default", name, "1M"])?;
    }
    libvirtd.virsh(&["vol-create-as", "default", "podvm-b-0-somebody-root.qcow2", "1M"])?;
    let left = provider.list().await?;
    ensure!(left.len() == 2 && left.iter().all(|r| r.created.is_some()), "{left:?}");
    for resource in &left {
        provider.delete(&resource.vm).await?;
    }
    ensure!(provider.list().await?.is_empty(), "still there");
    libvirtd.virsh(&["vol-delete", "--pool", "default", "podvm-b-0-somebody-root.qcow2"])?;
    ensure!(libvirtd.files()? == before, "{:?}", libvirtd.files()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_before_and_by_create() -> anyhow::Result<()> {
    let Some(libvirtd) = start("what_is_wrong_is_named_before_and_by_create")? else {
        return Ok(());
    };
    let before = libvirtd.files()?;
    for (changes, says) in [
        (("pool-name", "nowhere"), "LIBVIRT_POOL"),
        (("network-name", "nowhere"), "LIBVIRT_NET"),
        (("vol-name", "nowhere"), "LIBVIRT_VOL_NAME"),
        (("cpu", "4096"), "LIBVIRT_CPU"),
        (("launch-security", "s390-pv"), "LIBVIRT_LAUNCH_SECURITY"),
        (("disable-cvm", "false"), "DISABLECVM"),
    ] {
        let report = provider(&libvirtd.uri(), &[changes])?.check().await?;
        let found = report.in_state(State::Problem).map(ToString::to_string).collect::<Vec<_>>();
        ensure!(found.iter().any(|f| f.contains(says)), "{says}: {found:?}");
    }
    let provider = provider(&libvirtd.uri(), &[])?;
    let report = provider.check().await?;
    let good = spec(&report, 1);
    let hostile = VmSpec { template: "{\"pool\":1}".to_owned(), ..good.clone() };
    let no_image = VmSpec { image: Some("nowhere".to_owned()), ..good.clone() };
    let disk = Volume::new("nowhere", 0);
    let no_volume = VmSpec { volumes: vec![disk], ..good.clone() };
    for (bad, says) in [(hostile, "template"), (no_image, "nowhere"), (no_volume, "nowhere")] {
        let error = provider.create(&bad, &candidate()).await.expect_err("refused");
        ensure!(error.kind == Kind::Invalid && error.message.contains(says), "{error}");
    }
    let large = Candidate { instance_type: "1x99999999".to_owned(), ..candidate() };
    let error = provider.create(&good, &large).await.expect_err("refused");
    ensure!(error.kind == Kind::Invalid, "{error}");
    ensure!(provider.list().await?.is_empty(), "something stays");
    ensure!(libvirtd.files()? == before, "{:?}", libvirtd.files()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_of_a_running_vm_can_be_read() -> anyhow::Result<()> {
    let Some(libvirtd) = start("the_console_of_a_running_vm_can_be_read")? else {
        return Ok(());
    };
    let provider = provider(&libvirtd.uri(), &[])?;
    let report = provider.check().await?;
    let vm = spec(&report, 2);
    provider.create(&vm, &candidate()).await?;
    let text = loop {
        if let Some(text) = provider.console(&reference(&vm)).await? {
            break text;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    ensure!(!text.is_empty(), "empty");
    provider.delete(&reference(&vm)).await?;
    ensure!(provider.list().await?.is_empty(), "something stays");
    Ok(())
}

/// A domain goes behind the provider's back and leaves its volumes.
fn lose(libvirtd: &Libvirtd, vm: &VmSpec) -> anyhow::Result<()> {
    libvirtd.virsh(&["destroy", vm.name.as_str()])?;
    libvirtd.virsh(&["undefine", vm.name.as_str(), "--nvram"]).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn left_over_volumes_tell_whose_they_are_and_since_when() -> anyhow::Result<()> {
    let Some(libvirtd) = start("left_over_volumes_tell_whose_they_are_and_since_when")? else {
        return Ok(());
    };
    let before = libvirtd.files()?;
    let ours = provider(&libvirtd.uri(), &[])?;
    // The same first eight characters stand in the names of its volumes.
    let (other, theirs) = ("conformance-two", |tags: &mut BTreeMap<String, String>| {
        tags.insert(tags::INSTALLATION.to_owned(), "conformance-two".to_owned());
    });
    let others = provider_of(other, &libvirtd.uri(), &[])?;
    let report = ours.check().await?;
    let (mine, mut foreign) = (spec(&report, 1), spec(&report, 2));
    theirs(&mut foreign.tags);
    ours.create(&mine, &candidate()).await?;
    let running = ours.list().await?;
    ensure!(running.len() == 1 && running[0].created.is_some(), "{running:?}");
    others.create(&foreign, &candidate()).await?;
    lose(&libvirtd, &mine)?;
    lose(&libvirtd, &foreign)?;

    let left = ours.list().await?;
    ensure!(left.len() >= 2, "{left:?}");
    for part in &left {
        ensure!(part.kind == ResourceKind::Disk && part.created.is_some(), "{part:?}");
        ensure!(part.vm.sandbox == mine.sandbox && part.vm.name == mine.name, "{part:?}");
        // By the node's tag the sweep knows which daemon has to take it away.
        ensure!(part.tags.get(tags::NODE).is_some_and(|node| node == "worker"), "{part:?}");
    }
    let stranger = VmRef { sandbox: "f".repeat(64), ..reference(&mine) };
    ours.delete(&stranger).await?;
    ensure!(ours.list().await? == left, "what is somebody else's was taken away");
    let mut same_name = spec(&report, 3);
    same_name.name = mine.name.clone();
    let error = ours.create(&same_name, &candidate()).await.expect_err("another's name");
    ensure!(error.kind == Kind::Invalid && error.message.contains("another sandbox"), "{error}");
    ensure!(ours.list().await? == left, "a create has taken away what is another's");

    for (provider, vm) in [(&ours, &mine), (&others, &foreign)] {
        provider.delete(&reference(vm)).await?;
        ensure!(provider.list().await?.is_empty(), "still there");
    }
    ensure!(libvirtd.files()? == before, "{:?}", libvirtd.files()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_pods_own_volume_is_lent() -> anyhow::Result<()> {
    let Some(libvirtd) = start("only_a_pods_own_volume_is_lent")? else { return Ok(()) };
    let before = libvirtd.files()?;
    let provider = provider(&libvirtd.uri(), &[])?;
    let report = provider.check().await?;
    let with = |n: usize, disks: &[&str]| {
        let volume = |disk: &&str| Volume::new(*disk, 0);
        VmSpec { volumes: disks.iter().map(volume).collect(), ..spec(&report, n) }
    };
    let first = with(1, &["data.raw"]);
    provider.create(&first, &candidate()).await?;
    let xml = libvirtd.virsh(&["dumpxml", first.name.as_str()])?;
    ensure!(xml.contains("data.raw") && xml.contains("<serial>lun-0</serial>"), "{xml}");
    let root = format!("{}-conforma-root.qcow2", first.name);
    let many: Vec<&str> = std::iter::repeat_n("data.raw", 25).collect();
    for (disks, says) in [
        (&["data.raw"][..], "is in use by VM podvm-pod-1-"),
        (&[root.as_str()], "is a VM's own disk"),
        (&["podvm-base.qcow2"], "is the image of VMs"),
        (&["data.qcow2"], "has the format qcow2"),
        (&["/dev/null"], "in none of libvirt's pools"),
        (&["/dev/../etc/shadow"], "in none of libvirt's pools"),
        (&["../images/data.raw"], "is not in the pool"),
        (&["data.raw\0"], "is no name"),
        (&many, "at most 24"),
    ] {
        let error = provider.create(&with(2, disks), &candidate()).await.expect_err(says);
        ensure!(error.kind == Kind::Invalid && error.message.contains(says), "{says}: {error}");
    }
    provider.delete(&reference(&first)).await?;
    let error = provider.create(&with(2, &["data.raw", "data.raw"]), &candidate()).await;
    let error = error.expect_err("twice");
    ensure!(error.kind == Kind::Invalid && error.message.contains("twice"), "{error}");
    let next = with(3, &["data.raw"]);
    provider.create(&next, &candidate()).await?;
    provider.delete(&reference(&next)).await?;
    ensure!(provider.list().await?.is_empty(), "something stays");
    ensure!(libvirtd.files()? == before, "{:?}", libvirtd.files()?);
    Ok(())
}

/// What libvirt's refusals become, as far as a host can be brought to refuse.
#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_of_a_host_has_its_kind() -> anyhow::Result<()> {
    let Some(libvirtd) = start("each_refusal_of_a_host_has_its_kind")? else { return Ok(()) };
    let before = libvirtd.files()?;
    let ours = provider(&libvirtd.uri(), &[])?;
    let report = ours.check().await?;
    let template: serde_json::Value = serde_json::from_str(&report.template)?;
    let mut wrong = Vec::new();
    for (field, value, kind) in [
        ("pool", "nowhere", Kind::Invalid),
        ("network", "nowhere", Kind::Invalid),
        ("image", "nowhere", Kind::Invalid),
        ("machine", "nonsense", Kind::Invalid),
        ("arch", "sparc", Kind::Invalid),
        ("domain_type", "xen", Kind::Invalid),
        ("cpuset", "x", Kind::Invalid),
        ("firmware", "/nowhere.fd", Kind::Other),
        ("pool", "small", Kind::Capacity),
    ] {
        let mut changed = template.clone();
        changed[field] = value.into();
        let vm = VmSpec { template: changed.to_string(), ..spec(&report, 1) };
        let error = ours.create(&vm, &candidate()).await.expect_err(value);
        println!("libvirt: {field} {value}: {error}");
        if error.kind != kind {
            wrong.push(format!("{field} {value}: {error}"));
        }
    }
    let sock = |name: &str| libvirtd.uri_of(name);
    for (uri, kind) in [
        (sock("libvirt-sock-ro"), Kind::Denied),
        (sock("nowhere"), Kind::Unavailable),
        ("qemu+tcp://127.0.0.1:1/system".to_owned(), Kind::Unavailable),
        (sock("libvirt-sock").replace("qemu", "nonsense"), Kind::Invalid),
    ] {
        let vm = spec(&report, 2);
        let error = provider(&uri, &[])?.create(&vm, &candidate()).await.expect_err("refused");
        println!("libvirt: {uri}: {error}");
        if error.kind != kind {
            wrong.push(format!("{uri}: {error}"));
        }
    }
    let vm = spec(&report, 3);
    ours.create(&vm, &candidate()).await?;
    let most = report.size.any_size.map_or(0, |any| any.memory_mib_max);
    let large = Candidate { instance_type: format!("1x{}", most - 1), ..candidate() };
    let error = ours.create(&spec(&report, 4), &large).await.expect_err("no room");
    ensure!(error.kind == Kind::Capacity && error.message.contains("are taken"), "{error}");
    ours.delete(&reference(&vm)).await?;
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(ours.list().await?.is_empty(), "something stays");
    ensure!(libvirtd.files()? == before, "{:?}", libvirtd.files()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_ends_before_its_agent_answers_is_told() -> anyhow::Result<()> {
    let Some(libvirtd) = start("a_vm_that_ends_before_its_agent_answers_is_told")? else {
        return Ok(());
    };
    let provider = provider(&libvirtd.uri(), &[("address-source", "agent")])?;
    let report = provider.check().await?;
    let vm = spec(&report, 1);
    let place = candidate();
    let create = provider.create(&vm, &place);
    let stop = async {
        let state = || libvirtd.virsh(&["domstate", vm.name.as_str()]);
        while !state().is_ok_and(|state| state.trim() == "running") {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        libvirtd.virsh(&["destroy", vm.name.as_str()]).map(drop)
    };
    let (created, stopped) = tokio::join!(create, stop);
    stopped?;
    let error = created.expect_err("stopped");
    ensure!(error.message.contains("stopped before it had an address"), "{error}");
    provider.delete(&reference(&vm)).await?;
    ensure!(provider.list().await?.is_empty(), "something stays");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_left_is_over_before_a_delete_is() -> anyhow::Result<()> {
    let Some(libvirtd) = start("a_start_that_was_left_is_over_before_a_delete_is")? else {
        return Ok(());
    };
    let before = libvirtd.files()?;
    let provider = provider(&libvirtd.uri(), &[])?;
    let report = provider.check().await?;
    let (vm, place) = (spec(&report, 1), candidate());
    libvirtd.flag("hang")?;
    {
        let create = provider.create(&vm, &place);
        tokio::pin!(create);
        while !libvirtd.has_flag("hangs") {
            let tick = tokio::time::sleep(Duration::from_millis(50));
            tokio::select! {
                done = &mut create => anyhow::bail!("a start that hangs has ended: {done:?}"),
                () = tick => {}
            }
        }
        // It is left here, in the middle of its last step.
    }
    let named = reference(&vm);
    let delete = provider.delete(&named);
    tokio::pin!(delete);
    let early = tokio::time::timeout(Duration::from_secs(2), &mut delete).await;
    ensure!(early.is_err(), "gone, and a start goes on: {early:?}");
    libvirtd.unflag("hang")?;
    ensure!(delete.await? == Deletion::Gone, "not gone");
    ensure!(libvirtd.virsh(&["list", "--all", "--name"])?.trim().is_empty(), "a domain stays");
    ensure!(provider.list().await?.is_empty(), "something stays");
    ensure!(libvirtd.files()? == before, "{:?}", libvirtd.files()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_are_made_and_leave_nothing() -> anyhow::Result<()> {
    let Some(libvirtd) = start("many_at_once_are_made_and_leave_nothing")? else { return Ok(()) };
    let before = libvirtd.files()?;
    let provider = provider(&libvirtd.uri(), &[])?;
    let report = provider.check().await?;
    let life = |n| {
        let (vm, provider) = (spec(&report, n), Arc::clone(&provider));
        async move {
            let made = provider.create(&vm, &candidate()).await?;
            provider.delete(&reference(&vm)).await?;
            anyhow::Ok(made.addresses[0])
        }
    };
    let addresses = futures_util::future::try_join_all((0..8).map(life)).await?;
    println!("libvirt: 8 at once: {addresses:?}");
    ensure!(provider.list().await?.is_empty(), "something stays");
    ensure!(libvirtd.files()? == before, "{:?}", libvirtd.files()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_taken_away_after_the_pool_of_the_settings_has_changed() -> anyhow::Result<()> {
    let Some(libvirtd) = start("a_vm_is_taken_away_after_the_pool_of_the_settings_has_changed")?
    else {
        return Ok(());
    };
    let before = libvirtd.files()?;
    let first = provider(&libvirtd.uri(), &[])?;
    let vm = spec(&first.check().await?, 1);
    first.create(&vm, &candidate()).await?;
    let second = provider(&libvirtd.uri(), &[("pool-name", "small")])?;
    // The plan's template names the pool of then.
    second.create(&vm, &candidate()).await?;
    second.delete(&reference(&vm)).await?;
    ensure!(first.list().await?.is_empty(), "something stays");
    ensure!(libvirtd.files()? == before, "{:?}", libvirtd.files()?);
    Ok(())
}
