//! Certificates of the user's own.

use super::*;

/// A CA as a user has it, and files made with it.
pub(super) struct Users {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
}

impl Users {
    pub(super) fn new() -> Self {
        let dir = TempDir::new().expect("dir");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Users' CA");
        let key = KeyPair::generate().expect("key");
        let ca_pem = params.self_signed(&key).expect("sign").pem();
        fs::write(dir.path().join("ca.crt"), &ca_pem).expect("write");
        Self { dir, issuer: Issuer::new(params, key), ca_pem }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
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
