//! The HTTP client as Azure wants it: for ARM, and for the vendor's crate that fetches tokens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use azure_core::error::ErrorKind;
use azure_core::http::headers::{HeaderName, HeaderValue, Headers};
use azure_core::http::request::Body;
use azure_core::http::{AsyncRawResponse, HttpClient, Method, Request};
use bytes::Bytes;
use http_body_util::Full;

use crate::http::{self, Answer, NoAnswer};

/// ARM itself gives up after 60 s.
const EXCHANGE: Duration = Duration::from_secs(70);

/// Whoever gives tokens has not said anything of the credentials.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoToken {
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    #[error("the server that gives tokens answers {0}")]
    Server(u16),
    #[error("a request that cannot be sent: {0}")]
    Request(String),
}

/// Connections to wherever Azure is.
#[derive(Clone, Debug)]
pub(super) struct Http {
    http: http::Http,
    /// `host:port` of a double that gives tokens over plain HTTP; the vendor's crate knows https alone.
    plain: Option<Arc<str>>,
}

impl Http {
    /// Contacts nothing.
    pub(super) fn new(authority: &str) -> Self {
        let plain = authority.strip_prefix("http://").map(Arc::from);
        Self { http: http::Http::new(), plain }
    }

    /// One exchange, never repeated.
    pub(super) async fn send(
        &self,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<Answer, NoAnswer> {
        self.http.send(request, EXCHANGE).await
    }

    fn translate(&self, from: &Request) -> Result<hyper::Request<Full<Bytes>>, NoToken> {
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
            _ => return Err(NoToken::Request("a token is asked for in a stream".to_owned())),
        };
        to.body(Full::new(body)).map_err(|e| NoToken::Request(e.to_string()))
    }
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

#[async_trait::async_trait]
impl HttpClient for Http {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let failed = |e: NoToken| azure_core::Error::with_error(ErrorKind::Io, e, "no token");
        let request = self.translate(request).map_err(failed)?;
        let answer = self.send(request).await.map_err(|e| failed(e.into()))?;
        if answer.status == 429 || answer.status >= 500 {
            // Otherwise this would look like credentials that are refused.
            return Err(failed(NoToken::Server(answer.status)));
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
