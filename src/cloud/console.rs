//! `peerpodd console`: the last of what a VM has written to its console.

use peerpod_providers::{Resource, ResourceKind, tags};

use super::{Answer, TheProvider, in_time};
use crate::text::printable;

pub(super) async fn ask(provider: &TheProvider, whose: &str) -> anyhow::Result<Answer> {
    let listed = in_time(provider.list()).await?;
    let found: Vec<&Resource> = listed.iter().filter(|r| is_of(r, whose)).collect();
    let vm = match found[..] {
        [] => anyhow::bail!("{provider} has no VM of ours that is called {whose:?}"),
        [only] => &only.vm,
        ref several => {
            let names: Vec<&str> = several.iter().map(|r| r.vm.name.as_str()).collect();
            anyhow::bail!("{whose:?} may be any of {}", names.join(", "))
        }
    };
    match in_time(provider.console(vm)).await? {
        Some(text) => Ok(Answer { text: printable(&text), code: 0 }),
        None => anyhow::bail!("{provider} has no console of {} (not yet, or never)", vm.name),
    }
}

/// By name, by id, by pod (`name` or `namespace/name`), or by the beginning of the sandbox id.
fn is_of(resource: &Resource, whose: &str) -> bool {
    let tag = |key: &str| resource.tags.get(key).map(String::as_str).unwrap_or_default();
    let (namespace, pod) = whose.split_once('/').unwrap_or(("", whose));
    let by_pod =
        pod == tag(tags::POD) && (namespace.is_empty() || namespace == tag(tags::NAMESPACE));
    resource.kind == ResourceKind::Vm
        && (resource.vm.name.as_str() == whose
            || resource.vm.native_id.as_deref() == Some(whose)
            || (whose.len() >= 8 && resource.vm.sandbox.starts_with(whose))
            || (!pod.is_empty() && by_pod))
}
