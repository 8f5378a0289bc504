//! A whole run over `local` with planted secrets, its failures included, and then a look at every file, log
//! line, page, error, argument list, environment and at the memory of the daemon. The number of places
//! looked at is printed; each kind of place is shown to be looked at by a secret put there.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use peerpod_it::bed::signal;
use peerpod_it::needles::{Found, Needles};
use peerpod_it::{Bed, root};
use peerpod_standin::lab::{DaemonOptions, Mode, PodNet, processes};
use peerpod_standin::shim::{PodSpec, Profile, Shim};
use podvm::apf::Apf;
use podvm::{cloud_config, contract};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};

const CLOUD: [(&str, &str, &str); 3] = [
    ("AWS secret", "AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIpeerpodPLANTEDbPxRfiCYkey01"),
    ("Azure secret", "AZURE_CLIENT_SECRET", "aZ8Q~planted-peerpod-R4nd0mclientsecretvalue"),
    ("GCP key", "GCP_CREDENTIALS", "{\"private_key\":\"planted-GcpPrivateKeyMaterial0042\"}"),
];
const IN_INITDATA: &str = "planted-RegistryPasswordInInitdata-77f0c1";

/// The user's client certificate, in a directory for its owner alone.
struct Given(tempfile::TempDir);

impl Given {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        fs::write(dir.path().join("tls.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(dir.path().join("tls.key"), key.serialize_pem()).unwrap();
        fs::set_permissions(dir.path().join("tls.key"), fs::Permissions::from_mode(0o600)).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn options(&self) -> DaemonOptions {
        let mut options = Bed::options(&["--log-level=trace", "--proxy-timeout=4s"]);
        for (flag, name) in [("cert-file", "tls.crt"), ("cert-key", "tls.key")] {
            options.arguments.push(format!("--{flag}={}", self.path(name).display()));
        }
        options.mode = Mode::Separate;
        options.environment =
            CLOUD.iter().map(|(_, name, value)| ((*name).into(), (*value).into())).collect();
        options.environment.push(("PEERPODD_LOG_LEVEL".into(), "trace".into()));
        options
    }
}

/// Everything the test knows of what it has planted.
struct Run {
    bed: Bed,
    given: Given,
    needles: Needles,
    /// Errors, answers and pages.
    said: Vec<(String, String)>,
}

impl Run {
    async fn new() -> Self {
        let given = Given::new();
        let bed = Bed::with(given.options()).await.unwrap();
        let mut needles = Needles::default();
        needles
            .plant_key("client key", &fs::read_to_string(given.path("tls.key")).unwrap())
            .unwrap();
        for (name, _, value) in CLOUD {
            needles.plant(name, value);
        }
        needles.plant("initdata", IN_INITDATA);
        let mut run = Self { bed, given, needles, said: Vec::new() };
        run.plant_ca("CA key");
        run
    }

    fn plant_ca(&mut self, name: &str) {
        let pem = fs::read_to_string(self.bed.lab.dir().state().join("pki/ca.key")).unwrap();
        self.needles.plant_key(name, &pem).unwrap();
    }

    fn record(&self, sandbox: &str) -> PathBuf {
        self.bed.lab.dir().state().join("pods").join(sandbox).join("record.json")
    }

    /// A pod whose VM's key is known, by the record that must hold it now.
    async fn create(&mut self, number: u8, profile: Profile) -> (PodNet, Shim) {
        let (net, mut spec) = self.bed.pod(number).await.unwrap();
        spec.initdata = format!(
            "algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\n\"cdh.toml\" = \"{IN_INITDATA}\"\n"
        );
        let sandbox = spec.sandbox.clone();
        let shim = Shim::create(profile, &self.bed.lab.dir().socket(), spec).await.unwrap();
        let path = self.record(&sandbox);
        let text = fs::read_to_string(&path).unwrap();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        let user_data = record["machine"]["spec"]["user_data"].as_str().expect("user data");
        let files = cloud_config::parse(user_data).unwrap().files;
        let content = |path: &str| &files.iter().find(|f| f.path == path).expect("a file").content;
        let apf = Apf::parse(content(contract::APF)).unwrap();
        let name = format!("VM key {number}");
        self.needles.plant_key(&name, apf.tls_server_key.expose()).unwrap();
        let wrapped = content(contract::INITDATA);
        let middle = &wrapped[wrapped.len() / 2..wrapped.len() - 4];
        self.needles.plant(&format!("initdata {number}"), middle);
        let found = self.look(|s| s.tree(self.bed.lab.dir().path()).unwrap());
        let at = path.display().to_string();
        assert!(found.iter().any(|f| f.secret == name && f.place == at), "{at} holds its key now");
        for one in found.iter().filter(|f| f.secret == name || f.secret.starts_with("initdata")) {
            assert_eq!(one.place, at, "nothing else does");
        }
        closed(&path);
        (net, shim)
    }

    fn look(&self, look: impl FnOnce(&mut peerpod_it::needles::Search<'_>)) -> Vec<Found> {
        let mut search = self.needles.search().unwrap();
        look(&mut search);
        search.found
    }

    fn say(&mut self, what: impl Into<String>, text: impl Into<String>) {
        self.said.push((what.into(), text.into()));
    }

    /// Everything that can be asked of a running daemon.
    async fn ask(&mut self) {
        for page in ["/metrics", "/status", "/readyz", "/startup"] {
            if let Ok((_, text)) = self.bed.daemon.get(page).await {
                self.say(page, text);
            }
        }
        for words in [&["status"][..], &["status", "-o", "json"], &["node", "--print-config"]] {
            let output = self.bed.daemon.peerpodd(words).await.unwrap();
            for bytes in [output.stdout, output.stderr] {
                self.say(words.join(" "), String::from_utf8_lossy(&bytes));
            }
        }
    }

    /// Looks everywhere, and gives what is not where it must be. `keys` are the files with keys.
    fn everywhere(&self, keys: &[&str]) -> (Vec<Found>, usize, usize) {
        let mut search = self.needles.search().unwrap();
        search.tree(self.bed.lab.dir().path()).unwrap();
        search.tree(self.given.0.path()).unwrap();
        for (what, text) in &self.said {
            search.look(what, text.as_bytes());
        }
        let ours = processes::using(self.bed.lab.dir().path());
        for process in processes::all() {
            let shown = format!("arguments of {}", process.command.join(" "));
            search.look(&shown, process.command.join("\n").as_bytes());
        }
        for process in &ours {
            let environment =
                fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
            // The settings of the daemon's own processes come that way.
            let name = if process.is_daemon() { "the daemon" } else { &process.command.join(" ") };
            search.look(&format!("environment of {name}"), &environment);
        }
        let allowed = |found: &Found| {
            let cloud = CLOUD.iter().any(|(name, ..)| *name == found.secret);
            (cloud && found.place == "environment of the daemon")
                || keys.iter().any(|key| found.place.ends_with(key))
        };
        for one in search.found.iter().filter(|f| keys.iter().any(|k| f.place.ends_with(k))) {
            closed(Path::new(&one.place));
        }
        let wrong = search.found.iter().filter(|f| !allowed(f)).cloned().collect();
        (wrong, search.files, search.bytes)
    }
}

/// 0600 in 0700.
fn closed(path: &Path) {
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path), 0o600, "{}", path.display());
    assert_eq!(mode(path.parent().unwrap()), 0o700, "{}", path.display());
}

const KEYS: [&str; 2] = ["/pki/ca.key", "/tls.key"];

/// The VM has an address and was told so: nobody on the worker needs its key any more.
fn memory(run: &Run, key: &str) {
    let node = run.bed.daemon.node_pid().unwrap();
    let relay = run.bed.daemon.relay_pid().unwrap();
    let found = run.look(|s| {
        s.memory("node", node).unwrap();
        s.memory("relay", relay).unwrap();
    });
    let of = |secret: &str| found.iter().any(|f| f.secret == secret);
    assert!(of("client key"), "both hold it, so that is how it is found: {found:?}");
    assert!(!of(key), "{found:?}");
    let in_relay = |f: &&Found| f.secret == "CA key" && f.place.contains("relay");
    assert_eq!(found.iter().find(in_relay), None, "the relay has no business with the CA");
}

/// A pod that runs: its key is nowhere any more, the daemon's memory included.
async fn a_pod_that_runs(run: &mut Run) -> Shim {
    let (_net, mut shim) = run.create(1, Profile::GoLike).await;
    shim.start_vm().await.unwrap();
    memory(run, "VM key 1");
    shim.connect().await.unwrap();
    shim.start_sandbox().await.unwrap();
    let output = shim.exec_tool("e1", &["say", "hello"]).await.unwrap().output().await.unwrap();
    run.say("exec", String::from_utf8_lossy(&output.stdout));
    run.ask().await;
    shim
}

/// A start during which the node process is killed.
async fn a_start_that_survives(run: &mut Run) -> Shim {
    let (_net, mut shim) = run.create(2, Profile::RsLike).await;
    let sandbox = shim.spec().sandbox.clone();
    let starting = tokio::spawn(async move {
        let started = shim.start_vm().await;
        (shim, started)
    });
    run.bed.until_phase(&sandbox, "launching").await.unwrap();
    run.bed.daemon.kill_node().await.unwrap();
    run.bed.daemon.start_node(None).await.unwrap();
    run.bed.daemon.ready().await.unwrap();
    let (shim, started) = starting.await.unwrap();
    memory(run, "VM key 2");
    started.unwrap_or_else(|e| panic!("{e}\n{}", run.bed.daemon.log_tail()));
    shim
}

/// Starts that fail: a VM that cannot begin, and one whose certificate is refused.
async fn starts_that_fail(run: &mut Run) {
    let (_net, shim) = run.create(3, Profile::GoLike).await;
    let agent = ("LOCAL_AGENT".to_owned(), "/bin/false".to_owned());
    let podvm = ("LOCAL_PODVM".to_owned(), "/bin/false".to_owned());
    let mut options = run.given.options();
    options.environment.extend([agent, podvm]);
    fail(run, shim, options, |_| {}).await;

    let (_net, shim) = run.create(4, Profile::RsLike).await;
    let options = run.given.options();
    let other = tempfile::tempdir().unwrap();
    fail(run, shim, options, |pki| {
        let source = peerpodd::pki::TlsSource::Automatic { client: None };
        peerpodd::pki::Pki::open(other.path(), &source, std::time::SystemTime::now()).unwrap();
        for name in ["ca.key", "ca.pem"] {
            fs::copy(other.path().join(name), pki.join(name)).unwrap();
        }
    })
    .await;
    run.plant_ca("other CA key");
}

/// Restarts the node process with other options, and starts a pod that must fail under it.
async fn fail(
    run: &mut Run,
    mut shim: Shim,
    options: DaemonOptions,
    meanwhile: impl FnOnce(&Path),
) {
    run.bed.daemon.kill_node().await.unwrap();
    meanwhile(&run.bed.lab.dir().state().join("pki"));
    run.bed.daemon.start_node(Some(options)).await.unwrap();
    run.bed.daemon.ready().await.unwrap();
    let error = shim.start_vm().await.expect_err("a start that fails");
    run.say("StartVM", format!("{error} {error:?}"));
    run.ask().await;
    let _ = shim.stop().await;
}

/// Requests and settings that cannot be used and have a secret in them.
async fn bad_input(run: &mut Run) {
    let (_net, good) = run.bed.pod(9).await.unwrap();
    let broken = [
        format!("algorithm = \"{IN_INITDATA}"),
        format!("algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\n{IN_INITDATA}"),
        format!("%%{IN_INITDATA}%%"),
    ];
    for initdata in broken {
        let spec = PodSpec { initdata, ..good.clone() };
        let socket = run.bed.lab.dir().socket();
        let error = Shim::create(Profile::GoLike, &socket, spec).await.expect_err("refused");
        run.say("CreateVM", format!("{error} {error:?}"));
    }
    let junk = run.given.path("junk");
    fs::write(&junk, CLOUD[0].2).unwrap();
    let key = run.given.path("tls.key").display().to_string();
    let (junk, initdata) = (junk.display().to_string(), format!("--initdata={IN_INITDATA}"));
    let state = tempfile::tempdir().unwrap();
    let state = format!("--state-dir={}", state.path().join("s").display());
    for words in [
        vec!["node", initdata.as_str()],
        vec!["node", &state, "--cert-file", &key, "--cert-key", &key],
        vec!["node", &state, "--cert-file", &junk, "--cert-key", &junk],
        vec!["node", &state, "--ca-cert-file", &key],
    ] {
        let output = run.bed.daemon.peerpodd(&words).await.unwrap();
        assert!(!output.status.success(), "{words:?}");
        run.say(format!("{words:?}"), String::from_utf8_lossy(&output.stderr));
    }
    fs::remove_file(run.given.path("junk")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_run_leaves_no_secret_but_in_the_files_that_must_hold_one() {
    if !root("a_whole_run_leaves_no_secret_but_in_the_files_that_must_hold_one") {
        return;
    }
    let mut run = Run::new().await;
    let one = a_pod_that_runs(&mut run).await;
    let two = a_start_that_survives(&mut run).await;
    bad_input(&mut run).await;
    let (wrong, ..) = run.everywhere(&KEYS);
    assert_eq!(wrong, [], "while two pods run");
    for shim in [one, two] {
        shim.stop().await.unwrap();
    }
    run.bed.until_nothing_left().await.unwrap();
    starts_that_fail(&mut run).await;
    run.ask().await;
    // A crash that the kernel would write down.
    let cwd = std::env::current_dir().unwrap();
    signal(run.bed.daemon.node_pid().unwrap(), Signal::SIGSEGV).unwrap();
    run.bed.daemon.kill_node().await.ok();
    let cores = fs::read_dir(&cwd).unwrap().flatten();
    let cores: Vec<_> =
        cores.map(|e| e.file_name()).filter(|n| n.to_string_lossy().starts_with("core")).collect();
    assert_eq!(cores, Vec::<std::ffi::OsString>::new(), "a core file in {}", cwd.display());
    run.bed.daemon.start_node(Some(run.given.options())).await.unwrap();
    run.bed.daemon.ready().await.unwrap();
    run.bed.until_nothing_left().await.unwrap();

    let log = fs::read_to_string(run.bed.lab.dir().logs().join("node.log")).unwrap();
    assert!(log.contains("DEBUG"), "the log has all there is to say");
    let (wrong, places, bytes) = run.everywhere(&KEYS);
    assert_eq!(wrong, []);
    let (secrets, forms) = run.needles.count();
    controls(&run);
    println!(
        "secrets: {secrets} planted in {forms} forms, {places} places with {} KiB looked through, none \
         found where it must not be; 4 controls found",
        bytes >> 10
    );
    run.bed.end().await.unwrap();
}

/// Each kind of place is looked at: what is put there is found.
fn controls(run: &Run) {
    use std::io::Write;
    let log = run.bed.lab.dir().logs().join("node.log");
    let key = fs::read_to_string(run.given.path("tls.key")).unwrap();
    let before = fs::read(&log).unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(&log).unwrap();
    writeln!(file, "INFO a line with {key:?} in it").unwrap();
    let (wrong, ..) = run.everywhere(&KEYS);
    assert!(
        wrong.iter().any(|f| f.secret == "client key" && f.place.ends_with("node.log")),
        "{wrong:?}"
    );
    fs::write(&log, before).unwrap();

    let hidden = run.bed.lab.dir().state().join("pods/.left");
    let hex: String = CLOUD[0].2.bytes().map(|b| format!("{b:02X}")).collect();
    fs::write(&hidden, hex).unwrap();
    let (wrong, ..) = run.everywhere(&KEYS);
    assert!(wrong.iter().any(|f| f.secret == "AWS secret" && f.form == "HEX"), "{wrong:?}");
    fs::remove_file(&hidden).unwrap();

    let mut sleeper = Command::new("sleep")
        .args(["60", "--"])
        .current_dir(run.bed.lab.dir().path())
        .env("LEAK", IN_INITDATA)
        .spawn();
    if let Ok(sleeper) = &mut sleeper {
        let (wrong, ..) = run.everywhere(&KEYS);
        let found = wrong.iter().any(|f| f.place.starts_with("environment of"));
        let _ = sleeper.kill();
        let _ = sleeper.wait();
        assert!(found, "{wrong:?}");
    }
    let mut search = run.needles.search().unwrap();
    let own = format!("[{}]", key.lines().nth(2).unwrap());
    search.look("a page", own.as_bytes());
    assert_eq!(search.found.len(), 2, "{:?}", search.found);
}

#[test]
fn a_secret_is_found_in_every_form_and_nothing_is_taken_for_one() {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let pem = key.serialize_pem();
    let mut needles = Needles::default();
    needles.plant_key("key", &pem).unwrap();
    needles.plant("text", CLOUD[1].2);
    let der = key.serialized_der();
    let hex: String = der.iter().map(|b| format!("{b:02x}")).collect();
    let mut forms: Vec<(&str, Vec<u8>)> = vec![
        ("PEM", pem.clone().into_bytes()),
        ("JSON of PEM", serde_json::to_vec(&pem).unwrap()),
        ("DER", der.to_vec()),
        ("hex of DER", hex.clone().into_bytes()),
        ("HEX of DER", hex.to_uppercase().into_bytes()),
        ("base64 of PEM", STANDARD.encode(&pem).into_bytes()),
        ("one line", STANDARD.encode(der).into_bytes()),
        ("text", CLOUD[1].2.as_bytes().to_vec()),
        ("base64 of text", STANDARD_NO_PAD.encode(CLOUD[1].2).into_bytes()),
    ];
    for before in 0..3 {
        let shifted = [vec![b'x'; before], der.to_vec()].concat();
        forms.push(("base64 after other bytes", STANDARD.encode(shifted).into_bytes()));
    }
    for (form, bytes) in forms {
        let mut search = needles.search().unwrap();
        search.look("here", &[b"before ".to_vec(), bytes, b" after".to_vec()].concat());
        assert!(!search.found.is_empty(), "{form}");
    }
    let innocent = CertificateParams::default().self_signed(&key).unwrap().pem();
    let mut search = needles.search().unwrap();
    search.look("certificate of that key", innocent.as_bytes());
    search.look("another key", other.serialize_pem().as_bytes());
    search.look("public key", URL_SAFE_NO_PAD.encode(key.public_key_raw()).as_bytes());
    assert_eq!(search.found, []);
}
