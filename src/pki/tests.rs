//! The shapes of compat.md 11 as another parser sees them, and handshakes in both roles.

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

mod files;
mod rotation;
mod users;

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
