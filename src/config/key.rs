//! What one setting is: its names, its default, how its text is read.

use std::fmt;

/// One line of the table of settings, without the type of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Command-line flag, without dashes.
    pub flag: &'static str,
    /// Environment variable; empty if there is none.
    pub env: &'static str,
    /// Text that stands for "nothing given".
    pub default: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// How the command line treats it.
    pub shape: Shape,
    /// Where it comes from.
    pub origin: Origin,
    /// Never printed.
    pub secret: bool,
}

/// How the command line treats a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `-x` alone means true; a value needs `=`.
    Bool,
    /// One value; the last one given counts.
    One,
    /// Comma list; what flags give is added to what the environment gives, as upstream does it.
    List,
}

/// Where a setting comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Has the meaning it has in cloud-api-adaptor.
    Upstream,
    /// Known there, accepted here, without effect.
    Unused,
    /// Ours alone.
    Ours,
    /// Named by the chosen provider.
    Provider,
}

/// A setting with the type its text is read as.
pub(super) struct Key<T> {
    pub(super) spec: Spec,
    /// The value, or what is wrong with the text ("is not …").
    pub(super) parse: fn(&str) -> Result<T, String>,
}

/// Where an effective value was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere.
    Default,
    /// In the environment variable of the setting.
    Env,
    /// On the command line.
    Flag,
    /// A list whose parts came from both.
    EnvAndFlag,
}

impl From<&peerpod_providers::settings::Key> for Spec {
    /// A key whose default is `true` or `false` is a boolean: providers name no shapes.
    fn from(key: &peerpod_providers::settings::Key) -> Self {
        let shape = match key.default {
            "true" | "false" => Shape::Bool,
            _ if key.list => Shape::List,
            _ => Shape::One,
        };
        Self {
            flag: key.flag,
            env: key.env,
            default: key.default,
            help: key.help,
            shape,
            origin: Origin::Provider,
            secret: key.secret,
        }
    }
}

impl Spec {
    /// How messages name it: `--socket (REMOTE_HYPERVISOR_ENDPOINT)`.
    pub fn name(&self) -> String {
        match (self.flag, self.env) {
            ("", env) => env.to_owned(),
            (flag, "") => format!("--{flag}"),
            (flag, env) => format!("--{flag} ({env})"),
        }
    }

    /// The text as it may be shown.
    pub fn shown<'a>(&self, text: &'a str) -> &'a str {
        if self.secret && !text.is_empty() { "(secret)" } else { text }
    }
}

/// One thing that is wrong with the settings; never holds a secret value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Flag and environment variable, or the argument that is no setting.
    pub key: String,
    /// The value, if it may be shown.
    pub value: Option<String>,
    /// What is wrong, to be read after key and value.
    pub problem: String,
}

impl Problem {
    /// About a setting that has this text.
    pub fn of(spec: &Spec, text: &str, problem: impl Into<String>) -> Self {
        let value = Some(format!("{:?}", spec.shown(text)));
        Self { key: spec.name(), value, problem: problem.into() }
    }

    /// About something that has no value.
    pub fn bare(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), value: None, problem: problem.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} = {value}: {}", self.key, self.problem),
            None => write!(f, "{}: {}", self.key, self.problem),
        }
    }
}

/// Everything that is wrong, in one message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("settings that cannot be used:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}
