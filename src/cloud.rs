//! What people ask of the cloud without any pod: whether VMs can be made (`peerpodd doctor cloud`),
//! what is left over and costs money (`peerpodd leaks`), what a VM says on its console (`peerpodd
//! console`). Only `leaks --delete` changes anything.

mod console;
mod doctor;
mod leaks;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use peerpod_providers::{Provider, registry};

use crate::config::{self, Settings};
use crate::hypervisor::chain;

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Can VMs be made?
    Doctor,
    /// What is left over?
    Leaks {
        /// Take it away.
        delete: bool,
        /// Show what is in use, too.
        all: bool,
        /// What was made with another copy of the state directory is left over, too.
        copies: bool,
        /// A node that is gone: what it has made is left over, too.
        gone: Option<String>,
    },
    /// What does that VM (its name, its sandbox or its pod) say?
    Console(String),
}

/// What is printed, and how the program ends.
#[derive(Debug)]
pub struct Answer {
    /// For standard output.
    pub text: String,
    /// Exit code: 0 all is well, 1 something is not.
    pub code: u8,
}

/// Asks the cloud that the settings name.
///
/// # Errors
/// When it cannot be asked.
pub async fn ask(
    question: &Question,
    json: bool,
    settings: &Settings,
    program: &Path,
) -> anyhow::Result<Answer> {
    let paths = &settings.paths;
    let given = settings.process.installation_id.clone();
    let installation = config::known_installation_id(&paths.state_dir, given.as_deref())?;
    let choice = &settings.provider;
    let context = choice.context(installation.as_deref().unwrap_or("none"), program);
    let provider = registry::build(&choice.name, &context, &choice.values)?;
    match question {
        Question::Doctor => doctor::ask(&provider, json).await,
        Question::Leaks { delete, all, copies, gone } => {
            let installation = needed(installation, &paths.state_dir)?;
            let site = leaks::Site {
                installation,
                node: settings.process.node_name.clone(),
                gone: gone.clone(),
                copies: *copies,
                grace: settings.sweep.grace,
                state_dir: paths.state_dir.clone(),
            };
            leaks::ask(&provider, &site, leaks::Form { json, all: *all, delete: *delete }).await
        }
        Question::Console(whose) => {
            needed(installation, &paths.state_dir)?;
            console::ask(&provider, whose).await
        }
    }
}

fn needed(installation: Option<String>, state_dir: &Path) -> anyhow::Result<String> {
    let missing = || {
        anyhow::anyhow!(
            "--installation-id (INSTALLATION_ID): not given, and no node process has made one in {}; \
             without it nobody can tell whose a VM is",
            state_dir.display()
        )
    };
    installation.ok_or_else(missing)
}

/// One call of the provider, in time.
async fn in_time<T>(
    call: impl Future<Output = Result<T, peerpod_providers::Error>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(done) => done.map_err(|e| anyhow::anyhow!("{}", chain(&e))),
        Err(_) => anyhow::bail!("the cloud has not answered within {PATIENCE:?}"),
    }
}

/// Sandboxes that have a record on this node, readable or not.
fn recorded(state_dir: &Path) -> io::Result<BTreeSet<String>> {
    let entries = match std::fs::read_dir(state_dir.join("pods")) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(e) => return Err(e),
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

type TheProvider = Arc<dyn Provider>;
