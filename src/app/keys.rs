//! Looks after the keys while the node process runs: lets another CA issue when somebody asks for it or
//! the end of the one there is nears, and lets an older one go once no pod's record names it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use crate::hypervisor::chain;
use crate::pki::{self, Pki};
use crate::pod::record::authorities;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// For so long no record must have named a CA before it goes: one that is being planned has none yet.
const UNNAMED: Duration = Duration::from_secs(10);
/// How long somebody who asked waits for the node process.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two looks of theirs.
const AGAIN: Duration = Duration::from_millis(50);
/// Directory of the keys in the state directory.
pub(super) const DIRECTORY: &str = "pki";

/// Never ends by itself.
pub(super) async fn tend(pki: Pki, state_dir: PathBuf) {
    let mut keeper = Keeper { pki, state_dir, unnamed_since: None };
    let mut said = String::new();
    loop {
        let looked = tokio::task::spawn_blocking(move || {
            let looked = keeper.look();
            (keeper, looked)
        });
        let Ok((back, looked)) = looked.await else { return };
        keeper = back;
        match looked {
            Ok(()) => said.clear(),
            Err(e) => {
                let error = format!("{e:#}");
                // The same every two seconds is no news.
                if error != said {
                    tracing::error!(error, "keys");
                }
                said = error;
            }
        }
        sleep(LOOK).await;
    }
}

struct Keeper {
    pki: Pki,
    state_dir: PathBuf,
    /// Since when some CA but the first is named by no record.
    unnamed_since: Option<Instant>,
}

impl Keeper {
    fn look(&mut self) -> anyhow::Result<()> {
        let now = SystemTime::now();
        if self.pki.rotate_if_wanted(now).context("rotate the CA")? {
            // What has just stopped to issue must not count as long unnamed.
            self.unnamed_since = None;
            tracing::info!(authorities = self.pki.authorities().join(" "), "another CA issues");
        }
        let believed = self.pki.authorities();
        if believed.len() < 2 {
            return Ok(());
        }
        let in_use = authorities::in_use(&self.state_dir).context("look for CAs in use")?;
        let Some(in_use) = in_use
            .filter(|in_use| believed.iter().skip(1).any(|authority| !in_use.contains(authority)))
        else {
            self.unnamed_since = None;
            return Ok(());
        };
        if self.unnamed_since.get_or_insert_with(Instant::now).elapsed() < UNNAMED {
            return Ok(());
        }
        self.unnamed_since = None;
        let gone = self.pki.retire(&in_use, now).context("let an older CA go")?;
        tracing::info!(gone, "a CA that no pod needs any more is believed no longer");
        Ok(())
    }
}

/// `peerpodd rotate-ca`: asks, and waits until it is done.
pub(super) async fn ask_for_rotation(state_dir: &Path) -> anyhow::Result<String> {
    let asked = pki::ask_for_rotation(&state_dir.join(DIRECTORY)).map_err(|e| {
        let why = "there is no CA of ours: no node process has run with this --state-dir, or images \
                   bring their own certificates";
        anyhow::anyhow!("{}\n{why}", chain(&e))
    })?;
    let until = Instant::now() + PATIENCE;
    while tokio::fs::try_exists(&asked).await.unwrap_or(true) {
        if Instant::now() >= until {
            bail!(
                "no node process has done it within {PATIENCE:?}; the next one to start will ({} asks \
                 for it)",
                asked.display()
            );
        }
        sleep(AGAIN).await;
    }
    Ok("another CA issues from now on; the older ones are believed as long as a pod needs them\n"
        .to_owned())
}
