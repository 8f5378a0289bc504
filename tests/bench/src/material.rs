//! Certificates for our side, in the shapes of the agent link: a CA that issues the VM's, and a
//! self-signed leaf of the worker's.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::tls::{ClientTls, ServerTls};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer};
use rcgen::{KeyPair, KeyUsagePurpose};
use serde::{Deserialize, Serialize};

use crate::rival::Issued;

const SERVER_NAME: &str = "podvm-bench";

/// Both ends of a link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Material {
    pub(crate) ca: String,
    pub(crate) server_cert: String,
    pub(crate) server_key: String,
    pub(crate) client_cert: String,
    pub(crate) client_key: String,
}

impl Material {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut ca = params("bench CA", &[])?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_cert = ca.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca, ca_key);
        let server_key = KeyPair::generate()?;
        let mut server = params("bench VM", &[SERVER_NAME])?;
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server_cert = server.signed_by(&server_key, &issuer)?;
        let client_key = KeyPair::generate()?;
        let mut client = params("bench client", &[])?;
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let client_cert = client.self_signed(&client_key)?;
        Ok(Self {
            ca: ca_cert.pem(),
            server_cert: server_cert.pem(),
            server_key: server_key.serialize_pem(),
            client_cert: client_cert.pem(),
            client_key: client_key.serialize_pem(),
        })
    }

    pub(crate) fn client(&self) -> ClientTls {
        ClientTls {
            server_name: SERVER_NAME.to_owned(),
            ca_pem: self.ca.clone(),
            client_cert_pem: self.client_cert.clone(),
            client_key_pem: Secret::new(self.client_key.clone()),
            ..ClientTls::default()
        }
    }

    /// What the VM's side needs, as a VM of either daemon gets it.
    pub(crate) fn issued(&self) -> Issued {
        Issued {
            cert: self.server_cert.clone(),
            key: self.server_key.clone(),
            client_ca: self.client_cert.clone(),
        }
    }

    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, serde_json::to_vec(self)?).with_context(|| path.display().to_string())
    }

    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_slice(&text)?)
    }
}

impl Issued {
    /// The VM's side of TLS, whoever issued it.
    pub(crate) fn server(&self) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        self.server_offering(&[])
    }

    /// The same, choosing one of these protocols by ALPN.
    pub(crate) fn server_offering(
        &self,
        protocols: &[&[u8]],
    ) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let tls = ServerTls {
            cert_pem: self.cert.clone(),
            key_pem: Secret::new(self.key.clone()),
            client_ca_pem: self.client_ca.clone(),
            ..ServerTls::default()
        };
        Ok(tls.config_offering(protocols)?)
    }
}

fn params(name: &str, dns: &[&str]) -> anyhow::Result<CertificateParams> {
    let dns: Vec<String> = dns.iter().map(|&n| n.to_owned()).collect();
    let mut params = CertificateParams::new(dns)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
