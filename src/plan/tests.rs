//! What plans promise.

use std::net::IpAddr;

use peerpod_providers::tags::TagRules;
use peerpod_tunnel::network::{MacText, Route};
use podvm::apf::Apf;
use podvm::cloud_config::{self, File};
use podvm::contract;
use podvm::initdata::Initdata;

use super::*;
use crate::labels::label;
use crate::pod::samples;

mod room;

fn network() -> PodNetwork {
    PodNetwork {
        interface: "eth0".to_owned(),
        mac: MacText::try_from("0a:58:0a:f4:00:05".to_owned()).expect("mac"),
        mtu: 1500,
        addresses: vec!["10.244.0.5/24".parse().expect("network")],
        routes: vec![Route {
            destination: "0.0.0.0/0".parse().expect("network"),
            gateway: Some(IpAddr::from([10, 244, 0, 1])),
            protocol: "boot".to_owned(),
            scope: "universe".to_owned(),
        }],
        neighbors: vec![],
        worker: vec!["10.0.0.4/16".parse().expect("network")],
        underlay_mtu: 1500,
        dedicated: false,
    }
}

fn request() -> PodRequest {
    PodRequest { pod: "web-0".to_owned(), ..samples::request(&"0123456789abcdef".repeat(4)) }
}

fn issued() -> Issued {
    Issued {
        server_name: "podvm-web-0-01234567".to_owned(),
        server_cert_pem: "-----BEGIN CERTIFICATE-----\nS\n-----END CERTIFICATE-----\n".to_owned(),
        server_key_pem: Secret::new("-----BEGIN PRIVATE KEY-----\nK\n".to_owned()),
        client_ca_pem: "-----BEGIN CERTIFICATE-----\nC\n-----END CERTIFICATE-----\n".to_owned(),
        authority: Some("a1".to_owned()),
    }
}

fn a_type(name: &str, vcpus: u32, memory_mib: u64, gpus: u32) -> InstanceType {
    InstanceType { name: name.to_owned(), vcpus, memory_mib, gpus, price: None }
}

fn rules() -> PlanRules {
    PlanRules {
        installation: "inst-1".to_owned(),
        epoch: "1000".to_owned(),
        node_name: "worker-1".to_owned(),
        catalogue: vec![
            a_type("small", 2, 4096, 0),
            a_type("large", 8, 32_768, 0),
            a_type("gpu", 8, 65_536, 1),
        ],
        size: SizeRules {
            default_type: "small".to_owned(),
            allowed: vec!["large".to_owned(), "gpu".to_owned()],
            any_size: None,
        },
        vxlan_port: 9000,
        ..PlanRules::default()
    }
}

fn make(request: &PodRequest, rules: &PlanRules) -> Result<Plan, PlanError> {
    make_with(request, rules, Some(&issued()), None)
}

fn make_with(
    request: &PodRequest,
    rules: &PlanRules,
    issued: Option<&Issued>,
    auth: Option<&Secret>,
) -> Result<Plan, PlanError> {
    let name = VmName::first_form(&request.pod, request.sandbox.as_str());
    let network = &network();
    let (volumes, labels) = (&PodVolumes::default(), &labels());
    let input = PlanInput { request, network, vni: 555_007, name, issued, auth, volumes, labels };
    plan(&input, rules)
}

/// As CRI-O has them.
fn labels() -> PodLabels {
    let pod = [("app.kubernetes.io/name", "Shop"), ("team", "red"), ("tier", "")];
    PodLabels {
        pod: Ok(pod.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
        namespace: Err("nobody was asked".to_owned()),
    }
}

/// What the VM reads, by path.
fn files(plan: &Plan) -> BTreeMap<String, String> {
    let parsed = cloud_config::parse(&plan.spec.user_data.0).expect("user data");
    assert_eq!(parsed.skipped, [""; 0]);
    parsed.files.into_iter().map(|File { path, content }| (path, content)).collect()
}

fn apf(plan: &Plan) -> Apf {
    Apf::parse(&files(plan)[contract::APF]).expect("apf.json")
}

#[test]
fn the_same_pod_gets_the_same_bytes() {
    let (request, rules) = (request(), rules());
    assert_eq!(make(&request, &rules).expect("plan"), make(&request, &rules).expect("plan"));
}

#[test]
fn a_plan_survives_a_record() {
    let plan = make(&request(), &rules()).expect("plan");
    let text = serde_json::to_string(&plan).expect("json");
    assert_eq!(serde_json::from_str::<Plan>(&text).expect("json"), plan);
    assert!(!format!("{plan:?}").contains("PRIVATE KEY"));
}

#[test]
fn the_vm_is_named_and_tagged_for_its_sandbox() {
    let mut rules = rules();
    rules.user_tags.insert("team".to_owned(), "shop".to_owned());
    let request = request();
    let spec = make(&request, &rules).expect("plan").spec;
    assert_eq!(spec.name.as_str(), "podvm-web-0-01234567");
    assert_eq!(spec.sandbox, request.sandbox.as_str());
    let tags: Vec<_> = spec.tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let wanted = [
        ("peerpodd-epoch", "1000"),
        ("peerpodd-installation", "inst-1"),
        ("peerpodd-namespace", "shop"),
        ("peerpodd-node", "worker-1"),
        ("peerpodd-pod", "web-0"),
        ("peerpodd-sandbox", request.sandbox.as_str()),
        ("team", "shop"),
    ];
    assert_eq!(tags, wanted);
}

#[test]
fn tags_of_ours_cannot_be_given_by_the_user() {
    let mut rules = rules();
    rules.user_tags.insert("peerpodd-sandbox".to_owned(), "another".to_owned());
    let error = make(&request(), &rules).expect_err("reserved");
    assert!(error.to_string().contains("\"peerpodd-sandbox\""), "{error}");
}

fn wanted(text: &str) -> Vec<CostTag> {
    text.split(',').map(|part| label::cost_tag(part).expect(part)).collect()
}

#[test]
fn wanted_labels_become_tags_beside_ours_and_the_users() {
    let plain = make(&request(), &rules()).expect("plan");
    assert_eq!(plain.notes, [""; 0], "nothing is wanted");
    let mut rules =
        PlanRules { cost_tags: wanted("owner,team,app.kubernetes.io/name=app,tier"), ..rules() };
    rules.user_tags.insert("Team".to_owned(), "blue".to_owned());
    let plan = make(&request(), &rules).expect("plan");
    let mut expected = plain.spec.tags;
    for (key, value) in [("Team", "blue"), ("app", "Shop"), ("tier", "")] {
        expected.insert(key.to_owned(), value.to_owned());
    }
    assert_eq!(plan.spec.tags, expected);
    let said = [
        "cost tags: app=Shop, tier=",
        "no cost tag from team (there is a tag \"Team\" already)",
        "no cost tag from owner: not known (nobody was asked)",
    ];
    assert_eq!(plan.notes, said);
    let text = serde_json::to_string(&plan).expect("json");
    assert_eq!(serde_json::from_str::<Plan>(&text).expect("json"), plan);
}

#[test]
fn a_cloud_without_room_leaves_the_least_wanted_out_and_the_pod_starts() {
    let tag_rules = TagRules { cloud: "Test", most: 7, ..TagRules::ANY };
    let rules =
        PlanRules { cost_tags: wanted("tier,team"), tag_room: TagRoom::new(tag_rules), ..rules() };
    let plan = make(&request(), &rules).expect("plan");
    assert_eq!(plan.spec.tags.len(), 7);
    assert!(plan.spec.tags.contains_key("tier"), "{:?}", plan.spec.tags);
    assert_eq!(plan.notes[1], "no cost tag from team (Test takes 7 tags on a resource)");
}

#[test]
fn the_vm_is_told_its_network_and_certificates() {
    let profile =
        Profile { min_version: "VersionTLS13".to_owned(), cipher_suites: vec!["X".to_owned()] };
    let rules = PlanRules { profile, ..rules() };
    let plan = make(&request(), &rules).expect("plan");
    let apf = apf(&plan);
    assert_eq!((apf.pod_name.as_str(), apf.pod_namespace.as_str()), ("web-0", "shop"));
    assert_eq!(apf.tls_server_key, issued().server_key_pem);
    assert_eq!(apf.tls_server_cert, issued().server_cert_pem);
    assert_eq!(apf.tls_client_ca, issued().client_ca_pem);
    assert_eq!(apf.tls_min_version, "VersionTLS13");
    assert_eq!(apf.tls_cipher_suites, ["X"]);
    let network = apf.pod_network.expect("network");
    assert!(!network.external_net_via_pod_vm);
    let guest = network.check("/run/netns/podns".into()).expect("a guest can use it");
    assert_eq!((guest.vni, guest.port, guest.mtu), (555_007, 9000, 1500));
    assert_eq!(plan.server_name, "podvm-web-0-01234567");
    assert_eq!(files(&plan).len(), 1, "nothing else is sent");
}

#[test]
fn without_tls_nothing_of_it_is_sent() {
    for issued in [None, Some(&Issued::default())] {
        let rules = PlanRules { external_network_via_podvm: true, ..rules() };
        let plan = make_with(&request(), &rules, issued, None).expect("plan");
        let text = &files(&plan)[contract::APF];
        assert!(!text.contains("tls-"), "{text}");
        assert_eq!(plan.server_name, "podvm-web-0-01234567");
        assert!(apf(&plan).pod_network.expect("network").external_net_via_pod_vm);
    }
}

#[test]
fn an_image_with_certificates_of_its_own_is_known_by_their_name_and_told_our_client() {
    let manual = Issued {
        server_name: "podvm-server".to_owned(),
        client_ca_pem: issued().client_ca_pem,
        ..Issued::default()
    };
    let plan = make_with(&request(), &rules(), Some(&manual), None).expect("plan");
    assert_eq!(plan.server_name, "podvm-server");
    let text = &files(&plan)[contract::APF];
    assert!(text.contains("tls-client-ca") && !text.contains("tls-server"), "{text}");
}

#[test]
fn all_files_travel_and_come_out_as_they_were() {
    let toml = "algorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"x\"\n";
    let request =
        PodRequest { initdata: Some(Initdata::from_toml(toml).expect("toml")), ..request() };
    let rules = PlanRules { scratch_space: true, ..rules() };
    let auth = Secret::new("{\"auths\":{}}".to_owned());
    let plan = make_with(&request, &rules, Some(&issued()), Some(&auth)).expect("plan");
    let files = files(&plan);
    assert_eq!(files.len(), 4);
    assert_eq!(files[contract::AUTH], "{\"auths\":{}}\n");
    assert_eq!(files[contract::SCRATCH_MARKER], "");
    assert_eq!(Initdata::decode(&files[contract::INITDATA]).ok(), request.initdata);
}

#[test]
fn credentials_that_no_image_takes_are_refused_with_their_size() {
    let fits = Secret::new("x".repeat(12_288));
    make_with(&request(), &rules(), None, Some(&fits)).expect("the largest");
    let auth = Secret::new("x".repeat(12_289));
    let error = make_with(&request(), &rules(), None, Some(&auth)).expect_err("too large");
    assert_eq!(error.to_string(), "auth.json: 12289 bytes, at most 12288 can be sent to a VM");
    let broken = Secret::new(" \u{1}".to_owned());
    let error = make_with(&request(), &rules(), None, Some(&broken)).expect_err("no text");
    assert!(error.to_string().contains("auth.json"), "{error}");
}

#[test]
fn types_come_by_type_then_market_then_zone_and_not_without_end() {
    let rules = PlanRules {
        zones: vec!["a".to_owned(), "b".to_owned()],
        markets: vec![Market::Spot, Market::OnDemand],
        ..rules()
    };
    let request = PodRequest { vcpus: Some(1), ..request() };
    let plan = make(&request, &rules).expect("plan");
    let short = |c: &Candidate| {
        let zone = c.zone.clone().unwrap_or_default();
        format!("{} {} {zone} {:?}", c.number, c.instance_type, c.market)
    };
    let all: Vec<_> = plan.candidates.iter().map(short).collect();
    let wanted = [
        "0 small a Spot",
        "1 small b Spot",
        "2 small a OnDemand",
        "3 small b OnDemand",
        "4 large a Spot",
        "5 large b Spot",
        "6 large a OnDemand",
        "7 large b OnDemand",
    ];
    assert_eq!(all, wanted);
    let zones = (0..20).map(|n| n.to_string()).collect();
    let many = make(&request, &PlanRules { zones, ..rules }).expect("plan");
    assert_eq!(many.candidates.len(), 8);
}

#[test]
fn without_zones_and_markets_there_is_one_place_on_demand() {
    let plan = make(&request(), &rules()).expect("plan");
    let wanted = Candidate {
        number: 0,
        instance_type: "small".to_owned(),
        zone: None,
        market: Market::OnDemand,
    };
    assert_eq!(plan.candidates, [wanted]);
    assert!(plan.size_reason.contains("small"), "{}", plan.size_reason);
}

#[test]
fn sizes_are_passed_on_and_refusals_keep_upstreams_words() {
    let named = |name: &str| PodRequest { machine_type: Some(name.to_owned()), ..request() };
    let sized = |vcpus, memory_mib, gpus| PodRequest { vcpus, memory_mib, gpus, ..request() };
    let first = |request: &PodRequest| {
        make(request, &rules()).expect("plan").candidates[0].instance_type.clone()
    };
    assert_eq!(first(&named("large")), "large");
    assert_eq!(first(&sized(Some(3), None, 0)), "large");
    assert_eq!(first(&sized(None, Some(5000), 0)), "large");
    assert_eq!(first(&sized(None, None, 1)), "gpu");
    let words = |request: &PodRequest, rules: &PlanRules| {
        let failure = Failure::from(make(request, rules).expect_err("refused"));
        assert_eq!(failure.kind, FailureKind::Invalid);
        failure.message
    };
    let list = "requested instance type (\"odd\") is not part of supported instance types list";
    assert_eq!(words(&named("odd"), &rules()), list);
    let only = PlanRules {
        size: SizeRules { default_type: "small".to_owned(), ..SizeRules::default() },
        ..rules()
    };
    let empty = "requested instance type (\"odd\") is not default (\"small\") and supported instance types list is empty";
    assert_eq!(words(&named("odd"), &only), empty);
    let cpu = "failed to get instance type based on vCPU and memory annotations: no instance type found for the given vcpus (99) and memory (7)";
    assert_eq!(words(&sized(Some(99), Some(7), 0), &rules()), cpu);
    let gpu = "failed to get instance type based on GPU, vCPU, and memory annotations: no instance type found for the given GPUs (9), vCPUs (0), and memory (0)";
    assert_eq!(words(&sized(None, None, 9), &rules()), gpu);
}

#[test]
fn only_pods_with_gpus_have_calls_edited() {
    assert_eq!(make(&request(), &rules()).expect("plan").edit_methods, [""; 0]);
    let gpu = PodRequest { gpus: 1, ..request() };
    assert_eq!(make(&gpu, &rules()).expect("plan").edit_methods, ["CreateContainer"]);
}

#[test]
fn a_pods_disks_are_in_the_spec_under_their_numbers_and_its_containers_are_edited() {
    let disk = |disk: &str, number| PodVolume {
        target: format!("/k/pods/u/volumes/kubernetes.io~csi/{disk}/mount"),
        disk: disk.to_owned(),
        number,
        fs: "xfs".to_owned(),
        read_only: number == 1,
        fs_group: None,
        encrypt_type: String::new(),
        key_id: String::new(),
    };
    let attached = vec![disk("a", 0), disk("b", 1)];
    let volumes = &PodVolumes { attached, ..PodVolumes::default() };
    let (request, network, issued) = (&request(), &network(), &issued());
    let name = VmName::first_form(&request.pod, request.sandbox.as_str());
    let issued = Some(issued);
    let (labels, auth) = (&labels(), None);
    let input = PlanInput { request, network, vni: 555_007, name, issued, auth, volumes, labels };
    let plan = plan(&input, &rules()).expect("plan");
    let seen: Vec<_> = plan.spec.volumes.iter().map(|v| (&*v.disk, v.lun, v.read_only)).collect();
    assert_eq!(seen, [("a", 0, false), ("b", 1, true)]);
    assert_eq!((&*plan.spec.volumes[0].fs, &plan.volumes), ("xfs", volumes));
    assert_eq!(plan.edit_methods, ["CreateContainer"]);
}

#[test]
fn another_image_is_passed_on_and_logged_as_upstream_does() {
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("lock").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let request = PodRequest { image: Some("ami-0123".to_owned()), ..request() };
    crate::telemetry::let_every_line_be_heard();
    let plan = tracing::subscriber::with_default(subscriber, || make(&request, &rules()));
    assert_eq!(plan.expect("plan").spec.image.as_deref(), Some("ami-0123"));
    let text = String::from_utf8_lossy(&log.0.lock().expect("lock")).into_owned();
    assert!(text.contains("Choosing ami-0123"), "{text}");
}
