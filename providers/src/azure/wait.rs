//! Waiting for what takes Azure a while: by the operation's own URL, never by the VM, whose quota would be
//! used up in a minute (providers.md 4.4).

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::NAME;
use super::client::{Arm, Call, Class, malformed, object};
use super::error::Refusal;
use crate::http::Answer;
use crate::{Error, Kind};

/// Between two looks when Azure says nothing: at first, after [`YOUNG`], and never less than the last.
const PAUSES: (Duration, Duration, Duration) =
    (Duration::from_secs(2), Duration::from_secs(5), Duration::from_millis(50));
const YOUNG: Duration = Duration::from_secs(20);
/// No operation of a VM takes longer.
const LONGEST: Duration = Duration::from_secs(30 * 60);
/// Looks in a row that may fail.
const PATIENCE: u32 = 4;

/// Something under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    url: String,
    /// `Azure-AsyncOperation`: the answer has a status. `Location`: 202 until it is done.
    has_status: bool,
    after: Option<Duration>,
}

/// How far it is.
#[derive(Clone, Debug)]
pub(super) enum Progress {
    Pending(Option<Duration>),
    Done,
    Failed(Refusal),
}

impl Operation {
    /// What an accepted call has begun; `None` if it is done already.
    pub(super) fn of(answer: &Answer) -> Option<Self> {
        let after = answer.retry_after();
        let found = |name| answer.header(name).map(str::to_owned);
        if let Some(url) = found("azure-asyncoperation") {
            return Some(Self { url, has_status: true, after });
        }
        found("location").map(|url| Self { url, has_status: false, after })
    }

    /// One look.
    pub(super) async fn look(&self, arm: &Arm, operation: &'static str) -> Result<Progress, Error> {
        let call = Call::get(operation, Class::Operation, self.url.clone());
        let answer = arm.call(call).await?;
        let after = answer.retry_after();
        if answer.status == 202 {
            return Ok(Progress::Pending(after));
        }
        if !self.has_status {
            return Ok(Progress::Done);
        }
        let value = object(operation, "operation", &answer)?;
        Ok(match value.get("status").and_then(Value::as_str) {
            Some("Succeeded") => Progress::Done,
            Some("Failed" | "Canceled") => Progress::Failed(Refusal {
                status: answer.status,
                request: answer.header("x-ms-request-id").unwrap_or_default().to_owned(),
                ..Refusal::inside(&value)
            }),
            Some(_) => Progress::Pending(after),
            None => return Err(malformed(operation, "operation", "an operation without status")),
        })
    }

    /// Until it is over. A look that fails for a passing reason is made again.
    pub(super) async fn wait(
        &self,
        arm: &Arm,
        operation: &'static str,
    ) -> Result<Result<(), Refusal>, Error> {
        let (begin, mut failures, mut after) = (Instant::now(), 0, self.after);
        loop {
            let own = if begin.elapsed() < YOUNG { PAUSES.0 } else { PAUSES.1 };
            sleep(after.unwrap_or(own).max(PAUSES.2)).await;
            after = match self.look(arm, operation).await {
                Ok(Progress::Done) => return Ok(Ok(())),
                Ok(Progress::Failed(refusal)) => return Ok(Err(refusal)),
                Ok(Progress::Pending(after)) => {
                    failures = 0;
                    after
                }
                Err(e) if matches!(e.kind, Kind::Unavailable | Kind::Throttled(_)) => {
                    failures += 1;
                    if failures >= PATIENCE {
                        return Err(e);
                    }
                    None
                }
                Err(e) => return Err(e),
            };
            if begin.elapsed() > LONGEST {
                let text = "an operation does not end";
                return Err(Error::new(NAME, operation, Kind::Unavailable, text));
            }
        }
    }
}
