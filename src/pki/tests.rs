//! The shapes of compat.md 11 as another parser sees them, handshakes in both roles, and what
//! happens to the files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use peerpod_tunnel::link::tls::ServerTls;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::GeneralName;

use super::*;

mod rotation;

const DAY: Duration = Duration::from_secs(86_400);
const VM: &str = "podvm-web-01234567";

fn automatic() -> TlsSource {
    TlsSource::Automatic { client: None }
}

fn open(dir: &Path) -> Pki {
    Pki::open(dir, &automatic(), SystemTime::now()).expect("open")
}

fn server(issued: &Issued) -> ServerTls {
    ServerTls {
        cert_pem: issued.server_cert_pem.clone(),
        key_pem: issued.server_key_pem.clone(),
        client_ca_pem: issued.client_ca_pem.clone(),
        profile: Profile::default(),
    }
}

/// A handshake to its end and a byte each way, so that either side's refusal shows.
async fn shake(client: &ClientTls, server: &ServerTls) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (near, far) = tokio::io::duplex(64 << 10);
    let acceptor = TlsAcceptor::from(server.config().map_err(std::io::Error::other)?);
    let connector = TlsConnector::from(client.config().map_err(std::io::Error::other)?);
    let name = client.name().map_err(std::io::Error::other)?;
    let accept = async {
        let mut tls = acceptor.accept(far).await?;
        let byte = tls.read_u8().await?;
        tls.write_u8(byte).await?;
        tls.flush().await
    };
    let connect = async {
        let mut tls = connector.connect(name, near).await?;
        tls.write_u8(7).await?;
        tls.flush().await?;
        tls.read_u8().await.map(drop)
    };
    tokio::try_join!(accept, connect).map(drop)
}

fn parts(pem: &str) -> Vec<Pem> {
    Pem::iter_from_buffer(pem.as_bytes()).collect::<Result<_, _>>().expect("PEM")
}

fn with_cert<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
    look(&parts(pem)[0].parse_x509().expect("certificate"))
}

/// How far back certificates begin, but for the client's.
const MINUTES: Duration = Duration::from_secs(300);

/// What all certificates of compat.md 11 have in common.
fn common_shape(
    cert: &X509Certificate<'_>,
    organization: &str,
    backdated: Duration,
    life: Duration,
) {
    let organizations: Vec<_> =
        cert.subject().iter_organization().map(|o| o.as_str().expect("text").to_owned()).collect();
    assert_eq!(organizations, [organization]);
    assert_eq!(cert.subject().iter().count(), 1, "nothing but the organization");
    let curve = cert.public_key().algorithm.parameters.as_ref().expect("curve");
    assert_eq!(curve.as_oid().expect("oid").to_id_string(), "1.2.840.10045.3.1.7", "P-256");
    let usage = cert.key_usage().expect("parse").expect("key usage").value;
    assert!(usage.key_cert_sign() && usage.digital_signature() && !usage.crl_sign());
    let validity = cert.validity();
    let (begin, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("now").as_secs();
    let now = i64::try_from(now).expect("now");
    let back = i64::try_from(backdated.as_secs()).expect("seconds");
    assert!((now - back - 60..=now - back + 1).contains(&begin), "{} s back", now - begin);
    let life = i64::try_from(life.as_secs()).expect("life");
    assert!((now + life - 60..=now + life + 60).contains(&end), "{}", (end - now) / 86_400);
}

#[test]
fn the_ca_has_the_shape_that_upstream_knows() {
    let dir = TempDir::new().expect("dir");
    let client = open(dir.path()).client(VM).expect("TLS");
    with_cert(&client.ca_pem, |cert| {
        common_shape(cert, "agent-protocol-forwarder", MINUTES, 730 * DAY);
        assert!(cert.basic_constraints().expect("parse").expect("there").value.ca);
        let usage = cert.extended_key_usage().expect("parse").expect("there").value;
        assert!(usage.server_auth && !usage.client_auth);
        assert_eq!(cert.issuer(), cert.subject());
    });
}

#[test]
fn a_servers_certificate_carries_its_name_and_lives_a_year() {
    let dir = TempDir::new().expect("dir");
    let issued = open(dir.path()).issue(VM, SystemTime::now()).expect("issue");
    assert!(issued.server_key_pem.expose().starts_with("-----BEGIN PRIVATE KEY-----"), "PKCS#8");
    with_cert(&issued.server_cert_pem, |cert| {
        common_shape(cert, "agent-protocol-forwarder", MINUTES, 365 * DAY);
        assert!(!cert.basic_constraints().expect("parse").expect("there").value.ca);
        let usage = cert.extended_key_usage().expect("parse").expect("there").value;
        assert!(usage.server_auth && !usage.client_auth);
        let names = cert.subject_alternative_name().expect("parse").expect("there").value;
        assert_eq!(names.general_names, [GeneralName::DNSName(VM)]);
    });
}

#[test]
fn the_client_is_a_leaf_and_its_own_anchor() {
    let dir = TempDir::new().expect("dir");
    let pki = open(dir.path());
    let client = pki.client(VM).expect("TLS");
    with_cert(&client.client_cert_pem, |cert| {
        common_shape(cert, "cloud-api-adaptor", 30 * DAY, 730 * DAY);
        assert!(!cert.basic_constraints().expect("parse").expect("there").value.ca);
        let usage = cert.extended_key_usage().expect("parse").expect("there").value;
        assert!(usage.client_auth && !usage.server_auth);
        assert_eq!(cert.issuer(), cert.subject());
        cert.verify_signature(None).expect("self-signed");
    });
    let issued = pki.issue(VM, SystemTime::now()).expect("issue");
    assert_eq!(issued.client_ca_pem, client.client_cert_pem);
}

#[test]
fn serial_numbers_are_random_and_of_128_bits() {
    let dir = TempDir::new().expect("dir");
    let pki = open(dir.path());
    let serials: BTreeSet<Vec<u8>> = (0..16)
        .map(|_| pki.issue(VM, SystemTime::now()).expect("issue"))
        .map(|i| with_cert(&i.server_cert_pem, |c| c.raw_serial().to_vec()))
        .collect();
    assert_eq!(serials.len(), 16);
    assert!(serials.iter().all(|s| s.len() <= 17), "{serials:?}");
    assert!(serials.iter().filter(|s| s.len() >= 16).count() >= 12, "{serials:?}");
}

#[tokio::test]
async fn both_sides_accept_each_other_and_nobody_else() {
    let dir = TempDir::new().expect("dir");
    let pki = open(dir.path());
    let issued = pki.issue(VM, SystemTime::now()).expect("issue");
    let client = pki.client(VM).expect("TLS");
    shake(&client, &server(&issued)).await.expect("both are ours");

    let other = pki.client("podvm-web-89abcdef").expect("TLS");
    shake(&other, &server(&issued)).await.expect_err("a VM with another pod's certificate");

    let stranger_dir = TempDir::new().expect("dir");
    let stranger = open(stranger_dir.path()).client(VM).expect("TLS");
    let blind = ClientTls { ca_pem: client.ca_pem.clone(), ..stranger.clone() };
    shake(&blind, &server(&issued)).await.expect_err("the VM knows only our client");
    shake(&stranger, &server(&issued)).await.expect_err("a stranger does not know our CA");

    let nobody = ClientTls {
        client_cert_pem: String::new(),
        client_key_pem: Secret::default(),
        ..client.clone()
    };
    shake(&nobody, &server(&issued)).await.expect_err("without a certificate");
}

#[tokio::test]
async fn versions_and_suites_go_to_the_worker() {
    let dir = TempDir::new().expect("dir");
    let profile = Profile { min_version: "VersionTLS13".into(), cipher_suites: Vec::new() };
    let pki = open(dir.path()).with_profile(profile.clone());
    let client = pki.client(VM).expect("TLS");
    assert_eq!(client.profile, profile);
    shake(&client, &server(&pki.issue(VM, SystemTime::now()).expect("issue"))).await.expect("1.3");
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let dir = TempDir::new().expect("dir");
    let first = open(dir.path());
    let issued = first.issue(VM, SystemTime::now()).expect("issue");
    let again = open(dir.path());
    assert_eq!(again.client(VM), first.client(VM));
    shake(&again.client(VM).expect("TLS"), &server(&issued)).await.expect("the VM goes on");
}

#[tokio::test]
async fn what_nears_its_end_is_replaced_in_time_and_running_vms_go_on() {
    let dir = TempDir::new().expect("dir");
    let long_ago = SystemTime::now() - 720 * DAY;
    let old = Pki::open(dir.path(), &automatic(), long_ago).expect("open");
    let issued = old.issue(VM, SystemTime::now() - 300 * DAY).expect("issue");
    let new = open(dir.path());
    let (before, after) = (old.client(VM).expect("TLS"), new.client(VM).expect("TLS"));
    assert_ne!(before.ca_pem, after.ca_pem, "the CA had ten days left");
    assert_ne!(before.client_cert_pem, after.client_cert_pem, "the client had ten days left");
    shake(&after, &server(&issued)).await.expect("a VM of before the renewal");
    let fresh = new.issue("podvm-new-1", SystemTime::now()).expect("issue");
    with_cert(&fresh.server_cert_pem, |c| {
        common_shape(c, "agent-protocol-forwarder", MINUTES, 365 * DAY)
    });
}

#[tokio::test]
async fn another_ca_can_be_put_first_while_the_older_one_is_still_believed() {
    let (dir, other) = (TempDir::new().expect("dir"), TempDir::new().expect("dir"));
    let before = open(dir.path()).issue(VM, SystemTime::now()).expect("issue");
    open(other.path());
    let new = fs::read_to_string(other.path().join("ca.pem")).expect("read");
    let old = fs::read_to_string(dir.path().join("ca.pem")).expect("read");
    fs::write(dir.path().join("ca.pem"), new + &old).expect("write");
    fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).expect("copy");
    let pki = open(dir.path());
    let after = pki.issue(VM, SystemTime::now()).expect("issue");
    let client = pki.client(VM).expect("TLS");
    shake(&client, &server(&before)).await.expect("issued by the older CA");
    shake(&client, &server(&after)).await.expect("issued by the newer CA");
    let later = Pki::open(dir.path(), &automatic(), SystemTime::now() + 400 * DAY).expect("open");
    let renewed = later.client(VM).expect("TLS").ca_pem;
    assert_ne!(renewed, client.ca_pem, "a third one issues");
    assert!(renewed.ends_with(&old), "the older ones are still believed");
    let only_old = ClientTls { ca_pem: old, ..client };
    shake(&only_old, &server(&after)).await.expect_err("the newer CA issues");
}

#[test]
fn a_servers_certificate_never_outlives_the_ca() {
    let dir = TempDir::new().expect("dir");
    let start = SystemTime::now();
    let pki = Pki::open(dir.path(), &automatic(), start).expect("open");
    let end = |pem: &str| with_cert(pem, |c| c.validity().not_after.timestamp());
    let ca = end(&pki.client(VM).expect("TLS").ca_pem);
    let late = pki.issue(VM, start + 700 * DAY).expect("issue");
    assert_eq!(end(&late.server_cert_pem), ca);
    assert!(matches!(pki.issue(VM, start + 731 * DAY), Err(PkiError::Expired { .. })));
}

#[test]
fn names_that_are_no_dns_names_are_refused() {
    let dir = TempDir::new().expect("dir");
    let pki = open(dir.path());
    for name in ["", "a b", "ä", "a\0b", "-", &"x".repeat(64)] {
        let refused = pki.issue(name, SystemTime::now());
        assert!(matches!(refused, Err(PkiError::ServerName(_))), "{name:?}: {refused:?}");
    }
}

#[test]
fn files_are_for_their_owner_alone() {
    let dir = TempDir::new().expect("dir");
    let pki_dir = dir.path().join("pki");
    open(&pki_dir);
    let mode = |path: &Path| fs::metadata(path).expect("stat").permissions().mode() & 0o7777;
    assert_eq!(mode(&pki_dir), 0o700);
    let mut names = Vec::new();
    for entry in fs::read_dir(&pki_dir).expect("list") {
        let path = entry.expect("entry").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        names.push(path.file_name().expect("name").to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(names, ["ca.key", "ca.pem", "client.key", "client.pem"]);
    fs::set_permissions(&pki_dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    open(&pki_dir);
    assert_eq!(mode(&pki_dir), 0o700, "closed again");
}

#[test]
fn a_key_without_its_certificate_is_a_crash_between_two_writes() {
    let dir = TempDir::new().expect("dir");
    open(dir.path());
    let key = fs::read(dir.path().join("ca.key")).expect("read");
    fs::remove_file(dir.path().join("ca.pem")).expect("remove");
    fs::write(dir.path().join("ca.pem.new"), "half a certif").expect("write");
    open(dir.path());
    assert_eq!(fs::read(dir.path().join("ca.key")).expect("read"), key);
    assert!(dir.path().join("ca.pem").exists() && !dir.path().join("ca.pem.new").exists());
}

#[test]
fn damaged_files_are_named_and_left_alone() {
    type Damage = fn(&Path);
    let truncate: Damage = |path| {
        let text = fs::read_to_string(path).expect("read");
        fs::write(path, &text[..text.len() / 2]).expect("write");
    };
    let empty: Damage = |path| fs::write(path, "").expect("write");
    let binary: Damage = |path| fs::write(path, [0xff, 0xfe, 0]).expect("write");
    let open_to_all: Damage = |path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("chmod");
    };
    let link: Damage = |path| {
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).expect("rename");
        symlink(&aside, path).expect("link");
    };
    let directory: Damage = |path| {
        fs::remove_file(path).expect("remove");
        fs::create_dir(path).expect("mkdir");
    };
    let huge: Damage = |path| fs::write(path, "x".repeat(300 << 10)).expect("write");
    let damages = [truncate, empty, binary, open_to_all, link, directory, huge];
    for name in ["ca.pem", "ca.key", "client.pem", "client.key"] {
        for (number, damage) in damages.iter().enumerate() {
            let dir = TempDir::new().expect("dir");
            open(dir.path());
            let path = dir.path().join(name);
            damage(&path);
            let before = fs::read(&path).ok();
            let error = Pki::open(dir.path(), &automatic(), SystemTime::now());
            let error = error.expect_err("damaged").to_string();
            assert!(error.contains(name), "{name}, damage {number}: {error}");
            assert_eq!(fs::read(&path).ok(), before, "{name}, damage {number}");
        }
    }
}

#[test]
fn a_lost_key_and_a_swapped_certificate_are_named() {
    let dir = TempDir::new().expect("dir");
    open(dir.path());
    fs::copy(dir.path().join("client.pem"), dir.path().join("ca.pem")).expect("copy");
    let error = Pki::open(dir.path(), &automatic(), SystemTime::now()).expect_err("swapped");
    assert!(error.to_string().contains("ca.pem: it does not belong"), "{error}");
    fs::remove_file(dir.path().join("ca.key")).expect("remove");
    let error = Pki::open(dir.path(), &automatic(), SystemTime::now()).expect_err("lost");
    assert!(error.to_string().contains("ca.key"), "{error}");
}

#[test]
fn a_directory_that_is_a_link_or_a_file_is_refused() {
    let dir = TempDir::new().expect("dir");
    let (real, link, file) =
        (dir.path().join("real"), dir.path().join("link"), dir.path().join("file"));
    fs::create_dir(&real).expect("mkdir");
    symlink(&real, &link).expect("link");
    fs::write(&file, "").expect("write");
    for path in [link, file] {
        let error = Pki::open(&path, &automatic(), SystemTime::now()).expect_err("refused");
        assert!(matches!(error, PkiError::File { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(&real).expect("list").count(), 0);
}

#[test]
fn nothing_that_prints_shows_a_key() {
    let dir = TempDir::new().expect("dir");
    let pki = open(dir.path());
    let issued = pki.issue(VM, SystemTime::now()).expect("issue");
    let printed = format!("{pki:?} {issued:?} {:?}", pki.client(VM));
    assert!(!printed.contains("PRIVATE KEY"), "{printed}");
}

#[test]
fn disabled_tls_makes_no_files_and_sends_nothing() {
    let dir = TempDir::new().expect("dir");
    let pki_dir = dir.path().join("pki");
    let pki = Pki::open(&pki_dir, &TlsSource::Disabled, SystemTime::now()).expect("open");
    let issued = pki.issue(VM, SystemTime::now()).expect("issue");
    assert_eq!(issued, Issued { server_name: VM.into(), ..Issued::default() });
    assert_eq!(pki.client(VM), None);
    assert!(!pki_dir.exists());
}

#[tokio::test]
async fn skip_verify_accepts_any_vm_but_the_vm_accepts_only_us() {
    let (dir, other) = (TempDir::new().expect("dir"), TempDir::new().expect("dir"));
    let source = TlsSource::SkipVerify { client: None };
    let pki = Pki::open(dir.path(), &source, SystemTime::now()).expect("open");
    let client = pki.client(VM).expect("TLS");
    let issued = pki.issue(VM, SystemTime::now()).expect("issue");
    shake(&client, &server(&issued)).await.expect("its own certificate");
    let foreign = open(other.path()).issue("podvm-x-1", SystemTime::now()).expect("issue");
    let foreign = Issued { client_ca_pem: issued.client_ca_pem.clone(), ..foreign };
    shake(&client, &server(&foreign)).await.expect("any certificate");
    let stranger = open(other.path()).client(VM).expect("TLS");
    let stranger = ClientTls { ca_pem: client.ca_pem.clone(), skip_verify: true, ..stranger };
    shake(&stranger, &server(&issued)).await.expect_err("a strange client");
}

/// A CA as a user has it, and files made with it.
struct Users {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
}

impl Users {
    fn new() -> Self {
        let dir = TempDir::new().expect("dir");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Users' CA");
        let key = KeyPair::generate().expect("key");
        let ca_pem = params.self_signed(&key).expect("sign").pem();
        fs::write(dir.path().join("ca.crt"), &ca_pem).expect("write");
        Self { dir, issuer: Issuer::new(params, key), ca_pem }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn leaf(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("params");
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.signed_by(&key, &self.issuer).expect("sign").pem();
        (cert, key.serialize_pem())
    }

    fn client_files(&self) -> ClientFiles {
        let (cert, key) = self.leaf("worker");
        let files = ClientFiles { cert: self.path("client.crt"), key: self.path("client.key") };
        fs::write(&files.cert, cert).expect("write");
        fs::write(&files.key, key).expect("write");
        files
    }

    /// A VM of an image with certificates of its own.
    fn vm(&self, client_ca_pem: &str) -> ServerTls {
        let (cert_pem, key) = self.leaf("podvm-server");
        ServerTls {
            cert_pem,
            key_pem: Secret::new(key),
            client_ca_pem: client_ca_pem.to_owned(),
            profile: Profile::default(),
        }
    }
}

#[tokio::test]
async fn with_a_users_ca_the_vm_brings_its_certificate_and_still_asks_for_ours() {
    let (dir, users) = (TempDir::new().expect("dir"), Users::new());
    let source = TlsSource::Files { ca: users.path("ca.crt"), client: None };
    let pki = Pki::open(dir.path(), &source, SystemTime::now()).expect("open");
    let issued = pki.issue(VM, SystemTime::now()).expect("issue");
    let client = pki.client(VM).expect("TLS");
    assert_eq!(
        (issued.server_name.as_str(), issued.server_cert_pem.as_str()),
        ("podvm-server", "")
    );
    assert_eq!(client.server_name, "podvm-server");
    assert_eq!(issued.client_ca_pem, client.client_cert_pem, "upstream sends none: anybody may in");
    shake(&client, &users.vm(&issued.client_ca_pem)).await.expect("the user's VM");
    assert!(!dir.path().join("ca.key").exists(), "no CA of ours is needed");
    let strange = Users::new().vm(&issued.client_ca_pem);
    shake(&client, &strange).await.expect_err("a VM of another CA");
}

#[tokio::test]
async fn with_a_users_ca_and_client_the_vm_is_told_who_issued_the_client() {
    let (dir, users) = (TempDir::new().expect("dir"), Users::new());
    let client = Some(users.client_files());
    let source = TlsSource::Files { ca: users.path("ca.crt"), client };
    let pki = Pki::open(dir.path(), &source, SystemTime::now()).expect("open");
    let issued = pki.issue(VM, SystemTime::now()).expect("issue");
    assert!(issued.client_ca_pem.contains(&users.ca_pem));
    let vm = users.vm(&issued.client_ca_pem);
    shake(&pki.client(VM).expect("TLS"), &vm).await.expect("the user's client");
}

#[tokio::test]
async fn a_users_client_works_with_certificates_of_ours() {
    let (dir, users) = (TempDir::new().expect("dir"), Users::new());
    let files = users.client_files();
    let leaf = fs::read_to_string(&files.cert).expect("read");
    fs::write(&files.cert, leaf + &users.ca_pem).expect("write");
    let source = TlsSource::Automatic { client: Some(files) };
    let pki = Pki::open(dir.path(), &source, SystemTime::now()).expect("open");
    let issued = pki.issue(VM, SystemTime::now()).expect("issue");
    shake(&pki.client(VM).expect("TLS"), &server(&issued)).await.expect("a file with its issuer");
    assert!(!dir.path().join("client.key").exists(), "no client of ours is needed");
}

#[test]
fn a_users_files_that_cannot_be_used_are_named() {
    let (dir, users) = (TempDir::new().expect("dir"), Users::new());
    let files = users.client_files();
    let refuse = |source: &TlsSource| {
        let error = Pki::open(dir.path(), source, SystemTime::now()).expect_err("refused");
        error.to_string()
    };
    let missing = TlsSource::Files { ca: users.path("nowhere.crt"), client: None };
    assert!(refuse(&missing).contains("nowhere.crt"));
    let no_ca = TlsSource::Files { ca: users.path("client.key"), client: None };
    assert!(refuse(&no_ca).contains("client.key"));

    let with = |cert: &Path, key: &Path| TlsSource::Automatic {
        client: Some(ClientFiles { cert: cert.to_owned(), key: key.to_owned() }),
    };
    assert!(refuse(&with(&files.key, &files.key)).contains("client.key"));
    assert!(refuse(&with(&files.cert, &users.path("ca.crt"))).contains("ca.crt"));
    let other = users.path("other.key");
    fs::write(&other, KeyPair::generate().expect("key").serialize_pem()).expect("write");
    assert!(refuse(&with(&files.cert, &other)).contains("client.crt"), "another's key");
    let later = SystemTime::now() + 800_000 * DAY;
    let source = with(&files.cert, &files.key);
    let error = Pki::open(dir.path(), &source, later).expect_err("expired");
    assert!(matches!(error, PkiError::Expired { .. }), "{error}");
}

#[test]
fn a_users_files_may_be_links_as_kubernetes_mounts_them() {
    let (dir, users) = (TempDir::new().expect("dir"), Users::new());
    symlink(users.path("ca.crt"), users.path("link.crt")).expect("link");
    let source = TlsSource::Files { ca: users.path("link.crt"), client: None };
    Pki::open(dir.path(), &source, SystemTime::now()).expect("open");
}
