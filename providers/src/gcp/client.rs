//! A thin client of the Compute API and the Resource Manager: tokens, budgets, pages, and what refusals
//! mean.
//!
//! Google's own client is not asked: of a refusal that has the form of a `google.rpc.Status` it gives the
//! status alone and drops `errors[].reason`, and the Compute API says nowhere else whether a 403 is a right
//! that is missing, a quota or a rate.

use std::time::Duration;

use bytes::Bytes;
use google_cloud_auth::credentials::{CacheableResource, Credentials, service_account};
use google_cloud_auth::errors::CredentialsError;
use http_body_util::Full;
use hyper::{HeaderMap, Method};
use serde_json::Value;

use super::error::Refusal;
use super::settings::{self, Settings};
use super::{NAME, id, text};
use crate::budget::Budget;
use crate::http::{Answer, Http, NoAnswer};
use crate::{Error, Kind};

/// From the first byte sent to the last byte read.
const EXCHANGE: Duration = Duration::from_secs(70);
/// The server holds a call that waits for up to two minutes.
const WAIT: Duration = Duration::from_secs(150);
/// For a token, which may come from another server.
const TOKEN: Duration = Duration::from_secs(60);
/// A list longer than that does not end.
const PAGES: usize = 10_000;

/// The calls that Google counts together.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    Insert,
    Delete,
    Read,
    List,
    Operation,
}

#[derive(Debug)]
struct Budgets {
    insert: Budget,
    delete: Budget,
    read: Budget,
    list: Budget,
    operation: Budget,
}

/// One call, but for its token.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// What it is for: `create`, `delete`, `list`, `check`, `console`.
    pub(super) operation: &'static str,
    pub(super) class: Class,
    pub(super) method: Method,
    /// Path with query; `/compute/…` goes to the Compute API, all else to the Resource Manager.
    pub(super) target: String,
    /// `compute#…` of the answer; empty is not looked at. An error page would look like an empty list.
    pub(super) kind: &'static str,
    pub(super) body: Option<Bytes>,
    /// 409 is an answer: there is one of that name.
    pub(super) only_new: bool,
}

impl Call {
    pub(super) fn get(
        operation: &'static str,
        class: Class,
        target: String,
        kind: &'static str,
    ) -> Self {
        let (method, body, only_new) = (Method::GET, None, false);
        Self { operation, class, method, target, kind, body, only_new }
    }

    /// `GET …/instances/x`, without the query.
    fn what(&self) -> String {
        let path = self.target.split('?').next().unwrap_or_default();
        let path = path.strip_prefix("/compute/v1/projects/").unwrap_or(path);
        let path = path.split_once('/').map_or(path, |(_, path)| path);
        format!("{} …/{path}", self.method)
    }
}

/// Both servers, as one identity.
pub(super) struct Compute {
    http: Http,
    compute: String,
    manager: String,
    key: Option<Value>,
    credentials: std::sync::OnceLock<Credentials>,
    budgets: Budgets,
}

/// The key shows nowhere.
impl std::fmt::Debug for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Compute({}, {:?})", self.identity(), self.budgets)
    }
}

impl Compute {
    /// Contacts nothing.
    pub(super) fn new(settings: &Settings) -> Self {
        let rates = &settings.rates;
        let budgets = Budgets {
            insert: settings::INSERT.budget(rates.insert),
            delete: settings::DELETE.budget(rates.delete),
            read: settings::READ.budget(rates.read),
            list: settings::LIST.budget(rates.list),
            operation: settings::OPERATION.budget(rates.operation),
        };
        Self {
            http: Http::new(),
            compute: settings.compute.clone(),
            manager: settings.manager.clone(),
            key: settings.credentials.clone(),
            credentials: std::sync::OnceLock::new(),
            budgets,
        }
    }

    /// One call within its budget. Only answers of success come back, and 409 to a call that makes only
    /// what is new.
    pub(super) async fn call(&self, call: Call) -> Result<Answer, Error> {
        let token = self.token(call.operation).await?;
        let budget = match call.class {
            Class::Insert => &self.budgets.insert,
            Class::Delete => &self.budgets.delete,
            Class::Read => &self.budgets.read,
            Class::List => &self.budgets.list,
            Class::Operation => &self.budgets.operation,
        };
        budget.turn().await;
        let answer = self.exchange(&call, token).await;
        let failure = answer.as_ref().err().map(|e| e.kind);
        // A look that is refused says nothing of the others; a create that is refused says it of all.
        if call.operation != "check" || failure != Some(Kind::Denied) {
            budget.learn(failure);
        }
        answer
    }

    /// The same for a call whose answer must be JSON of its kind.
    pub(super) async fn json(&self, call: Call) -> Result<Value, Error> {
        let (operation, kind, what) = (call.operation, call.kind, call.what());
        let answer = self.call(call).await?;
        object(operation, kind, &what, &answer)
    }

    /// The same; `None` when there is no such thing.
    pub(super) async fn maybe(&self, call: Call) -> Result<Option<Value>, Error> {
        match self.json(call).await {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.kind == Kind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All pages of a list, or an error.
    pub(super) async fn pages(&self, call: Call) -> Result<Vec<Value>, Error> {
        let (mut all, mut token) = (Vec::new(), String::new());
        let separator = if call.target.contains('?') { '&' } else { '?' };
        for _ in 0..PAGES {
            let mut next = call.clone();
            if !token.is_empty() {
                next.target.push_str(&format!("{separator}pageToken={}", id::encoded(&token)));
            }
            let page = self.json(next).await?;
            text(&page, "/nextPageToken").clone_into(&mut token);
            all.push(page);
            if token.is_empty() {
                return Ok(all);
            }
        }
        Err(Error::new(NAME, call.operation, Kind::Other, "a list does not end"))
    }

    async fn exchange(&self, call: &Call, token: HeaderMap) -> Result<Answer, Error> {
        let what = call.what();
        let request = self.request(call, token)?;
        let within = if matches!(call.class, Class::Operation) { WAIT } else { EXCHANGE };
        let answer = self.http.send(request, within).await;
        let answer = answer.map_err(|e| no_answer(call.operation, &what, e))?;
        let status = answer.status;
        if (200..300).contains(&status) || (call.only_new && status == 409) {
            return Ok(answer);
        }
        let refusal =
            Refusal { after: answer.retry_after(), ..Refusal::read(status, &answer.body) };
        Err(refusal.error(call.operation, &what))
    }

    fn request(&self, call: &Call, token: HeaderMap) -> Result<hyper::Request<Full<Bytes>>, Error> {
        let Call { operation, target, body, .. } = call;
        let server = if target.starts_with("/compute/") { &self.compute } else { &self.manager };
        let mut request = hyper::Request::builder()
            .method(call.method.clone())
            .uri(format!("{server}{target}"))
            .header("User-Agent", format!("peerpodd/{} {operation}", env!("CARGO_PKG_VERSION")))
            .header("Accept", "application/json");
        match (body, &call.method) {
            (Some(_), _) => request = request.header("Content-Type", "application/json"),
            // Google refuses a POST without a length.
            (None, &Method::POST) => request = request.header("Content-Length", "0"),
            (None, _) => {}
        }
        if let Some(headers) = request.headers_mut() {
            headers.extend(token);
        }
        let body = Full::new(body.clone().unwrap_or_default());
        // The error is of the address's form; the token is not in it.
        request.body(body).map_err(|e| malformed(operation, target, &e.to_string()))
    }

    /// A token, from the cache of Google's crate as long as it is good.
    pub(super) async fn token(&self, operation: &'static str) -> Result<HeaderMap, Error> {
        if self.key.is_none() && self.compute.starts_with("http://") {
            // A double that asks for none; what this machine has is not for it.
            return Ok(HeaderMap::new());
        }
        let credentials = match self.credentials.get() {
            Some(credentials) => credentials,
            None => {
                let made = self.credentials(operation)?;
                self.credentials.get_or_init(|| made)
            }
        };
        let asked = credentials.headers(Default::default());
        match tokio::time::timeout(TOKEN, asked).await {
            Ok(Ok(CacheableResource::New { data, .. })) => Ok(data),
            Ok(Err(e)) => Err(self.no_token(operation, e)),
            Ok(Ok(CacheableResource::NotModified)) | Err(_) => {
                let text = format!("no token for the {}", self.identity());
                Err(Error::new(NAME, operation, Kind::Unavailable, text))
            }
        }
    }

    fn no_token(&self, operation: &'static str, error: CredentialsError) -> Error {
        let kind = if error.is_transient() { Kind::Unavailable } else { Kind::Denied };
        let text = format!("no token for the {}", self.identity());
        Error::new(NAME, operation, kind, text).caused_by(error)
    }

    /// Which credentials these are, for people.
    pub(super) fn identity(&self) -> String {
        match &self.key {
            Some(key) => format!("service account {}", text(key, "/client_email")),
            None if self.compute.starts_with("http://") => "double without credentials".to_owned(),
            None => "application default credentials".to_owned(),
        }
    }

    fn credentials(&self, operation: &'static str) -> Result<Credentials, Error> {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Google's crate signs and speaks with the process's own; whoever was faster has set the same.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let built = match &self.key {
            Some(key) => service_account::Builder::new(key.clone()).build(),
            None => google_cloud_auth::credentials::Builder::default().build(),
        };
        built.map_err(|_| {
            // The cause may quote the key.
            let text = match &self.key {
                Some(_) => {
                    "GCP_CREDENTIALS (--gcp-credentials) is not a usable key of a service account"
                }
                None => "the application default credentials are not usable; set GCP_CREDENTIALS",
            };
            Error::new(NAME, operation, Kind::Denied, text)
        })
    }
}

/// An answer that is JSON of that kind.
pub(super) fn object(
    operation: &'static str,
    kind: &str,
    what: &str,
    answer: &Answer,
) -> Result<Value, Error> {
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(value) if value.is_object() && (kind.is_empty() || text(&value, "/kind") == kind) => {
            Ok(value)
        }
        _ => Err(malformed(operation, what, "the answer is not one of Google's")),
    }
}

/// An answer that Google would not give: its effect is unknown.
pub(super) fn malformed(operation: &'static str, what: &str, text: &str) -> Error {
    Error::new(NAME, operation, Kind::Unavailable, format!("{what}: {text}"))
}

fn no_answer(operation: &'static str, what: &str, error: NoAnswer) -> Error {
    Error::new(NAME, operation, Kind::Unavailable, format!("{what}: no answer")).caused_by(error)
}
