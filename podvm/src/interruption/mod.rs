//! Has the cloud said that it takes this VM back? Asked only in a spot VM, whose worker wants to know.
//!
//! ```text
//!   worker: Watch ─▶ which cloud ─▶ ask ─ nothing ─▶ 500 ms later again
//!                                    │ └ failed ──▶ later and later, at most 5 s
//!                                    └ it has ─▶ every session that wants to know; nothing is asked any more
//! ```
//!
//! Why 500 ms: what the cloud says should be known at the node within a second, so half of that is left for
//! the way. It is far below what the services allow (AWS: 1024 packets a second, Azure: 5 calls a second for
//! a VM). Google answers by itself when its word changes.

mod aws;
mod azure;
mod gcp;

use std::time::Duration;

use peerpod_tunnel::link::session::{Interruption, Sessions};
use tokio::time::{Instant, sleep_until};

use crate::cli::NoticeSource;
use crate::metadata::HttpError;
use crate::userdata::{self, Source};

/// Between the beginnings of two questions.
const EVERY: Duration = Duration::from_millis(500);
/// The same while the service fails.
const SLOWEST: Duration = Duration::from_secs(5);
/// No answer is longer, in bytes.
const LONGEST: usize = 64 << 10;

/// Whom to ask.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) source: NoticeSource,
    /// The metadata service, as host:port.
    pub(crate) address: Option<String>,
}

/// Why the cloud's word is not known.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("the answer is not what {0} says")]
    Answer(&'static str),
}

/// A cloud's way of saying it.
enum Cloud {
    Aws(aws::Asker),
    Azure(azure::Asker),
    Gcp(gcp::Asker),
}

impl Cloud {
    async fn ask(&mut self) -> Result<Option<Interruption>, AskError> {
        match self {
            Self::Aws(asker) => asker.ask().await,
            Self::Azure(asker) => asker.ask().await,
            Self::Gcp(asker) => asker.ask().await,
        }
    }
}

impl Settings {
    async fn cloud(&self) -> Option<Cloud> {
        let address = self.address.as_deref();
        let source = match self.source {
            NoticeSource::Auto => userdata::cloud(address).await?,
            NoticeSource::Aws => Source::Aws,
            NoticeSource::Azure => Source::Azure,
            NoticeSource::Gcp => Source::Gcp,
            NoticeSource::None => return None,
        };
        let at = |usual: &str| address.unwrap_or(usual).to_owned();
        match source {
            Source::Aws => Some(Cloud::Aws(aws::Asker::new(at(userdata::LINK_LOCAL)))),
            Source::Azure => Some(Cloud::Azure(azure::Asker::new(at(userdata::LINK_LOCAL)))),
            Source::Gcp => Some(Cloud::Gcp(gcp::Asker::new(at(userdata::GOOGLE)))),
            Source::File(_) | Source::Alibaba => None,
        }
    }
}

/// Waits until a worker wants to know, then for the cloud's word, and passes it on. Ends after that.
pub(crate) async fn pass_on(settings: &Settings, sessions: &Sessions) {
    sessions.watched().await;
    let Some(mut cloud) = settings.cloud().await else {
        return tracing::info!("no cloud is known here that would say when it takes the VM back");
    };
    tracing::info!("listening for the cloud's word that it takes the VM back");
    let said = wait(&mut cloud).await;
    let Interruption { kind, deadline_ms, source } = &said;
    tracing::warn!(kind, deadline_ms, source, "the cloud takes the VM back");
    sessions.interrupt(said);
}

async fn wait(cloud: &mut Cloud) -> Interruption {
    let mut pause = EVERY;
    loop {
        let begun = Instant::now();
        match cloud.ask().await {
            Ok(Some(said)) => return said,
            Ok(None) => pause = EVERY,
            Err(error) => {
                // Once for a row of failures.
                if pause == EVERY {
                    tracing::warn!("asking whether the VM is taken back: {error}");
                }
                pause = (pause * 2).min(SLOWEST);
            }
        }
        sleep_until(begun + pause).await;
    }
}

/// Milliseconds since 1970; 0 for what is no time after that.
fn millis(time: Option<time::OffsetDateTime>) -> u64 {
    time.and_then(|t| u64::try_from(t.unix_timestamp()).ok()).map_or(0, |s| s.saturating_mul(1000))
}
