//! Go's flag syntax, turned into the one that clap reads.
//!
//! ```text
//!   -x   --x        → --x=true       a boolean
//!   -x=v --x=v      → --x=v
//!   -x v --x v      → --x=v          anything else
//!   --              ends the flags
//! ```

use super::key::{Problem, Shape, Spec};

/// Flags that are no settings, and whether they take a value.
const OTHERS: [(&str, bool); 4] =
    [("print-config", false), ("output", true), ("o", true), ("help", false)];

/// A command line with one spelling for each flag.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// `--flag=value`, in the order given.
    pub(super) flags: Vec<(String, String)>,
    /// What is no flag.
    pub(super) words: Vec<String>,
    /// Unknown flags and missing values.
    pub(super) problems: Vec<Problem>,
}

/// Reads everything after the subcommand.
pub(super) fn read(args: &[String], known: &[Spec]) -> Line {
    let mut line = Line::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            line.words.extend(args.cloned());
            break;
        }
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            line.words.push(arg.clone());
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let Some(takes_value) = takes_value(name, known) else {
            line.problems.push(unknown(arg, name, known));
            continue;
        };
        match value.or_else(|| if takes_value { args.next().cloned() } else { Some("true".into()) })
        {
            Some(value) => line.flags.push((canonical(name).to_owned(), value)),
            None => line.problems.push(Problem::bare(format!("--{name}"), "has no value")),
        }
    }
    line
}

/// `-h` and `-o` are the short names people try.
fn canonical(name: &str) -> &str {
    match name {
        "h" => "help",
        "o" => "output",
        name => name,
    }
}

/// `None` for an unknown flag.
fn takes_value(name: &str, known: &[Spec]) -> Option<bool> {
    let other = OTHERS.iter().find(|(n, _)| *n == canonical(name)).map(|(_, takes)| *takes);
    let setting = || known.iter().find(|s| s.flag == name).map(|s| s.shape != Shape::Bool);
    other.or_else(setting).filter(|_| !name.is_empty())
}

fn unknown(arg: &str, name: &str, known: &[Spec]) -> Problem {
    let shown = arg.split('=').next().unwrap_or(arg);
    let flags = known.iter().map(|s| s.flag).filter(|f| !f.is_empty());
    match nearest(name, flags) {
        Some(near) => Problem::bare(shown, format!("is no flag; --{near} is the nearest")),
        None => Problem::bare(shown, "is no flag; --help lists them"),
    }
}

/// The known name with the fewest differences, if at most a third of it is different.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let best = known.map(|k| (distance(name, k), k)).min()?;
    (best.0 * 3 <= best.1.len().max(name.len())).then_some(best.1)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
