//! What a check finds, and what it cannot look at.

use super::*;

/// What a change of settings or of the cloud makes a check find.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_finds_what_is_wrong() -> anyhow::Result<()> {
    type Row<'a> = (&'a [(&'a str, &'a str)], Value, &'a str, &'a str);
    let cvm: &[(&str, &str)] =
        &[("disable-cvm", "false"), ("instance-type", "m6a.large"), ("instance-types", "")];
    let nowhere = ("aws-ec2-metadata-service-endpoint", "http://127.0.0.1:9");
    let rows: &[Row<'_>] = &[
        (&[("disable-cvm", "false")], json!({}), "types", "DISABLECVM"),
        (&[("instance-type", "t3.enormous")], json!({}), "types", "t3.enormous"),
        (&[("instance-types", "t9.*")], json!({}), "types", "t9.*"),
        (&[("instance-types", "m6g.large")], json!({}), "types", "m6g.large is arm64"),
        (
            &[],
            json!({"offers": {"t3.medium": ["us-east-1b"]}}),
            "types",
            "not offered in us-east-1a",
        ),
        (&[("imageid", "ami-0123456789abcdef0")], json!({}), "image", "PODVM_AMI_ID"),
        (&[], json!({"image": {"imageState": "pending"}}), "image", "is pending"),
        (&[], json!({"image": {"rootDeviceName": "/dev/none"}}), "image", "has no root disk"),
        (cvm, json!({"image": {"bootMode": "legacy-bios"}}), "image", "UEFI"),
        (&[("subnetid", "subnet-0123456789abcdef0")], json!({}), "subnet", "AWS_SUBNET_ID"),
        (&[("aws-vpc-id", "@other-net")], json!({}), "subnet", "AWS_VPC_ID"),
        (&[("subnetid", "@net-a,@other-net-b")], json!({}), "subnet", "several VPCs"),
        (&[], json!({"addresses": 0}), "subnet", "no address left"),
        (&[("subnetid", ""), nowhere], json!({}), "subnet", "AWS_SUBNET_ID not set"),
        (&[("securitygroupids", "@other-net-group")], json!({}), "firewall", "AWS_SG_IDS"),
        (&[("securitygroupids", "sg-0123456789abcdef0")], json!({}), "firewall", "AWS_SG_IDS"),
        (&[], json!({"rules": [["udp", 9000]]}), "firewall", "--protocol tcp --port 15150"),
        (
            &[],
            json!({"rules": [["tcp", 15150], ["tcp", 9000]]}),
            "firewall",
            "--protocol udp --port 9000",
        ),
        (&[("keyname", "nobodys")], json!({}), "key pair", "SSH_KP_NAME"),
        (&[("use-lt", "1"), ("aws-lt-name", "other")], json!({}), "launch template", "NAME"),
        (&[], json!({"denied": ["RunInstances"]}), "rights", "policy.json"),
        (&[], json!({"denied": ["DescribeVolumes"]}), "rights", "policy.json"),
        (&[], json!({"denied": ["DescribeSubnets"]}), "credentials", "DescribeSubnets"),
        (&[], json!({"auth": "AuthFailure"}), "credentials", "a clock that is wrong"),
        (&[], json!({"sts": 403}), "credentials", "InvalidClientTokenId"),
        (&[("aws-region", ""), nowhere], json!({}), "settings", "AWS_REGION"),
    ];
    let setup = setup(&[])?;
    for (changes, set, subject, says) in rows {
        setup.server.reset()?;
        let facts = setup.server.facts()?;
        let provider =
            registry::build("aws", &context(), &values(setup.server.url(), &facts, changes))?;
        setup.server.set(set)?;
        let report = provider.check().await?;
        let found = report
            .in_state(State::Problem)
            .find(|f| f.subject == *subject && f.to_string().contains(says));
        found.with_context(|| format!("{subject} {says}: {:#?}", report.findings))?;
        let all = format!("{report:?} {provider:?}");
        ensure!(!all.contains("hunter2") && !all.contains("hush-hush"), "a secret shows: {all}");
        ensure!(setup.server.violations()?.is_empty(), "{:?}", setup.server.violations()?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_looked_at_is_a_warning() -> anyhow::Result<()> {
    let setup = setup(&[])?;
    setup.server.set(&json!({"sts": 503}))?;
    let report = setup.report().await?;
    for subject in ["credentials", "rights", "quota"] {
        let mut warnings = report.in_state(State::Warning);
        ensure!(warnings.any(|f| f.subject == subject), "{subject}: {:#?}", report.findings);
    }
    setup.server.set(&json!({"sts": 200}))?;
    let spec = spec(&report, 0);
    setup.provider.create(&spec, &candidate()).await?;
    let report = setup.report().await?;
    let fine: Vec<String> = report.in_state(State::Fine).map(ToString::to_string).collect();
    for says in ["credentials: an access key: arn:aws", "rights: ec2:TerminateInstances"] {
        ensure!(fine.iter().any(|f| f.contains(says)), "{says}: {fine:#?}");
    }
    ensure!(setup.server.resources()?.get("vm") == Some(&1), "a check changes nothing");
    setup.delete(&spec).await?;
    setup.server.clean()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_set_is_this_machines_own() -> anyhow::Result<()> {
    let changes = [
        ("aws-region", ""),
        ("subnetid", ""),
        ("securitygroupids", ""),
        ("aws-access-key-id", ""),
        ("aws-secret-key", ""),
    ];
    let setup = setup(&changes)?;
    let role = json!({"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "ASIADOUBLE",
        "SecretAccessKey": "hunter2-of-the-role", "Token": "hunter2-token",
        "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z"});
    let interface = "network/interfaces/macs/0a:ff:00:00:00:01";
    setup.server.set(&json!({"metadata": {
        "placement/region": "us-east-1",
        "mac": "0a:ff:00:00:00:01",
        "iam/security-credentials/": "workers",
        "iam/security-credentials/workers": role.to_string(),
        format!("{interface}/subnet-id"): setup.fact("net-b"),
        format!("{interface}/security-group-ids"): setup.fact("net-group"),
    }}))?;
    let report = setup.report().await?;
    ensure!(report.zones == ["us-east-1b"], "{report:?}");
    ensure!(!format!("{report:?} {:?}", setup.provider).contains("hunter2"), "a secret shows");
    let spec = spec(&report, 0);
    let at = Candidate { zone: Some("us-east-1b".to_owned()), ..candidate() };
    setup.provider.create(&spec, &at).await?;
    setup.delete(&spec).await?;
    setup.server.clean()?;
    setup.server.reset()?;
    let chain = [("aws-access-key-id", ""), ("aws-secret-key", "")];
    let values = values(setup.server.url(), &setup.server.facts()?, &chain);
    let nobody = registry::build("aws", &context(), &values)?;
    let problems = nobody.check().await?.problems().unwrap_or_default();
    ensure!(problems.contains("credentials"), "{problems}");
    ensure!(nobody.list().await.expect_err("unsigned").kind == Kind::Denied, "no credentials");
    Ok(())
}
