//! The labels of a pod and of its namespace, and which of them become cost tags of its VM.
//!
//! ```text
//!   COST_TAG_LABELS ─▶ wanted ─┐
//!   bundle (CRI-O) ──▶ labels ─┴─▶ plan: bent to the cloud, beside our tags and the user's ─▶ VmSpec.tags
//! ```
//! No shim passes labels on. Today they come from the sandbox's bundle ([`Bundles`]), which has the pod's
//! under CRI-O alone and the namespace's never; what asks Kubernetes is one more [`Labels`].

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;

use async_trait::async_trait;

use crate::bundle;
use crate::request::PodRequest;

pub mod label;

pub use label::CostTag;

/// Labels, or why they are not known.
pub type Known = Result<BTreeMap<String, String>, String>;

/// The labels of a pod, as far as they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLabels {
    /// Its own.
    pub pod: Known,
    /// Those of its namespace.
    pub namespace: Known,
}

impl PodLabels {
    /// None are known, for that reason.
    pub fn unknown(reason: &str) -> Self {
        Self { pod: Err(reason.to_owned()), namespace: Err(reason.to_owned()) }
    }

    /// The value of a label: the pod's, and if it has none its namespace's; `None` if neither has one.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn get(&self, key: &str) -> Result<Option<&str>, &str> {
        for labels in [&self.pod, &self.namespace] {
            match labels {
                Ok(labels) => {
                    if let Some(value) = labels.get(key) {
                        return Ok(Some(value));
                    }
                }
                Err(why) => return Err(why),
            }
        }
        Ok(None)
    }
}

/// Whoever knows the labels of pods.
#[async_trait]
pub trait Labels: Send + Sync + Debug {
    /// Those of the pod that asks for a VM. Part of its CreateVM: an answer must come soon, and that
    /// nothing is known is one, too.
    async fn of(&self, request: &PodRequest) -> PodLabels;
}

/// Directories of bundles, by sandbox id.
#[derive(Clone, Debug)]
pub struct Bundles(pub Vec<PathBuf>);

#[async_trait]
impl Labels for Bundles {
    async fn of(&self, request: &PodRequest) -> PodLabels {
        let (bundles, request) = (self.0.clone(), request.clone());
        let read = tokio::task::spawn_blocking(move || bundle::labels(&bundles, &request)).await;
        PodLabels {
            pod: read.unwrap_or_else(|_| Err("the process ends".to_owned())),
            namespace: Err("the pod has none, and labels of namespaces are known to Kubernetes \
                            alone, which is not asked"
                .to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
