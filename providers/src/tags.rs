//! The tags every VM and every part of it carries (providers.md 2.3). They are how a VM is found
//! again when everything else has been lost.

use std::collections::{BTreeMap, BTreeSet};

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

/// Whether a key is ours, so that a user's tag may not use it; in no spelling, since to Azure `A` is `a`.
pub fn is_reserved(key: &str) -> bool {
    begins_with(key, "peerpodd-")
}

fn begins_with(key: &str, prefix: &str) -> bool {
    key.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
}

/// What a cloud takes as tags.
#[derive(Clone, Copy, Debug)]
pub struct TagRules {
    /// The cloud, in messages.
    pub cloud: &'static str,
    /// Tags of one resource in all, ours included.
    pub most: usize,
    /// Characters of all keys and values of one resource.
    pub chars_max: usize,
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
    /// Characters that the key of a cost tag may have: no more than are taken wherever a VM's tags go.
    pub cost_key_has: fn(char) -> bool,
    /// First characters, besides those forbidden, that the key of a cost tag may not have.
    pub cost_key_not: &'static [&'static str],
}

impl TagRules {
    /// Of whoever takes anything that can be printed.
    pub const ANY: Self = Self {
        cloud: "the provider",
        most: usize::MAX,
        chars_max: usize::MAX,
        key_max: usize::MAX,
        value_max: usize::MAX,
        key_has: |c| !c.is_control(),
        value_has: |c| !c.is_control(),
        forbidden_prefix: "",
        cost_key_has: |c| !c.is_control(),
        cost_key_not: &[],
    };
}

impl PartialEq for TagRules {
    /// The rules of one cloud are the same everywhere.
    fn eq(&self, other: &Self) -> bool {
        self.cloud == other.cloud
    }
}

impl Eq for TagRules {}

/// Tags of our own that a VM carries at most: those above and a name.
pub const OURS: usize = 7;
/// Characters that these have at most in Azure's limits: names of pod and node are the longest.
const OUR_CHARACTERS: usize = 810;

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
    let (chars, chars_max) = (characters(tags), rules.chars_max);
    if chars > chars_max.saturating_sub(OUR_CHARACTERS) {
        problems.push(format!(
            "TAGS (--tags): {chars} characters in all, {cloud} takes {chars_max} on a VM, of which \
             {OUR_CHARACTERS} are ours"
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
        if !prefix.is_empty() && begins_with(key, prefix) {
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

fn characters(tags: &BTreeMap<String, String>) -> usize {
    tags.iter().map(|(key, value)| key.chars().count() + value.chars().count()).sum()
}

/// A cost tag from a label: bent until it fits, so that a pod's label can break no create. `None` if
/// nothing of the key is left, or the key is ours or the cloud's.
pub fn from_label(key: &str, value: &str, rules: &TagRules) -> Option<(String, String)> {
    let fitting = |c: char| {
        let lower = c.to_ascii_lowercase();
        [c, lower].into_iter().find(|c| (rules.cost_key_has)(*c)).unwrap_or('-')
    };
    let bent_key: String = key.chars().map(fitting).collect();
    let bent_key = bent_key.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    let bent_key: String = bent_key.chars().take(rules.key_max).collect();
    let clouds = [rules.forbidden_prefix].into_iter().filter(|prefix| !prefix.is_empty());
    let taken = bent_key.is_empty()
        || is_reserved(&bent_key)
        || clouds.chain(rules.cost_key_not.iter().copied()).any(|p| begins_with(&bent_key, p));
    let value = value.chars().map(|c| bent(c, rules)).take(rules.value_max).collect();
    (!taken).then_some((bent_key, value))
}

/// What room a provider has for cost tags, beside ours and the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRoom {
    /// What its cloud takes.
    pub rules: TagRules,
    /// Keys of the tags that the provider adds by itself.
    pub own: BTreeSet<String>,
}

impl Default for TagRoom {
    fn default() -> Self {
        Self::new(TagRules::ANY)
    }
}

impl TagRoom {
    /// Of a provider that adds none.
    pub fn new(rules: TagRules) -> Self {
        Self { rules, own: BTreeSet::new() }
    }

    /// Puts a cost tag to the tags of a VM, ours and the user's among them, if it fits; all others go
    /// before it. Gives its key as the cloud has it.
    ///
    /// # Errors
    /// Why it is left out.
    pub fn add(
        &self,
        tags: &mut BTreeMap<String, String>,
        key: &str,
        value: &str,
    ) -> Result<String, String> {
        let TagRules { cloud, most, chars_max, .. } = self.rules;
        let Some((key, value)) = from_label(key, value, &self.rules) else {
            return Err(format!("that is no key of a tag for {cloud}"));
        };
        let mut there = tags.keys().chain(&self.own);
        if let Some(other) = there.find(|other| other.eq_ignore_ascii_case(&key)) {
            return Err(format!("there is a tag {other:?} already"));
        }
        if tags.len() + self.own.len() >= most {
            return Err(format!("{cloud} takes {most} tags on a resource"));
        }
        let cost = key.chars().count() + value.chars().count();
        if characters(&fit(tags, &self.rules)) + cost > chars_max {
            return Err(format!("{cloud} takes {chars_max} characters of tags on a VM"));
        }
        tags.insert(key.clone(), value);
        Ok(key)
    }
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
        cost_key_has: narrow,
        cost_key_not: &["cloud"],
        ..TagRules::ANY
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
        for key in ["", "...", "peerpodd-sandbox", "PeerPodd-x", "Cloud.x", "1.cloud"] {
            assert_eq!(from_label(key, "x", &NARROW), None, "{key}");
        }
    }

    #[test]
    fn a_cost_tag_gives_way_to_all_others_and_to_the_limits() {
        let own = BTreeSet::from(["name".to_owned()]);
        let room = TagRoom { own, ..TagRoom::new(TagRules { chars_max: 40, ..NARROW }) };
        let mut all = tags(&[(SANDBOX, "s1"), ("team", "blue")]);
        let before = all.clone();
        for (key, value, why) in [
            ("Team", "red", "there is a tag \"team\" already"),
            ("Name", "x", "there is a tag \"name\" already"),
            ("peerpodd-sandbox", "x", "no key of a tag for Test"),
            ("a-key-that-is-long", "x", "takes 40 characters"),
        ] {
            let error = room.add(&mut all, key, value).expect_err(key);
            assert!(error.contains(why), "{key}: {error}");
            assert_eq!(all, before, "{key}");
        }
        assert_eq!(room.add(&mut all, "app.X", "Shop"), Ok("app-x".to_owned()));
        assert_eq!(all.get("app-x").map(String::as_str), Some("shop"));
        let full = TagRoom::new(TagRules { most: 3, ..NARROW });
        assert!(full.add(&mut all, "k", "v").expect_err("full").contains("takes 3 tags"));
    }

    #[test]
    fn a_users_tags_that_are_too_many_characters_are_counted() {
        let rules = TagRules { chars_max: OUR_CHARACTERS + 5, ..NARROW };
        assert_eq!(check(&tags(&[("k", "1234")]), &rules), Vec::<String>::new());
        let problems = check(&tags(&[("k", "12345")]), &rules).join("");
        assert!(problems.contains("6 characters in all, Test takes 815"), "{problems}");
    }
}
