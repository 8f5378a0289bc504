//! EC2 by the vendor's client: who asks, where, how often, and what its refusals are. Nothing is repeated
//! here, and the TLS is the daemon's (ring): the client's own default would bring a second backend.

use std::error::Error as StdError;
use std::future::Future;
use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::imds;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::operation::RequestId;
use aws_smithy_http_client::tls::{Provider as Tls, rustls_provider::CryptoMode};
use tokio::sync::OnceCell;

use super::error::{DRY_RUN, NO_CREDENTIALS, Refusal};
use super::settings::{self, Identity, REGION, Settings};
use super::whole::Whole;
use super::{NAME, id};
use crate::budget::Budget;
use crate::{Error, Kind};

const CONNECT: Duration = Duration::from_secs(10);
/// One exchange, from the first byte sent to the last byte read.
const EXCHANGE: Duration = Duration::from_secs(60);
/// The metadata service is next door; a machine that is not in EC2 has none.
const METADATA: Duration = Duration::from_secs(2);
/// A list longer than that does not end.
const PAGES: usize = 10_000;

/// The calls that EC2 counts together.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    Run,
    /// Whatever takes something away.
    Terminate,
    Describe,
    Attach,
}

#[derive(Debug)]
struct Budgets {
    run: Budget,
    terminate: Budget,
    describe: Budget,
    attach: Budget,
}

/// EC2, as one identity.
#[derive(Debug)]
pub(super) struct Ec2 {
    identity: Identity,
    region: Option<String>,
    endpoint: Option<String>,
    sts_endpoint: Option<String>,
    metadata: Option<String>,
    made: OnceCell<Made>,
    budgets: Budgets,
}

/// What is only known when somebody asks for the first time.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) region: String,
    pub(super) client: Client,
    credentials: SharedCredentialsProvider,
    sts: aws_sdk_sts::Client,
    metadata: imds::Client,
}

impl Ec2 {
    /// Contacts nothing.
    pub(super) fn new(settings: &Settings) -> Self {
        let budgets = Budgets {
            run: settings::RUN.budget(settings.run),
            terminate: settings::TERMINATE.budget(settings.terminate),
            describe: settings::DESCRIBE.budget(settings.describe),
            attach: settings::ATTACH.budget(settings.attach),
        };
        Self {
            identity: settings.identity.clone(),
            region: settings.region.clone(),
            endpoint: settings.endpoint.clone(),
            sts_endpoint: settings.sts_endpoint.clone(),
            metadata: settings.metadata.clone(),
            made: OnceCell::new(),
            budgets,
        }
    }

    /// The clients; the first time this asks the machine for its region, if nobody else says it.
    pub(super) async fn made(&self, operation: &'static str) -> Result<&Made, Error> {
        self.made.get_or_try_init(|| Box::pin(self.make(operation))).await
    }

    pub(super) async fn client(&self, operation: &'static str) -> Result<Client, Error> {
        Ok(self.made(operation).await?.client.clone())
    }

    async fn make(&self, operation: &'static str) -> Result<Made, Error> {
        let tls = Tls::Rustls(CryptoMode::Ring);
        let http = aws_smithy_http_client::Builder::new().tls_provider(tls).build_https();
        let config = ProviderConfig::default().with_http_client(http.clone());
        let metadata = self.metadata_client(&config)?;
        let region = match &self.region {
            Some(region) => region.clone(),
            None => own_region(&metadata).await.map_err(|e| {
                let text = format!("{} ({}) is not set, and {e}", REGION.env, "--aws-region");
                Error::new(NAME, operation, Kind::Invalid, text)
            })?,
        };
        let config = config.with_region(Some(Region::new(region.clone())));
        let credentials = self.credentials(config, metadata.clone()).await;
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT)
            .operation_attempt_timeout(EXCHANGE)
            .build();
        let shared = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .region(Region::new(region.clone()))
            .credentials_provider(credentials.clone())
            // What was sent and not answered is for the caller to resolve.
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .load()
            .await;
        Ok(Made {
            client: Client::from_conf(self.ec2_config(&shared)),
            sts: aws_sdk_sts::Client::from_conf(self.sts_config(&shared)),
            region,
            credentials,
            metadata,
        })
    }

    fn ec2_config(&self, shared: &SdkConfig) -> aws_sdk_ec2::Config {
        let config = aws_sdk_ec2::config::Builder::from(shared).interceptor(Whole);
        match &self.endpoint {
            Some(endpoint) => config.endpoint_url(endpoint).build(),
            None => config.build(),
        }
    }

    fn sts_config(&self, shared: &SdkConfig) -> aws_sdk_sts::Config {
        let config = aws_sdk_sts::config::Builder::from(shared);
        match &self.sts_endpoint {
            Some(endpoint) => config.endpoint_url(endpoint).build(),
            None => config.build(),
        }
    }

    fn metadata_client(&self, config: &ProviderConfig) -> Result<imds::Client, Error> {
        let builder = imds::Client::builder()
            .configure(config)
            .max_attempts(2)
            .connect_timeout(METADATA)
            .read_timeout(METADATA);
        let builder = match &self.metadata {
            Some(endpoint) => builder.endpoint(endpoint),
            None => Ok(builder),
        };
        let text = "AWS_EC2_METADATA_SERVICE_ENDPOINT is not a URL";
        Ok(builder.map_err(|_| Error::new(NAME, "check", Kind::Invalid, text))?.build())
    }

    async fn credentials(
        &self,
        config: ProviderConfig,
        metadata: imds::Client,
    ) -> SharedCredentialsProvider {
        match &self.identity {
            Identity::Static { id, secret, session } => SharedCredentialsProvider::new(
                Credentials::new(id, secret, session.clone(), None, "settings"),
            ),
            Identity::Profile(name) => SharedCredentialsProvider::new(
                ProfileFileCredentialsProvider::builder()
                    .configure(&config)
                    .profile_name(name)
                    .build(),
            ),
            Identity::Chain => {
                let chain = DefaultCredentialsChain::builder().imds_client(metadata);
                SharedCredentialsProvider::new(chain.configure(config).build().await)
            }
        }
    }

    /// One call within its budget.
    pub(super) async fn call<T, E>(
        &self,
        class: Class,
        operation: &'static str,
        what: &str,
        call: impl Future<Output = Result<T, SdkError<E>>> + Send,
    ) -> Result<T, Error>
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        // The vendor's futures have many kilobytes.
        let call = Box::pin(call);
        let exchange = async { call.await.map_err(|e| refusal(&e).error(operation, what)) };
        self.budget(class).call(exchange).await
    }

    /// Asks whether a call would be permitted; nothing is done.
    pub(super) async fn dry_run<T, E>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, SdkError<E>>> + Send,
    ) -> Result<(), Error>
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let call = Box::pin(call);
        let exchange = async {
            match call.await {
                Ok(_) => Ok(()),
                Err(e) if e.code() == Some(DRY_RUN) => Ok(()),
                Err(e) => Err(refusal(&e).error("check", what)),
            }
        };
        self.budget(Class::Describe).call(exchange).await
    }

    fn budget(&self, class: Class) -> &Budget {
        match class {
            Class::Run => &self.budgets.run,
            Class::Terminate => &self.budgets.terminate,
            Class::Describe => &self.budgets.describe,
            Class::Attach => &self.budgets.attach,
        }
    }

    /// All pages of a list, or an error. An empty page may have others behind it.
    pub(super) async fn pages<T, P, E, F>(
        &self,
        operation: &'static str,
        what: &str,
        mut ask: impl FnMut(Option<String>) -> F + Send,
        take: impl Fn(P) -> (Vec<T>, Option<String>) + Send,
    ) -> Result<Vec<T>, Error>
    where
        T: Send,
        P: Send,
        F: Future<Output = Result<P, SdkError<E>>> + Send,
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let (mut all, mut next) = (Vec::new(), None);
        for _ in 0..PAGES {
            let page = self.call(Class::Describe, operation, what, ask(next)).await?;
            let (mut items, token) = take(page);
            all.append(&mut items);
            next = token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(all);
            }
        }
        Err(Error::new(NAME, operation, Kind::Other, format!("{what} does not end")))
    }

    /// Whether there is anything to sign requests with.
    pub(super) async fn signs(&self) -> Result<(), Error> {
        let made = self.made("check").await?;
        match made.credentials.provide_credentials().await {
            Ok(_) => Ok(()),
            Err(e) => Err(no_answer(&e).error("check", "credentials")),
        }
    }

    /// The name that STS has for whoever signs; `Err` says why it is not known.
    pub(super) async fn caller(&self) -> Result<String, Error> {
        let made = self.made("check").await?;
        let asked = Box::pin(made.sts.get_caller_identity().send());
        let late = |_| Error::new(NAME, "check", Kind::Unavailable, "no answer of STS");
        let answer = tokio::time::timeout(CONNECT / 2, asked).await.map_err(late)?;
        let answer = answer.map_err(|e| refusal(&e).error("check", "GetCallerIdentity"))?;
        Ok(answer.arn.unwrap_or_default())
    }

    /// What this machine's metadata say; `Err` in words.
    pub(super) async fn metadata(&self, path: &str) -> Result<String, Error> {
        let made = self.made("check").await?;
        let problem = |e: String| Error::new(NAME, "check", Kind::Unavailable, e);
        metadata(&made.metadata, path).await.map_err(problem)
    }
}

async fn metadata(client: &imds::Client, path: &str) -> Result<String, String> {
    match client.get(format!("/latest/meta-data/{path}")).await {
        Ok(text) => Ok(text.as_ref().trim().to_owned()),
        Err(_) => Err(format!("this machine's metadata do not say its {path}")),
    }
}

async fn own_region(client: &imds::Client) -> Result<String, String> {
    let region = metadata(client, "placement/region").await?;
    id::region(&region).map_err(|e| format!("this machine's region {region:?} {e}"))
}

/// What a call that did not work came to.
pub(super) fn refusal<E>(error: &SdkError<E>) -> Refusal
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let code = error.code().unwrap_or_default();
    let Some(raw) = error.raw_response().filter(|_| !code.is_empty()) else {
        let status = error.raw_response().map_or(0, |raw| raw.status().as_u16());
        return Refusal { status, ..no_answer(error) };
    };
    let header = |name: &str| raw.headers().get(name).and_then(|v| v.trim().parse::<f64>().ok());
    Refusal {
        status: raw.status().as_u16(),
        code: code.to_owned(),
        message: error.message().unwrap_or_default().to_owned(),
        request: error.meta().request_id().unwrap_or_default().to_owned(),
        after: header("retry-after").and_then(|s| Duration::try_from_secs_f64(s).ok()),
    }
}

/// There was no answer, or none of EC2's: the causes, and whether the request could be signed at all.
fn no_answer(error: &(dyn StdError + 'static)) -> Refusal {
    let (mut message, mut cause) = (String::new(), Some(error));
    let (mut unsigned, mut lost) = (false, false);
    while let Some(e) = cause {
        if !message.is_empty() {
            message.push_str(": ");
        }
        message.push_str(&e.to_string());
        lost |= e.is::<std::io::Error>();
        if let Some(credentials) = e.downcast_ref::<CredentialsError>() {
            unsigned = true;
            lost |= matches!(credentials, CredentialsError::ProviderTimedOut(_));
        }
        cause = e.source();
    }
    let code = if unsigned && !lost { NO_CREDENTIALS } else { "" };
    Refusal { code: code.to_owned(), message, ..Refusal::default() }
}
