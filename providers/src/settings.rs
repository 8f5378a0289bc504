//! How a provider says which settings it takes, and how it reads them. Providers never look at the
//! environment or at flags: whoever does hands over a table of texts by flag name.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

/// One setting of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Command-line flag, without the dashes. The key of [`Values`].
    pub flag: &'static str,
    /// Environment variable; empty if there is none.
    pub env: &'static str,
    /// Value when nothing is set, as text; empty is "none".
    pub default: &'static str,
    /// One sentence for `--help`.
    pub help: &'static str,
    /// The value is never printed.
    pub secret: bool,
    /// A comma list, of which parts may come from different places.
    pub list: bool,
}

impl Key {
    /// A setting whose value may be printed.
    pub const fn plain(
        flag: &'static str,
        env: &'static str,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { flag, env, default, help, secret: false, list: false }
    }
}

impl Key {
    /// A setting whose value must not be printed.
    pub const fn secret(flag: &'static str, env: &'static str, help: &'static str) -> Self {
        Self { secret: true, ..Self::plain(flag, env, "", help) }
    }

    /// A comma list.
    pub const fn list(
        flag: &'static str,
        env: &'static str,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { list: true, ..Self::plain(flag, env, default, help) }
    }

    /// The same setting with another default.
    pub const fn with_default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }
}

/// Texts by flag name; what is missing or empty takes its default.
#[derive(Clone, Default)]
pub struct Values(BTreeMap<String, String>);

impl Values {
    /// Sets one value.
    pub fn set(&mut self, flag: impl Into<String>, value: impl Into<String>) {
        self.0.insert(flag.into(), value.into());
    }

    /// The value that was given for a key, a placeholder included; never the empty text.
    pub fn given(&self, key: &Key) -> Option<&str> {
        self.0.get(key.flag).map(|v| v.trim()).filter(|v| !v.is_empty())
    }

    /// The value of a key, or its default; never the empty text. A placeholder is no value.
    pub fn get(&self, key: &Key) -> Option<&str> {
        let given = self.given(key).filter(|v| !is_placeholder(v));
        given.or(Some(key.default)).filter(|v| !v.is_empty())
    }
}

/// A users' guide's placeholder (`<aws_region>`) that nobody has filled in: it counts as not set.
pub fn is_placeholder(text: &str) -> bool {
    let text = text.trim();
    text.len() > 2 && text.starts_with('<') && text.ends_with('>') && !text.contains(',')
}

/// Values may be secrets, so only the flags show.
impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<F: Into<String>, V: Into<String>> FromIterator<(F, V)> for Values {
    fn from_iter<I: IntoIterator<Item = (F, V)>>(items: I) -> Self {
        Self(items.into_iter().map(|(f, v)| (f.into(), v.into())).collect())
    }
}

/// Everything that is wrong with a provider's settings, in one message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct SettingsError(pub Vec<String>);

/// Reads values one by one and keeps what was wrong with each.
#[derive(Debug)]
pub struct Reader<'a> {
    values: &'a Values,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    /// On a table of texts.
    pub fn new(values: &'a Values) -> Self {
        Self { values, problems: Vec::new() }
    }

    /// The text of a key, if there is one.
    pub fn text(&self, key: &Key) -> Option<&'a str> {
        // The default lives as long as the program, so it may stand in for any lifetime.
        self.values.get(key)
    }

    /// Whether a key was given nothing but a forgotten placeholder.
    pub fn is_placeholder(&self, key: &Key) -> bool {
        self.values.given(key).is_some_and(is_placeholder)
    }

    /// The text of a key that must have one, read by `parse`; `None` after a problem was noted.
    pub fn parsed<T, E: Display>(
        &mut self,
        key: &Key,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let Some(text) = self.text(key) else {
            match self.values.given(key) {
                Some(text) => {
                    self.problem(key, format!("is required, and {text:?} is a placeholder"))
                }
                None => self.problem(key, "is required"),
            }
            return None;
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(e) if key.secret => {
                self.problem(key, e);
                None
            }
            Err(e) => {
                self.problem(key, format!("{text:?} {e}"));
                None
            }
        }
    }

    /// Notes what is wrong with a key.
    pub fn problem(&mut self, key: &Key, problem: impl Display) {
        let name = match key.env {
            "" => format!("--{}", key.flag),
            env => format!("{env} (--{})", key.flag),
        };
        self.problems.push(format!("{name} {problem}"));
    }

    /// The value, if nothing was wrong with any.
    ///
    /// # Errors
    /// All problems at once.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, SettingsError> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(SettingsError(self.problems)),
        }
    }
}

/// Reads `1h30m`, `250ms`, `1.5s` or `0`: decimal numbers with a unit (`h`, `m`, `s`, `ms`, `us`,
/// `ns`), as the settings of upstream have them.
///
/// # Errors
/// What is wrong with the text.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || "is not a duration such as 250ms, 1.5s or 1h30m".to_owned();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let seconds: f64 = number.parse().map_err(|_| bad())?;
        let seconds = seconds * unit_seconds(unit).ok_or_else(bad)?;
        let part = Duration::try_from_secs_f64(seconds).map_err(|_| bad())?;
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = tail;
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

fn unit_seconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "h" => 3600.0,
        "m" => 60.0,
        "s" => 1.0,
        "ms" => 1e-3,
        "us" | "µs" => 1e-6,
        "ns" => 1e-9,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIDR: Key = Key::plain("local-cidr", "LOCAL_CIDR", "172.31.0.0/24", "");
    const TOKEN: Key = Key { secret: true, ..Key::plain("token", "", "", "") };

    #[test]
    fn durations_are_read_as_upstream_writes_them() {
        let ms = Duration::from_millis;
        for (text, value) in
            [("0", ms(0)), ("250ms", ms(250)), ("1.5s", ms(1500)), ("1h30m", ms(5_400_000))]
        {
            assert_eq!(duration(text), Ok(value), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1 s", "1d", "1e9h", "1.2.3s", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_placeholder_is_nothing() {
        assert!(is_placeholder("<aws_region>") && is_placeholder(" <x> "));
        assert!(!is_placeholder("<>") && !is_placeholder("a<b>") && !is_placeholder("<a>,<b>"));
        let values: Values = [("local-cidr", "<cidr>"), ("token", "<t>")].into_iter().collect();
        assert_eq!((values.get(&CIDR), values.get(&TOKEN)), (Some("172.31.0.0/24"), None));
    }

    #[test]
    fn a_value_is_trimmed_and_an_empty_one_takes_the_default() {
        let values: Values = [("local-cidr", " ")].into_iter().collect();
        assert_eq!(values.get(&CIDR), Some("172.31.0.0/24"));
        let values: Values = [("local-cidr", " 10.0.0.0/8 ")].into_iter().collect();
        assert_eq!(values.get(&CIDR), Some("10.0.0.0/8"));
    }

    #[test]
    fn all_problems_come_in_one_message_that_names_the_keys() {
        let values: Values = [("local-cidr", "nonsense")].into_iter().collect();
        let mut reader = Reader::new(&values);
        let cidr = reader.parsed(&CIDR, |t| t.parse::<u32>());
        assert!(reader.parsed(&TOKEN, |t| t.parse::<u32>()).is_none());
        let error = reader.finish(cidr).expect_err("two problems").to_string();
        assert!(error.contains("LOCAL_CIDR (--local-cidr) \"nonsense\" "), "{error}");
        assert!(error.contains("--token is required"), "{error}");
    }

    #[test]
    fn a_secret_value_is_in_no_message_and_no_debug_output() {
        let values: Values = [("token", "hunter2")].into_iter().collect();
        let mut reader = Reader::new(&values);
        let token = reader.parsed(&TOKEN, |t| t.parse::<u32>());
        assert!(!format!("{reader:?}{values:?}").contains("hunter2"));
        assert!(!reader.finish(token).expect_err("no number").to_string().contains("hunter2"));
    }
}
