use super::*;

const UPSTREAM: &str = include_str!("../../../tests/fixtures/apf.json");

fn pod() -> PodNetwork {
    let net = |t: &str| t.parse().expect("network");
    PodNetwork {
        interface: "eth0".to_owned(),
        mac: MacText::try_from("0a:58:0a:f4:00:05".to_owned()).expect("mac"),
        mtu: 1450,
        addresses: vec![net("10.244.0.5/24"), net("fd00::5/64")],
        routes: vec![
            Route {
                destination: net("10.244.0.0/24"),
                gateway: None,
                protocol: "kernel".to_owned(),
                scope: "link".to_owned(),
            },
            Route {
                destination: net("0.0.0.0/0"),
                gateway: Some(IpAddr::from([10, 244, 0, 1])),
                protocol: "boot".to_owned(),
                scope: "universe".to_owned(),
            },
            Route {
                destination: net("::/0"),
                gateway: "fd00::1".parse().ok(),
                protocol: "boot".to_owned(),
                scope: "universe".to_owned(),
            },
        ],
        neighbors: vec![],
        worker: vec![net("10.0.0.4/16"), net("fd00:1::4/64")],
        underlay_mtu: 1500,
        dedicated: false,
    }
}

#[test]
fn what_the_worker_writes_the_guest_reads() {
    let network = ApfNetwork::new(&pod(), 555_007, 9000);
    let apf = Apf { pod_network: Some(network), pod_name: "a".to_owned(), ..Apf::default() };
    let back = Apf::parse(&(apf.render().expect("render") + "\n")).expect("parse");
    assert_eq!(back, apf);
    let guest = back.pod_network.expect("network").check("/run/netns/podns".into()).expect("check");
    assert_eq!(guest.addresses, pod().addresses);
    assert_eq!(guest.worker.len(), 2);
    assert_eq!(guest.routes.len(), 3);
    assert_eq!((guest.vni, guest.port, guest.mtu), (555_007, 9000, 1450));
}

#[test]
fn upstreams_reader_finds_only_what_it_knows() {
    let network = ApfNetwork::new(&pod(), 1, 9000);
    let value = serde_json::to_value(&network).expect("json");
    for route in value["routes"].as_array().expect("routes") {
        let destination = route["dst"].as_str().expect("dst");
        assert!(!destination.contains(':'), "an IPv4 pod's upstream routes are IPv4");
    }
    assert_eq!(value["podip"], "10.244.0.5/24");
    assert_eq!(value["worker-node-ip"], "10.0.0.4/16");
}

#[test]
fn an_ipv4_pod_is_written_without_our_extension() {
    let mut pod = pod();
    pod.addresses.truncate(1);
    pod.worker.truncate(1);
    pod.routes.truncate(2);
    assert_eq!(ApfNetwork::new(&pod, 1, 9000).peerpod, None);
}

#[test]
fn upstreams_file_is_read() {
    let apf = Apf::parse(UPSTREAM).expect("parse");
    assert_eq!(apf.pod_name, "nginx");
    assert!(apf.tls_server_key.expose().starts_with("-----BEGIN PRIVATE KEY-----"));
    let guest = apf.pod_network.expect("network").check("/run/netns/podns".into()).expect("check");
    assert_eq!(guest.vni, 555_000);
    assert_eq!(guest.port, 4789, "an upstream worker that names no port means its default");
    assert!(guest.routes.iter().any(|r| r.destination.to_string() == "0.0.0.0/0"));
    assert_eq!(guest.neighbors.len(), 1);
}

/// The error of the upstream file with one value of pod-network replaced.
fn refused(key: &str, value: Value) -> String {
    let mut json: Value = serde_json::from_str(UPSTREAM).expect("json");
    json["pod-network"][key] = value;
    let apf = match Apf::parse(&json.to_string()) {
        Ok(apf) => apf,
        Err(e) => return e.to_string(),
    };
    let network = apf.pod_network.expect("network");
    network.check("/run/netns/podns".into()).map(drop).expect_err("refused").to_string()
}

#[test]
fn absurd_and_missing_values_are_named() {
    let cases = [
        ("podip", Value::from("10.244.0.5")),
        ("podip", Value::from("")),
        ("pod-hw-addr", Value::from("0a:58")),
        ("interface", Value::from("../eth0")),
        ("interface", Value::from("a-name-that-is-too-long")),
        ("worker-node-ip", Value::from("nowhere/8")),
        ("tunnel-type", Value::from("ipsec")),
        ("mtu", Value::from(12)),
        ("mtu", Value::from(-1)),
        ("vxlan-id", Value::from(0)),
        ("vxlan-id", Value::from(1 << 24)),
        ("vxlan-port", Value::from(70_000)),
    ];
    for (key, value) in cases {
        let error = refused(key, value);
        assert!(error.contains(&format!("pod-network.{key}")), "{key}: {error}");
    }
    let route = serde_json::json!([{"dst": "1.2.3.4/33", "gw": ""}]);
    assert!(refused("routes", route).contains("routes: dst"));
    let route = serde_json::json!([{"dst": "1.2.3.0/24", "gw": "", "scope": "galaxy"}]);
    assert!(refused("routes", route).contains("galaxy"));
}

#[test]
fn a_broken_file_does_not_show_its_text() {
    let error = Apf::parse("{\"tls-server-key\": \"SECRET").expect_err("broken").to_string();
    assert!(error.contains("line 1") && !error.contains("SECRET"), "{error}");
}

#[test]
fn files_that_are_to_follow_are_promised_by_size_and_digest() {
    let initdata = ToFollow::of(crate::contract::INITDATA, b"abc");
    // printf abc | sha256sum
    assert!(initdata.sha256.starts_with("ba7816bf8f01cfea") && initdata.size == 3);
    let apf = |files: &[&ToFollow]| Apf {
        peerpod: Some(Ours { files: files.iter().map(|&f| f.clone()).collect() }),
        ..Apf::default()
    };
    let text = apf(&[&initdata]).render().expect("render");
    let back = Apf::parse(&text).expect("parse");
    assert_eq!(back.to_follow().expect("check"), std::slice::from_ref(&initdata));
    assert!(
        !Apf::default().render().expect("render").contains("peerpod"),
        "upstream's, to the byte"
    );

    let elsewhere = ToFollow::of("/etc/shadow", b"");
    let large = ToFollow { size: 800_000, ..initdata.clone() };
    for (files, why) in [
        (&[&elsewhere][..], "\"/etc/shadow\" cannot come over the link"),
        (&[&initdata, &initdata], "is there twice"),
        (&[&large], "at most 786432 bytes in all"),
    ] {
        let error = apf(files).to_follow().expect_err(why).to_string();
        assert!(error.starts_with("apf.json: peerpod.files: ") && error.contains(why), "{error}");
    }
}
