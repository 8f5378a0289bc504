//! What the cloud refuses, or does not answer at all.

use super::*;

/// The table of providers.md 3.6, over HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn each_code_arrives_as_its_kind() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let spec = spec(&report, 0);
    let zone = "Your requested instance type (t3.medium) is not supported in your requested \
                Availability Zone (us-east-1a).";
    let rows = [
        (403, "UnauthorizedOperation", "no", Kind::Denied),
        (401, "AuthFailure", "no", Kind::Denied),
        (400, "ExpiredToken", "no", Kind::Denied),
        (400, "RequestExpired", "no", Kind::Denied),
        (400, "InvalidAMIID.NotFound", "no", Kind::Invalid),
        (400, "InvalidSubnetID.NotFound", "no", Kind::Invalid),
        (400, "InvalidInstanceID.NotFound", "no", Kind::Invalid),
        (400, "Unsupported", "never", Kind::Invalid),
        (400, "VcpuLimitExceeded", "no", Kind::Quota),
        (500, "InsufficientInstanceCapacity", "no", Kind::Capacity),
        (400, "InsufficientFreeAddressesInSubnet", "no", Kind::Capacity),
        (400, "Unsupported", zone, Kind::Capacity),
        (400, "MaxSpotInstanceCountExceeded", "no", Kind::Quota),
        (503, "RequestLimitExceeded", "no", Kind::Throttled(None)),
        (500, "InternalError", "no", Kind::Unavailable),
        (400, "NeverHeardOf", "no", Kind::Other),
    ];
    for (status, code, message, kind) in rows {
        let next =
            json!({"action": "RunInstances", "code": code, "message": message, "status": status});
        setup.server.set(&json!({"next": next}))?;
        let error = setup.fails(&spec).await;
        ensure!(error.kind == kind, "{code} is {error}");
        ensure!(error.message.contains(code) && !error.message.contains("request \"\""), "{error}");
    }
    setup.server.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_of_ec2s_is_unavailable() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let spec = spec(&report, 0);
    let error = "<Response><Errors><Error><Code>Oops</Code></Error></Errors></Response>";
    let odd = [(200, "<html>proxy</html>"), (200, "<RunInstancesResponse><inst"), (200, error)];
    for (status, body) in odd.into_iter().chain([(502, "<html>"), (500, ""), (200, "")]) {
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
        ensure!(setup.provider.list().await?.len() == 1, "one VM");
    }
    setup.delete(&spec).await?;
    setup.server.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_page_is_not_the_last_one() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    setup.server.set(&json!({"empty": true}))?;
    let specs: Vec<VmSpec> = (0..8).map(|n| spec(&report, n)).collect();
    for spec in &specs {
        setup.provider.create(spec, &candidate()).await?;
    }
    let all = setup.provider.list().await?;
    let vms = all.iter().filter(|r| r.kind == ResourceKind::Vm).count();
    ensure!(vms == 8, "{vms} of 8");
    for spec in &specs {
        setup.delete(spec).await?;
    }
    setup.server.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_by_the_account_loses_nothing() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    let report = setup.report().await?;
    setup.server.set(&json!({"bucket": [2, 5.0]}))?;
    let mut throttled = 0;
    for n in 0..6 {
        let spec = spec(&report, n);
        loop {
            match setup.provider.create(&spec, &candidate()).await {
                Ok(_) => break,
                Err(e) => {
                    ensure!(e.kind == Kind::Throttled(None), "{e}");
                    throttled += 1;
                }
            }
        }
    }
    ensure!(throttled > 0, "never throttled");
    for n in 0..6 {
        setup.delete(&spec(&report, n)).await?;
    }
    setup.server.clean()
}

#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The vendor's crates log requests at the level `trace`, without what is secret in them.
#[tokio::test(flavor = "multi_thread")]
async fn no_level_of_the_log_shows_user_data_or_keys() -> anyhow::Result<()> {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // For the tests beside this one, too: one of a single thread's misses what they were the first to say.
    tracing::subscriber::set_global_default(subscriber)?;
    let setup = setup(&[])?;
    let report = setup.report().await?;
    let spec = VmSpec { user_data: UserData("A".repeat(999)), ..spec(&report, 0) };
    setup.provider.create(&spec, &candidate()).await?;
    setup.delete(&spec).await?;
    let log = String::from_utf8_lossy(&log.0.lock().expect("no panic")).into_owned();
    ensure!(log.contains("Choosing ami-"), "nothing is logged at all");
    for secret in [&"A".repeat(99), &"QUFB".repeat(9), "hunter2"] {
        let shown = log.lines().find(|line| line.contains(secret));
        let shown: String = shown.unwrap_or_default().chars().take(300).collect();
        ensure!(shown.is_empty(), "{secret:?} shows: {shown}");
    }
    setup.server.clean()
}
