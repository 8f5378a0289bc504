//! Files that had no room in the user data: they come over the agent link, from the worker that the user
//! data name, and are just what those promise.
//!
//! ```text
//!   apf.json: path, size, SHA-256 ─▶ missing? ─▶ wait for them ─▶ digests right? ─▶ written as files of the
//!                                                                    └ no: the worker is told, wait ◀┘ user data
//! ```
//!
//! Until then the VM is not ready: what stands in them may say what the pod is allowed to do.

use std::path::{Path, PathBuf};

use peerpod_tunnel::link::session::{Files, Sessions};
use podvm::apf::ToFollow;
use podvm::cloud_config::File;
use podvm::contract::RUN_DIR;

use crate::files::{self, FilesError};

/// Why what came is not taken.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("{0}: it is not the file that the user data promise")]
    Digest(String),
    #[error("{0}: it is not text")]
    Text(String),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("the task that writes files is gone: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Those that are not there as they were promised.
pub(crate) fn missing(run_dir: &Path, promised: &[ToFollow]) -> Vec<ToFollow> {
    let there = |file: &&ToFollow| {
        let path = file.path.strip_prefix(RUN_DIR).unwrap_or(&file.path);
        let path = run_dir.join(path.trim_start_matches('/'));
        // One that is much larger is not read.
        std::fs::metadata(&path).is_ok_and(|found| found.len() == file.size as u64)
            && std::fs::read(&path).is_ok_and(|text| ToFollow::of(&file.path, &text) == **file)
    };
    promised.iter().filter(|file| !there(file)).cloned().collect()
}

/// Where they go, and which they are; nothing for a VM that has all it needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Missing {
    pub(crate) run_dir: PathBuf,
    pub(crate) files: Vec<ToFollow>,
}

/// Waits until they have come and are written.
pub(crate) async fn receive(missing: &Missing, sessions: &Sessions) {
    if missing.files.is_empty() {
        return;
    }
    let names: Vec<_> = missing.files.iter().map(|file| file.path.as_str()).collect();
    tracing::info!(files = ?names, "waiting for what had no room in the user data");
    loop {
        let came = sessions.files().await;
        match take(missing, came).await {
            Ok(()) => break,
            Err(error) => {
                tracing::warn!("what came over the link is not taken: {error}");
                sessions.refused(error.to_string());
            }
        }
    }
    tracing::info!(files = ?names, "all files are there");
    sessions.taken();
}

async fn take(missing: &Missing, mut came: Files) -> Result<(), FollowError> {
    let mut files = Vec::new();
    for file in &missing.files {
        let content = came.remove(&file.path).unwrap_or_default();
        if ToFollow::of(&file.path, &content) != *file {
            return Err(FollowError::Digest(file.path.clone()));
        }
        let content =
            String::from_utf8(content).map_err(|_| FollowError::Text(file.path.clone()))?;
        files.push(File { path: file.path.clone(), content });
    }
    let run_dir = missing.run_dir.clone();
    Ok(tokio::task::spawn_blocking(move || files::provision(&run_dir, &files)).await??)
}
