//! One plain HTTP call to a metadata service: bounded in time and size, no redirects, no proxy.

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
    Call { address: String, path: &'static str, source: hyper::Error },
    #[error("{address}{path}: answered with {status}")]
    Status { address: String, path: &'static str, status: StatusCode },
    #[error("{address}{path}: reading the answer: {source}")]
    Body { address: String, path: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{address}{path}: more than {LARGEST} bytes")]
    TooLong { address: String, path: &'static str },
    #[error("{address}{path}: cannot be asked for: {source}")]
    Request { address: String, path: &'static str, source: hyper::http::Error },
    #[error("{address}{path}: no answer within {LIMIT:?}")]
    Slow { address: String, path: &'static str },
}

/// What is asked.
pub(super) struct Request<'a> {
    method: Method,
    path: &'static str,
    headers: &'a [(&'static str, &'a str)],
}

impl<'a> Request<'a> {
    pub(super) fn get(path: &'static str, headers: &'a [(&'static str, &'a str)]) -> Self {
        Self { method: Method::GET, path, headers }
    }

    pub(super) fn put(path: &'static str, headers: &'a [(&'static str, &'a str)]) -> Self {
        Self { method: Method::PUT, path, headers }
    }
}

/// A metadata service.
pub(super) struct Metadata<'a> {
    address: &'a str,
}

impl<'a> Metadata<'a> {
    /// At `host:port`.
    pub(super) fn new(address: &'a str) -> Self {
        Self { address }
    }

    /// Calls once; anything but 200 is an error.
    pub(super) async fn call(&self, request: &Request<'_>) -> Result<Vec<u8>, HttpError> {
        let (address, path) = (self.address.to_owned(), request.path);
        match tokio::time::timeout(LIMIT, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(HttpError::Slow { address, path }),
        }
    }

    async fn exchange(&self, request: &Request<'_>) -> Result<Vec<u8>, HttpError> {
        let (address, path) = (|| self.address.to_owned(), request.path);
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|source| HttpError::Connect { address: address(), source })?;
        let call = |source| HttpError::Call { address: address(), path, source };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(call)?;
        let ask = async {
            let answer = sender.send_request(self.build(request)?).await.map_err(call)?;
            if answer.status() != StatusCode::OK {
                let status = answer.status();
                return Err(HttpError::Status { address: address(), path, status });
            }
            let body = Limited::new(answer.into_body(), LARGEST).collect().await;
            body.map(|b| b.to_bytes().to_vec()).map_err(|source| {
                if source.is::<LengthLimitError>() {
                    return HttpError::TooLong { address: address(), path };
                }
                HttpError::Body { address: address(), path, source }
            })
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
            .uri(request.path)
            .header("host", host);
        for (name, value) in request.headers {
            built = built.header(*name, *value);
        }
        built.body(Empty::new()).map_err(|source| HttpError::Request {
            address: self.address.to_owned(),
            path: request.path,
            source,
        })
    }
}
