use std::path::PathBuf;
use std::time::Duration;

use super::*;

fn loaded(args: &[&str], env: &[(&str, &str)]) -> Loaded {
    load(Input {
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        hostname: "worker-1".to_owned(),
        program: PathBuf::from("/usr/local/bin/peerpodd"),
    })
}

fn settings(args: &[&str], env: &[(&str, &str)]) -> Settings {
    loaded(args, env).settings().expect("good settings")
}

fn refusal(args: &[&str], env: &[(&str, &str)]) -> String {
    loaded(args, env).settings().expect_err("bad settings").to_string()
}

/// Every problem has a line of its own.
fn only_line(args: &[&str], env: &[(&str, &str)]) -> String {
    let text = refusal(args, env);
    let lines: Vec<_> = text.lines().skip(1).collect();
    assert_eq!(lines.len(), 1, "{text}");
    lines[0].trim().to_owned()
}

#[test]
fn nothing_given_is_a_good_configuration() {
    let settings = settings(&[], &[]);
    assert_eq!(settings.paths.socket, PathBuf::from("/run/peerpod/hypervisor.sock"));
    assert_eq!(settings.provider.name, "local");
    assert_eq!(settings.process.node_name, "worker-1");
    assert_eq!(settings.process.probe_port, 8000);
    assert_eq!(settings.tunnel.vxlan_port, 9000);
    assert_eq!(settings.tunnel.vxlan_min_id, 555_000);
    assert_eq!(settings.pods.limit, Some(10));
    assert_eq!(settings.pods.start_timeout, Duration::from_secs(570));
    assert_eq!(settings.link.tls, Tls::Automatic { client: None });
    assert!(settings.pods.rs_default_pair_is_unset);
}

#[test]
fn the_command_line_counts_more_than_the_environment_and_that_more_than_the_default() {
    let env = [("VXLAN_PORT", "4789")];
    assert_eq!(settings(&[], &[("VXLAN_PORT", "")]).tunnel.vxlan_port, 9000);
    assert_eq!(settings(&[], &env).tunnel.vxlan_port, 4789);
    assert_eq!(settings(&["-vxlan-port", "5000"], &env).tunnel.vxlan_port, 5000);
    let last = settings(&["-vxlan-port", "5000", "--vxlan-port=5001"], &env);
    assert_eq!(last.tunnel.vxlan_port, 5001);
}

#[test]
fn lists_of_both_are_joined_as_upstream_does_it() {
    let settings = settings(
        &["--pod-subnet-cidrs", "10.1.0.0/16", "--pod-subnet-cidrs=10.2.0.0/16"],
        &[("POD_SUBNET_CIDRS", "10.0.0.0/16, 10.1.0.0/16")],
    );
    let networks: Vec<_> = settings.tunnel.pod_subnets.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16"]);
}

#[test]
fn a_bad_value_names_flag_variable_value_and_problem() {
    let table = [
        ("FORWARDER_PORT", "abc", "--forwarder-port (FORWARDER_PORT) = \"abc\": is not a port"),
        ("PROXY_TIMEOUT", "5", "--proxy-timeout (PROXY_TIMEOUT) = \"5\": is not a duration"),
        ("TLS_SKIP_VERIFY", "yes", "--tls-skip-verify (TLS_SKIP_VERIFY) = \"yes\": is not true"),
        ("TUNNEL_TYPE", "routing", "--tunnel-type (TUNNEL_TYPE) = \"routing\": is not vxlan"),
        ("POD_SUBNET_CIDRS", "10.0.0.0/8,x", "\"10.0.0.0/8,x\": \"x\" is not a network"),
        (
            "COST_TAG_LABELS",
            "a,b/",
            "(COST_TAG_LABELS) = \"a,b/\": \"b/\" is not the key of a label",
        ),
        ("TAGS", "a", "--tags (TAGS) = \"a\": \"a\" is not key=value"),
        ("REMOTE_HYPERVISOR_ENDPOINT", "x.sock", "\"x.sock\": is not an absolute path"),
        ("PEERPODD_STATE_DIR", "state", "--state-dir (PEERPODD_STATE_DIR) = \"state\": is not an"),
        ("PEERPODD_START_TIMEOUT", "10m", "\"10m\": is not between 1s and 599s"),
        ("PEERPODS_LIMIT_PER_NODE", "ten", "\"ten\": is not a whole number"),
        ("INSTALLATION_ID", "Ä", "is not 1 to 63 characters"),
        ("TLS_MIN_VERSION", "VersionTLS11", "\"VersionTLS11\": is not VersionTLS12 or"),
        ("TLS_CIPHER_SUITES", "X", "\"X\": \"X\" is not a suite this build has; it has TLS_"),
        ("CACERT_FILE", "/nowhere/ca.pem", "\"/nowhere/ca.pem\": cannot be read: No such file"),
        ("CLOUD_PROVIDER", "aqs", "--provider (CLOUD_PROVIDER) = \"aqs\": is not known"),
        #[cfg(not(feature = "aws"))]
        ("CLOUD_PROVIDER", "aws", "is not in this build, which has: "),
        ("LOCAL_CIDR", "nonsense", "LOCAL_CIDR (--local-cidr) \"nonsense\" is not a network"),
        ("EXTERNAL_NETWORK_VIA_PODVM", "1", "no provider of this build gives a VM a second"),
        ("ENABLE_CLOUD_PROVIDER_EXTERNAL_PLUGIN", "true", "Go plugins cannot be loaded; take a"),
        ("PEERPODD_LOG_LEVEL", "loud", "\"loud\": is not off, error, warn"),
    ];
    for (name, value, expected) in table {
        let line = only_line(&[], &[(name, value)]);
        assert!(line.contains(expected), "{name}={value}: {line}");
    }
}

#[test]
fn all_problems_come_in_one_message() {
    let text = refusal(
        &["--vxlan-prt=1", "--forwarder-port=0", "stray"],
        &[("PROXY_TIMEOUT", "x"), ("LOCAL_CIDR", "y"), ("CLOUD_CONFIG_VERIFY", "maybe")],
    );
    for part in
        ["--vxlan-prt", "--forwarder-port", "\"stray\"", "PROXY_TIMEOUT", "LOCAL_CIDR", "\"maybe\""]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn tls_settings_that_contradict_each_other_are_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("x.pem");
    std::fs::write(&file, "-----BEGIN CERTIFICATE-----\n").expect("written");
    let pem = file.to_str().expect("utf-8");
    let line = only_line(&["--tls-skip-verify"], &[("CACERT_FILE", pem)]);
    assert!(line.contains("--tls-skip-verify") && line.contains("CACERT_FILE"), "{line}");
    let line = only_line(&[], &[("CERT_FILE", pem)]);
    assert!(line.contains("--cert-key (CERT_KEY)") && line.contains("CERT_FILE"), "{line}");
    let line = only_line(&[], &[("CERT_KEY", pem)]);
    assert!(line.starts_with("--cert-file"), "{line}");
    let suites = ("TLS_CIPHER_SUITES", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
    let line = only_line(&["--tls-min-version=VersionTLS13"], &[suites]);
    assert!(line.starts_with("--tls-cipher-suites") && line.contains("VersionTLS13"), "{line}");
    let line = only_line(&["--disable-tls"], &[("CACERT_FILE", pem)]);
    assert!(line.contains("--disable-tls") && line.contains("CACERT_FILE"), "{line}");
    let both = settings(&[], &[("CACERT_FILE", pem), ("CERT_FILE", pem), ("CERT_KEY", pem)]);
    assert!(matches!(both.link.tls, Tls::Files { client: Some(_), .. }));
    let no_pem = dir.path().join("empty");
    std::fs::write(&no_pem, "x").expect("written");
    let line = only_line(&["--ca-cert-file", no_pem.to_str().expect("utf-8")], &[]);
    assert!(line.ends_with("is not a PEM file"), "{line}");
}

#[test]
fn a_provider_is_named_by_word_flag_or_variable_and_only_once() {
    assert_eq!(settings(&["local", "-local-cidr", "10.9.0.0/24"], &[]).provider.name, "local");
    assert_eq!(
        settings(&["--provider", "local"], &[("CLOUD_PROVIDER", "aws")]).provider.name,
        "local"
    );
    assert_eq!(settings(&["local"], &[("CLOUD_PROVIDER", "aws")]).provider.name, "local");
    let text = refusal(&["local", "--provider=aws"], &[]);
    assert!(text.contains("\"local\": is not the provider that --provider names"), "{text}");
}

#[test]
fn known_keys_without_effect_are_reported_and_unknown_ones_are_left_alone() {
    let loaded = loaded(
        &[],
        &[
            ("PAUSE_IMAGE", "x"),
            ("AWS_VPC_ID", "vpc-1"),
            ("ENABLE_CLOUD_PROVIDER_EXTERNAL_PLUGIN", "false"),
            ("CLOUD_PROVIDER_EXTERNAL_PLUGIN_PATH", "/plugins"),
            ("PEERPODD_STATE_DRI", "/x"),
            ("HOME", "/root"),
        ],
    );
    loaded.settings().expect("none of it is a problem");
    let notices = loaded.notices.join("\n");
    for part in [
        "PAUSE_IMAGE) is accepted",
        "AWS_VPC_ID is accepted",
        "EXTERNAL_PLUGIN_PATH is accepted",
        "PEERPODD_STATE_DRI is no setting and is ignored; PEERPODD_STATE_DIR is the nearest",
    ] {
        assert!(notices.contains(part), "{part} in {notices}");
    }
    assert_eq!(loaded.notices.len(), 4, "{notices}");
}

#[test]
fn what_a_clouds_library_reads_is_no_unknown_setting() {
    let env = ["AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARM"];
    let env = env.map(|name| (name.to_owned(), "x".to_owned())).into();
    assert_eq!(notices(&[], &env, "aws"), ["AWS_ROLE_ARM is no setting and is ignored"]);
}

#[test]
fn a_wrong_value_of_the_nodes_does_not_keep_the_relay_from_starting() {
    let loaded = loaded(&[], &[("PROXY_TIMEOUT", "x"), ("CLOUD_PROVIDER", "local")]);
    assert!(loaded.settings().is_err());
    assert!(loaded.relay().is_ok());
    assert!(super::tests::loaded(&["--run-dir=x"], &[]).relay().is_err());
}

#[test]
fn effective_values_are_printed_with_their_source_and_secrets_are_not() {
    let initdata = "c2VjcmV0cG9saWN5";
    let loaded = loaded(
        &["--vxlan-port=5000", "--print-config", "-o=json", "--tags=c=d"],
        &[("PROXY_TIMEOUT", "1m"), ("INITDATA", initdata), ("TAGS", "a=b")],
    );
    assert!(loaded.asked.print_config && loaded.asked.json);
    let rows: serde_json::Value = serde_json::from_str(&loaded.print_json()).expect("JSON");
    let row = |flag: &str| {
        let rows = rows.as_array().expect("rows");
        rows.iter().find(|r| r["flag"] == flag).cloned().expect("a row")
    };
    assert_eq!(
        (row("vxlan-port")["value"].clone(), row("vxlan-port")["source"].clone()),
        ("5000".into(), "flag".into())
    );
    assert_eq!(row("proxy-timeout")["source"], "env PROXY_TIMEOUT");
    assert_eq!(row("tags")["value"], "a=b,c=d");
    assert_eq!(row("tags")["source"], "env TAGS and flag");
    assert_eq!(row("node-name")["value"], "worker-1");
    assert_eq!(row("initdata")["value"], "(secret)");
    assert_eq!(row("local-cidr")["origin"], "provider");
    let text = loaded.print_text();
    assert!(text.lines().any(|l| l.starts_with("vxlan-port ") && l.ends_with(" flag")), "{text}");
    let everything = format!("{text}{}{loaded:?}", loaded.print_json());
    assert!(!everything.contains(initdata), "{everything}");
    let error = loaded.settings().expect_err("no initdata").to_string();
    assert!(error.contains("INITDATA") && !error.contains(initdata), "{error}");
}
