//! Panics over everything that holds a secret: what the log says of them has none of it. A second
//! process panics, this test's program again, with the log and the hook of the real ones.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::SystemTime;

use bytes::Bytes;
use peerpod_it::needles::Needles;
use peerpod_providers::{UserData, VmName, VmSpec};
use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::frame::Request;
use peerpod_tunnel::link::tls::{ClientTls, ServerTls};
use peerpodd::config::{self, Input};
use peerpodd::pki::{Pki, TlsSource};
use peerpodd::proto::{hypervisor, relay};
use peerpodd::relay::{Event, Payload};
use peerpodd::{request, telemetry};
use podvm::apf::Apf;
use podvm::{cloud_config, contract};
use rcgen::KeyPair;

/// Set for the process that panics: the key to do it over.
const KEY: &str = "PEERPODD_TEST_PANIC_KEY";
const TEST: &str = "a_panic_over_what_is_secret_shows_none_of_it";
const CLOUD: &str = "wJalrXUtnFEMIpeerpodPLANTEDbPxRfiCYkey01";
const INITDATA: &str = "planted-RegistryPasswordInInitdata-77f0c1";

/// Panics over this, as `unwrap` and `assert` do.
fn over(value: &dyn Debug) {
    let compact = || panic!("called `Result::unwrap()` on an `Err` value: {value:?}");
    let pretty = || panic!("assertion failed\n left: {value:#?}");
    assert!(catch_unwind(AssertUnwindSafe(compact)).is_err());
    assert!(catch_unwind(AssertUnwindSafe(pretty)).is_err());
}

fn settings() -> config::Loaded {
    let mut env: BTreeMap<_, _> = [("AWS_SECRET_ACCESS_KEY", CLOUD), ("NODE_NAME", "worker")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    env.insert("CLOUD_PROVIDER".to_owned(), "aws".to_owned());
    env.insert("PEERPODD_LOG_LEVEL".to_owned(), "trace".to_owned());
    config::load(Input { env, hostname: "worker".to_owned(), ..Input::default() })
}

/// What is read from a shim.
fn create_vm() -> hypervisor::CreateVmRequest {
    let initdata = format!(
        "algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\n\"cdh.toml\" = \"{INITDATA}\"\n"
    );
    let key = |name: &str| format!("io.kubernetes.cri.{name}");
    let annotations = [
        (key("sandbox-name"), "web".to_owned()),
        (key("sandbox-namespace"), "default".to_owned()),
        ("io.katacontainers.config.hypervisor.cc_init_data".to_owned(), initdata),
    ];
    hypervisor::CreateVmRequest {
        id: "s1".to_owned(),
        annotations: annotations.into(),
        network_namespace_path: "/run/netns/x".to_owned(),
    }
}

fn panics(key: &str) {
    let loaded = settings();
    telemetry::init(&loaded.log());
    telemetry::log_panics();
    over(&loaded);
    over(&loaded.settings());
    over(&Input { args: vec![CLOUD.to_owned()], ..Input::default() });
    let secret = || Secret::new(key.to_owned());
    over(&ClientTls { client_key_pem: secret(), ..ClientTls::default() });
    over(&ServerTls { key_pem: secret(), ..ServerTls::default() });
    over(&relay::Tls { client_key_pem: key.to_owned(), ..relay::Tls::default() });
    let dir = tempfile::tempdir().unwrap();
    let source = TlsSource::Automatic { client: None };
    let pki = Pki::open(dir.path(), &source, SystemTime::now()).unwrap();
    over(&pki);
    over(&peerpodd::pki::Issued {
        server_key_pem: secret(),
        ..pki.issue("vm", SystemTime::now()).unwrap()
    });
    let apf = Apf { tls_server_key: secret(), ..Apf::default() };
    over(&apf);
    let content = serde_json::to_string(&apf).unwrap();
    let file = cloud_config::File { path: contract::APF.to_owned(), content: content.clone() };
    over(&file);
    over(&cloud_config::parse(&format!("#cloud-config\n{content}")));
    let mut spec = VmSpec::new(VmName::from_existing("podvm-web-12345678"), "s1");
    spec.user_data = UserData(content.clone());
    over(&spec);
    let asked = create_vm();
    let parsed = request::parse(&asked, &request::RequestRules::default()).unwrap();
    over(&parsed);
    over(&parsed.initdata);
    over(&asked);
    let payload = Bytes::from(content);
    over(&Event::Edit {
        ticket: 1,
        sandbox: "s1".to_owned(),
        method: "CreateContainer".to_owned(),
        payload: Payload(payload.clone()),
    });
    let edit = relay::Edit { payload: payload.clone(), ..relay::Edit::default() };
    over(&edit);
    over(&relay::edit_reply::Outcome::Payload(payload.clone()));
    let call = Request { payload, ..Request::default() };
    over(&call);
    over(&call.frame(1, 0));
}

#[test]
fn a_panic_over_what_is_secret_shows_none_of_it() {
    if let Ok(key) = std::env::var(KEY) {
        return panics(&key);
    }
    let key = KeyPair::generate().unwrap().serialize_pem();
    let mut needles = Needles::default();
    needles.plant_key("key", &key).unwrap();
    needles.plant("cloud secret", CLOUD);
    needles.plant("initdata", INITDATA);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(KEY, &key)
        .env("RUST_BACKTRACE", "full")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{text}");
    let panics = text.matches("called `Result::unwrap()` on an `Err` value").count();
    assert!(panics >= 18, "{panics} panics:\n{text}");
    let mut search = needles.search().unwrap();
    search.look("the log", &said);
    let lines = |secret: &str| text.lines().filter(|l| l.contains(secret)).collect::<Vec<_>>();
    assert_eq!(search.found, [], "{:?} {:?}", lines(INITDATA), lines("BEGIN"));
    println!(
        "secrets: {panics} panics over what is secret, {} KiB said, none of it there",
        said.len() >> 10
    );
    // What the search finds if it is there.
    let mut search = needles.search().unwrap();
    search.look("a panic", format!("{:?} {CLOUD} {INITDATA}", key).as_bytes());
    assert!(search.found.len() >= 3, "{:?}", search.found);
}
