//! The end: a small table, or the summary as the last JSON line.

use serde::Serialize;

use crate::timeline::{Timeline, millis};

/// How a step went.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// Its name.
    pub(crate) step: &'static str,
    /// Seen as it should be.
    pub(crate) ok: bool,
    /// Its time.
    pub(crate) ms: u64,
    /// What was seen, or what went wrong.
    pub(crate) seen: String,
}

#[derive(Serialize)]
struct Summary<'a> {
    summary: bool,
    ok: bool,
    ms: u64,
    steps: &'a [Row],
}

/// Prints it.
pub(crate) fn print(timeline: &Timeline, rows: &[Row]) {
    let ok = rows.iter().all(|r| r.ok);
    let ms = millis(timeline.elapsed());
    if timeline.is_json() {
        let summary = Summary { summary: true, ok, ms, steps: rows };
        timeline.line(&serde_json::to_string(&summary).unwrap_or_default());
        return;
    }
    timeline.line("");
    for row in rows {
        let word = if row.ok { "ok" } else { "FAILED" };
        let word = timeline.paint(&format!("{word:<7}"), if row.ok { "32" } else { "31" });
        let first = row.seen.lines().next().unwrap_or_default();
        timeline.line(&format!("  {:<8} {word} {:>7} ms  {first}", row.step, row.ms));
    }
    let failed = rows.iter().filter(|r| !r.ok).count();
    let (word, colour) = match failed {
        0 => ("everything was seen to work".to_owned(), "32"),
        n => (format!("{n} of {} steps FAILED", rows.len()), "31"),
    };
    timeline.line(&timeline.paint(&format!("\n  {word}, in {ms} ms"), colour));
}
