//! The settings: read once, checked, printed redacted. After [`Settings`] nobody reads raw input.
//!
//! ```text
//!   arguments ─syntax─▶ flags ─┐
//!   environment ───────────────┼─resolve─▶ one text per setting ─build─▶ Settings | Problems (all)
//!   table, provider's keys ────┘                 └─print─▶ --print-config
//! ```

mod build;
mod epoch;
mod installation;
mod kept;
mod key;
mod parse;
mod print;
mod resolve;
pub mod settings;
mod state_dir;
mod syntax;
mod table;

use std::collections::BTreeMap;

use peerpod_providers::registry::{self, RegistryError};
use peerpod_providers::settings::Values;

pub use epoch::{EpochError, Epochs};
pub use installation::{InstallationError, installation_id, known_installation_id};
pub use key::{Origin, Problem, Problems, Shape, Source, Spec};
pub use resolve::Effective;
pub use settings::{
    ClientFiles, Kubernetes, Link, Log, LogFormat, Paths, Pods, Process, ProviderChoice,
    RelaySettings, Settings, Sweep, Tls, Tunnel,
};
pub use state_dir::{StateDir, StateDirError};

use resolve::Reader;

/// What a process was started with.
#[derive(Clone, Default)]
pub struct Input {
    /// Everything after the subcommand.
    pub args: Vec<String>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The host's name.
    pub hostname: String,
    /// The running executable.
    pub program: std::path::PathBuf,
}

/// Arguments and environment may hold secrets, so neither prints.
impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("program", &self.program).finish_non_exhaustive()
    }
}

/// Flags that are no settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `--help`.
    pub help: bool,
    /// `--print-config`.
    pub print_config: bool,
    /// `-o json`.
    pub json: bool,
}

/// One text per setting, not yet read.
#[derive(Debug)]
pub struct Loaded {
    /// In the order they are printed in.
    pub rows: Vec<Effective>,
    /// Flags that are no settings.
    pub asked: Asked,
    /// What has no effect and should be known.
    pub notices: Vec<String>,
    input: Input,
    problems: Vec<Problem>,
}

/// Finds the text of every setting. What is wrong comes out of [`Loaded::settings`].
pub fn load(input: Input) -> Loaded {
    // `peerpodd run aws …` is `peerpodd run --provider aws …`.
    let (word, args) = match input.args.split_first() {
        Some((word, rest)) if !word.starts_with('-') => (Some(word.clone()), rest),
        _ => (None, input.args.as_slice()),
    };
    // Which flags there are depends on the provider, and the provider on a flag: so twice.
    let common: Vec<Spec> = table::ALL.iter().map(|spec| **spec).collect();
    let first = syntax::read(args, &common);
    let named = || resolve::resolve(&table::PROVIDER.spec, &first, &input.env, None).text;
    let name = word.clone().unwrap_or_else(named);
    let (own, unknown) = match registry::keys(&name) {
        Ok(keys) => (keys.iter().map(Spec::from).collect(), None),
        Err(e) => (Vec::new(), Some(e)),
    };
    let mut specs = common;
    specs
        .extend(own.into_iter().filter(|key: &Spec| table::ALL.iter().all(|c| c.flag != key.flag)));
    let mut line = syntax::read(args, &specs);
    let mut problems = std::mem::take(&mut line.problems);
    take_words(&mut line, word, &mut problems);
    let asked = asked(&line, &mut problems);
    specs.push(table::EXTERNAL_PLUGIN.spec);
    let rows: Vec<_> = specs
        .iter()
        .map(|spec| {
            let host = (spec.flag == "node-name").then_some(input.hostname.as_str());
            resolve::resolve(spec, &line, &input.env, host)
        })
        .collect();
    if let Some(e) = unknown {
        problems.push(Problem::of(&table::PROVIDER.spec, &name, reason(&e)));
    }
    let notices = notices(&rows, &input.env, &name);
    Loaded { rows, asked, notices, input, problems }
}

/// The registry's words without the name, which stands before them already.
fn reason(error: &RegistryError) -> String {
    let text = error.to_string();
    text.split_once("\" ").map_or(text.clone(), |(_, rest)| rest.to_owned())
}

/// What is no flag: at most the provider's name, and that first.
fn take_words(line: &mut syntax::Line, first: Option<String>, problems: &mut Vec<Problem>) {
    problems.extend(line.words.iter().map(|word| {
        let text = "is not a flag (the provider's name stands first; a boolean's value needs `=`)";
        Problem::bare(format!("{word:?}"), text)
    }));
    let Some(name) = first else { return };
    if let Some((_, other)) = line.flags.iter().find(|(f, v)| f == "provider" && *v != name) {
        let text = format!("is not the provider that --provider names, {other:?}");
        problems.push(Problem::bare(format!("{name:?}"), text));
    }
    line.flags.push(("provider".to_owned(), name));
}

fn asked(line: &syntax::Line, problems: &mut Vec<Problem>) -> Asked {
    let mut asked = Asked::default();
    for (flag, value) in &line.flags {
        match (flag.as_str(), value.as_str()) {
            ("help", _) => asked.help = true,
            ("print-config", value) => asked.print_config = value == "true",
            ("output", "json") => asked.json = true,
            ("output", "text") => asked.json = false,
            ("output", _) => {
                problems
                    .push(Problem::bare(format!("--output = {value:?}"), "is not text or json"));
            }
            _ => {}
        }
    }
    asked
}

/// Keys of users' config maps that do nothing here, and names that are nearly right.
fn notices(rows: &[Effective], env: &BTreeMap<String, String>, provider: &str) -> Vec<String> {
    let mut notices = Vec::new();
    for row in rows.iter().filter(|r| r.spec.origin == Origin::Unused && !r.text.is_empty()) {
        if row.source != Source::Default && row.spec.env != table::EXTERNAL_PLUGIN.spec.env {
            notices.push(format!("{} is accepted and has no effect", row.spec.name()));
        }
    }
    let forgotten = |text: &str| peerpod_providers::settings::is_placeholder(text);
    for row in rows.iter().filter(|r| env.get(r.spec.env).is_some_and(|v| forgotten(v))) {
        notices.push(format!(
            "{} is a placeholder that nobody filled in, and is not set",
            row.spec.name()
        ));
    }
    let given = |name: &str| env.get(name).is_some_and(|v| !v.is_empty());
    let read = |name: &str| rows.iter().any(|row| row.spec.env == name);
    for name in table::UNUSED_ENV.into_iter().filter(|name| given(name) && !read(name)) {
        notices.push(format!("{name} is accepted and has no effect"));
    }
    let ours = ["PEERPODD_".to_owned(), format!("{}_", provider.to_uppercase())];
    for name in env.keys().filter(|n| ours.iter().any(|prefix| n.starts_with(prefix.as_str()))) {
        let known = || rows.iter().map(|r| r.spec.env).filter(|e| !e.is_empty());
        if known().all(|k| k != name) && !table::LIBRARY_ENV.contains(&name.as_str()) {
            let near = syntax::nearest(name, known());
            let near = near.map(|n| format!("; {n} is the nearest")).unwrap_or_default();
            notices.push(format!("{name} is no setting and is ignored{near}"));
        }
    }
    notices
}

impl Loaded {
    /// All settings, read and checked.
    ///
    /// # Errors
    /// Everything that is wrong, in one message.
    pub fn settings(&self) -> Result<Settings, Problems> {
        let mut reader = Reader::new(&self.rows);
        let provider = self.provider(&mut reader);
        let settings = build::settings(&mut reader, provider);
        self.finish(reader, settings)
    }

    /// The few settings of the relay; the others may be wrong.
    ///
    /// # Errors
    /// What is wrong with the command line and with these few.
    pub fn relay(&self) -> Result<RelaySettings, Problems> {
        let mut reader = Reader::new(&self.rows);
        let settings = build::relay(&mut reader);
        self.finish(reader, settings)
    }

    /// Sockets and directories and the port, for commands that ask a running daemon.
    ///
    /// # Errors
    /// What is wrong with the command line and with these few.
    pub fn probe_port(&self) -> Result<u16, Problems> {
        let mut reader = Reader::new(&self.rows);
        let port = reader.get(&table::PROBE_PORT);
        self.finish(reader, port)
    }

    /// How to log before anything else is known: a wrong value does not stop that.
    pub fn log(&self) -> Log {
        let mut reader = Reader::new(&self.rows);
        let log = build::log(&mut reader);
        if reader.problems.is_empty() { log } else { Log { filter: "info".to_owned(), ..log } }
    }

    /// All effective values for people, secrets hidden.
    pub fn print_text(&self) -> String {
        print::text(&self.rows)
    }

    /// The same as JSON.
    pub fn print_json(&self) -> String {
        print::json(&self.rows)
    }

    fn finish<T>(&self, reader: Reader<'_>, value: T) -> Result<T, Problems> {
        let mut problems = self.problems.clone();
        problems.extend(reader.problems);
        problems.dedup();
        if problems.is_empty() { Ok(value) } else { Err(Problems(problems)) }
    }

    fn provider(&self, reader: &mut Reader<'_>) -> ProviderChoice {
        let own = self.rows.iter().filter(|r| r.spec.origin == Origin::Provider);
        let values: Values = own.map(|r| (r.spec.flag, r.text.clone())).collect();
        let choice = ProviderChoice {
            name: reader.get(&table::PROVIDER),
            values,
            search: self.input.env.get("PATH").cloned().unwrap_or_default(),
            verify: reader.get(&table::VERIFY),
            tags: reader.get(&table::TAGS),
            forwarder_port: reader.peek(&table::FORWARDER_PORT),
            vxlan_port: reader.peek(&table::VXLAN_PORT),
        };
        let context = choice.context("not-yet-known", &self.input.program);
        match registry::build(&choice.name, &context, &choice.values) {
            Ok(_) => {}
            Err(RegistryError::Settings { name, problems }) => reader.problems.extend(
                problems.0.into_iter().map(|p| Problem::bare(format!("provider {name}"), p)),
            ),
            // Names that are not known were noted when the flags were read.
            Err(RegistryError::Unknown { .. } | RegistryError::NotBuilt { .. }) => {}
            Err(e) => reader.refuse(&table::PROVIDER.spec, e.to_string()),
        }
        choice
    }
}

impl ProviderChoice {
    /// What the provider is told besides its own settings.
    pub fn context(&self, installation: &str, program: &std::path::Path) -> registry::Context {
        registry::Context {
            installation: installation.to_owned(),
            program: program.to_owned(),
            search: self.search.clone(),
            tags: self.tags.clone(),
            forwarder_port: self.forwarder_port,
            vxlan_port: self.vxlan_port,
        }
    }
}

#[cfg(test)]
mod tests;
