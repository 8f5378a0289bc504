//! Cost tags: what the labels of a pod say goes to its VM's tags as far as its cloud has room. No label
//! keeps a pod from starting: what cannot be had is left out, and the timeline says so.

use std::collections::BTreeMap;

use super::PlanRules;
use crate::labels::PodLabels;

/// Puts them to the tags, of which none is changed; lines for the timeline.
pub(super) fn add(
    tags: &mut BTreeMap<String, String>,
    labels: &PodLabels,
    rules: &PlanRules,
) -> Vec<String> {
    let (mut set, mut left_out) = (Vec::new(), Vec::new());
    let mut unknown: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for wanted in &rules.cost_tags {
        match labels.get(&wanted.label) {
            Ok(Some(value)) => match rules.tag_room.add(tags, &wanted.tag, value) {
                Ok(key) => set.push(format!("{key}={}", tags.get(&key).map_or("", String::as_str))),
                Err(why) => left_out.push(format!("{} ({why})", wanted.label)),
            },
            Ok(None) => {}
            Err(why) => unknown.entry(why).or_default().push(&wanted.label),
        }
    }
    let line =
        |what: &str, all: &[String]| (!all.is_empty()).then(|| format!("{what}{}", all.join(", ")));
    let unknown = unknown
        .iter()
        .map(|(why, labels)| format!("no cost tag from {}: not known ({why})", labels.join(", ")));
    let said = [line("cost tags: ", &set), line("no cost tag from ", &left_out)];
    said.into_iter().flatten().chain(unknown).collect()
}
