//! Certificates in the shapes of existing daemons and images.

use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::tls::ClientTls;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

pub(crate) const SERVER_NAME: &str = "podvm-nginx-0123abcd";

/// One pod's: a CA, the VM's certificate, and what the worker presents.
pub(crate) struct Certs {
    pub(crate) ca: String,
    pub(crate) server_cert: String,
    pub(crate) server_key: String,
    pub(crate) client_cert: String,
    pub(crate) client_key: String,
}

fn params(names: &[&str], organization: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params
}

/// The worker's certificate and key: a leaf that signs itself.
pub(crate) fn client(expired: bool) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = params(&[], "cloud-api-adaptor", ExtendedKeyUsagePurpose::ClientAuth);
    params.is_ca = IsCa::ExplicitNoCa;
    if expired {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 2);
    }
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

impl Certs {
    pub(crate) fn new() -> Self {
        Self::with_client(client(false))
    }

    pub(crate) fn with_client((client_cert, client_key): (String, String)) -> Self {
        let server = ExtendedKeyUsagePurpose::ServerAuth;
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = params(&[], "agent-protocol-forwarder", server.clone());
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let leaf = params(&[SERVER_NAME], "agent-protocol-forwarder", server);
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        Self {
            ca: ca_pem,
            server_cert: leaf.pem(),
            server_key: key.serialize_pem(),
            client_cert,
            client_key,
        }
    }

    /// The worker's side.
    pub(crate) fn client(&self) -> ClientTls {
        ClientTls {
            server_name: SERVER_NAME.to_owned(),
            ca_pem: self.ca.clone(),
            client_cert_pem: self.client_cert.clone(),
            client_key_pem: Secret::new(self.client_key.clone()),
            ..ClientTls::default()
        }
    }
}
