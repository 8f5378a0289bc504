//! A thin client of Azure Resource Manager: tokens, budgets, pages, and what refusals mean.

use std::sync::Arc;

use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{Secret, TokenCredential};
use azure_core::http::{ClientOptions, RetryOptions, Transport};
use azure_identity::{
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
    WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Method;
use serde_json::Value;

use super::NAME;
use super::error::Refusal;
use super::http::{Http, NoToken};
use super::settings::{self, Identity, Settings};
use crate::budget::Budget;
use crate::http::{Answer, NoAnswer};
use crate::{Error, Kind};

/// `Microsoft.Compute`: VMs.
pub(super) const COMPUTE: &str = "2024-07-01";
/// `Microsoft.Compute`: disks.
pub(super) const DISKS: &str = "2024-03-02";
/// `Microsoft.Compute`: galleries.
pub(super) const GALLERIES: &str = "2023-07-03";
/// `Microsoft.Compute`: sizes.
pub(super) const SKUS: &str = "2021-07-01";
/// `Microsoft.Network`.
pub(super) const NETWORK: &str = "2023-09-01";
/// Resource groups.
pub(super) const GROUPS: &str = "2021-04-01";
/// Permissions.
pub(super) const AUTHORIZATION: &str = "2022-04-01";

/// A list longer than that does not end.
const PAGES: usize = 10_000;

/// The calls that Azure counts together.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    Put,
    Delete,
    Get,
    List,
    Operation,
    Read,
}

#[derive(Debug)]
struct Budgets {
    put: Budget,
    delete: Budget,
    get: Budget,
    list: Budget,
    operation: Budget,
    read: Budget,
}

/// One call, but for its token.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// What it is for: `create`, `delete`, `list`, `check`.
    pub(super) operation: &'static str,
    pub(super) class: Class,
    pub(super) method: Method,
    /// Path with query, or a whole URL that Azure gave.
    pub(super) target: String,
    pub(super) body: Option<Bytes>,
    /// `If-None-Match: *`: never change what is there.
    pub(super) only_new: bool,
}

impl Call {
    pub(super) fn get(operation: &'static str, class: Class, target: impl Into<String>) -> Self {
        let (method, target) = (Method::GET, target.into());
        Self { operation, class, method, target, body: None, only_new: false }
    }
}

/// ARM, as one identity.
#[derive(Debug)]
pub(super) struct Arm {
    http: Http,
    endpoint: String,
    scope: String,
    identity: Identity,
    authority: String,
    credential: std::sync::OnceLock<Arc<dyn TokenCredential>>,
    budgets: Budgets,
}

impl Arm {
    /// Contacts nothing.
    pub(super) fn new(settings: &Settings) -> Self {
        let rates = &settings.rates;
        let budgets = Budgets {
            put: settings::PUT.budget(rates.put),
            delete: settings::DELETE.budget(rates.delete),
            get: settings::GET.budget(rates.get),
            list: settings::LIST.budget(rates.list),
            operation: settings::OPERATION.budget(rates.operation),
            read: settings::READ.budget(rates.read),
        };
        let audience = match settings.arm.strip_prefix("http://") {
            // A double has no audience of its own.
            Some(_) => settings::ARM.default,
            None => settings.arm.as_str(),
        };
        Self {
            http: Http::new(&settings.authority),
            endpoint: settings.arm.clone(),
            scope: format!("{audience}/.default"),
            identity: settings.identity.clone(),
            authority: settings.authority.clone(),
            credential: std::sync::OnceLock::new(),
            budgets,
        }
    }

    /// One call within its budget. Only answers of success come back, and 412 to a call that makes only
    /// what is new.
    pub(super) async fn call(&self, call: Call) -> Result<Answer, Error> {
        let token = self.token(call.operation).await?;
        let budget = match call.class {
            Class::Put => &self.budgets.put,
            Class::Delete => &self.budgets.delete,
            Class::Get => &self.budgets.get,
            Class::List => &self.budgets.list,
            Class::Operation => &self.budgets.operation,
            Class::Read => &self.budgets.read,
        };
        budget.call(self.exchange(&call, &token)).await
    }

    /// The same for a call whose answer must be JSON.
    pub(super) async fn json(&self, call: Call) -> Result<Value, Error> {
        let (operation, what) = (call.operation, what(&call));
        let answer = self.call(call).await?;
        object(operation, &what, &answer)
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
    pub(super) async fn pages(
        &self,
        operation: &'static str,
        class: Class,
        target: String,
    ) -> Result<Vec<Value>, Error> {
        let (mut all, mut next) = (Vec::new(), target);
        for _ in 0..PAGES {
            let call = Call::get(operation, class, next);
            let what = what(&call);
            let mut page = self.json(call).await?;
            match page.get_mut("value").map(Value::take) {
                Some(Value::Array(mut items)) => all.append(&mut items),
                _ => return Err(malformed(operation, &what, "a list without `value`")),
            }
            match page.get("nextLink").and_then(Value::as_str).filter(|link| !link.is_empty()) {
                Some(link) => next = link.to_owned(),
                None => return Ok(all),
            }
        }
        Err(Error::new(NAME, operation, Kind::Other, "a list does not end"))
    }

    /// What lies at a link that is a key in itself: it is in no error, and no token goes there.
    pub(super) async fn blob(&self, operation: &'static str, link: &str) -> Result<Bytes, Error> {
        let safe = link.starts_with("https://") || self.is_ours(link);
        let request = hyper::Request::builder().uri(link).body(Full::default());
        let (true, Ok(request)) = (safe, request) else {
            return Err(malformed(operation, "blob", "a link that is none of Azure's"));
        };
        match self.http.send(request).await {
            Ok(answer) if answer.status == 200 => Ok(answer.body),
            Ok(answer) => {
                let text = format!("a blob cannot be read (HTTP {})", answer.status);
                Err(malformed(operation, "blob", &text))
            }
            Err(_) => Err(malformed(operation, "blob", "no answer")),
        }
    }

    async fn exchange(&self, call: &Call, token: &str) -> Result<Answer, Error> {
        let what = what(call);
        let request = self.request(call, token)?;
        let answer = self.http.send(request).await;
        let answer = answer.map_err(|e| no_answer(call.operation, &what, e))?;
        let status = answer.status;
        if (200..300).contains(&status) || (call.only_new && status == 412) {
            return Ok(answer);
        }
        let refusal = Refusal {
            after: answer.retry_after(),
            request: answer.header("x-ms-request-id").unwrap_or_default().to_owned(),
            ..Refusal::read(status, &answer.body)
        };
        Err(refusal.error(call.operation, &what))
    }

    fn request(&self, call: &Call, token: &str) -> Result<hyper::Request<Full<Bytes>>, Error> {
        let Call { operation, target, .. } = call;
        let url = match target.starts_with('/') {
            true => format!("{}{target}", self.endpoint),
            // A token goes to nobody but ARM, whatever a reply says.
            false if self.is_ours(target) => target.clone(),
            false => {
                let text = "Azure refers to another server than its Resource Manager";
                return Err(malformed(operation, "reply", text));
            }
        };
        let mut request = hyper::Request::builder()
            .method(call.method.clone())
            .uri(url)
            .header("Authorization", format!("Bearer {token}"))
            .header("User-Agent", format!("peerpodd/{} {operation}", env!("CARGO_PKG_VERSION")))
            .header("Accept", "application/json");
        if call.only_new {
            request = request.header("If-None-Match", "*");
        }
        if call.body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        let body = Full::new(call.body.clone().unwrap_or_default());
        // The error is of the address's form; the token is not in it.
        request.body(body).map_err(|e| malformed(operation, target, &e.to_string()))
    }

    fn is_ours(&self, url: &str) -> bool {
        let origin = |url: &str| {
            let uri: hyper::Uri = url.parse().ok()?;
            let authority = uri.authority()?.as_str().to_ascii_lowercase();
            let default = if uri.scheme_str() == Some("https") { ":443" } else { ":80" };
            let authority = authority.strip_suffix(default).unwrap_or(&authority).to_owned();
            Some((uri.scheme_str()?.to_owned(), authority))
        };
        let ours = origin(&self.endpoint);
        ours.is_some() && ours == origin(url)
    }

    /// A token for ARM, from the cache of the vendor's crate as long as it is good.
    pub(super) async fn token(&self, operation: &'static str) -> Result<String, Error> {
        let credential = match self.credential.get() {
            Some(credential) => credential,
            None => {
                let made = self.credential();
                let made = made.map_err(|e| self.no_token(operation, e))?;
                self.credential.get_or_init(|| made)
            }
        };
        let token = credential.get_token(&[&self.scope], None).await;
        Ok(token.map_err(|e| self.no_token(operation, e))?.token.secret().to_owned())
    }

    fn no_token(&self, operation: &'static str, error: azure_core::Error) -> Error {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        let mut kind = Kind::Denied;
        while let Some(e) = cause {
            if e.is::<NoToken>() {
                kind = Kind::Unavailable;
            }
            cause = e.source();
        }
        let text = format!("no token for the {}", self.identity.words());
        Error::new(NAME, operation, kind, text).caused_by(error)
    }

    fn credential(&self) -> azure_core::Result<Arc<dyn TokenCredential>> {
        let mut cloud = CustomConfiguration::default();
        // The transport takes what is plain back to http.
        cloud.authority_host = self.authority.replacen("http://", "https://", 1);
        let client_options = ClientOptions {
            retry: RetryOptions::none(),
            transport: Some(Transport::new(Arc::new(self.http.clone()))),
            cloud: Some(Arc::new(CloudConfiguration::Custom(cloud))),
            ..ClientOptions::default()
        };
        Ok(match self.identity.clone() {
            Identity::Secret { tenant, client, secret } => {
                let options = ClientSecretCredentialOptions { client_options };
                ClientSecretCredential::new(&tenant, client, Secret::new(secret), Some(options))?
            }
            Identity::Workload { tenant, client, file } => {
                WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions { client_options },
                    client_id: Some(client),
                    tenant_id: Some(tenant),
                    token_file_path: Some(file),
                }))?
            }
            Identity::Managed { client } => {
                ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                    user_assigned_id: client.map(UserAssignedId::ClientId),
                    client_options,
                }))?
            }
        })
    }
}

/// `PUT …/virtualMachines/x`, without the query.
fn what(call: &Call) -> String {
    let path = call.target.split('?').next().unwrap_or_default();
    let path = path.find("/providers/").map_or(path, |at| &path[at..]);
    format!("{} …{path}", call.method)
}

/// An answer that is JSON.
pub(super) fn object(operation: &'static str, what: &str, answer: &Answer) -> Result<Value, Error> {
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(value) if value.is_object() => Ok(value),
        _ => Err(malformed(operation, what, "the answer is not JSON as Azure writes it")),
    }
}

/// An answer that Azure would not give: its effect is unknown.
pub(super) fn malformed(operation: &'static str, what: &str, text: &str) -> Error {
    Error::new(NAME, operation, Kind::Unavailable, format!("{what}: {text}"))
}

fn no_answer(operation: &'static str, what: &str, error: NoAnswer) -> Error {
    Error::new(NAME, operation, Kind::Unavailable, format!("{what}: no answer")).caused_by(error)
}
