//! User data to files: fetched and read again and again until they are there and whole, or the time
//! is over.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podvm::apf::Apf;
use podvm::cloud_config::{self, CloudConfigError, File};
use podvm::contract::APF;
use tokio::time::Instant;

use crate::cli;
use crate::files::{self, FilesError};
use crate::follow;
use crate::userdata::{self, UserDataError};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why the VM has no files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProvisionError {
    #[error(transparent)]
    UserData(#[from] UserDataError),
    #[error("{source_name}: {source}")]
    Text { source_name: &'static str, source: CloudConfigError },
    #[error("nobody is known to have user data, and {0} is not there either")]
    Nothing(PathBuf),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("the task that writes files is gone: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("no user data within {limit:?}, the last time: {last}")]
    TimeOver { limit: Duration, last: Box<ProvisionError> },
}

impl ProvisionError {
    /// Whether trying again may help. Initdata come out of user data that were whole, so they stay
    /// broken.
    fn may_pass(&self) -> bool {
        matches!(self, Self::UserData(_) | Self::Text { .. } | Self::Nothing(_))
    }
}

/// Fetches the user data and writes their files. With `need`, waits for that file even when nobody
/// has user data: cloud-init may still be writing.
///
/// # Errors
/// By [`ProvisionError`].
pub(crate) async fn provision(
    args: &cli::UserData,
    need: Option<PathBuf>,
) -> Result<(), ProvisionError> {
    let limit = args.user_data_fetch_timeout;
    let end = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        let last = match once(args, need.as_ref()).await {
            Err(error) if error.may_pass() => error,
            other => return other,
        };
        if Instant::now() + pause > end {
            return Err(ProvisionError::TimeOver { limit, last: Box::new(last) });
        }
        tracing::warn!(again_in = ?pause, "{last}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn once(args: &cli::UserData, need: Option<&PathBuf>) -> Result<(), ProvisionError> {
    let address = args.metadata_address.as_deref();
    let source = userdata::choose(args.source, &args.user_data, address).await;
    let sent = match &source {
        None => {
            if let Some(file) = need
                && !tokio::fs::try_exists(file).await.unwrap_or(false)
            {
                return Err(ProvisionError::Nothing(file.clone()));
            }
            tracing::info!("nobody has user data; what cloud-init has written is used");
            Vec::new()
        }
        Some(source) => {
            let text = source.fetch(address).await?;
            let parsed = cloud_config::parse(text.expose());
            let source_name = source.name();
            let parsed = parsed.map_err(|source| ProvisionError::Text { source_name, source })?;
            for path in &parsed.skipped {
                tracing::warn!(%path, "a file that a worker may not write is skipped");
            }
            let (files, skipped) = (parsed.files.len(), parsed.skipped.len());
            tracing::info!(source = source_name, files, skipped, "user data");
            parsed.files
        }
    };
    let run_dir = args.run_dir.clone();
    tokio::task::spawn_blocking(move || write(&run_dir, &sent)).await??;
    Ok(())
}

/// What follows from files that are still to come is not written before they are there.
fn write(run_dir: &Path, sent: &[File]) -> Result<(), FilesError> {
    let apf = sent.iter().find(|file| file.path == APF);
    // What is wrong with it the forwarder says, which needs all of it.
    let apf = apf.and_then(|file| Apf::parse(&file.content).ok()).unwrap_or_default();
    let promised = apf.to_follow().unwrap_or_default();
    if follow::missing(run_dir, promised).is_empty() {
        return files::provision(run_dir, sent);
    }
    files::keep(run_dir, sent)
}
