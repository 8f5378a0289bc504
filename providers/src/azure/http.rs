//! The one HTTP client of this provider: for ARM, and for the vendor's crate that fetches tokens. Its own
//! client would bring a second TLS backend; this one has the daemon's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use azure_core::error::ErrorKind;
use azure_core::http::headers::{HeaderName, HeaderValue, Headers};
use azure_core::http::request::Body;
use azure_core::http::{AsyncRawResponse, HttpClient, Method, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

const CONNECT: Duration = Duration::from_secs(10);
/// From the first byte sent to the last byte read; ARM itself gives up after 60 s.
const EXCHANGE: Duration = Duration::from_secs(70);
/// The catalogue of a large region has some 20 MB.
const LARGEST: usize = 128 << 20;

/// An answer with its whole body.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: hyper::HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// There was no answer, or none worth the name. The effect is unknown.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("no answer within {} s", EXCHANGE.as_secs())]
    Late,
    #[error("the connection failed")]
    Connection(#[from] hyper_util::client::legacy::Error),
    #[error("the connection broke in the middle of the answer: {0}")]
    Body(String),
    #[error("the server that gives tokens answers {0}")]
    Server(u16),
    #[error("a request that cannot be sent: {0}")]
    Request(String),
}

/// Connections to wherever Azure is.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// `host:port` of a double that gives tokens over plain HTTP; the vendor's crate knows https alone.
    plain: Option<Arc<str>>,
}

impl Http {
    /// Contacts nothing. Without root certificates on this machine every https exchange fails.
    pub(super) fn new(authority: &str) -> Self {
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
        Self { client, plain: authority.strip_prefix("http://").map(Arc::from) }
    }

    /// One exchange, never repeated.
    pub(super) async fn send(
        &self,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<Answer, NoAnswer> {
        let exchange = async {
            let (head, body) = self.client.request(request).await?.into_parts();
            let body = Limited::new(body, LARGEST).collect().await;
            let body = body.map_err(|e| NoAnswer::Body(e.to_string()))?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        tokio::time::timeout(EXCHANGE, exchange).await.map_err(|_| NoAnswer::Late)?
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

fn method(method: Method) -> hyper::Method {
    match method {
        Method::Delete => hyper::Method::DELETE,
        Method::Head => hyper::Method::HEAD,
        Method::Patch => hyper::Method::PATCH,
        Method::Post => hyper::Method::POST,
        Method::Put => hyper::Method::PUT,
        _ => hyper::Method::GET,
    }
}

impl Http {
    fn translate(&self, from: &Request) -> Result<hyper::Request<Full<Bytes>>, NoAnswer> {
        let mut url = from.url().clone();
        let host = url.host_str().unwrap_or_default();
        let at = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        if self.plain.as_deref() == Some(at.as_str()) {
            // Only ever an address of this machine: the settings refuse any other.
            url = url.as_str().replacen("https://", "http://", 1).parse().unwrap_or(url);
        }
        let mut to = hyper::Request::builder().method(method(from.method())).uri(url.as_str());
        for (name, value) in from.headers().iter() {
            to = to.header(name.as_str(), value.as_str());
        }
        let body = match from.body() {
            Body::Bytes(bytes) => bytes.clone(),
            _ => return Err(NoAnswer::Request("a token is asked for in a stream".to_owned())),
        };
        to.body(Full::new(body)).map_err(|e| NoAnswer::Request(e.to_string()))
    }
}

#[async_trait::async_trait]
impl HttpClient for Http {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let failed = |e: NoAnswer| azure_core::Error::with_error(ErrorKind::Io, e, "no token");
        let request = self.translate(request).map_err(failed)?;
        let answer = self.send(request).await.map_err(failed)?;
        if answer.status == 429 || answer.status >= 500 {
            // Otherwise this would look like credentials that are refused.
            return Err(failed(NoAnswer::Server(answer.status)));
        }
        let headers: HashMap<HeaderName, HeaderValue> = answer
            .headers
            .iter()
            .filter_map(|(name, value)| {
                let (name, value) = (name.as_str().to_owned(), value.to_str().ok()?.to_owned());
                Some((HeaderName::from(name), HeaderValue::from(value)))
            })
            .collect();
        let headers = Headers::from(headers);
        Ok(AsyncRawResponse::from_bytes(answer.status.into(), headers, answer.body))
    }
}
