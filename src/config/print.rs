//! `--print-config`: every effective value with its source, secrets hidden.

use serde::Serialize;

use super::key::{Origin, Source};
use super::resolve::Effective;

#[derive(Serialize)]
struct Row<'a> {
    flag: &'a str,
    env: &'a str,
    value: &'a str,
    source: String,
    origin: &'static str,
    secret: bool,
}

fn source(row: &Effective) -> String {
    match row.source {
        Source::Default => "default".to_owned(),
        Source::Env => format!("env {}", row.spec.env),
        Source::Flag => "flag".to_owned(),
        Source::EnvAndFlag => format!("env {} and flag", row.spec.env),
    }
}

fn origin(row: &Effective) -> &'static str {
    match row.spec.origin {
        Origin::Upstream => "upstream",
        Origin::Unused => "unused",
        Origin::Ours => "ours",
        Origin::Provider => "provider",
    }
}

fn rows(rows: &[Effective]) -> impl Iterator<Item = &Effective> {
    rows.iter().filter(|row| !row.spec.flag.is_empty())
}

/// Aligned lines: flag, value, source.
pub(super) fn text(all: &[Effective]) -> String {
    let shown: Vec<[String; 3]> = rows(all)
        .map(|row| [row.spec.flag.to_owned(), format!("{:?}", row.shown()), source(row)])
        .collect();
    let width = |column: usize| shown.iter().map(|r| r[column].len()).max().unwrap_or(0);
    // One long value must not push every source off the screen.
    let (flag, value) = (width(0), width(1).min(48));
    shown.iter().map(|[f, v, s]| format!("{f:flag$}  {v:value$}  {s}\n")).collect()
}

/// A JSON array of objects.
pub(super) fn json(all: &[Effective]) -> String {
    let shown: Vec<_> = rows(all)
        .map(|row| Row {
            flag: row.spec.flag,
            env: row.spec.env,
            value: row.shown(),
            source: source(row),
            origin: origin(row),
            secret: row.spec.secret,
        })
        .collect();
    let mut text = serde_json::to_string_pretty(&shown).unwrap_or_default();
    text.push('\n');
    text
}
