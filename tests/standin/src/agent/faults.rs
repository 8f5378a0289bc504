//! Faults by rule: which call is hit, after how many, how often, and what happens to it.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// All connections close instead of an answer.
    Eof,
    /// The agent exits instead of answering.
    Exit,
    /// No answer ever.
    Hang,
    /// The call is handled this many milliseconds late.
    Slow(u64),
    /// The answer is held until another one has gone out on its connection.
    OutOfOrder,
    /// The answer's frame is filled up to the 4 MiB that the protocol allows.
    Large,
    /// This code and text instead of an answer.
    Refuse(i32, String),
}

/// When an effect strikes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Method name such as `CreateContainer`, or `*`.
    pub method: String,
    /// Calls of it that pass first.
    #[serde(default)]
    pub after: u64,
    /// How many calls are hit; 0 is all.
    #[serde(default)]
    pub times: u64,
    /// What happens.
    pub effect: Effect,
}

impl Rule {
    /// Hits every call of a method.
    pub fn always(method: &str, effect: Effect) -> Self {
        Self { method: method.to_owned(), after: 0, times: 0, effect }
    }

    /// Hits the next call of a method only.
    pub fn once(method: &str, effect: Effect) -> Self {
        Self { times: 1, ..Self::always(method, effect) }
    }
}

/// The rules in force, with what each has seen.
#[derive(Debug, Default)]
pub(super) struct Faults {
    control: Option<PathBuf>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    rules: Vec<(Rule, u64)>,
    read: Option<SystemTime>,
}

impl Faults {
    pub(super) fn new(rules: Vec<Rule>, control: Option<PathBuf>) -> Self {
        let faults = Self { control, ..Self::default() };
        faults.set(rules);
        faults
    }

    /// Replaces all rules; what they have seen starts at 0.
    pub(super) fn set(&self, rules: Vec<Rule>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.rules = rules.into_iter().map(|r| (r, 0)).collect();
    }

    /// What happens to this call of `method`, if anything.
    pub(super) fn strike(&self, method: &str) -> Option<Effect> {
        self.look_at_file();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut effect = None;
        for (rule, seen) in &mut inner.rules {
            if rule.method != "*" && rule.method != method {
                continue;
            }
            *seen += 1;
            let hit = *seen > rule.after && (rule.times == 0 || *seen <= rule.after + rule.times);
            if hit && effect.is_none() {
                effect = Some(rule.effect.clone());
            }
        }
        effect
    }

    fn look_at_file(&self) {
        let Some(path) = &self.control else { return };
        let Ok(changed) = std::fs::metadata(path).and_then(|m| m.modified()) else { return };
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.read == Some(changed) {
            return;
        }
        inner.read = Some(changed);
        let rules = std::fs::read(path).ok().and_then(|b| serde_json::from_slice(&b).ok());
        match rules {
            Some(rules) => {
                let rules: Vec<Rule> = rules;
                inner.rules = rules.into_iter().map(|r| (r, 0)).collect();
            }
            None => tracing::warn!(path = %path.display(), "no list of fault rules"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_strikes_after_and_as_often_as_it_says() {
        let rule = Rule { method: "Check".into(), after: 1, times: 2, effect: Effect::Hang };
        let faults = Faults::new(vec![rule], None);
        let struck: Vec<bool> = (0..5).map(|_| faults.strike("Check").is_some()).collect();
        assert_eq!(struck, [false, true, true, false, false]);
        assert_eq!(faults.strike("Version"), None);
    }
}
