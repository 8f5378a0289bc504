//! What a check finds, and what it cannot look at.

use super::*;

/// What a change of settings or of the cloud makes a check find.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_finds_what_is_wrong() -> anyhow::Result<()> {
    let deny = json!([{"name": "DenyAll", "properties": {"direction": "Inbound", "access": "Deny",
        "protocol": "*", "priority": 100, "destinationPortRange": "*"}}]);
    type Row<'a> = (&'a [(&'a str, &'a str)], Value, &'a str, &'a str);
    let rows: &[Row<'_>] = &[
        (&[("instance-size", "Standard_B2als_v2")], json!({}), "types", "DISABLECVM"),
        (&[("instance-size", "Standard_Nope")], json!({}), "types", "Standard_Nope"),
        (&[("instance-sizes", "Standard_M8ms")], json!({}), "types", "NotAvailableForSubscription"),
        (
            &[("zone", "2"), ("instance-size", "Standard_DC8as_v5")],
            json!({}),
            "types",
            "AZURE_ZONES",
        ),
        (
            &[("disable-cvm", "1"), ("instance-sizes", "Standard_D2ps_v5")],
            json!({}),
            "types",
            "Arm64",
        ),
        (&[("region", "westus")], json!({}), "region", "AZURE_REGION"),
        (&[], json!({"gone": ["virtualNetworks"]}), "subnet", "AZURE_SUBNET_ID"),
        (&[], json!({"gone": ["galleries"]}), "image", "AZURE_IMAGE_ID"),
        (&[], json!({"nsg": deny}), "firewall", "tcp/15150"),
        (&[], json!({"nsg": deny}), "firewall", "udp/9000"),
        (&[], json!({"quota": 1}), "quota", "cores"),
        (&[], json!({"granted": ["Microsoft.Compute/*"]}), "rights", "Microsoft.Network"),
        (&[], json!({"token": 401}), "credentials", "AADSTS7000222"),
    ];
    for (changes, set, subject, says) in rows {
        let setup = setup(changes)?;
        setup.server.set(set)?;
        let report = setup.provider.check().await?;
        let found = report
            .in_state(State::Problem)
            .find(|f| f.subject == *subject && f.to_string().contains(says));
        found.with_context(|| format!("{subject} {says}: {:#?}", report.findings))?;
        let all = format!("{report:?} {:?}", setup.provider);
        ensure!(!all.contains("hunter2"), "a secret shows");
        ensure!(setup.server.violations()?.is_empty(), "{:?}", setup.server.violations()?);
    }
    Ok(())
}
