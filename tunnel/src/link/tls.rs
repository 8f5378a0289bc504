//! TLS on the agent link, in the certificate shapes of existing pod VM images and daemons.
//!
//! ```text
//!   worker (client)                                  VM (server)
//!   verifies: name `podvm-…`, chain to the pod's CA   leaf with that DNS name, issued by the CA
//!   presents: a self-signed leaf ───────────────────▶ anchor = that very leaf
//! ```

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, RootCertStore,
    ServerConfig, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};

use super::Secret;

/// Why a TLS side cannot be set up. Names the setting or the part, never its content.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not one of the two versions that are offered.
    #[error("tls-min-version: {0:?} is not VersionTLS12 or VersionTLS13")]
    Version(String),
    /// Suites and 1.3 exclude each other: 1.3 has no suites to choose.
    #[error("tls-cipher-suites: cannot be given together with VersionTLS13")]
    SuitesWith13,
    /// A suite that is unknown or not safe enough to be built in.
    #[error("tls-cipher-suites: {0:?} is not a suite this build has; it has {1}")]
    Suite(String, String),
    /// A certificate or key that does not parse.
    #[error("{what}: not a PEM {kind}: {reason}")]
    Pem {
        /// Which part.
        what: &'static str,
        /// What it should be.
        kind: &'static str,
        /// The parser's words.
        reason: String,
    },
    /// Skipping the check and having something to check against.
    #[error("tls-skip-verify: cannot be combined with a CA certificate")]
    SkipWithCa,
    /// Nothing to check the VM's certificate against.
    #[error("no CA certificate to verify the VM with")]
    NoCa,
    /// Half of a pair.
    #[error("client certificate and key must be given together")]
    HalfPair,
    /// The name the VM's certificate must carry is no DNS name.
    #[error("server name {0:?} is not a DNS name")]
    ServerName(String),
    /// rustls refuses the combination.
    #[error("TLS set-up: {0}")]
    Rustls(#[from] rustls::Error),
    /// The verifier cannot be built.
    #[error("TLS verifier: {0}")]
    Verifier(String),
}

/// Lowest version and allowed suites; copied into the VM's configuration as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Empty (1.2), `VersionTLS12` or `VersionTLS13`.
    #[serde(default)]
    pub min_version: String,
    /// IANA names; empty is the library's safe choice.
    #[serde(default)]
    pub cipher_suites: Vec<String>,
}

impl Profile {
    /// Checks both values.
    ///
    /// # Errors
    /// Names the setting and the value that cannot be used.
    pub fn check(&self) -> Result<(), TlsError> {
        self.provider().map(drop)?;
        self.versions().map(drop)
    }

    fn versions(&self) -> Result<&'static [&'static SupportedProtocolVersion], TlsError> {
        const ONLY_13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
        match self.min_version.as_str() {
            "" | "VersionTLS12" => Ok(rustls::ALL_VERSIONS),
            "VersionTLS13" if !self.cipher_suites.is_empty() => Err(TlsError::SuitesWith13),
            "VersionTLS13" => Ok(ONLY_13),
            other => Err(TlsError::Version(other.to_owned())),
        }
    }

    fn provider(&self) -> Result<Arc<CryptoProvider>, TlsError> {
        let mut provider = ring::default_provider();
        if self.cipher_suites.is_empty() {
            return Ok(Arc::new(provider));
        }
        // As in Go's TLS, a list of suites speaks of 1.2 only; those of 1.3 stay.
        let mut chosen: Vec<SupportedCipherSuite> =
            provider.cipher_suites.iter().filter(|s| s.tls13().is_some()).copied().collect();
        for name in &self.cipher_suites {
            let found = provider.cipher_suites.iter().find(|s| iana_name(s.suite()) == *name);
            let Some(found) = found else {
                let known: Vec<_> =
                    provider.cipher_suites.iter().map(|s| iana_name(s.suite())).collect();
                return Err(TlsError::Suite(name.clone(), known.join(", ")));
            };
            if found.tls13().is_none() {
                chosen.push(*found);
            }
        }
        provider.cipher_suites = chosen;
        Ok(Arc::new(provider))
    }
}

/// rustls writes `TLS13_AES_…`, IANA `TLS_AES_…`.
fn iana_name(suite: CipherSuite) -> String {
    suite.as_str().unwrap_or_default().replace("TLS13_", "TLS_")
}

/// The worker's side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientTls {
    /// Name the VM's certificate must carry: `podvm-…`, or `podvm-server` with a CA of the user's.
    pub server_name: String,
    /// Anchors, PEM.
    pub ca_pem: String,
    /// What the worker presents, PEM; empty presents nothing.
    pub client_cert_pem: String,
    /// Its key, PEM.
    pub client_key_pem: Secret,
    /// Versions and suites.
    #[serde(default)]
    pub profile: Profile,
    /// Accept any certificate.
    #[serde(default)]
    pub skip_verify: bool,
    /// The certificate was made for this one VM and is never renewed, so its time does not count: a pod
    /// that lives long, or a clock that was wrong for a while, must not end it.
    #[serde(default)]
    pub any_time: bool,
}

impl ClientTls {
    /// Makes what rustls needs.
    ///
    /// # Errors
    /// Names the part that cannot be used.
    pub fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        self.config_offering(&[])
    }

    /// The same, offering protocols by ALPN. A server that knows nothing of ALPN chooses none.
    ///
    /// # Errors
    /// Names the part that cannot be used.
    pub fn config_offering(&self, protocols: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
        let versions = self.profile.versions()?;
        let provider = self.profile.provider()?;
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(&provider)?);
        let mut config = match (self.client_cert_pem.is_empty(), self.client_key_pem.is_empty()) {
            (true, true) => builder.with_no_client_auth(),
            (false, false) => builder.with_client_auth_cert(
                certificates("client certificate", &self.client_cert_pem)?,
                key("client key", &self.client_key_pem)?,
            )?,
            _ => return Err(TlsError::HalfPair),
        };
        // One connection a pod and process: tickets would only hold memory.
        config.resumption = rustls::client::Resumption::disabled();
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// The name to hand to the connector.
    ///
    /// # Errors
    /// When it is no DNS name.
    pub fn name(&self) -> Result<ServerName<'static>, TlsError> {
        ServerName::try_from(self.server_name.clone())
            .map_err(|_| TlsError::ServerName(self.server_name.clone()))
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<Verifier>, TlsError> {
        let chain = match (self.skip_verify, self.ca_pem.is_empty()) {
            (true, false) => return Err(TlsError::SkipWithCa),
            (true, true) => None,
            (false, true) => return Err(TlsError::NoCa),
            (false, false) => {
                let roots = Arc::new(anchors("CA certificate", &self.ca_pem)?);
                let chain = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
                Some(chain.build().map_err(|e| TlsError::Verifier(e.to_string()))?)
            }
        };
        let algorithms = provider.signature_verification_algorithms;
        Ok(Arc::new(Verifier { algorithms, chain, any_time: self.any_time }))
    }
}

/// The VM's side.
#[derive(Clone, Debug, Default)]
pub struct ServerTls {
    /// The VM's certificate, PEM.
    pub cert_pem: String,
    /// Its key, PEM.
    pub key_pem: Secret,
    /// The worker's own leaf, or a CA, PEM; empty asks for no client certificate.
    pub client_ca_pem: String,
    /// Versions and suites.
    pub profile: Profile,
}

impl ServerTls {
    /// Makes what rustls needs.
    ///
    /// # Errors
    /// Names the part that cannot be used.
    pub fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        self.config_offering(&[])
    }

    /// The same, choosing one of these protocols by ALPN if the client offers it. A client that
    /// offers none is served as ever.
    ///
    /// # Errors
    /// Names the part that cannot be used.
    pub fn config_offering(&self, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = self.profile.provider()?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(self.profile.versions()?)?;
        let builder = if self.client_ca_pem.is_empty() {
            builder.with_no_client_auth()
        } else {
            let roots = Arc::new(anchors("tls-client-ca", &self.client_ca_pem)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            builder.with_client_cert_verifier(
                verifier.build().map_err(|e| TlsError::Verifier(e.to_string()))?,
            )
        };
        let mut config = builder.with_single_cert(
            certificates("tls-server-cert", &self.cert_pem)?,
            key("tls-server-key", &self.key_pem)?,
        )?;
        config.send_tls13_tickets = 0;
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

/// Makes ring the process's one rustls backend. First line of every main.
pub fn install_ring() {
    // An error only says that somebody did it before.
    let _ = ring::default_provider().install_default();
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |reason: String| TlsError::Pem { what, kind: "certificate", reason };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if all.is_empty() => Err(bad("it holds no certificate".to_owned())),
        Ok(all) => Ok(all),
        Err(e) => Err(bad(e.to_string())),
    }
}

fn key(what: &'static str, pem: &Secret) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).map_err(|e| TlsError::Pem {
        what,
        kind: "private key",
        reason: e.to_string(),
    })
}

fn anchors(what: &'static str, pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, pem)? {
        roots.add(certificate).map_err(|e| TlsError::Pem {
            what,
            kind: "certificate",
            reason: e.to_string(),
        })?;
    }
    Ok(roots)
}

/// How the VM's certificate is looked at. Whatever of it counts, the handshake must be signed by the key
/// of the certificate shown.
#[derive(Debug)]
struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    /// Checks chain, name and time; `None` accepts any certificate.
    chain: Option<Arc<WebPkiServerVerifier>>,
    any_time: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{ExpiredContext, NotValidYetContext};
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        let at = |time| chain.verify_server_cert(end_entity, intermediates, name, ocsp, time);
        match at(now) {
            Err(rustls::Error::InvalidCertificate(ExpiredContext { not_after, .. }))
                if self.any_time =>
            {
                at(not_after)
            }
            Err(rustls::Error::InvalidCertificate(NotValidYetContext { not_before, .. }))
                if self.any_time =>
            {
                at(not_before)
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
