//! The command line: which subcommand, and what it is told.
//!
//! `peerpodd node|relay|run [provider] [settings]`, `status [pod]`, `doctor cloud`, `leaks`, `console`,
//! `rotate-ca`, `version`, `help`. Under the name `cloud-api-adaptor` the program is `run`, and its first argument the provider, as users
//! of that program know it.

mod cloud;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use peerpod_providers::registry;

use crate::cloud::Question;
use crate::config::{self, Input, Loaded, Origin, Spec};

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
const COMMIT: &str = match option_env!("PEERPODD_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
/// Name under which users of the Go program start us.
const COMPATIBLE: &str = "cloud-api-adaptor";

/// Version and commit, as processes tell each other.
pub fn build() -> String {
    format!("{VERSION}{} (commit {COMMIT})", crate::next::NAME)
}

/// The processes that take settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Decides and remembers.
    Node,
    /// Holds the shims' connections.
    Relay,
    /// Parent of both.
    Run,
}

impl Role {
    const ALL: [Self; 3] = [Self::Node, Self::Relay, Self::Run];

    /// Name of its subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Relay => "relay",
            Self::Run => "run",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::Node => "The process that decides and remembers; may be restarted at any time",
            Self::Relay => {
                "The process that holds the shims' connections; its end is the pods' end"
            }
            Self::Run => "Parent of node and relay; restarts the one without touching the other",
        }
    }
}

/// What the program is asked to do.
#[derive(Debug)]
pub enum Call {
    /// Run one of the processes.
    Process {
        /// Which.
        role: Role,
        /// Its settings, not yet read.
        loaded: Loaded,
        /// Everything after the subcommand.
        args: Vec<String>,
        /// Exit code for settings that cannot be used.
        refusal: u8,
    },
    /// Ask a running node process.
    Status {
        /// Its port.
        port: u16,
        /// One pod, or all.
        pod: Option<String>,
        /// As JSON.
        json: bool,
    },
    /// Ask the cloud.
    Cloud {
        /// What.
        question: Question,
        /// The settings that say which cloud, not yet read.
        loaded: Loaded,
    },
    /// Have another CA issue the VMs' certificates.
    RotateCa {
        /// State directory of the node process.
        state_dir: PathBuf,
    },
    /// Print this and end well.
    Say(String),
}

/// Print this on standard error and end with that code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leave {
    /// What to print.
    pub text: String,
    /// Exit code.
    pub code: u8,
}

/// What a program is started with.
#[derive(Clone, Default)]
pub struct Start {
    /// Arguments, the program's own name first.
    pub argv: Vec<String>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The host's name.
    pub hostname: String,
    /// The running executable.
    pub program: PathBuf,
}

impl Start {
    fn load(&self, args: &[String]) -> Loaded {
        config::load(Input {
            args: args.to_vec(),
            env: self.env.clone(),
            hostname: self.hostname.clone(),
            program: self.program.clone(),
        })
    }
}

/// Reads the command line.
///
/// # Errors
/// When it says nothing that can be done.
pub fn read(start: &Start) -> Result<Call, Leave> {
    let (name, args) = start.argv.split_first().map_or(("", &[] as &[_]), |(n, a)| (n.as_str(), a));
    if Path::new(name).file_name().is_some_and(|n| n == COMPATIBLE) {
        return compatible(start, args);
    }
    let role = Role::ALL.into_iter().find(|r| args.first().is_some_and(|a| a == r.name()));
    match role {
        Some(role) => process(start, role, &args[1..], 2),
        None => cloud::read(start, args).unwrap_or_else(|| other(start, args)),
    }
}

fn process(start: &Start, role: Role, args: &[String], refusal: u8) -> Result<Call, Leave> {
    let loaded = start.load(args);
    if loaded.asked.help {
        return Ok(Call::Say(help(role, &loaded)));
    }
    if loaded.asked.print_config {
        return print_config(role, &loaded, refusal);
    }
    Ok(Call::Process { role, loaded, args: args.to_vec(), refusal })
}

/// The values also when some cannot be used; then the problems follow, and the exit code says so.
fn print_config(role: Role, loaded: &Loaded, refusal: u8) -> Result<Call, Leave> {
    let text = if loaded.asked.json { loaded.print_json() } else { loaded.print_text() };
    let problems = match role {
        Role::Relay => loaded.relay().err(),
        Role::Node | Role::Run => loaded.settings().err(),
    };
    match problems {
        None => Ok(Call::Say(text)),
        Some(problems) => Err(Leave { text: format!("{text}\n{problems}\n"), code: refusal }),
    }
}

/// `cloud-api-adaptor <provider> [flags]`, `help`, `version` (compat.md 2.1).
fn compatible(start: &Start, args: &[String]) -> Result<Call, Leave> {
    let usage = format!(
        "usage: {COMPATIBLE} <provider> [flags]\n       {COMPATIBLE} help\n       {COMPATIBLE} version\n\
         \nproviders of this build: {}\nflags of a provider: {COMPATIBLE} <provider> -help\n",
        registry::names().join(", ")
    );
    match args.first().map(String::as_str) {
        Some("help" | "-help" | "--help" | "-h") => Ok(Call::Say(usage)),
        Some("version") => Ok(Call::Say(format!("{COMPATIBLE} (peerpodd) {}\n", build()))),
        Some(word) if !word.is_empty() && !word.starts_with('-') => match registry::keys(word) {
            Ok(_) => process(start, Role::Run, args, 1),
            Err(e) => Err(Leave { text: format!("{e}\n\n{usage}"), code: 1 }),
        },
        _ => Err(Leave { text: usage, code: 1 }),
    }
}

fn other(start: &Start, args: &[String]) -> Result<Call, Leave> {
    // Go's spelling with one dash, for the few flags there are here.
    let spelled = args.iter().map(|arg| match arg.strip_prefix('-') {
        Some(flag) if flag.len() > 1 && !flag.starts_with('-') => format!("--{flag}"),
        _ => arg.clone(),
    });
    let argv = std::iter::once("peerpodd".to_owned()).chain(spelled);
    let matches = command()
        .try_get_matches_from(argv)
        .map_err(|e| Leave { text: e.render().to_string(), code: u8::from(e.use_stderr()) });
    let matches = match matches {
        Err(Leave { text, code: 0 }) => return Ok(Call::Say(text)),
        other => other?,
    };
    match matches.subcommand() {
        Some(("status", asked)) => {
            let port = asked.get_one::<String>("probe-port").cloned();
            let port = port.map(|p| format!("--probe-port={p}"));
            let loaded = start.load(port.as_slice());
            let port =
                loaded.probe_port().map_err(|e| Leave { text: format!("{e}\n"), code: 2 })?;
            let json = asked.get_one::<String>("output").is_some_and(|o| o == "json");
            Ok(Call::Status { port, pod: asked.get_one::<String>("pod").cloned(), json })
        }
        Some(("rotate-ca", asked)) => {
            let dir = asked.get_one::<String>("state-dir").map(|d| format!("--state-dir={d}"));
            let loaded = start.load(dir.as_slice());
            let relay = loaded.relay().map_err(|e| Leave { text: format!("{e}\n"), code: 2 })?;
            Ok(Call::RotateCa { state_dir: relay.paths.state_dir })
        }
        _ => Ok(Call::Say(format!("peerpodd {}\n", build()))),
    }
}

fn command() -> Command {
    let status = Command::new("status")
        .about("Pods of a running node process: phase, VM, address, link, last error")
        .arg(Arg::new("pod").help("Name, namespace/name, or the beginning of a sandbox id"))
        .arg(
            Arg::new("output")
                .short('o')
                .long("output")
                .value_parser(["text", "json"])
                .help("Form of the answer"),
        )
        .arg(
            Arg::new("probe-port")
                .long("probe-port")
                .help("Port of the node process [env PROBE_PORT]"),
        );
    let rotate = Command::new("rotate-ca")
        .about("Has another CA issue the VMs' certificates; running pods do not notice")
        .arg(
            Arg::new("state-dir")
                .long("state-dir")
                .help("State directory of the node process [env PEERPODD_STATE_DIR]"),
        );
    let roles = Role::ALL.map(|role| {
        Command::new(role.name()).about(role.about()).arg(Arg::new("settings").num_args(0..))
    });
    Command::new("peerpodd")
        .about("Runs Kubernetes pods of class kata-remote as virtual machines of their own")
        .version(build())
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(roles)
        .subcommand(status)
        .subcommand(rotate)
        .subcommands(cloud::commands())
        .subcommand(Command::new("version").about("Version and commit"))
}

/// `--help` of a process: every setting with its variable and default.
fn help(role: Role, loaded: &Loaded) -> String {
    let specs = loaded.rows.iter().map(|row| row.spec).filter(|spec| !spec.flag.is_empty());
    let provider = Arg::new("word").value_name("provider").help("The same as --provider");
    Command::new(role.name())
        .bin_name(format!("peerpodd {}", role.name()))
        .about(role.about())
        .after_help("Command line counts more than environment, environment more than default.")
        .disable_help_flag(true)
        .arg(provider)
        .args(specs.map(arg))
        .arg(
            Arg::new("print-config")
                .long("print-config")
                .action(ArgAction::SetTrue)
                .help("Print every effective value with its source and end (-o json: as JSON)"),
        )
        .render_long_help()
        .to_string()
}

fn arg(spec: Spec) -> Arg {
    let mut text = spec.help.to_owned();
    if !spec.env.is_empty() {
        text.push_str(&format!(" [env {}]", spec.env));
    }
    if !spec.default.is_empty() {
        text.push_str(&format!(" [default {}]", spec.default));
    }
    let heading = match spec.origin {
        Origin::Provider => "Settings of the provider",
        Origin::Unused => "Without effect",
        Origin::Upstream | Origin::Ours => "Settings",
    };
    Arg::new(spec.flag).long(spec.flag).value_name("v").help(text).help_heading(heading)
}

#[cfg(test)]
mod tests;
