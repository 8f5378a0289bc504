//! The one HTTP client of the clouds that are spoken to without their own: over TLS with the daemon's ring
//! and this machine's root certificates. The vendors' clients would bring a second TLS backend, and repeat
//! or drop what must be seen.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

const CONNECT: Duration = Duration::from_secs(10);
/// The catalogue of a large region of Azure has some 20 MB.
const LARGEST: usize = 128 << 20;

/// An answer with its whole body.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// `Retry-After` in seconds; no cloud gives a date.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let seconds: f64 = self.header("retry-after")?.trim().parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// There was no answer. The effect is unknown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("the connection failed")]
    Connection(#[from] hyper_util::client::legacy::Error),
    #[error("the connection broke in the middle of the answer: {0}")]
    Body(String),
}

/// Connections to wherever a cloud is.
#[derive(Clone, Debug)]
pub(crate) struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Http {
    /// Contacts nothing. Without root certificates on this machine every https exchange fails.
    pub(crate) fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.enforce_http(false);
        let provider = rustls::crypto::ring::default_provider();
        let builder = HttpsConnectorBuilder::new();
        let builder = match builder.with_provider_and_native_roots(provider) {
            Ok(builder) => builder,
            Err(e) => {
                tracing::warn!("no root certificates, so nothing can be asked over https: {e}");
                HttpsConnectorBuilder::new().with_tls_config(rootless())
            }
        };
        let connector = builder.https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(60))
            // What was sent and not answered is for the caller to resolve.
            .retry_canceled_requests(false)
            .build(connector);
        Self(client)
    }

    /// One exchange, never repeated; `within` is from the first byte sent to the last byte read.
    pub(crate) async fn send(
        &self,
        request: hyper::Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Answer, NoAnswer> {
        let exchange = async {
            let (head, body) = self.0.request(request).await?.into_parts();
            let body = Limited::new(body, LARGEST).collect().await;
            let body = body.map_err(|e| NoAnswer::Body(e.to_string()))?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        tokio::time::timeout(within, exchange).await.map_err(|_| NoAnswer::Late(within))?
    }
}

fn rootless() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = rustls::RootCertStore::empty();
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|b| b.with_root_certificates(roots).with_no_client_auth())
        .expect("ring has the versions that rustls has")
}

/// A URL without path; `http` for this machine alone, where doubles are.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn endpoint(text: &str) -> Result<String, &'static str> {
    let bad = "is not a URL of a server such as https://example.com";
    let url: hyper::Uri = text.trim_end_matches('/').parse().map_err(|_| bad)?;
    let host = url.host().ok_or(bad)?.trim_matches(['[', ']']);
    if !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err(bad);
    }
    let loopback = host.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback());
    match url.scheme_str() {
        Some("https") => Ok(text.trim_end_matches('/').to_owned()),
        Some("http") if loopback => Ok(text.trim_end_matches('/').to_owned()),
        Some("http") => Err("is plain http, which only an address of this machine may be"),
        _ => Err(bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_whole_url_and_plain_http_stays_on_this_machine() {
        assert_eq!(
            endpoint("https://management.azure.cn/"),
            Ok("https://management.azure.cn".into())
        );
        assert_eq!(endpoint("http://[::1]:8080"), Ok("http://[::1]:8080".into()));
        for bad in [
            "management.azure.com",
            "https://",
            "https://x/y",
            "https://x?y",
            "http://10.0.0.1",
            "http://localhost",
            "x",
            "",
            "ftp://127.0.0.1",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }
}
