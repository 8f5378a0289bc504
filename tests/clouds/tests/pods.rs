//! Pods on each cloud's double, and what goes wrong there while they live: the shim hears the reason,
//! `peerpodd status` shows it, and nothing is left behind that costs money.
#![allow(missing_docs)]

use anyhow::{Context as _, ensure};
use peerpod_clouds::pods::{Cloud, Site, clouds};
use peerpod_it::bed::PATIENCE;
use peerpod_it::root;
use peerpod_standin::lab::{DaemonOptions, wait_for};
use peerpod_standin::shim::{Health, PodSpec, Profile, Shim, ShimError};
use serde_json::{Value, json};

/// Goes through it on every cloud.
async fn on_each<F, Done>(test: &str, scenario: F) -> anyhow::Result<()>
where
    F: Fn(&'static Cloud) -> Done,
    Done: Future<Output = anyhow::Result<()>>,
{
    if !root(test) {
        return Ok(());
    }
    for cloud in clouds() {
        scenario(cloud).await.with_context(|| cloud.name)?;
        println!("pods\t{}\t{test}\tkept", cloud.name);
    }
    Ok(())
}

async fn say(shim: &Shim) -> anyhow::Result<()> {
    let output = shim.exec_tool("say", &["say", "hello"]).await?.output().await?;
    ensure!(output.stdout.trim_ascii() == b"hello", "said {:?}", output.stdout);
    Ok(())
}

/// Starts a pod that must not start; what its shim is told.
async fn refused(site: &Site, spec: PodSpec) -> anyhow::Result<String> {
    let socket = site.bed.lab.dir().socket();
    match Shim::boot(Profile::GoLike, &socket, spec).await {
        Ok(_) => anyhow::bail!("it has started"),
        Err(ShimError::Hypervisor { method, source }) => {
            ensure!(method == "StartVM", "{method}: {source}");
            Ok(source.to_string())
        }
        Err(other) => Err(other.into()),
    }
}

fn vm_name(spec: &PodSpec) -> String {
    format!("podvm-{}-{}", spec.name, spec.sandbox.get(..8).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_both_shims_live_with_the_keys_of_the_guide() -> anyhow::Result<()> {
    on_each("pods_of_both_shims_live_with_the_keys_of_the_guide", |cloud| async move {
        let site = Site::new(cloud, &[]).await?;
        for (number, profile) in [(1, Profile::GoLike), (2, Profile::RsLike)] {
            let (_net, shim) = site.bed.boot(profile, number).await?;
            let status = site.bed.until_phase(&shim.spec().sandbox, "running").await?;
            let got = status["instance_type"].as_str().unwrap_or_default();
            ensure!(got == cloud.default_type, "{status:#}");
            ensure!(status["vm_name"] == vm_name(shim.spec()), "{status:#}");
            ensure!(site.vms()? == 1 && site.machines.running() == 1, "{status:#}");
            say(&shim).await?;
            shim.stop().await?;
            site.until_nothing_left().await?;
        }
        ensure!(site.machines.started() == 2, "{} machines", site.machines.started());
        site.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_of_a_pod_are_tags_of_its_vm_and_of_what_comes_with_it() -> anyhow::Result<()> {
    on_each("labels_of_a_pod_are_tags_of_its_vm_and_of_what_comes_with_it", |cloud| async move {
        let wanted = "team,example.com/Cost.Center=Cost,key1,owner".to_owned();
        // In the environment, since `peerpodd status` has no such option.
        let environment = vec![("COST_TAG_LABELS".to_owned(), wanted)];
        let site =
            Site::with(cloud, |_| DaemonOptions { environment, ..Default::default() }).await?;
        let (_net, spec) = site.bed.pod(1).await?;
        let sandbox = spec.sandbox.clone();
        let labels =
            json!({"team": "blue", "example.com/Cost.Center": "Dept.42", "key1": "stolen"});
        site.bed.crio_bundle(&spec, &labels)?;
        let shim = Shim::boot(Profile::GoLike, &site.bed.lab.dir().socket(), spec).await;
        let shim = shim.with_context(|| site.bed.daemon.log_tail())?;
        let tagged = site.server.tags()?;
        ensure!(tagged.iter().any(|thing| thing.kind == "vm"), "{tagged:?}");
        for thing in &tagged {
            let tag = |key: &str| thing.tags.get(key).map(String::as_str);
            let cost = [tag("team"), tag("Cost").or(tag("cost"))];
            ensure!(matches!(cost, [Some("blue"), Some("Dept.42" | "dept-42")]), "{thing:?}");
            ensure!(tag("key1") != Some("stolen"), "{thing:?}");
        }
        let shown = site.status_text(&sandbox).await?;
        ensure!(shown.contains("cost tags: team=blue, "), "{shown}");
        ensure!(shown.contains("no cost tag from owner: not known"), "{shown}");
        say(&shim).await?;
        shim.stop().await?;
        site.end().await
    })
    .await
}

/// Deleted or stopped by somebody at the cloud's console.
async fn ended_elsewhere(cloud: &'static Cloud, word: &str) -> anyhow::Result<()> {
    // In the environment, since `peerpodd status` has no such option.
    let environment = vec![("PEERPODD_LIVENESS_TIMEOUT".to_owned(), "2s".to_owned())];
    let options = DaemonOptions { environment, ..DaemonOptions::default() };
    let site = Site::with(cloud, |_| options).await?;
    for (number, profile) in [(1, Profile::RsLike), (2, Profile::GoLike)] {
        let (_net, shim) = site.bed.boot(profile, number).await?;
        let sandbox = shim.spec().sandbox.clone();
        site.server.set(&json!({word: vm_name(shim.spec())}))?;
        let died = tokio::time::timeout(PATIENCE, shim.died()).await?;
        ensure!(matches!(died, Health::Dead { .. }), "{died:?}");
        drop(shim);
        site.until_nothing_left().await?;
        let shown = site.status_text(&sandbox).await?;
        ensure!(shown.contains("has not answered"), "{shown}");
    }
    site.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_deleted_in_the_console_ends_its_pod() -> anyhow::Result<()> {
    let ended = |cloud| ended_elsewhere(cloud, "vanish");
    on_each("a_vm_deleted_in_the_console_ends_its_pod", ended).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_stopped_in_the_console_ends_its_pod_and_is_deleted() -> anyhow::Result<()> {
    let ended = |cloud| ended_elsewhere(cloud, "stopped");
    on_each("a_vm_stopped_in_the_console_ends_its_pod_and_is_deleted", ended).await
}

/// Starts a pod at a cloud that gives that answer for a while; `shown` stands in `peerpodd status`.
async fn outlived(site: &Site, number: u8, fault: &Value, shown: &str) -> anyhow::Result<()> {
    let (_net, spec) = site.bed.pod(number).await?;
    let (socket, sandbox) = (site.bed.lab.dir().socket(), spec.sandbox.clone());
    site.faults(fault, 3)?;
    // Long enough to be seen.
    site.server.set(&json!({"slow": 0.5}))?;
    let boot = tokio::spawn(async move { Shim::boot(Profile::GoLike, &socket, spec).await });
    let of = sandbox.as_str();
    let look = || async move {
        let text = site.status_text(of).await?;
        Ok(text.lines().any(|l| l.contains("last error") && l.contains(shown)).then_some(()))
    };
    wait_for("status to show the reason", PATIENCE, look).await?;
    let shim = boot.await?.with_context(|| site.bed.daemon.log_tail())?;
    site.server.set(&json!({"slow": 0}))?;
    say(&shim).await?;
    let mut end = fault.clone();
    end["operation"] = "delete".into();
    site.faults(&end, 2)?;
    shim.stop().await?;
    site.until_nothing_left().await
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_and_pages_of_a_proxy_are_outlived() -> anyhow::Result<()> {
    on_each("failures_and_pages_of_a_proxy_are_outlived", |cloud| async move {
        let site = Site::new(cloud, &[]).await?;
        let html = "<html><title>proxy</title></html>";
        let rows = [
            (json!({"operation": "create", "fault": "fail", "kind": "unavailable"}), "503"),
            (
                json!({"operation": "create", "fault": "garbage", "status": 200, "body": html}),
                "create",
            ),
            (
                json!({"operation": "create", "fault": "garbage", "status": 502, "body": html}),
                "502",
            ),
        ];
        for (number, (fault, shown)) in (1..).zip(rows) {
            outlived(&site, number, &fault, shown).await.with_context(|| fault.to_string())?;
        }
        site.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_vanishes_after_the_check_is_named() -> anyhow::Result<()> {
    on_each("an_image_that_vanishes_after_the_check_is_named", |cloud| async move {
        let site = Site::new(cloud, &[]).await?;
        site.take_image()?;
        let (_net, spec) = site.bed.pod(1).await?;
        let sandbox = spec.sandbox.clone();
        let told = refused(&site, spec).await?;
        ensure!(told.contains(cloud.image_missing), "{told}");
        let shown = site.status_text(&sandbox).await?;
        ensure!(shown.contains(cloud.image_missing), "{shown}");
        site.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_without_the_right_says_so() -> anyhow::Result<()> {
    on_each("a_create_without_the_right_says_so", |cloud| async move {
        let site = Site::new(cloud, &[]).await?;
        site.faults(&json!({"operation": "create", "fault": "fail", "kind": "denied"}), 1)?;
        let (_net, spec) = site.bed.pod(1).await?;
        let sandbox = spec.sandbox.clone();
        let told = refused(&site, spec).await?;
        ensure!(told.contains("denied"), "{told}");
        let shown = site.status_text(&sandbox).await?;
        ensure!(shown.contains("denied"), "{shown}");
        site.end().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_vm_of_our_name_is_left_alone() -> anyhow::Result<()> {
    on_each("somebody_elses_vm_of_our_name_is_left_alone", |cloud| async move {
        let site = Site::new(cloud, &[]).await?;
        let (_net, spec) = site.bed.pod(1).await?;
        let (name, sandbox) = (vm_name(&spec), spec.sandbox.clone());
        site.server.set(&json!({"occupied": name}))?;
        let before = site.server.resources()?;
        if cloud.names_are_unique {
            let told = refused(&site, spec).await?;
            ensure!(told.contains("belongs to another sandbox"), "{told}");
            let shown = site.status_text(&sandbox).await?;
            ensure!(shown.contains("belongs to another sandbox"), "{shown}");
        } else {
            let shim = Shim::boot(Profile::GoLike, &site.bed.lab.dir().socket(), spec).await?;
            say(&shim).await?;
            shim.stop().await?;
        }
        site.bed.until_nothing_left().await?;
        ensure!(site.server.resources()? == before, "{:?}", site.server.resources()?);
        site.server.set(&json!({"vanish": name}))?;
        site.end().await
    })
    .await
}
