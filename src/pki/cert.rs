//! The shapes of certificates, exactly those of compat.md 11, except that servers' live shorter.

use std::time::SystemTime;

use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::tls::{ClientTls, TlsError};
use rand::Rng;
use rcgen::PublicKeyData;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use x509_parser::pem::Pem;

use super::PkiError;
use sha2::Digest;

const CA_ORGANIZATION: &str = "agent-protocol-forwarder";
const END: &str = "-----END CERTIFICATE-----";
const CLIENT_ORGANIZATION: &str = "cloud-api-adaptor";
/// Clocks of VMs that boot may be behind by that much.
const BACKDATED: Duration = Duration::minutes(5);
/// The client's begins so much before it is made. VMs look at its time: one made by a clock that was ahead
/// would shut us out of all of them, the running ones too, once theirs is right. Nor may it be signed
/// again for that, since upstream's forwarder knows the very certificate.
const CLIENT_BACKDATED: Duration = Duration::days(30);
const LIFE: Duration = Duration::days(2 * 365);
/// A server's certificate lives in the user data of one VM, and is never renewed there.
const SERVER_LIFE: Duration = Duration::days(365);
/// With less than that left, the CA could not give a whole [`SERVER_LIFE`] for long.
const RENEW_CA: Duration = Duration::days(365 + 90);
/// Upstream's forwarder knows the client by the very certificate: renewed late, but in time.
const RENEW_CLIENT: Duration = Duration::days(30);

/// A certificate and its key, PEM.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) cert_pem: String,
    pub(super) key_pem: Secret,
}

impl Pair {
    /// Whether TLS can present it.
    pub(super) fn check(&self) -> Result<(), TlsError> {
        let tls = ClientTls {
            client_cert_pem: self.cert_pem.clone(),
            client_key_pem: self.key_pem.clone(),
            skip_verify: true,
            ..ClientTls::default()
        };
        tls.config().map(drop)
    }
}

/// The two roots that are kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// Issues for the VMs.
    Ca,
    /// The worker's own leaf, its own anchor.
    Client,
}

impl Root {
    fn what(self) -> &'static str {
        match self {
            Root::Ca => "CA certificate",
            Root::Client => "client certificate",
        }
    }

    fn params(self, now: OffsetDateTime) -> CertificateParams {
        match self {
            Root::Ca => {
                let usage = ExtendedKeyUsagePurpose::ServerAuth;
                let mut params = params(CA_ORGANIZATION, usage, now, LIFE);
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params
            }
            Root::Client => {
                let usage = ExtendedKeyUsagePurpose::ClientAuth;
                let mut params = params(CLIENT_ORGANIZATION, usage, now, LIFE);
                params.not_before = now - CLIENT_BACKDATED;
                params
            }
        }
    }

    /// Whether another certificate should take its place.
    pub(super) fn is_due(self, validity: &Validity, now: SystemTime) -> bool {
        let now = OffsetDateTime::from(now);
        match self {
            Root::Ca => validity.end - now < RENEW_CA,
            Root::Client => validity.end - now < RENEW_CLIENT || validity.begin > now,
        }
    }

    /// Signs its certificate with its own key.
    pub(super) fn sign(self, key: &KeyPair, now: SystemTime) -> Result<String, PkiError> {
        let made = self.params(now.into()).self_signed(key);
        Ok(made.map_err(|source| PkiError::Make { what: self.what(), source })?.pem())
    }
}

/// Issues the VMs' certificates.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) validity: Validity,
    /// Of its key; how a record names it.
    pub(super) fingerprint: String,
    anchors_pem: String,
}

impl Authority {
    /// From the PEM of `ca.pem`, whose first certificate belongs to `key`.
    pub(super) fn new(anchors_pem: String, key: KeyPair) -> Result<Self, PkiError> {
        let fails = |source| PkiError::Make { what: "issuer", source };
        let unreadable = |_| fails(rcgen::Error::CouldNotParseCertificate);
        let validity = validity(&anchors_pem).map_err(unreadable)?;
        let fingerprint = fingerprint(&key.subject_public_key_info());
        let issuer = Issuer::from_ca_cert_pem(&anchors_pem, key).map_err(fails)?;
        Ok(Self { issuer, validity, fingerprint, anchors_pem })
    }

    pub(super) fn anchors_pem(&self) -> &str {
        &self.anchors_pem
    }

    /// Key and certificate of the VM of that name.
    pub(super) fn issue(&self, name: &str, now: SystemTime) -> Result<Pair, PkiError> {
        let now = OffsetDateTime::from(now);
        let bad = || PkiError::ServerName(name.to_owned());
        rustls::pki_types::DnsName::try_from(name).map_err(|_| bad())?;
        let san = SanType::DnsName(name.try_into().map_err(|_| bad())?);
        let mut params =
            params(CA_ORGANIZATION, ExtendedKeyUsagePurpose::ServerAuth, now, SERVER_LIFE);
        params.not_after = params.not_after.min(self.validity.end);
        params.subject_alt_names = vec![san];
        params.use_authority_key_identifier_extension = true;
        if params.not_after <= now {
            return Err(PkiError::Expired { path: "ca.pem".into() });
        }
        let fails = |source| PkiError::Make { what: "server certificate", source };
        let key = KeyPair::generate().map_err(fails)?;
        let made = params.signed_by(&key, &self.issuer).map_err(fails)?;
        Ok(Pair { cert_pem: made.pem(), key_pem: super::store::pem(&key) })
    }
}

fn params(
    organization: &str,
    usage: ExtendedKeyUsagePurpose,
    now: OffsetDateTime,
    life: Duration,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.not_before = now - BACKDATED;
    params.not_after = now + life;
    params.serial_number = Some(SerialNumber::from_slice(&rand::rng().random::<[u8; 16]>()));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params
}

/// From when to when a certificate is meant to be used.
pub(super) struct Validity {
    pub(super) begin: OffsetDateTime,
    pub(super) end: OffsetDateTime,
}

/// Of the first certificate of a PEM text.
pub(super) fn validity(pem: &str) -> Result<Validity, String> {
    let first = first(pem)?;
    let parsed = first.parse_x509().map_err(|e| e.to_string())?;
    let found = parsed.validity();
    Ok(Validity { begin: found.not_before.to_datetime(), end: found.not_after.to_datetime() })
}

/// Each certificate of a PEM text with its key's fingerprint, in their order.
pub(super) fn each(pem: &str) -> Result<Vec<(String, String)>, String> {
    let texts = pem.split_inclusive(END).map(str::trim).filter(|text| text.ends_with(END));
    let named = texts.map(|text| {
        let parsed = first(text)?;
        let parsed = parsed.parse_x509().map_err(|e| e.to_string())?;
        Ok((fingerprint(parsed.public_key().raw), format!("{text}\n")))
    });
    named.collect()
}

/// Half of the SHA-256 of a public key.
fn fingerprint(key: &[u8]) -> String {
    sha2::Sha256::digest(key).iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// Whether the first certificate of a PEM text carries that key.
pub(super) fn belongs(pem: &str, key: &KeyPair) -> Result<bool, String> {
    let first = first(pem)?;
    let parsed = first.parse_x509().map_err(|e| e.to_string())?;
    Ok(parsed.public_key().raw == rcgen::PublicKeyData::subject_public_key_info(key))
}

fn first(pem: &str) -> Result<Pem, String> {
    match certificates(pem)?.into_iter().next() {
        Some(first) => Ok(first),
        None => Err("it holds no certificate".to_owned()),
    }
}

fn certificates(pem: &str) -> Result<Vec<Pem>, String> {
    let mut all = Vec::new();
    for part in Pem::iter_from_buffer(pem.as_bytes()) {
        let part = part.map_err(|e| e.to_string())?;
        if part.label == "CERTIFICATE" {
            all.push(part);
        }
    }
    Ok(all)
}

/// Whether TLS can verify with these.
pub(super) fn check_anchors(pem: &str) -> Result<(), TlsError> {
    ClientTls { ca_pem: pem.to_owned(), ..ClientTls::default() }.config().map(drop)
}

/// What a VM must believe to accept a client certificate of the user's: the certificates of its
/// file and, if its issuer is not among them, the user's CA that issued it.
pub(super) fn client_anchors(client_pem: &str, user_ca: Option<&str>) -> String {
    let mut anchors = client_pem.trim_end().to_owned() + "\n";
    let own = certificates(client_pem).unwrap_or_default();
    let Some(leaf) = own.first().and_then(|p| p.parse_x509().ok()) else { return anchors };
    let issued_by = |all: &[Pem]| {
        let mut parsed = all.iter().filter_map(|p| p.parse_x509().ok());
        parsed.any(|c| c.subject() == leaf.issuer())
    };
    if issued_by(&own) {
        return anchors;
    }
    match user_ca {
        Some(ca) if certificates(ca).is_ok_and(|all| issued_by(&all)) => anchors.push_str(ca),
        _ => tracing::warn!(
            "cert-file holds a certificate without its issuer: images of ours will refuse it, \
             append the issuer's certificate to the file"
        ),
    }
    anchors
}
