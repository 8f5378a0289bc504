//! Versions of a record, and what of it this build does not know.
//!
//! ```text
//!   file ─ JSON ─┬─ VERSION ─────────────▶ record + rest ─ save ─▶ record with the rest put back
//!                ├─ VERSION - 1 ─ migrate ─┘
//!                └─ anything else ───────▶ not touched: neither the file nor the VM
//! ```
//!
//! A field that is only added needs no new version: a build that does not know it keeps it ([`Rest`]),
//! one that knows it has a default for records without it. The version goes up by one when an older
//! build would do harm with a record, since a field it needs has changed its meaning or has gone.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::VERSION;

/// The oldest version that can be read: the one before, so that a daemon is upgraded, and taken back,
/// one version at a time.
pub const OLDEST: u32 = if VERSION > 1 { VERSION - 1 } else { VERSION };

/// Why a record of that version is left alone; `None` if it can be read.
pub(super) fn foreign(version: u64) -> Option<String> {
    if version > u64::from(VERSION) {
        return Some(format!(
            "version {version} is newer than {VERSION}, the newest this daemon reads"
        ));
    }
    if version < u64::from(OLDEST) {
        return Some(format!(
            "version {version} is older than {OLDEST}, the oldest this daemon reads: run the \
             version between first"
        ));
    }
    None
}

/// Makes a record of the version before one of this version. It is on disk as it was until the pod's
/// next save: a daemon that only looks at its pods changes no file.
pub(super) fn migrate(record: &mut Map<String, Value>) {
    #[cfg(feature = "next-version")]
    record.entry("generation").or_insert_with(|| Value::from(VERSION - 1));
    record.insert("version".to_owned(), Value::from(VERSION));
}

/// Fields of a record that this build does not know, by where they stand. What a list holds is not
/// looked at: its elements have no names by which they could be found again.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rest(BTreeMap<String, Unknown>);

#[derive(Clone, PartialEq)]
enum Unknown {
    /// Not known at all.
    Whole(Value),
    /// Known, with something unknown in it.
    Inside(Rest),
}

impl std::fmt::Debug for Unknown {
    /// Whatever it is, it may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(_) => f.write_str("…"),
            Self::Inside(rest) => rest.fmt(f),
        }
    }
}

impl Rest {
    /// What `read` has and `known`, the same record as this build writes it, has not.
    pub(super) fn between(read: &Value, known: &Value) -> Self {
        let (Value::Object(read), Value::Object(known)) = (read, known) else {
            return Self::default();
        };
        let unknown = |(key, value): (&String, &Value)| {
            let unknown = match known.get(key) {
                None => Unknown::Whole(value.clone()),
                Some(known) => Unknown::Inside(Self::between(value, known)),
            };
            let nothing = matches!(&unknown, Unknown::Inside(rest) if rest.0.is_empty());
            (!nothing).then(|| (key.clone(), unknown))
        };
        Self(read.iter().filter_map(unknown).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts it back into what this build writes. What stood in something that is no longer there, as
    /// in a phase that has passed, goes with it.
    pub(super) fn put_back(&self, record: &mut Value) {
        let Value::Object(record) = record else { return };
        for (key, unknown) in &self.0 {
            match unknown {
                Unknown::Whole(value) => {
                    record.entry(key).or_insert_with(|| value.clone());
                }
                Unknown::Inside(rest) => {
                    if let Some(inner) = record.get_mut(key) {
                        rest.put_back(inner);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_is_found_at_every_depth_and_put_back() {
        let read = json!({"a": 1, "late": false, "new": [1, 2], "in": {"b": 2, "newer": {"x": null}}, "list": [{"c": 1}]});
        let known = json!({"a": 1, "in": {"b": 2}, "list": [{}], "added": 0});
        let rest = Rest::between(&read, &known);
        // What was left out as a default is known all the same, and may have changed since.
        let mut written = json!({"a": 7, "late": true, "in": {"b": 3}, "list": [], "added": 1});
        rest.put_back(&mut written);
        let wanted = json!({
            "a": 7, "late": true, "new": [1, 2], "in": {"b": 3, "newer": {"x": null}}, "list": [],
            "added": 1
        });
        assert_eq!(written, wanted);
        assert!(Rest::between(&known, &known).is_empty());
        assert!(!format!("{rest:?}").contains('1'), "{rest:?}");
    }

    #[test]
    fn what_stood_in_a_phase_that_has_passed_goes_with_it() {
        let read = json!({"phase": {"running": {"vm": {"id": "i", "colour": "red"}}}});
        let known = json!({"phase": {"running": {"vm": {"id": "i"}}}});
        let rest = Rest::between(&read, &known);
        for phase in [json!({"deleting": {"made": "nothing"}}), json!("prepared")] {
            let mut written = json!({"phase": phase});
            rest.put_back(&mut written);
            assert_eq!(written, json!({"phase": phase}));
        }
    }

    #[test]
    fn one_version_back_is_read_and_no_other() {
        assert!(foreign(u64::from(VERSION)).is_none() && foreign(u64::from(OLDEST)).is_none());
        assert!(foreign(u64::from(VERSION) + 1).expect("left alone").contains("newer"));
        let older = foreign(u64::from(OLDEST) - 1).expect("left alone");
        assert!(older.contains("older"), "{older}");
        assert!(foreign(u64::MAX).is_some());
    }
}
