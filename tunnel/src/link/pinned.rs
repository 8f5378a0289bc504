//! A client that is known by its very key. The VM is told at boot whom to serve; a certificate with that
//! key is this client's whatever the clock says, the worker's or the VM's, which may be wrong at boot.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

/// Checks as another verifier does, except that time does not count for keys that are anchors.
#[derive(Debug)]
pub(super) struct Pinned {
    inner: Arc<dyn ClientCertVerifier>,
    anchors: Arc<RootCertStore>,
}

impl Pinned {
    pub(super) fn new(inner: Arc<dyn ClientCertVerifier>, anchors: Arc<RootCertStore>) -> Self {
        Self { inner, anchors }
    }

    /// Whether the key is an anchor's own. An anchor has it without the outermost wrapping.
    fn is_anchor(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok(parsed) = ParsedCertificate::try_from(certificate) else { return false };
        let key = parsed.subject_public_key_info();
        self.anchors.roots.iter().any(|anchor| {
            let own: &[u8] = anchor.subject_public_key_info.as_ref();
            !own.is_empty() && key.as_ref().ends_with(own)
        })
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        use CertificateError::{ExpiredContext, NotValidYetContext};
        let at = |time| self.inner.verify_client_cert(end_entity, intermediates, time);
        match at(now) {
            Err(Error::InvalidCertificate(
                ExpiredContext { not_after: time, .. }
                | NotValidYetContext { not_before: time, .. },
            )) if self.is_anchor(end_entity) => at(time),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
