//! What the cloud refuses, or does not answer at all.

use super::*;

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
        setup.server.clean()?;
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
    setup.server.clean()
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
    setup.server.clean()
}
