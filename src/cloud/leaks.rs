//! `peerpodd leaks`: what carries our tag and belongs to no pod, what it costs, and its deletion.
//!
//! ```text
//!   list ──▶ then records ──▶ in use | another node's | a copy's | young | left over ──▶ --delete
//! ```
//! Records and epochs are read after the list, so that whatever a daemon makes meanwhile has its record already.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use peerpod_providers::prices::Price;
use peerpod_providers::{Deletion, Resource, ResourceKind, VmRef, tags};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{Answer, TheProvider, in_time, recorded};
use crate::config::Epochs;
use crate::hypervisor::chain;
use crate::text::aligned;

/// How long one delete may take to be over.
const GONE: Duration = Duration::from_secs(300);
/// Between two looks at a delete.
const LOOK: Duration = Duration::from_secs(2);

/// Whose things are looked for.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) installation: String,
    pub(super) node: String,
    /// A node that is gone.
    pub(super) gone: Option<String>,
    /// Nobody works with another copy of the state directory any more.
    pub(super) copies: bool,
    /// Younger things are left alone.
    pub(super) grace: Duration,
    pub(super) state_dir: PathBuf,
}

/// How it is told, and whether it is taken away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) json: bool,
    pub(super) all: bool,
    pub(super) delete: bool,
}

/// What a thing is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Standing {
    /// Its sandbox has a record on this node.
    InUse,
    /// Another node's, which alone knows.
    AnotherNode,
    /// Made with another copy of this node's state directory, where it may be in use.
    AnotherCopy,
    /// It may just be being made.
    Young,
    LeftOver,
}

#[derive(Debug, Serialize)]
struct Row {
    standing: Standing,
    kind: ResourceKind,
    name: String,
    native_id: Option<String>,
    sandbox: String,
    node: String,
    pod: String,
    age_s: Option<u64>,
    running: Option<bool>,
    instance_type: Option<String>,
    price_per_hour: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<String>,
    #[serde(skip)]
    price: Option<Price>,
    #[serde(skip)]
    vm: VmRef,
}

pub(super) async fn ask(provider: &TheProvider, site: &Site, form: Form) -> anyhow::Result<Answer> {
    let listed = in_time(provider.list()).await?;
    let recorded = recorded(&site.state_dir)
        .map_err(|e| anyhow::anyhow!("--state-dir {}: {e}", site.state_dir.display()))?;
    let known = Known { site, recorded, epochs: Epochs::known(&site.state_dir)? };
    let now = SystemTime::now();
    let mut rows: Vec<Row> = listed.into_iter().map(|r| row(r, &known, now)).collect();
    rows.retain(|row| form.all || row.standing == Standing::LeftOver);
    let failed = if form.delete { delete(provider, &mut rows).await } else { 0 };
    let text = if form.json {
        format!("{}\n", serde_json::to_string_pretty(&rows)?)
    } else {
        shown(&rows)
    };
    Ok(Answer { text, code: u8::from(failed > 0) })
}

/// What this node knows.
struct Known<'a> {
    site: &'a Site,
    recorded: BTreeSet<String>,
    epochs: Epochs,
}

fn row(resource: Resource, known: &Known<'_>, now: SystemTime) -> Row {
    let tag = |key: &str| resource.tags.get(key).cloned().unwrap_or_default();
    let age = resource.created.and_then(|made| now.duration_since(made).ok());
    let node = tag(tags::NODE);
    Row {
        standing: standing(&resource, &node, age, known),
        kind: resource.kind,
        name: resource.vm.name.to_string(),
        native_id: resource.vm.native_id.clone(),
        sandbox: resource.vm.sandbox.clone(),
        pod: format!("{}/{}", tag(tags::NAMESPACE), tag(tags::POD)),
        node,
        age_s: age.map(|age| age.as_secs()),
        running: resource.running,
        instance_type: resource.instance_type.clone(),
        price_per_hour: resource.price.map(|p| p.to_string()),
        deleted: None,
        price: resource.price,
        vm: resource.vm,
    }
}

fn standing(resource: &Resource, node: &str, age: Option<Duration>, known: &Known<'_>) -> Standing {
    let Known { site, recorded, epochs } = known;
    let tag = |key: &str| resource.tags.get(key).map(String::as_str);
    let sandbox = resource.vm.sandbox.as_str();
    let gone = site.gone.as_deref() == Some(node);
    let named = tag(tags::INSTALLATION) == Some(&site.installation) && (node == site.node || gone);
    // Some clouds cut long values.
    let in_use = recorded.contains(sandbox)
        || (sandbox.len() >= 32 && recorded.iter().any(|known| known.starts_with(sandbox)));
    match () {
        () if in_use => Standing::InUse,
        () if !named => Standing::AnotherNode,
        // The epochs of a node that is gone are gone with it.
        () if !gone && !site.copies && !epochs.made_here(tag(tags::EPOCH)) => Standing::AnotherCopy,
        // A clock that was set back tells no age; a thing without a date is asked for again later.
        () if age.is_none_or(|age| age < site.grace) => Standing::Young,
        () => Standing::LeftOver,
    }
}

/// Deletes what is left over, each VM once with all its parts. Returns how many are not gone.
async fn delete(provider: &TheProvider, rows: &mut [Row]) -> usize {
    let mut done: Vec<(VmRef, Result<(), String>)> = Vec::new();
    for row in rows.iter_mut().filter(|row| row.standing == Standing::LeftOver) {
        let same = |(vm, _): &&(VmRef, _)| vm.name == row.vm.name && vm.sandbox == row.vm.sandbox;
        let outcome = match done.iter().find(same) {
            Some((_, outcome)) => outcome.clone(),
            None => {
                let outcome = until_gone(provider, &row.vm).await;
                done.push((row.vm.clone(), outcome.clone()));
                outcome
            }
        };
        row.deleted = Some(outcome.err().unwrap_or_else(|| "yes".to_owned()));
    }
    done.iter().filter(|(_, outcome)| outcome.is_err()).count()
}

async fn until_gone(provider: &TheProvider, vm: &VmRef) -> Result<(), String> {
    let end = Instant::now() + GONE;
    loop {
        match provider.delete(vm).await {
            Ok(Deletion::Gone) => return Ok(()),
            Ok(Deletion::Accepted) if Instant::now() >= end => {
                return Err(format!("asked for, and not gone within {GONE:?}"));
            }
            Ok(Deletion::Accepted) => sleep(LOOK).await,
            Err(e) => return Err(chain(&e)),
        }
    }
}

fn shown(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "nothing is left over\n".to_owned();
    }
    let head =
        ["STANDING", "KIND", "NAME", "ID", "NODE", "POD", "AGE", "TYPE", "PER HOUR", "DELETED"];
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        [
            word(&row.standing),
            word(&row.kind),
            row.name.clone(),
            or_dash(&row.native_id),
            row.node.clone(),
            row.pod.clone(),
            row.age_s.map_or("-".to_owned(), |s| format!("{}m", s / 60)),
            or_dash(&row.instance_type),
            or_dash(&row.price_per_hour),
            or_dash(&row.deleted),
        ]
    }));
    let mut text = aligned(&lines);
    let cost: u64 = rows.iter().filter_map(|row| row.price).map(|p| p.0).sum();
    if cost > 0 {
        let unknown =
            rows.iter().filter(|r| r.kind == ResourceKind::Vm && r.price.is_none()).count();
        text.push_str(&format!("{} per hour", Price(cost)));
        text.push_str(&if unknown > 0 {
            format!(", and {unknown} VMs of unknown price\n")
        } else {
            "\n".to_owned()
        });
    }
    text
}

/// The word by which it stands in JSON.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
