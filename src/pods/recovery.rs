//! Taking up what an earlier process has left.
//!
//! ```text
//!   Prepared   listens again once the relay is attached, expires by its age
//!   Launching  waits until the relay has told what it holds; goes on if StartVM is among it
//!   Running    tunnel and link are looked at; the VM is not touched
//!   Deleting   goes on
//!   of another boot ─▶ Deleting          unreadable ─▶ set aside, told, stops no other
//! ```

use std::collections::BTreeSet;
use std::sync::PoisonError;

use super::Pods;
use super::registry::Insert;
use crate::crash::reach;
use crate::pod::Pod;
use crate::pod::record::{Record, RecordError};

/// Reads all records and gives each its actor. Before any of them makes a tunnel, what no record
/// knows of in the kernel is taken away.
pub(super) async fn take_up(pods: &Pods) -> Result<(), RecordError> {
    let world = &pods.common.world;
    reach!(world, LoadBefore);
    let loaded = world.records.load().await?;
    reach!(world, LoadAfter);
    for broken in &loaded.broken {
        let (sandbox, path) = (&broken.sandbox, broken.path.display());
        tracing::error!(sandbox, %path, newer = broken.newer, "record: {}", broken.reason);
    }
    world.observer.broken_records(loaded.broken.len());
    let mut known: BTreeSet<String> = loaded.records.iter().map(|r| r.sandbox.clone()).collect();
    known.extend(loaded.broken.iter().map(|b| b.sandbox.clone()));
    *pods.broken.lock().unwrap_or_else(PoisonError::into_inner) = loaded.broken;
    reach!(world, LeftoversBefore);
    let cleared = world.network.clear_leftovers(&known).await;
    reach!(world, LeftoversAfter);
    match cleared {
        Ok(gone) if gone.is_empty() => {}
        Ok(gone) => tracing::info!(gone = gone.join("; "), "removed left-over network objects"),
        Err(error) => tracing::warn!(%error, "left-over network objects stay"),
    }
    let count = loaded.records.len();
    for record in loaded.records {
        reach!(world, TakeUpBefore);
        resume(pods, record);
        reach!(world, TakeUpAfter);
    }
    tracing::info!(pods = count, "records taken up");
    Ok(())
}

fn resume(pods: &Pods, record: Record) {
    let sandbox = record.sandbox.clone();
    let mut task = None;
    let inserted = pods.registry.insert(&sandbox, None, &BTreeSet::new(), |_| {
        let (pod, life) = Pod::resume(&pods.common, record);
        task = Some(life);
        pod
    });
    // Each directory is read once, and there is no limit here: it is always a new one.
    if let (Ok(Insert::New(pod)), Some(life)) = (inserted, task) {
        pods.spawn(&pod, life);
    }
}
