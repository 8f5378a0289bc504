//! What the parent asks the relay that serves, by its API.

use std::path::Path;
use std::time::Duration;

use tonic::transport::Channel;

use crate::proto::relay::{
    API, HelloReply, HelloRequest, ListRequest, oldest_api, relay_client::RelayClient,
};

/// How long a relay may take to say which build it is and what it holds.
const ANSWER: Duration = Duration::from_secs(2);

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn within<T>(asking: impl Future<Output = Result<T, Failed>>) -> Option<Result<T, Failed>> {
    tokio::time::timeout(ANSWER, asking).await.ok()
}

async fn api(socket: &Path) -> Result<RelayClient<Channel>, Failed> {
    Ok(crate::relay::dial(socket).await?)
}

async fn hello(socket: &Path) -> Result<HelloReply, Failed> {
    let hello = HelloRequest { api: API, build: crate::cli::build(), oldest: oldest_api() };
    Ok(api(socket).await?.hello(hello).await?.into_inner())
}

/// Whether the relay that serves is of another build and hands over to ours.
pub(super) async fn hands_over(socket: &Path) -> bool {
    let ours = crate::cli::build();
    match within(hello(socket)).await {
        Some(Ok(reply)) if reply.build == ours => false,
        Some(Ok(reply)) => {
            let (relay, can) = (reply.build, reply.hands_over != 0);
            tracing::warn!(relay, ours, hands_over = can, "a relay of another build");
            can
        }
        // It may speak another version of the API and hand over all the same.
        Some(Err(e)) => {
            tracing::warn!(error = %e, "the relay does not say who it is; asking it to hand over");
            true
        }
        None => {
            tracing::warn!(within = ?ANSWER, "the relay does not say who it is");
            false
        }
    }
}

/// How many pods, connections at older relays and unanswered calls the relay holds: its end would be
/// theirs. `None` when it does not tell.
pub(super) async fn holds(socket: &Path) -> Option<u64> {
    let asking = async { Ok(api(socket).await?.list(ListRequest {}).await?.into_inner()) };
    let held = within(asking).await?.ok()?;
    let elsewhere: u64 = held.relays.iter().map(|relay| u64::from(relay.connections)).sum();
    let calls = held.totals.unwrap_or_default().requests_held;
    Some(held.sandboxes.len() as u64 + elsewhere + calls)
}
