//! From flags, environment and defaults to one text per setting: command line over non-empty
//! environment over default.

use std::collections::BTreeMap;

use peerpod_providers::settings::is_placeholder;

use super::key::{Key, Problem, Shape, Source, Spec};
use super::syntax::Line;

/// The text of one setting, and where it was found.
#[derive(Clone, PartialEq, Eq)]
pub struct Effective {
    /// Which setting.
    pub spec: Spec,
    /// The text; may be secret.
    pub text: String,
    /// Where it was found.
    pub source: Source,
}

impl std::fmt::Debug for Effective {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} = {:?} ({:?})", self.spec.name(), self.shown(), self.source)
    }
}

impl Effective {
    /// The text as it may be shown.
    pub fn shown(&self) -> &str {
        self.spec.shown(&self.text)
    }
}

/// Finds the text of one setting. `fallback` is a default that only the running host knows.
pub(super) fn resolve(
    spec: &Spec,
    line: &Line,
    env: &BTreeMap<String, String>,
    fallback: Option<&str>,
) -> Effective {
    let flags: Vec<&str> =
        line.flags.iter().filter(|(f, _)| *f == spec.flag).map(|(_, v)| v.as_str()).collect();
    let given = |v: &&str| !v.is_empty() && !is_placeholder(v);
    let variable = env.get(spec.env).map(|v| v.trim()).filter(given);
    let (text, source) = match (flags.last(), variable) {
        (None, None) => (fallback.unwrap_or(spec.default).to_owned(), Source::Default),
        (None, Some(value)) => (value.to_owned(), Source::Env),
        (Some(_), None) if spec.shape == Shape::List => (flags.join(","), Source::Flag),
        (Some(_), Some(value)) if spec.shape == Shape::List => {
            (format!("{value},{}", flags.join(",")), Source::EnvAndFlag)
        }
        // providers.md 2.1: an empty boolean is its default.
        (Some(&""), _) if spec.shape == Shape::Bool => (spec.default.to_owned(), Source::Default),
        (Some(value), _) => (value.trim().to_owned(), Source::Flag),
    };
    Effective { spec: *spec, text, source }
}

/// Reads typed values and keeps what was wrong with each.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rows: &'a [Effective],
    pub(super) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(rows: &'a [Effective]) -> Self {
        Self { rows, problems: Vec::new() }
    }

    /// The value; after a problem was noted, an empty one that nobody will see.
    pub(super) fn get<T: Default>(&mut self, key: &Key<T>) -> T {
        let text = self.text(&key.spec);
        match (key.parse)(text) {
            Ok(value) => value,
            Err(problem) => {
                self.problems.push(Problem::of(&key.spec, text, problem));
                T::default()
            }
        }
    }

    /// The value, for somebody who is not the one to say what is wrong with it.
    pub(super) fn peek<T: Default>(&self, key: &Key<T>) -> T {
        (key.parse)(self.text(&key.spec)).unwrap_or_default()
    }

    /// The text of a setting.
    pub(super) fn text(&self, spec: &Spec) -> &'a str {
        self.rows.iter().find(|row| row.spec == *spec).map_or(spec.default, |row| &row.text)
    }

    /// Notes what is wrong with a setting that could be read.
    pub(super) fn refuse(&mut self, spec: &Spec, problem: impl Into<String>) {
        let text = self.text(spec);
        self.problems.push(Problem::of(spec, text, problem));
    }
}
