//! What Google refuses, says wrongly or does not say.

use super::*;

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
        setup.server.clean()?;
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
        setup.server.clean()?;
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
    setup.server.clean()
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
    setup.server.clean()
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
    ensure!(!format!("{provider:?}").contains("PRIVATE KEY"), "a secret shows");
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
    setup.server.clean()?;
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
