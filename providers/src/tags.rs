//! The tags every VM and every part of it carries (providers.md 2.3). They are how a VM is found
//! again when everything else has been lost.

use std::collections::BTreeMap;

/// Whose VM it is: the installation id.
pub const INSTALLATION: &str = "peerpodd-installation";
/// The full sandbox id.
pub const SANDBOX: &str = "peerpodd-sandbox";
/// Node name, for people and for the collector when the node has gone.
pub const NODE: &str = "peerpodd-node";
/// Namespace of the pod, for people and cost reports.
pub const NAMESPACE: &str = "peerpodd-namespace";
/// Name of the pod, for people and cost reports.
pub const POD: &str = "peerpodd-pod";
/// Fencing epoch of the daemon that made it.
pub const EPOCH: &str = "peerpodd-epoch";

/// Whether a key is ours, so that a user's tag may not use it.
pub fn is_reserved(key: &str) -> bool {
    key.starts_with("peerpodd-")
}

/// What a cloud takes as tags.
#[derive(Clone, Copy, Debug)]
pub struct TagRules {
    /// The cloud, in messages.
    pub cloud: &'static str,
    /// Tags of one resource in all, ours included.
    pub most: usize,
    /// Longest key, in characters.
    pub key_max: usize,
    /// Longest value, in characters.
    pub value_max: usize,
    /// Characters that a key may have.
    pub key_has: fn(char) -> bool,
    /// Characters that a value may have.
    pub value_has: fn(char) -> bool,
    /// First characters that no key may have (`aws:`); empty is none.
    pub forbidden_prefix: &'static str,
}

/// Tags of our own that a VM carries at most: those above and a name.
pub const OURS: usize = 7;

/// What is wrong with a user's tags, each with its key; nothing is sent that a cloud would refuse.
pub fn check(tags: &BTreeMap<String, String>, rules: &TagRules) -> Vec<String> {
    let TagRules { cloud, most, key_max, value_max, .. } = *rules;
    let mut problems = Vec::new();
    let left = most.saturating_sub(OURS);
    if tags.len() > left {
        problems.push(format!(
            "TAGS (--tags): {} tags, {cloud} takes {most} on a resource, of which {OURS} are ours",
            tags.len()
        ));
    }
    for (key, value) in tags {
        let mut problem = |text: String| problems.push(format!("TAGS (--tags): {key:?}: {text}"));
        let (keys, values) = (key.chars().count(), value.chars().count());
        if keys > key_max {
            problem(format!("a key of {keys} characters, {cloud} takes {key_max}"));
        }
        if values > value_max {
            problem(format!("a value of {values} characters, {cloud} takes {value_max}"));
        }
        if let Some(bad) = key.chars().find(|c| !(rules.key_has)(*c)) {
            problem(format!("{bad:?} is no character of a key of {cloud}"));
        }
        if let Some(bad) = value.chars().find(|c| !(rules.value_has)(*c)) {
            problem(format!("{bad:?} is no character of a value of {cloud}"));
        }
        let prefix = rules.forbidden_prefix;
        if !prefix.is_empty() && key.to_lowercase().starts_with(prefix) {
            problem(format!("{cloud} keeps keys that begin with {prefix:?}"));
        }
    }
    problems
}

/// Tags as the cloud takes them: what a pod or a node is called is bent until it fits, so that no
/// create fails for it. A user's own are not touched: [`check`] has found them good.
pub fn fit(tags: &BTreeMap<String, String>, rules: &TagRules) -> BTreeMap<String, String> {
    let bend = |value: &str| value.chars().map(|c| bent(c, rules)).take(rules.value_max).collect();
    let fitted = tags.iter().map(|(key, value)| match is_reserved(key) {
        true => (key.clone(), bend(value)),
        false => (key.clone(), value.clone()),
    });
    fitted.collect()
}

fn bent(c: char, rules: &TagRules) -> char {
    let lower = c.to_ascii_lowercase();
    match (rules.value_has)(c) {
        true => c,
        false if (rules.value_has)(lower) => lower,
        false => '-',
    }
}

/// A cost tag from a label: bent until it fits, so that a pod's label can break no create. `None` if
/// nothing of the key is left or the key is ours.
pub fn from_label(key: &str, value: &str, rules: &TagRules) -> Option<(String, String)> {
    let fitting = |c: char| {
        let lower = c.to_ascii_lowercase();
        [c, lower].into_iter().find(|c| (rules.key_has)(*c)).unwrap_or('-')
    };
    let bent_key: String = key.chars().map(fitting).take(rules.key_max).collect();
    let bent_key = bent_key.trim_start_matches(|c: char| !c.is_ascii_alphabetic()).to_owned();
    let taken = bent_key.is_empty()
        || is_reserved(&bent_key)
        || (!rules.forbidden_prefix.is_empty() && bent_key.starts_with(rules.forbidden_prefix));
    let value = value.chars().map(|c| bent(c, rules)).take(rules.value_max).collect();
    (!taken).then_some((bent_key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn narrow(c: char) -> bool {
        c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_'
    }

    const NARROW: TagRules = TagRules {
        cloud: "Test",
        most: 10,
        key_max: 63,
        value_max: 8,
        key_has: narrow,
        value_has: narrow,
        forbidden_prefix: "aws:",
    };

    fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_users_tags_that_the_cloud_would_refuse_are_named() {
        assert_eq!(check(&tags(&[("team", "blue")]), &NARROW), Vec::<String>::new());
        let long = "k".repeat(64);
        for (key, value, says) in [
            ("team", "muchtoolong", "a value of 11 characters"),
            (long.as_str(), "v", "a key of 64 characters"),
            ("Team", "v", "'T' is no character of a key"),
            ("team", "a.b", "'.' is no character of a value"),
            ("aws:x", "v", "keeps keys that begin with"),
        ] {
            let problems = check(&tags(&[(key, value)]), &NARROW).join("; ");
            assert!(problems.contains(says) && problems.contains(key), "{problems}");
        }
        let many = tags(&[("a", ""), ("b", ""), ("c", ""), ("d", "")]);
        assert!(check(&many, &NARROW).join("").contains("4 tags, Test takes 10"));
    }

    #[test]
    fn what_pods_are_called_is_bent_and_what_the_user_wrote_is_not() {
        let all = tags(&[(POD, "My.Pod-with-a-long-name"), ("team", "Blue")]);
        let fitted = fit(&all, &NARROW);
        assert_eq!(fitted.get(POD).map(String::as_str), Some("my-pod-w"));
        assert_eq!(fitted.get("team").map(String::as_str), Some("Blue"));
    }

    #[test]
    fn a_label_becomes_a_tag_that_fits_or_none() {
        let tag = from_label("app.kubernetes.io/Name", "Shop", &NARROW);
        assert_eq!(tag, Some(("app-kubernetes-io-name".to_owned(), "shop".to_owned())));
        for key in ["", "...", "peerpodd-sandbox"] {
            assert_eq!(from_label(key, "x", &NARROW), None, "{key}");
        }
    }
}
