//! One plain HTTP call to a metadata service: bounded in time and size, no redirects, no proxy.

use std::borrow::Cow;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use podvm::contract::USER_DATA_LIMIT;
use tokio::net::TcpStream;

/// Time for one call, connecting included.
const LIMIT: Duration = Duration::from_secs(5);
/// Largest answer: user data in base64.
const LARGEST: usize = USER_DATA_LIMIT / 3 * 4 + 4;

/// Why a metadata service gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("connecting to {address}: {source}")]
    Connect { address: String, source: std::io::Error },
    #[error("calling {address}{path}: {source}")]
    Call { address: String, path: String, source: hyper::Error },
    #[error("{address}{path}: answered with {status}")]
    Status { address: String, path: String, status: StatusCode },
    #[error("{address}{path}: reading the answer: {source}")]
    Body { address: String, path: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{address}{path}: more than {most} bytes")]
    TooLong { address: String, path: String, most: usize },
    #[error("{address}{path}: cannot be asked for: {source}")]
    Request { address: String, path: String, source: hyper::http::Error },
    #[error("{address}{path}: no answer within {limit:?}")]
    Slow { address: String, path: String, limit: Duration },
}

/// What is asked.
pub(crate) struct Request<'a> {
    method: Method,
    path: Cow<'a, str>,
    headers: &'a [(&'static str, &'a str)],
    limit: Duration,
    most: usize,
}

/// A body, and by which tag the service knows it.
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
    pub(crate) etag: Option<String>,
}

impl HttpError {
    /// The service has answered, with that.
    pub(crate) fn is_status(&self, wanted: u16) -> bool {
        matches!(self, Self::Status { status, .. } if status.as_u16() == wanted)
    }
}

impl<'a> Request<'a> {
    pub(crate) fn get(
        path: impl Into<Cow<'a, str>>,
        headers: &'a [(&'static str, &'a str)],
    ) -> Self {
        Self { method: Method::GET, path: path.into(), headers, limit: LIMIT, most: LARGEST }
    }

    pub(crate) fn put(
        path: impl Into<Cow<'a, str>>,
        headers: &'a [(&'static str, &'a str)],
    ) -> Self {
        Self { method: Method::PUT, ..Self::get(path, headers) }
    }

    /// The call, connecting included, may take that long.
    pub(crate) fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The body may have that many bytes.
    pub(crate) fn at_most(self, most: usize) -> Self {
        Self { most, ..self }
    }
}

/// A metadata service.
pub(crate) struct Metadata<'a> {
    address: &'a str,
}

impl<'a> Metadata<'a> {
    /// At `host:port`.
    pub(crate) fn new(address: &'a str) -> Self {
        Self { address }
    }

    /// Calls once; anything but 200 is an error.
    pub(crate) async fn call(&self, request: &Request<'_>) -> Result<Vec<u8>, HttpError> {
        self.ask(request).await.map(|answer| answer.body)
    }

    /// The same with what belongs to the body.
    pub(crate) async fn ask(&self, request: &Request<'_>) -> Result<Answer, HttpError> {
        match tokio::time::timeout(request.limit, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(HttpError::Slow {
                address: self.address.to_owned(),
                path: request.path.to_string(),
                limit: request.limit,
            }),
        }
    }

    async fn exchange(&self, request: &Request<'_>) -> Result<Answer, HttpError> {
        let (address, path) = (|| self.address.to_owned(), || request.path.to_string());
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|source| HttpError::Connect { address: address(), source })?;
        let call = |source| HttpError::Call { address: address(), path: path(), source };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(call)?;
        let ask = async {
            let answer = sender.send_request(self.build(request)?).await.map_err(call)?;
            if answer.status() != StatusCode::OK {
                let status = answer.status();
                return Err(HttpError::Status { address: address(), path: path(), status });
            }
            let etag = answer.headers().get("etag").and_then(|tag| tag.to_str().ok());
            let etag = etag.map(str::to_owned);
            let body = Limited::new(answer.into_body(), request.most).collect().await;
            let body = body.map(|b| b.to_bytes().to_vec()).map_err(|source| {
                let (address, path) = (address(), path());
                if source.is::<LengthLimitError>() {
                    return HttpError::TooLong { address, path, most: request.most };
                }
                HttpError::Body { address, path, source }
            })?;
            Ok(Answer { body, etag })
        };
        // The connection is driven here and gone with the call.
        tokio::pin!(ask);
        tokio::select! {
            answer = &mut ask => answer,
            ended = connection => {
                ended.map_err(call)?;
                ask.await
            }
        }
    }

    fn build(&self, request: &Request<'_>) -> Result<hyper::Request<Empty<Bytes>>, HttpError> {
        let host = self.address.strip_suffix(":80").unwrap_or(self.address);
        let mut built = hyper::Request::builder()
            .method(request.method.clone())
            .uri(&*request.path)
            .header("host", host);
        for (name, value) in request.headers {
            built = built.header(*name, *value);
        }
        built.body(Empty::new()).map_err(|source| HttpError::Request {
            address: self.address.to_owned(),
            path: request.path.to_string(),
            source,
        })
    }
}
