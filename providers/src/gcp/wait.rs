//! Waiting for what takes Google a while: by `operations.wait`, which the server holds until it is done or
//! two minutes are over (providers.md 5.3).

use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::client::{Call, Class, malformed};
use super::error::Refusal;
use super::{Gcp, NAME, text};
use crate::{Error, Kind};

/// A server that is overloaded may answer at once; nobody is to ask it again at once.
const PAUSE: Duration = Duration::from_millis(100);
/// No operation of a VM takes longer.
const LONGEST: Duration = Duration::from_secs(30 * 60);

impl Gcp {
    /// Until a create's operation is done.
    pub(super) async fn wait(&self, zone: &str, operation: Value, what: &str) -> Result<(), Error> {
        let (begin, mut operation) = (Instant::now(), operation);
        loop {
            if text(&operation, "/status") == "DONE" {
                return match Refusal::inside(&operation) {
                    Some(refusal) => Err(refusal.error("create", what)),
                    None => Ok(()),
                };
            }
            if begin.elapsed() > LONGEST {
                let text = format!("{what}: an operation does not end");
                return Err(Error::new(NAME, "create", Kind::Unavailable, text));
            }
            let name = text(&operation, "/name");
            if name.is_empty() || name.contains(['/', '?', '#']) {
                return Err(malformed("create", what, "the answer is no operation"));
            }
            let target = self.path(&format!("zones/{zone}/operations/{name}/wait"));
            let call = Call {
                method: Method::POST,
                ..Call::get("create", Class::Operation, target, "compute#operation")
            };
            let asked = Instant::now();
            operation = match self.compute.json(call).await {
                Ok(operation) => operation,
                // Google forgets operations; a replay finds the VM, or makes it.
                Err(e) if e.kind == Kind::NotFound => {
                    return Err(Error { kind: Kind::Unavailable, ..e });
                }
                Err(e) => return Err(e),
            };
            if text(&operation, "/status") != "DONE" {
                sleep(PAUSE.saturating_sub(asked.elapsed())).await;
            }
        }
    }
}
