//! Who has the user data, and how they are fetched: once, without retries.
//!
//! ```text
//!   detect: file there? ─▶ Azure's hypervisor? ─▶ Amazon's board? ─▶ KVM and Google's service? ─▶ Alibaba's
//!           board? ─▶ nobody: cloud-init has written the files
//! ```

mod detect;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use peerpod_tunnel::link::Secret;
use podvm::contract::USER_DATA_LIMIT;
use tokio::io::AsyncReadExt;

use crate::metadata::{HttpError, Metadata, Request};

/// What the command line may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SourceChoice {
    Auto,
    File,
    Aws,
    Azure,
    Gcp,
    Alibaba,
    /// Cloud-init writes the files.
    None,
}

/// Who has the user data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    File(PathBuf),
    Aws,
    Azure,
    Gcp,
    Alibaba,
}

/// Why there are no user data (yet).
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserDataError {
    #[error("reading {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path}: more than {USER_DATA_LIMIT} bytes")]
    TooLong { path: PathBuf },
    #[error("{source_name}: {source}")]
    Http { source_name: &'static str, source: HttpError },
    #[error("{source_name}: the user data are not base64 of text")]
    Encoding { source_name: &'static str },
}

/// The cloud that this machine is in, if one is known to be; nobody's files are looked at.
pub(crate) async fn cloud(metadata_address: Option<&str>) -> Option<Source> {
    detect::by_machine(&detect::Machine::look(), metadata_address).await
}

/// What the machine says of itself: whether it is Azure's, and whether it is a confidential one.
pub(crate) fn machine() -> (bool, bool) {
    let machine = detect::Machine::look();
    (machine.is_azure(), machine.is_confidential())
}

/// The source to use, or `None` when nobody is known to have user data.
pub(crate) async fn choose(
    choice: SourceChoice,
    file: &Path,
    metadata_address: Option<&str>,
) -> Option<Source> {
    match choice {
        SourceChoice::Auto => {
            if tokio::fs::try_exists(file).await.unwrap_or(false) {
                return Some(Source::File(file.to_owned()));
            }
            detect::by_machine(&detect::Machine::look(), metadata_address).await
        }
        SourceChoice::File => Some(Source::File(file.to_owned())),
        SourceChoice::Aws => Some(Source::Aws),
        SourceChoice::Azure => Some(Source::Azure),
        SourceChoice::Gcp => Some(Source::Gcp),
        SourceChoice::Alibaba => Some(Source::Alibaba),
        SourceChoice::None => None,
    }
}

impl Source {
    /// For messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Aws => "AWS",
            Self::Azure => "Azure",
            Self::Gcp => "Google Cloud",
            Self::Alibaba => "Alibaba Cloud",
        }
    }

    /// Fetches the text once.
    ///
    /// # Errors
    /// By [`UserDataError`].
    pub(crate) async fn fetch(&self, address: Option<&str>) -> Result<Secret, UserDataError> {
        let text = match self {
            Self::File(path) => read_file(path).await?,
            Self::Aws => self.http(aws(address).await)?,
            Self::Azure => self.base64(&self.http(azure(address).await)?)?,
            Self::Gcp => self.base64(&self.http(gcp(address).await)?)?,
            Self::Alibaba => self.http(alibaba(address).await)?,
        };
        let text = String::from_utf8(text)
            .map_err(|_| UserDataError::Encoding { source_name: self.name() })?;
        Ok(Secret::new(text))
    }

    fn http<T>(&self, result: Result<T, HttpError>) -> Result<T, UserDataError> {
        result.map_err(|source| UserDataError::Http { source_name: self.name(), source })
    }

    fn base64(&self, body: &[u8]) -> Result<Vec<u8>, UserDataError> {
        let wrong = UserDataError::Encoding { source_name: self.name() };
        STANDARD.decode(body.trim_ascii()).map_err(|_| wrong)
    }
}

async fn read_file(path: &Path) -> Result<Vec<u8>, UserDataError> {
    let failed = |source| UserDataError::File { path: path.to_owned(), source };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut text = Vec::new();
    let most = USER_DATA_LIMIT as u64 + 1;
    file.take(most).read_to_end(&mut text).await.map_err(failed)?;
    if text.len() > USER_DATA_LIMIT {
        return Err(UserDataError::TooLong { path: path.to_owned() });
    }
    Ok(text)
}

/// IMDSv2 only: without a token anything in the VM that can be made to fetch an address could read
/// the secrets.
async fn aws(address: Option<&str>) -> Result<Vec<u8>, HttpError> {
    let service = Metadata::new(address.unwrap_or(LINK_LOCAL));
    let lifetime = ("x-aws-ec2-metadata-token-ttl-seconds", "60");
    let token = service.call(&Request::put("/latest/api/token", &[lifetime])).await?;
    let token = String::from_utf8_lossy(&token);
    let header = ("x-aws-ec2-metadata-token", token.trim());
    service.call(&Request::get("/latest/user-data", &[header])).await
}

async fn azure(address: Option<&str>) -> Result<Vec<u8>, HttpError> {
    let service = Metadata::new(address.unwrap_or(LINK_LOCAL));
    let path = "/metadata/instance/compute/userData?api-version=2021-01-01&format=text";
    service.call(&Request::get(path, &[("metadata", "true")])).await
}

/// Where AWS and Azure have their service.
pub(crate) const LINK_LOCAL: &str = "169.254.169.254:80";
pub(crate) const GOOGLE: &str = "metadata.google.internal:80";
pub(crate) const GOOGLE_HEADER: (&str, &str) = ("metadata-flavor", "Google");

async fn gcp(address: Option<&str>) -> Result<Vec<u8>, HttpError> {
    let service = Metadata::new(address.unwrap_or(GOOGLE));
    let path = "/computeMetadata/v1/instance/attributes/user-data";
    service.call(&Request::get(path, &[GOOGLE_HEADER])).await
}

/// Whether Google's service answers.
async fn google_answers(address: Option<&str>) -> bool {
    let service = Metadata::new(address.unwrap_or(GOOGLE));
    let request = Request::get("/computeMetadata/v1/instance", &[GOOGLE_HEADER]);
    service.call(&request).await.is_ok()
}

async fn alibaba(address: Option<&str>) -> Result<Vec<u8>, HttpError> {
    let service = Metadata::new(address.unwrap_or("100.100.100.200:80"));
    service.call(&Request::get("/latest/user-data", &[])).await
}
